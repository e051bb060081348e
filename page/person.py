"""One participant of a user study: the record of what happened, and what follows from it.

    DIR/PERSON/person.json               which assistant comes when, and the problem
    DIR/PERSON/events.jsonl              all that happened, as it happened: the record
    DIR/PERSON/late.jsonl                what was typed elsewhere without a connection, kept apart

A person works on one problem in several parts: perhaps alone, then with each assistant in turn,
going on with the same program.
"""

import json
import os
import threading
from pathlib import Path

from page.api import LONGEST
from page.refused import Refused
from support.files import read_text, remove_leftovers

LATE = 30  # seconds after a part's end in which its events arrive


class Person:
    """One participant: the folder, the events so far, and what follows from them."""

    def __init__(self, folder, plan):
        self.folder, self.plan, self.lock = Path(folder), plan, threading.Lock()
        remove_leftovers(self.folder)
        for path in self.folder.glob("*.jsonl"):  # after kill -9 half a line may be at the end
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        fixed = json.loads(read_text(self.folder / "person.json"))
        self.assistants = fixed["assistants"]
        self.problem = {task.name: task for task in plan.problems}[fixed["problem"]]
        self.who = parts_of(self.assistants, plan.minutes_alone)
        self.parts = list(self.who)
        self.minutes = [plan.minutes_alone if part == "alone" else plan.minutes
                        for part in self.parts]
        self.answered = (self.folder / "answers.json").exists()
        self.asked, self.asking = 0.0, threading.Event()  # of the last suggestion asked for
        self.running = threading.Lock()  # held while the tests run
        self.restore()

    def restore(self):
        """Reads the record."""
        self.used, self.done = [0.0] * len(self.parts), [False] * len(self.parts)
        self.code, self.last, self.tab, self.began = self.problem.start, 0, None, set()
        self.stamps = [0]  # when each event happened, by which it is known, from number 1 on
        for event in read_lines(self.folder / "events.jsonl"):
            self.take(event)

    def take(self, event):
        """What an event changes; ValueError if it does not follow the last one."""
        part, kind = event["part"], event["type"]
        if event["n"] != self.last + 1:
            raise ValueError(f"event {self.last + 1} of {self.folder.name} is missing")
        code = edited(self.code, kind, event["info"], event["caret"])
        if len(code) > LONGEST:
            raise ValueError(f"a program has at most {LONGEST} characters")
        self.code = code
        self.last, self.used[part] = event["n"], max(self.used[part], event["used"])
        self.began.add(part)
        self.done[part] |= kind == "done"
        self.tab = event["tab"]
        self.stamps.append(event["ms"])

    @property
    def part(self):
        """The index of the current part; the number of parts when all are over."""
        over = [done or used >= 60 * minutes for done, used, minutes in zip(
            self.done, self.used, self.minutes)]
        return [*over, False].index(False)

    def place(self):
        """Where the person is, for the terminal."""
        part = self.part
        if part == len(self.parts):
            return "have finished" if self.answered else "at the questions"
        return f"{'in' if part in self.began else 'before'} part {part + 1}"

    def add(self, events, elsewhere=False):
        """Writes new events to the record; those that are known are skipped.

        Events that do not follow the last one were typed in a browser that had no connection, while
        the person went on in another: they are kept apart, in late.jsonl. elsewhere: all of these.
        """
        record, late, refused = [], [], None
        for event in events:
            if event["n"] <= self.last and self.stamps[event["n"]] == event["ms"]:
                continue
            if elsewhere or late or event["n"] <= self.last or (
                    event["n"] == self.last + 1 and event["after"] != self.stamps[-1]):
                late.append(event)
                continue
            try:
                self.check_part(event)
                self.take(event)
            except ValueError as error:
                refused = error
                break
            record.append(event)
        try:
            append(self.folder / "events.jsonl", record)
            append(self.folder / "late.jsonl", late)
        except OSError as error:
            self.restore()
            raise Refused(503, f"the server cannot write ({error.strerror})") from None
        if refused:
            raise Refused(409, str(refused))

    def check_part(self, event):
        """Raises ValueError unless an event is in the current part or in one just over."""
        part = event["part"]
        if part > min(self.part, len(self.parts) - 1) or self.done[part] or (
                part + 1 in self.began or event["used"] > 60 * self.minutes[part] + LATE):
            raise ValueError("this part is over, or has not begun")

    def state(self):
        """What the page shows to the person: never which assistant it is."""
        part = self.part
        return {"parts": self.parts, "part": part, "code": self.code, "last": self.last,
                "stamp": self.stamps[-1], "begun": part in self.began, "answered": self.answered,
                "used": self.used[part] if part < len(self.parts) else 0,
                "minutes": self.minutes, "statement": self.problem.statement,
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


def parts_of(assistants, alone):
    """{part: its assistant, or None}, in order; alone: whether the first part has no assistant."""
    return {**({"alone": None} if alone else {}),
            **{f"assistant_{k}": name for k, name in enumerate(assistants, 1)}}


def read_lines(path):
    """The objects in a file of JSON lines, [] without a file. Half a line at the end is ignored."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from None


def append(path, objects):
    """Adds JSON lines to a file and waits until they are on the disk. If that fails, adds none."""
    if not objects:
        return
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "a", encoding="utf-8", newline="") as file:
            file.writelines(json.dumps(each) + "\n" for each in objects)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        if path.exists():
            os.truncate(path, size)
        raise
