"""Problems with tests, from the files in which others publish them, and programs judged on them.

All formats (see formats.py) become a `Problem`, which the judge can try a program on: stdin tests
directly, tests that call the program through harness.py. The first row shows the format of a file.
"""

import codecs
import collections
import contextlib
import dataclasses
import datetime
import json
import pickle
import re
import secrets
import sys
import zlib
from pathlib import Path

from section5.formats import FORMATS, PREAMBLE, Unusable, difficulty_of, published
from support.cli import UserError
from support.judge import MB, Allowed, Verdict, judge_all

HARNESS = Path(__file__).with_name("harness.py")
SECONDS = 6.0  # for a test, or a call, unless the problem says otherwise
CALLS = 10     # times as long for all calls of a problem
OUTCOME = re.compile(r"exit status 1: ([a-z ]+), test (\d+): (.*)")  # as harness.py ends


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem, in one form for every source.

    statement: what the human reads. starter: the code that the program begins with, or "".
    tests: (stdin, expected stdout) pairs; calls: tests of harness.py. A problem has one of the two.
    """

    id: str
    statement: str
    starter: str = ""
    tests: tuple = ()
    calls: str = ""  # JSON of {"before", "setup", "names", "tests"}, for harness.py
    needs_packages: bool = False  # its tests import more than the standard library
    date: str = ""   # of publication, ISO; "" if the source does not say
    difficulty: str = ""
    seconds: float = SECONDS
    memory: int = 512 * MB

    @property
    def task(self):
        """What she is told besides the statement: how the program begins, or is used."""
        if self.starter and self.starter.strip() in self.statement:
            return "It begins with the code above."
        if self.starter:
            return f"It begins with this code:\n```python\n{self.starter}\n```"
        if not self.calls:
            return "It reads from standard input and prints its answer."
        with long_integers():
            name = json.loads(self.calls)["tests"][0].get("call")
        return (f"Write a function {name}." if name
                else "Write the functions that the examples call.")

    @property
    def limits(self):
        """(seconds, bytes of memory, bytes of output) of a run in the judge.

        To read calls takes a second for 10 MB of them; an answer may be twice as long as expected.
        """
        expected = max((len(expected) for _, expected in self.tests), default=0)
        seconds = self.seconds * CALLS + len(self.calls) // (10 * MB) if self.calls \
            else self.seconds
        return seconds, self.memory, max(MB, 2 * expected)

    def job(self, program):
        """(program, tests) for the judge."""
        if not self.calls:
            return program, self.tests
        token = secrets.token_hex(16)
        stdin = json.dumps({"program": program, "token": token, "seconds": self.seconds})
        stdin = f"{stdin[:-1]}, {self.calls[1:]}"
        return HARNESS.read_text(encoding="utf-8"), ((stdin, token),)


def judge_programs(problems, programs, workers=None, label="judge", packages=False):
    """The judge's Verdict of each program on its problem, in order.

    packages: whether programs may import what is installed here, or only the standard library.
    """
    allowed = Allowed(PREAMBLE, tuple(path for path in sys.path if packages and path.endswith(
        ("site-packages", "dist-packages"))))
    verdicts, groups = [None] * len(problems), {}
    for k, problem in enumerate(problems):
        groups.setdefault(problem.limits, []).append(k)
    for limits, group in groups.items():
        found = judge_all([problems[k].job(programs[k]) for k in group], workers, *limits,
                          label=label, allowed=allowed)
        for k, verdict in zip(group, found):
            verdicts[k] = of_calls(verdict) if problems[k].calls else verdict
    return verdicts


def of_calls(verdict):
    """What became of a program that harness.py called, from the judge's verdict of harness.py."""
    if found := OUTCOME.fullmatch(verdict.detail):
        return Verdict(found[1], int(found[2]), found[3])
    if verdict.outcome == "wrong answer":  # the detail has the token
        return Verdict("runtime error", verdict.test, "the program ended its tests")
    return verdict


# ------------------------------------------------------------------- reading


def read_problems(path, since="", difficulty="", limit=None, packages=False):
    """The Problems in a JSONL or JSON file, in order.

    since: an ISO date; problems before it, or without a date, are left out. difficulty: only these,
    for instance "easy" or "easy,medium", or "1200" where it is a rating. limit: at most so many,
    the first. packages: also those whose tests need more than the standard library. A problem
    without an id gets the number of its row. A UserError says what is wrong.
    """
    since, read = since and checked_date(since), None
    difficulties = {name.strip() for name in difficulty.lower().split(",")}
    found, left_out = [], collections.Counter()
    for k, row in enumerate(read_rows(path)):
        read = read or format_of(row, path)
        if limit is not None and len(found) == limit:
            break
        if since and published(row) < since:
            left_out["with --since, their date is missing or unknown"] += not published(row)
            continue
        if difficulty and difficulty_of(row) not in difficulties:
            continue
        try:
            fields = read(row)
            if fields.get("needs_packages") and not packages:
                raise Unusable("their tests import packages, see --packages")
            found.append(Problem(**fields | {"id": fields["id"] or str(k + 1)},
                                 date=published(row), difficulty=difficulty_of(row)))
        except Unusable as reason:
            left_out[str(reason)] += 1
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError,
                SyntaxError, zlib.error, pickle.UnpicklingError, EOFError) as error:
            raise UserError(f"row {k + 1} of {path} is damaged ({type(error).__name__}: {error}): "
                            "download the file again, or remove the row") from None
    for reason, count in (+left_out).items():
        print(f"{count} problems of {path} are left out: {reason}")
    if not found:
        raise UserError(f"no problem of {path} is left after --since, --difficulty and --limit")
    return found


def read_rows(path):
    """Yields the JSON objects in a file of JSON lines, one at a time, or of one JSON list."""
    def rows():
        with open(path, "rb") as file:
            listed = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
            file.seek(0)
            yield from json.load(file) if listed else map(json.loads, filter(bytes.strip, file))

    with long_integers():
        number = 0
        try:
            for number, row in enumerate(rows(), 1):
                if not isinstance(row, dict):
                    raise UserError(f"row {number} of {path} is not a JSON object: give a file of "
                                    "problems, one object a line")
                yield row
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}): give a file of problems") \
                from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON lines ({error}, after {number} rows): give a file "
                            "of problems, one JSON object a line") from None
    if not number:
        raise UserError(f"{path} has no rows: give a file of problems, one JSON object a line")


@contextlib.contextmanager
def long_integers():
    """Within it, integers of more than 4,300 digits are read, which some tests have."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def format_of(row, path):
    """The function of formats.py that reads a file with this first row."""
    for read, fields in FORMATS.items():
        if fields <= row.keys():
            return read
    raise UserError(f"{path} has no problems that this program knows; the first row has "
                    f"{', '.join(row)}: give LiveCodeBench, HumanEval, MBPP, APPS, TACO or "
                    "Codeforces rows")


def checked_date(text):
    """An ISO date as it is; a UserError for anything else."""
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise UserError(f"--since is {text!r}: give a date as in 2024-09-01") from None
