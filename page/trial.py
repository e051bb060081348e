"""The paper's user study (Section 5.3) for a class: a plan, the people, and what they do.

    DIR/plan.json, consent.txt           what happens; written on the first call, for you to edit
    DIR/PERSON/...                       what happened: page/person.py
    DIR/PERSON/tests.jsonl               each run of the tests, and what came of it
    DIR/PERSON/answers.json              the answers to the questions at the end

A person is known by a code word only. It is also the key to what the person has written, so it is
made hard to guess. Orders of the assistants and problems are drawn in blocks: after every block,
each combination has occurred equally often.
"""

import itertools
import json
import math
import os
import random
import secrets
import threading
import time
from collections import Counter
from pathlib import Path

from page.api import checked_text, text_of
from page.assistants import Request
from page.person import Person, append
from page.plan import open_plan
from page.refused import Refused, field
from support.cli import UserError
from support.files import write_text
from support.judge import judge_all

EVENTS = ("current_code", "proposed_suggestion", "accepted_suggestion", "character_typed",
          "deletion", "cursor_moved",   # the published editor's; the page adds the two below
          "tick", "done")               # the clock, and the end of a part
AT_ONCE = 200                           # events in one request at most
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
        except OSError as error:
            raise UserError(f"the folder {folder} of the study cannot be used ({error.strerror}): "
                            "name another one") from None
        except (ValueError, KeyError, IndexError, TypeError) as error:
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

    def about(self, body, call):
        """The consent text."""
        return {"study": True, "consent": self.plan.consent}

    def join(self, body, call):
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

    def state(self, body, call):
        """Where the person is. The tab that asks is the one that may write from now on."""
        person = self.person(body)
        with person.lock:
            person.tab = tab_of(body)
            return person.state()

    def events(self, body, call):
        """What happened in the editor since the last time."""
        person = self.person(body)
        tab = tab_of(body)
        events = [{**event_of(event), "tab": tab}
                  for event in field(body, "events", list)[:AT_ONCE]]
        with person.lock:
            if person.tab not in (None, tab):  # two would overwrite each other
                raise Refused(423, "the study goes on in another tab or browser")
            person.tab = tab
            person.add(events, field(body, "late", bool, False))
            found = {"last": person.last, "taken": max((event["n"] for event in events), default=0)}
        self.progress()
        return found

    def progress(self):
        """Prints where everyone is, whenever that changes; without a name."""
        counts = Counter(person.place() for person in list(self.people.values()))
        line = ", ".join(f"{counts[place]} {place}" for place in sorted(counts))
        if line != self.told:
            self.told = line
            print(f"{len(self.people)} joined: {line}")

    def suggest(self, body, call):
        """A suggestion of the part's assistant, after the same delay whichever it is."""
        person, text = self.person(body), text_of(body)
        part = person.part
        name = person.who[person.parts[part]] if part in person.began else None
        with person.lock:
            if call.arrived < person.asked:
                return {"suggestion": ""}  # typing has overtaken it
            person.asked = call.arrived
            person.asking.set()  # an older request need not wait any longer
            asking = person.asking = threading.Event()
        eta = self.plan.eta if name and self.models.choices[name].needs_eta else math.inf
        found = name and self.models.suggest(name, id(person), Request(text, eta), call)
        late = time.monotonic() - call.arrived - self.plan.delay_ms / 1000
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

    def test(self, body, call):
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
                append(person.folder / "tests.jsonl", [{
                    "part": part, "event": last, "passed": verdict.passed,
                    "outcome": verdict.outcome, "test": verdict.test}])
        finally:
            person.running.release()
        return {"passed": verdict.passed, "outcome": verdict.outcome,  # and nothing it printed
                "test": verdict.test, "tests": len(person.problem.tests)}

    def answers(self, body, call):
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
