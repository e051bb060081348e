"""The paper's user study (Section 5.3) for a class: a plan, the people, and their logs.

    DIR/plan.json, consent.txt           what happens; written on the first call, for you to edit
    DIR/PERSON/person.json               which assistant comes when, and the problem
    DIR/PERSON/events.jsonl              all that happened, as it happened: the record
    DIR/PERSON/ASSISTANT/PROBLEM.tsv     the same in the published editor's format, for study.py
    DIR/PERSON/tests.jsonl               each run of the tests, and what came of it
    DIR/PERSON/mapping.json, answers.json

A person is known by a code word only. It is also the key to what the person has written, so it is
made hard to guess. A person works on one problem in several parts: perhaps alone, then with each
assistant in turn, going on with the same program. Orders and problems are drawn in blocks: after
every block, each combination has occurred equally often.
"""

import contextlib
import fcntl
import itertools
import json
import os
import random
import secrets
import threading
import time
from collections import Counter
from pathlib import Path

from page.api import LONGEST, program
from page.assistants import Request
from page.plan import open_plan
from page.refused import Refused, field
from support.cli import UserError
from support.files import read_text, remove_leftovers, write_text
from support.judge import judge_all

HEADER = "timestamp\taction_type\taction_info\tcaret_index\n"
LOGGED = ("current_code", "proposed_suggestion", "accepted_suggestion", "character_typed",
          "deletion", "cursor_moved")   # the published editor's; the page adds the two below
EVENTS = (*LOGGED, "tick", "done")      # the clock, and the end of a part
AT_ONCE = 200                           # events in one request at most
LATE = 30                               # seconds after a part's end in which its events arrive
RUNS = 2                                # programs that are run at a time
COLOURS = ("amber black blue brown coral cream cyan green grey ivory jade khaki lemon lilac lime "
           "mint navy ochre olive orange peach pearl pink plum purple red ruby rust sand silver "
           "teal white").split()
ANIMALS = ("badger bat bear beaver bee bison camel cat crane crow deer dog dove duck eagle eel elk "
           "falcon ferret finch fox frog goat goose hare hawk hen heron horse ibis jay koala lark "
           "lion llama lynx mole moose moth mouse mule newt otter owl ox panda puma quail rabbit "
           "raven robin seal shark sheep snail swan tiger toad trout viper wasp whale wolf yak "
           "zebra").split()


# ------------------------------------------------------------------- one person


