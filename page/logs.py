"""What happened in one part of a user study: its figures, and the published editor's logs of it.

    DIR/PERSON/ASSISTANT/PROBLEM_log.csv    what happened; any .csv, or .tsv as written here once
    DIR/PERSON/mapping_do_not_read.json     which assistant is in which folder

A log is tab-separated, with a header: timestamp, action_type, action_info, caret_index. Tabs and
line breaks in the text are written as \\t, \\n and \\r, and the caret is that after the action.
"""

import dataclasses
import difflib
import itertools
import json
import os
import re
import time

from support.files import read_text

MAPPING = "mapping_do_not_read.json"
COLUMNS = ["timestamp", "action_type", "action_info", "caret_index"]
LONGEST = 10**7  # characters of a program: a caret further on is an error

# ------------------------------------------------------------------- the events of one part


@dataclasses.dataclass
class Figures:
    """What one part, or several added up, come to; characters, not tokens."""

    proposed: int = 0           # suggestions shown
    accepted: int = 0
    suggested: int = 0          # characters of accepted suggestions
    deleted: int = 0            # of these, deleted later
    typed: int = 0
    shown: int = 0              # characters of all suggestions shown

    def __add__(self, other):
        return Figures(*(a + b for a, b in zip(dataclasses.astuple(self),
                                               dataclasses.astuple(other))))


def figures(events):
    """The Figures of a part: every character of the program is marked by who wrote it.

    Example: "ab" is suggested and accepted, then one character is deleted: accepted 1, suggested
    2, deleted 1. ValueError: an event is impossible.
    """
    found, code, marks = Figures(), "", ""  # marks: s suggested, t typed, ? from before
    for event in events:
        kind, info, caret = event["type"], event["info"], event["caret"]
        if not 0 <= caret <= LONGEST:
            raise ValueError(f"the caret is at {caret}")
        if kind == "current_code":
            code, marks = changed(code, marks, info)
        elif kind == "proposed_suggestion":
            found.proposed += 1
            found.shown += len(info)
        elif kind in ("accepted_suggestion", "character_typed"):
            begin, who = max(0, caret - len(info)), "s" if kind == "accepted_suggestion" else "t"
            code = code[:begin].ljust(begin, "\0") + info + code[begin:]
            marks = marks[:begin].ljust(begin, "?") + who * len(info) + marks[begin:]
            found.accepted += who == "s"
            found.suggested += len(info) * (who == "s")
            found.typed += len(info) * (who == "t")
        elif kind == "deletion":
            end = caret + int(info)
            found.deleted += marks[caret:end].count("s")
            code, marks = code[:caret] + code[end:], marks[:caret] + marks[end:]
    return found


def changed(code, marks, new):
    """(program, marks) when a record says the program: who wrote what is kept where it is the same.

    Example: "abc" marked "sst" becomes "abXc": marked "ss?t".
    """
    if escaped(code) == escaped(new):  # a log does not tell a line break from a backslash and an n
        return code, marks
    begin = len(os.path.commonprefix([code, new]))
    end = len(os.path.commonprefix([code[begin:][::-1], new[begin:][::-1]]))  # characters after it
    old, now = code[begin:len(code) - end], new[begin:len(new) - end]
    middle = ["?"] * len(now)
    for a, b, n in difflib.SequenceMatcher(None, old, now, autojunk=False).get_matching_blocks():
        middle[b:b + n] = marks[begin + a:begin + a + n]
    return new, marks[:begin] + "".join(middle) + marks[len(code) - end:]


# ------------------------------------------------------------------- the published editor's logs


def escaped(text):
    """A text as a log has it. A backslash is not escaped."""
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def unescaped(text, size=0):
    """The text of a log's field; size: how many characters it has, if more than there seem to be.

    Then the first of what looks like tabs and line breaks are a backslash and a letter.
    """
    plain = re.sub(r"\\[tnr]", lambda found: json.loads(f'"{found[0]}"'), text)
    if not len(plain) < size <= len(text):
        return plain
    number = itertools.count(len(plain) - size)
    return re.sub(r"\\[tnr]", lambda found: found[0] if next(number) < 0 else json.loads(
        f'"{found[0]}"'), text)


def as_log(events):
    """The events of a part as the published editor writes them."""
    lines = ["\t".join(COLUMNS) + "\n"]
    for event in events:
        if event["type"] not in ("tick", "done"):  # that editor has no such actions
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(event["ms"] // 1000))
            lines.append(f"{stamp}.{event['ms'] % 1000:03}Z\t{event['type']}\t"
                         f"{escaped(event['info'])}\t{event['caret']}\n")
    return "".join(lines)


def read_log(path):
    """The events of a log, for `figures`; before them nothing is known of the program.

    Text is not quoted. What was typed or accepted has as many characters as the caret moved, if
    that can be: so a backslash and an n, which look like a line break, count as two. ValueError
    names the line that is damaged; half a line at the end is ignored.
    """
    lines = read_text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
    if lines[0].split("\t") != COLUMNS:
        raise ValueError(f"the first line of {path.name} is not {' '.join(COLUMNS)}")
    events, before, proposed = [{"type": "current_code", "info": "", "caret": 0}], 0, {}
    for number, line in enumerate(lines[1:], 2):
        _, kind, info, caret = (line.split("\t") + [""] * 4)[:4]
        if line.count("\t") != 3 or not caret.isdecimal() or int(caret) > LONGEST:
            if number == len(lines) and not caret:
                break  # cut off by a crash
            raise ValueError(f"line {number} of {path.name} is no action, or not at a place in a "
                             f"program: {line[:60]!r}")
        event = {"type": kind, "info": unescaped(info), "caret": int(caret)}
        if kind == "deletion":
            event["info"] = info if info.isdecimal() else str(max(0, before - event["caret"]))
        elif kind in ("accepted_suggestion", "character_typed"):
            event["info"] = unescaped(info, event["caret"] - before)
            if kind == "accepted_suggestion" and escaped(proposed.get("info", "")) == info:
                proposed["info"] = event["info"]
        elif kind == "proposed_suggestion":
            proposed = event
        events.append(event)
        before = event["caret"]
    return events


def logs_of(folder):
    """{folder of an assistant: paths of its logs}, one for each problem."""
    found = {}
    for path in sorted(folder.glob("*/*.[ct]sv"), reverse=True):  # .tsv first: .csv replaces it
        found.setdefault(path.parent.name, {})[path.stem] = path
    return {part: list(found[part].values()) for part in sorted(found)}


def mapping_of(folder):
    """{folder of an assistant: its name}, {} without a file; the values may be objects."""
    path = next((folder / name for name in (MAPPING, "mapping.json") if (folder / name).exists()),
                None)
    found = {}
    for part, name in object_in(path).items() if path else ():
        if isinstance(name, dict):
            part, name = (name.get(key) for key in ("obfuscatedDirName", "actualName"))
        if not isinstance(name, str) or not isinstance(part, str):
            raise ValueError(f"{path.name} gives {name!r} for {part!r}: give the name of an "
                             "assistant")
        found[part] = name
    return found


def object_in(path):
    """The object in a JSON file; ValueError if there is something else in it."""
    found = json.loads(read_text(path))
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds {str(found)[:60]!r}: give an object in braces")
    return found
