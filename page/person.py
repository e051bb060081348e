"""One participant of a user study: the record of what happened, and the logs made from it.

    DIR/PERSON/person.json               which assistant comes when, and the problem
    DIR/PERSON/events.jsonl              all that happened, as it happened: the record
    DIR/PERSON/late.jsonl                what was typed elsewhere without a connection, kept apart
    DIR/PERSON/ASSISTANT/PROBLEM.tsv     the record in the published editor's format, for study.py

A person works on one problem in several parts: perhaps alone, then with each assistant in turn,
going on with the same program.
"""

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path

from page.api import LONGEST
from page.refused import Refused
from support.files import read_text, remove_leftovers, write_text

HEADER = "timestamp\taction_type\taction_info\tcaret_index\n"
LOGGED = ("current_code", "proposed_suggestion", "accepted_suggestion", "character_typed",
          "deletion", "cursor_moved")   # the published editor's; the page adds the two below
EVENTS = (*LOGGED, "tick", "done")      # the clock, and the end of a part
LATE = 30                               # seconds after a part's end in which its events arrive


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
        """Adds lines to the logs, {part: lines}. If that fails, all are written again next time."""
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