class Person:
    """One participant: the folder, the events so far, and what follows from them."""

    def __init__(self, folder, plan):
        self.folder, self.plan, self.lock = Path(folder), plan, threading.Lock()
        remove_leftovers(self.folder)
        fixed = json.loads(read_text(self.folder / "person.json"))
        self.assistants, self.problem = fixed["assistants"], plan.problem(fixed["problem"])
        self.parts = ["alone"] * bool(plan.minutes_alone) + [
            f"assistant_{k}" for k in range(1, len(self.assistants) + 1)]
        self.answered = (self.folder / "answers.json").exists()
        self.asking = threading.Event()  # of the last suggestion that was asked for
        self.running = threading.Lock()  # held while the tests run
        self.restore()

    def restore(self):
        """Reads the record and writes the logs again: after kill -9 they may lack its end."""
        self.used, self.done = [0.0] * len(self.parts), [False] * len(self.parts)
        self.code, self.last, self.tab, self.began = self.problem.start, 0, None, set()
        self.stamps = []  # when each event happened, by which it is known
        path, events = self.folder / "events.jsonl", []
        if path.exists():
            whole, _, cut = path.read_bytes().rpartition(b"\n")
            if cut:  # the last event did not arrive on the disk
                write_bytes(path, whole + b"\n" * bool(whole))
            events = [json.loads(line) for line in whole.splitlines()]
        logs = {part: [HEADER] for part in self.parts}
        for number, event in enumerate(events, 1):
            if event["n"] != number:
                raise ValueError(f"{path} lacks event {number}")
            self.take(event)
            logs[self.parts[event["part"]]] += log_line(event)
        for part, lines in logs.items():
            if len(lines) > 1:
                self.log(part).parent.mkdir(exist_ok=True)
                write_text(self.log(part), "".join(lines))

    def take(self, event):
        """What an event changes."""
        part, kind = event["part"], event["type"]
        code = edited(self.code, kind, event["info"], event["caret"])
        if len(code) > LONGEST:
            raise ValueError(f"a program has at most {LONGEST} characters")
        self.code = code
        self.last, self.used[part] = event["n"], max(self.used[part], event["used"])
        self.began.add(part)
        self.done[part] |= kind == "done"
        self.tab = event["tab"]
        self.stamps.append(event["ms"])

    def log(self, part):
        """The file in the published editor's format."""
        return self.folder / part / f"{self.problem.slug}.tsv"

    @property
    def part(self):
        """The index of the part that goes on; the number of parts when all are over."""
        over = [done or used >= 60 * self.minutes(k) for k, (done, used) in enumerate(
            zip(self.done, self.used))]
        return next((k for k, ended in enumerate(over) if not ended), len(over))

    def place(self):
        """Where the person is, for the terminal."""
        part = self.part
        if part == len(self.parts):
            return "have finished" if self.answered else "at the questions"
        return f"{'in' if part in self.began else 'before'} part {part + 1}"

    def minutes(self, part):
        """How long a part takes."""
        return self.plan.minutes_alone if self.parts[part] == "alone" else self.plan.minutes

    def assistant(self, part):
        """The name of the assistant of a part, None if there is none."""
        name = self.parts[part] if part < len(self.parts) else "alone"
        return None if name == "alone" else self.assistants[int(name.split("_")[1]) - 1]

    def add(self, events):
        """Writes new events to the record, then to the logs; those that are known are skipped.

        Events with the number of another one were typed in a browser that had no connection, while
        the person went on in another: they are kept apart, in late.jsonl.
        """
        record, logs, late, refused = [], {}, [], None
        for event in events:
            if event["n"] <= self.last:
                if self.stamps[event["n"] - 1] != event["ms"]:
                    late.append(json.dumps(event) + "\n")
                continue
            try:
                self.check(event)
                self.take(event)
            except (Refused, ValueError) as error:
                refused = error if isinstance(error, Refused) else Refused(409, str(error))
                break
            record.append(json.dumps(event) + "\n")
            logs.setdefault(self.parts[event["part"]], []).extend(log_line(event))
        append(self.folder / "late.jsonl", "".join(late))
        self.write("".join(record), logs)
        if refused:
            raise refused

    def write(self, record, logs):
        """Adds to the record and the logs: all or, if the disk is full, nothing."""
        path = self.folder / "events.jsonl"
        size = path.stat().st_size if path.exists() else 0
        try:
            append(path, record)
        except OSError as error:
            if path.exists():
                os.truncate(path, size)
            with contextlib.suppress(OSError):
                self.restore()
            raise Refused(503, f"the server cannot write ({error.strerror})") from None
        for part, lines in logs.items():
            log = self.log(part)
            log.parent.mkdir(exist_ok=True)
            append(log, "".join([HEADER] * (not log.exists()) + lines))

    def check(self, event):
        """Raises Refused unless the event is the next one, in a part that goes on or ended now."""
        part = event["part"]
        if event["n"] != self.last + 1:
            raise Refused(409, f"event {self.last + 1} is missing")
        if part > self.part or self.done[part] or part + 1 in self.began or (
                event["used"] > 60 * self.minutes(part) + LATE):
            raise Refused(409, "this part is over, or has not begun")

    def state(self):
        """What the page shows to the person: never which assistant it is."""
        part = self.part
        return {"parts": self.parts, "part": part, "code": self.code, "last": self.last,
                "begun": part in self.began, "answered": self.answered,
                "used": self.used[part] if part < len(self.parts) else 0,
                "minutes": [self.minutes(k) for k in range(len(self.parts))],
                "statement": self.problem.statement, "problem": self.problem.name,
                "questions": self.plan.questions, "run_programs": self.plan.run_programs}


def edited(code, kind, info, caret):
    """The program after an event; ValueError if the event does not fit the program."""
    if kind == "current_code":
        return info
    if kind in ("accepted_suggestion", "character_typed"):
        begin = caret - len(info)
        if not 0 <= begin <= len(code):
            raise ValueError(f"text at {begin}, but the program has {len(code)} characters")
        return code[:begin] + info + code[begin:]
    if kind == "deletion":
        if not caret + int(info) <= len(code):
            raise ValueError(f"{info} characters deleted at {caret} of {len(code)}")
        return code[:caret] + code[caret + int(info):]
    return code


