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
import itertools
import json
import math
import os
import random
import secrets
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from page.api import LONGEST, checked_text, text_of
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
PATIENCE = 20                           # seconds that a program waits to be run
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
        self.asked, self.asking = 0.0, threading.Event()  # of the last suggestion asked for
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
        self.stale = False  # whether a log lacks lines of the record

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
        """The index of the current part; the number of parts when all are over."""
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

    def add(self, events, elsewhere=False):
        """Writes new events to the record, then to the logs; those that are known are skipped.

        Events that do not follow the last one were typed in a browser that had no connection, while
        the person went on in another: they are kept apart, in late.jsonl. elsewhere: all of these.
        """
        record, logs, late, refused = [], {}, [], None
        for event in events:
            if event["n"] <= self.last and self.stamps[event["n"] - 1] == event["ms"]:
                continue
            if elsewhere or late or event["n"] <= self.last or (
                    event["n"] == self.last + 1 and event["after"] != self.stamp):
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
        self.write("".join(record), "".join(late))
        self.write_logs(logs)
        if refused:
            raise refused

    @property
    def stamp(self):
        """When the last event happened, by which the next one names it; 0 before the first."""
        return self.stamps[-1] if self.stamps else 0

    def write(self, record, late):
        """Adds to the record and to late.jsonl: all or, if the disk is full, nothing."""
        paths = [self.folder / name for name in ("events.jsonl", "late.jsonl")]
        sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
        try:
            for path, text in zip(paths, (record, late)):
                append(path, text)
        except OSError as error:
            for path, size in zip(paths, sizes):
                if path.exists():
                    os.truncate(path, size)
            with contextlib.suppress(OSError):
                self.restore()
            raise Refused(503, f"the server cannot write ({error.strerror})") from None

    def write_logs(self, logs):
        """Adds lines to the logs, {part: lines}. If that fails, all are written anew next time."""
        try:
            if self.stale:
                return self.restore()
            self.stale = True
            for part, lines in logs.items():
                log = self.log(part)
                log.parent.mkdir(exist_ok=True)
                append(log, "".join([HEADER] * (not log.exists()) + lines))
            self.stale = False
        except OSError as error:
            print(f"empower.py: a log of a person cannot be written ({error.strerror}); the record "
                  "is safe, and the log is written again with the next event", file=sys.stderr)

    def check(self, event):
        """Raises Refused unless the event is the next one, in the current part or one just over."""
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
                "stamp": self.stamp, "begun": part in self.began, "answered": self.answered,
                "used": self.used[part] if part < len(self.parts) else 0,
                "minutes": [self.minutes(k) for k in range(len(self.parts))],
                "statement": self.problem.statement,
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
        try:
            import fcntl
        except ModuleNotFoundError:
            raise UserError("a study needs Linux or macOS") from None
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
                f"{self.plan.join_code}. {unedited}{ran}Ctrl-C ends it, the same command "
                "resumes it.")

    def routes(self, models):
        """The routes of a study; nothing else is served, since it would tell who is who."""
        missing = [name for name in self.plan.assistants if name not in models.choices]
        if missing:
            raise UserError(f"the plan names the assistant {missing[0]!r}, but there are "
                            f"{', '.join(models.choices)}: change plan.json, or give --assistant")
        for word, person in self.people.items():
            if not set(person.assistants) <= set(self.plan.assistants):
                raise UserError(f"{word} has joined with {', '.join(person.assistants)}: the "
                                "assistants of the plan must not change any more")
        self.models = models
        return {("GET", "/api/about"): self.about,
                **{("POST", f"/api/study/{name}"): work for name, work in (
                    ("join", self.join), ("state", self.state), ("events", self.events),
                    ("suggest", self.suggest), ("test", self.test), ("answers", self.answers))}}

    def about(self, body, arrived):
        """The consent text."""
        return {"study": True, "consent": self.plan.consent}

    def join(self, body, arrived):
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

    def state(self, body, arrived):
        """Where the person is. The tab that asks is the one that may write from now on."""
        person = self.person(body)
        with person.lock:
            person.tab = tab_of(body)
            return person.state()

    def events(self, body, arrived):
        """What happened in the editor since the last time."""
        person = self.person(body)
        tab = tab_of(body)
        events = [{**event_of(event), "tab": tab}
                  for event in field(body, "events", list)[:AT_ONCE]]
        with person.lock:
            self.check_tab(person, body)
            if any(event["part"] >= len(person.parts) for event in events):
                raise Refused(400, "there is no such part")
            person.add(events, field(body, "late", bool, False))
            found = {"last": person.last, "taken": max((event["n"] for event in events), default=0)}
        self.progress()
        return found

    def check_tab(self, person, body):
        """Only one tab may write: two would overwrite each other."""
        tab = tab_of(body)
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

    def suggest(self, body, arrived):
        """A suggestion of the part's assistant, after the same delay whichever it is."""
        person, text = self.person(body), text_of(body)
        part = person.part
        name = person.assistant(part) if part in person.began else None
        with person.lock:
            if arrived < person.asked:
                return {"suggestion": ""}  # typing has overtaken it
            person.asked = arrived
            person.asking.set()  # an older request need not wait any longer
            asking = person.asking = threading.Event()
        eta = self.plan.eta if name and self.models.choices[name].needs_eta else math.inf
        found = name and self.models.suggest(name, id(person), Request(text, eta))
        late = time.monotonic() - arrived - self.plan.delay_ms / 1000
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

    def test(self, body, arrived):
        """How many tests the program passes, up to the first that fails."""
        person, code = self.person(body), text_of(body)
        if not self.plan.run_programs:
            raise Refused(403, "the plan of this study does not run programs")
        if not person.running.acquire(blocking=False):
            raise Refused(429, "your program is running: wait for its result")
        try:
            with person.lock:
                part, last = person.parts[min(person.part, len(person.parts) - 1)], person.last
            if not self.runs.acquire(timeout=PATIENCE):
                raise Refused(503, "too many programs are running: try again in a moment")
            try:
                [verdict] = judge_all([(code, person.problem.tests)], 1, label=None)
            finally:
                self.runs.release()
            with person.lock:
                append(person.folder / "tests.jsonl", json.dumps({
                    "part": part, "event": last, "passed": verdict.passed,
                    "outcome": verdict.outcome, "test": verdict.test}) + "\n")
        finally:
            person.running.release()
        return {"passed": verdict.passed, "outcome": verdict.outcome,  # and nothing it printed
                "test": verdict.test, "tests": len(person.problem.tests)}

    def answers(self, body, arrived):
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


def tab_of(body):
    """What a tab calls itself."""
    tab = field(body, "tab", str)
    if len(tab) > 40:
        raise Refused(400, "the name of a tab has at most 40 characters")
    return tab


def event_of(body):
    """An event as it is kept, from what a browser sent."""
    kind, info = field(body, "type", str), field(body, "info", str)
    if kind not in EVENTS or kind == "deletion" and not (info.isdecimal() and len(info) < 7):
        raise Refused(400, f"there is no event {kind[:30]!r} with {info[:30]!r}")
    checked_text(info)
    return {"n": field(body, "n", int, least=1, most=10**9),
            "part": field(body, "part", int, least=0, most=100),
            "ms": field(body, "ms", int, least=0, most=10**14),
            "after": field(body, "after", int, least=0, most=10**14), "type": kind, "info": info,
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