def log_line(event):
    """[the line of an event in the published editor's format], [] if it has none."""
    if event["type"] not in LOGGED:
        return []
    info = event["info"].replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(event["ms"] // 1000))
    return [f"{stamp}.{event['ms'] % 1000:03}Z\t{event['type']}\t{info}\t{event['caret']}\n"]


def append(path, text):
    """Adds text to a file and waits until it is on the disk."""
    if not text:
        return
    with open(path, "a", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_bytes(path, content):
    """Replaces a file, all or nothing."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    os.replace(new, path)


# ------------------------------------------------------------------- the study


class Trial:
    """A study: its plan, its people, and the routes of the page."""

    def __init__(self, folder, plan):
        self.folder, self.plan, self.lock = Path(folder), plan, threading.Lock()
        self.runs = threading.BoundedSemaphore(RUNS)
        self.told, self.latest = "", 0.0  # the last line of `progress`; seconds, for `warn`
        self.held = os.open(folder, os.O_RDONLY)  # closed with the process
        try:
            fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self.held)
            raise UserError(f"another page serves the study in {folder}: end it first") from None
        self.people = {path.parent.name: Person(path.parent, plan)
                       for path in sorted(self.folder.glob("*/person.json"))}

    @classmethod
    def open(cls, folder):
        """The study in a folder; a UserError if its plan cannot be used or was written just now."""
        try:
            return cls(folder, open_plan(Path(folder)))
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"the study in {folder} cannot be read ({error!r}): once people "
                            "have joined, its plan must not change, nor its files") from None

    def announcement(self):
        """What the terminal says."""
        ran = ("Programs of participants are RUN on this machine: the judge is no sandbox, so a "
               "program could read the logs, and who is who. " if self.plan.run_programs else "")
        unedited = ("consent.txt still holds the line that is for you. "
                    if "(Whoever runs the study" in self.plan.consent else "")
        return (f"A study in {self.folder}: {len(self.people)} people so far; join code "
                f"{self.plan.join_code}. {unedited}{ran}Ctrl-C ends it, the same command goes on.")

    def routes(self, models):
        """The routes of a study; nothing else is served, since it would tell who is who."""
        missing = [name for name in self.plan.assistants if name not in models.choices]
        if missing:
            raise UserError(f"the plan names the assistant {missing[0]!r}, but there are "
                            f"{', '.join(models.choices)}: change plan.json, or give --assistant")
        self.models = models
        return {("GET", "/api/about"): self.about,
                **{("POST", f"/api/study/{name}"): work for name, work in (
                    ("join", self.join), ("state", self.state), ("events", self.events),
                    ("suggest", self.suggest), ("test", self.test), ("answers", self.answers))}}

    def about(self, body, begin):
        """The consent text."""
        return {"study": True, "consent": self.plan.consent, "delay_ms": self.plan.delay_ms}

    def join(self, body, begin):
        """A code word for a new person."""
        given, wanted = (code.strip().casefold().encode(errors="replace") for code in (
            field(body, "join_code", str), self.plan.join_code))
        if not secrets.compare_digest(given, wanted):
            raise Refused(403, "this is not the code to join: ask who runs the study")
        with self.lock:
            if len(self.people) >= self.plan.most_people:
                raise Refused(403, "the study has all the people that its plan allows")
            word = code_word()
            folder = self.folder / word
            folder.mkdir()
            assistants, problem = arrangement(self.plan, len(self.people))
            write_text(folder / "mapping.json", json.dumps(
                {f"assistant_{k}": name for k, name in enumerate(assistants, 1)}) + "\n")
            write_text(folder / "person.json", json.dumps(
                {"assistants": assistants, "problem": problem}) + "\n")
            self.people[word] = Person(folder, self.plan)
        self.progress()
        return {"word": word}

    def person(self, body):
        """The person whose code word this is."""
        person = self.people.get(field(body, "word", str).strip().lower())
        if person is None:
            raise Refused(403, "nobody has this code word")
        return person

    def state(self, body, begin):
        """Where the person is. The tab that asks is the one that may write from now on."""
        person = self.person(body)
        with person.lock:
            person.tab = field(body, "tab", str)
            return person.state()

    def events(self, body, begin):
        """What happened in the editor since the last time."""
        person = self.person(body)
        tab = field(body, "tab", str)
        events = [{**event_of(event), "tab": tab}
                  for event in field(body, "events", list)[:AT_ONCE]]
        with person.lock:
            self.check_tab(person, body)
            if any(event["part"] >= len(person.parts) for event in events):
                raise Refused(400, "there is no such part")
            person.add(events)
            found = {"last": person.last, "part": person.part}
        self.progress()
        return found

    def check_tab(self, person, body):
        """Only one tab may write: two would overwrite each other."""
        tab = field(body, "tab", str)
        if person.tab not in (None, tab):
            raise Refused(423, "the study goes on in another tab or browser")
        person.tab = tab

    def progress(self):
        """Prints where everyone is, whenever that changes; without a name."""
        counts = Counter(person.place() for person in list(self.people.values()))
        line = ", ".join(f"{counts[place]} {place}" for place in sorted(counts))
        if line != self.told:
            self.told = line
            print(f"{len(self.people)} joined: {line}")

    def suggest(self, body, begin):
        """A suggestion of the part's assistant, after the same delay whichever it is."""
        person, text = self.person(body), program(body)
        part = person.part
        name = person.assistant(part) if part in person.began else None
        with person.lock:
            person.asking.set()  # an older request need not wait any longer
            asking = person.asking = threading.Event()
        found = name and self.models.suggest(name, id(person), Request(text))
        late = time.monotonic() - begin - self.plan.delay_ms / 1000
        if late > 0 and self.plan.delay_ms and not asking.is_set():
            self.warn(late)
        asking.wait(max(0, -late))
        return {"suggestion": found.text if found else ""}

    def warn(self, late):
        """Says that a suggestion came later than planned: the first, and any twice as late."""
        if late > 2 * self.latest:
            self.latest = late
            print(f"A suggestion came {1000 * late:.0f} ms later than delay_ms: the delay may tell "
                  "who it is; raise delay_ms in plan.json")

    def test(self, body, begin):
        """How many tests the program passes, up to the first that fails."""
        person, code = self.person(body), program(body)
        if not self.plan.run_programs:
            raise Refused(403, "the plan of this study does not run programs")
        if not person.running.acquire(blocking=False):
            raise Refused(429, "your program is running: wait for its result")
        try:
            with self.runs:
                [verdict] = judge_all([(code, person.problem.tests)], 1, label=None)
        finally:
            person.running.release()
        part = person.parts[min(person.part, len(person.parts) - 1)]
        with person.lock:
            append(person.folder / "tests.jsonl", json.dumps({
                "part": part, "event": person.last, "passed": verdict.passed,
                "outcome": verdict.outcome, "test": verdict.test}) + "\n")
        return {"passed": verdict.passed, "outcome": verdict.outcome,  # and nothing it printed
                "test": verdict.test, "tests": len(person.problem.tests)}

    def answers(self, body, begin):
        """The answers to the questions at the end."""
        person, given = self.person(body), field(body, "answers", dict)
        choices = {part for part in person.parts if part != "alone"}
        answers = {question: given.get(question) for question in self.plan.questions}
        if person.part < len(person.parts):
            raise Refused(409, "the questions come after the last part")
        if not all(isinstance(choice, str) and choice in choices for choice in answers.values()):
            raise Refused(400, "answer each question with one of the assistants")
        with person.lock:
            write_text(person.folder / "answers.json", json.dumps(answers, indent=2) + "\n")
            person.answered = True
        self.progress()
        return {"answered": True}


def event_of(body):
    """An event as it is kept, from what a browser sent."""
    kind, info = field(body, "type", str), field(body, "info", str)
    if kind not in EVENTS or kind == "deletion" and not (info.isdecimal() and len(info) < 7):
        raise Refused(400, f"there is no event {kind[:30]!r} with {info[:30]!r}")
    program({"text": info})  # not too long, and valid Unicode
    return {"n": field(body, "n", int, least=1, most=10**9),
            "part": field(body, "part", int, least=0, most=100),
            "ms": field(body, "ms", int, least=0, most=10**14), "type": kind, "info": info,
            "caret": field(body, "caret", int, least=0, most=10**7),
            "used": round(float(field(body, "used", float, least=0, most=10**6)), 1)}


def arrangement(plan, number):
    """(the assistants in order, the problem's name) of the person with this number, from 0."""
    every = list(itertools.product(itertools.permutations(plan.assistants),
                                   [problem.name for problem in plan.problems]))
    block, place = divmod(number, len(every))
    random.Random(f"{plan.seed} {block}").shuffle(every)
    assistants, problem = every[place]
    return list(assistants), problem


def code_word():
    """A word of 40 bits, too many to be guessed. Example: teal-otter-471123905."""
    return "-".join([secrets.choice(COLOURS), secrets.choice(ANIMALS),
                     f"{secrets.randbelow(10**9):09}"])
