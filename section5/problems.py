"""Problems with tests, from the files in which others publish them.

    LiveCodeBench           question_content, public_test_cases, private_test_cases, metadata
    HumanEval               prompt, entry_point, test
    MBPP                    text, test_list, test_setup_code; sanitized: prompt, test_imports
    APPS, TACO              question, input_output
    Codeforces (open-r1)    description, official_tests, examples

The format is detected from the fields of the first row. All become a `Problem`, which the judge can
try a program on: stdin tests directly, tests that call the program through harness.py.
"""

import ast
import base64
import codecs
import collections
import contextlib
import dataclasses
import datetime
import io
import json
import pickle
import re
import secrets
import sys
import warnings
import zlib
from pathlib import Path

from support.cli import UserError
from support.judge import MB, judge_all

HARNESS = Path(__file__).with_name("harness.py")
LARGEST = 256 * MB  # of the tests of one problem, decompressed
# What programs on LeetCode use without importing it.
PREAMBLE = """from typing import *
from collections import *
from functools import *
from itertools import *
import bisect, collections, functools, heapq, itertools, math, random, re, string, sys
from bisect import *
from heapq import *
from math import *
from builtins import pow
sys.setrecursionlimit(50000)
"""
SECONDS = 6.0       # for a test, or for all calls of a problem, unless it says otherwise


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
    calls: str = ""           # JSON of {"before", "setup", "names", "tests"}, for harness.py
    date: str = ""            # of publication, ISO; "" if the source does not say
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
        return self.seconds + len(self.calls) // (10 * MB), self.memory, max(MB, 2 * expected)

    def job(self, program):
        """(program, tests) for the judge."""
        if not self.calls:
            return program, self.tests
        token = secrets.token_hex(16)
        stdin = json.dumps({"program": program, "token": token})[:-1] + f", {self.calls[1:]}"
        return HARNESS.read_text(encoding="utf-8"), ((stdin, token),)


def judge_programs(problems, programs, workers=None, label="judge"):
    """The judge's Verdict of each program on its problem, in order."""
    verdicts, groups = [None] * len(problems), {}
    for k, problem in enumerate(problems):
        groups.setdefault(problem.limits, []).append(k)
    for limits, group in groups.items():
        found = judge_all([problems[k].job(programs[k]) for k in group], workers, *limits,
                          label=label, numbers=True)
        for k, verdict in zip(group, found):
            verdicts[k] = verdict
    return verdicts


# ------------------------------------------------------------------- reading


def read_problems(path, since="", difficulty="", limit=None):
    """The Problems in a JSONL or JSON file, in order.

    since: an ISO date; problems before it, or without a date, are left out. difficulty: only these,
    for instance "easy" or "easy,medium", or "1200" where it is a rating. limit: at most so many,
    the first. A problem without an id gets the number of its row. A UserError says what is wrong.
    """
    since, kind = since and checked_date(since), None
    difficulties = {name.strip() for name in difficulty.lower().split(",")}
    found, left_out = [], collections.Counter()
    for k, row in enumerate(read_rows(path)):
        kind = kind or kind_of(row, path)
        if limit is not None and len(found) == limit:
            break
        if since and published(row) < since:
            continue
        if difficulty and difficulty_of(row) not in difficulties:
            continue
        try:
            problem = kind.problem(row)
            found.append(problem if problem.id else dataclasses.replace(problem, id=str(k + 1)))
        except Unusable as reason:
            left_out[str(reason)] += 1
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError,
                SyntaxError, zlib.error, pickle.UnpicklingError, EOFError) as error:
            raise UserError(f"row {k + 1} of {path} is damaged ({type(error).__name__}: {error}): "
                            "download the file again, or remove the row") from None
    for reason, count in left_out.items():
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


def kind_of(row, path):
    """The format of a file, by its first row."""
    kind = next((kind for kind in KINDS if kind.fields <= row.keys()), None)
    if not kind:
        raise UserError(f"{path} has no problems that this program knows; the first row has "
                        f"{', '.join(row)}: give LiveCodeBench, HumanEval, MBPP, APPS, TACO or "
                        "Codeforces rows")
    return kind


def checked_date(text):
    """An ISO date as it is; a UserError for anything else."""
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise UserError(f"--since is {text!r}: give a date as in 2024-09-01") from None


def published(row):
    """The day on which a problem was published, in ISO's format; "" if the row does not say."""
    seconds = row.get("contest_start")  # since 1970
    if isinstance(seconds, (int, float)):
        return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).date().isoformat()
    return str(row.get("contest_date") or row.get("date") or "")[:10]


def difficulty_of(row):
    """The difficulty of a problem in small letters, or its rating; "" if the row does not say."""
    rating = row.get("rating")
    return f"{rating:.0f}" if isinstance(rating, (int, float)) else str(
        row.get("difficulty") or "").lower()


def as_json(value):
    """A field that some files hold as JSON text and others as data."""
    return json.loads(value) if isinstance(value, str) else value


# ------------------------------------------------------------------- the formats


class Unusable(ValueError):
    """A problem that the judge cannot judge; the message is the reason. It is left out."""


NO_TESTS = "no tests, which every program would pass"


class LiveCodeBench:
    """Tests in JSON, some of them compressed: of standard input and output, or of a method."""

    fields = {"question_content", "public_test_cases"}

    def problem(row):
        tests = as_json(row["public_test_cases"]) + private_tests(row.get("private_test_cases"))
        about = as_json(row.get("metadata") or "{}")
        found = Problem(row["question_id"], row["question_content"], row.get("starter_code") or "",
                        date=published(row), difficulty=difficulty_of(row))
        if {test["testtype"] for test in tests} == {"stdin"}:
            return dataclasses.replace(found, tests=tuple(
                (test["input"], test["output"]) for test in tests))
        return dataclasses.replace(found, calls=calls(about["func_name"], [
            ([json.loads(line) for line in test["input"].splitlines() if line.strip()],
             json.loads(test["output"])) for test in tests]))


class HumanEval:
    """The beginning of a function to complete, and a `check` that takes the function."""

    fields = {"prompt", "entry_point", "test"}

    def problem(row):
        for node in ast.walk(parsed(row["test"])):
            if isinstance(node, ast.Import) and node.names[0].name == "numpy":  # HumanEval+
                raise Unusable("their tests need numpy, which the judge does not have")
        entry = row["entry_point"]
        given = [node for node in parsed(row["prompt"] + "\n    pass").body  # what checks may use,
                 if getattr(node, "name", None) != entry]                    # and the program too
        given = "\n".join(map(ast.unparse, given))
        return Problem(row["task_id"], row["prompt"], row["prompt"], calls=json.dumps({
            "before": given, "setup": given, "names": [entry],
            "tests": [{"check": row["test"], "entry": entry}]}))


class MBPP:
    """A task in a sentence, and asserts about the functions of its solution."""

    fields = {"task_id", "code", "test_list"}

    def problem(row):
        asserts = [*row["test_list"], *row.get("challenge_test_list", ())]
        if not asserts:
            raise Unusable(NO_TESTS)
        for text in asserts:
            parsed(text)
        solution = parsed(row["code"].replace("\r\n", "\n"))
        imports = [ast.unparse(node) for node in solution.body  # the tests may need them
                   if isinstance(node, ast.Import)
                   and all(alias.name in sys.stdlib_module_names for alias in node.names)]
        imports += row.get("test_imports", ())
        statement = f"{row.get('text') or row['prompt']}\nFor example:\n{row['test_list'][0]}"
        return Problem(str(row["task_id"]), statement, calls=json.dumps({
            "before": "", "setup": "\n".join([
                *imports, row.get("test_setup_code", "").replace("\r\n", "\n")]),
            "names": defined(solution),
            "tests": [{"assert": text} for text in asserts]}))


class Apps:
    """APPS and TACO: lists of inputs and outputs, of standard input or of a function."""

    fields = {"question", "input_output"}

    def problem(row):
        tests = as_json(row["input_output"] or "{}")
        if not tests.get("inputs"):
            raise Unusable(NO_TESTS)
        name = next((row[key] for key in ("problem_id", "id", "name", "url")
                     if row.get(key) not in (None, "")), "")
        found = Problem(str(name), row["question"], row.get("starter_code") or "",
                        difficulty=difficulty_of(row), date=published(row),
                        seconds=number_in(row.get("time_limit")) or SECONDS,
                        memory=int((number_in(row.get("memory_limit")) or 512) * MB))
        pairs = list(zip(tests["inputs"], tests["outputs"], strict=True))
        if tests.get("fn_name"):
            return dataclasses.replace(found, calls=calls(tests["fn_name"], pairs, listed=True))
        return dataclasses.replace(found, tests=tuple(
            tuple("\n".join(map(str, part)) if isinstance(part, list) else part for part in pair)
            for pair in pairs))


class Codeforces:
    """A statement in parts, its tests and its limits on time and memory."""

    fields = {"description", "input_format"}

    def problem(row):
        tests = row.get("official_tests") or row.get("examples")
        statement = "\n\n".join(text for text in (
            row.get("title"), row["description"], "Input\n" + (row["input_format"] or ""),
            "Output\n" + (row.get("output_format") or ""),
            *(f"Example\n{example['input']}\nAnswer\n{example['output']}"
              for example in row.get("examples") or ()),
            row.get("note") and f"Note\n{row['note']}") if text)
        if row.get("input_mode") == "file":
            raise Unusable("they read a file, not standard input")
        if row.get("generated_checker") or row.get("interaction_format"):
            raise Unusable("many answers are right, or it is interactive: the judge compares")
        if not tests:
            raise Unusable(NO_TESTS)
        return Problem(row["id"], statement, date=published(row), difficulty=difficulty_of(row),
                       tests=tuple((test["input"], test["output"]) for test in tests),
                       seconds=number_in(row.get("time_limit")) or SECONDS,
                       memory=int((number_in(row.get("memory_limit")) or 512) * MB))


KINDS = LiveCodeBench, HumanEval, MBPP, Apps, Codeforces


def number_in(text):
    """The number with which a text begins, 0.0 without one. Example: "2.5 seconds" has 2.5."""
    found = re.match(r"\s*(\d+(\.\d+)?)", str(text))
    return float(found[1]) if found else 0.0


def parsed(program):
    """The syntax tree of a program, without warnings about escapes such as "\\d"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(program)


def defined(tree):
    """The names of the functions, classes and variables that a program defines."""
    return [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))] \
        + [target.id for node in tree.body if isinstance(node, ast.Assign)
           for target in node.targets if isinstance(target, ast.Name)]


def calls(name, tests, listed=False):
    """Tests that call a function, as JSON for harness.py; tests: [(arguments, expected)].

    listed: as in APPS, an expected value may stand in a list of its own. Whether [x] is meant, or
    x, the file does not say, so both are right.
    """
    if not tests:
        raise Unusable(NO_TESTS)
    return json.dumps({"before": PREAMBLE, "setup": "", "names": [], "tests": [
        {"call": name, "arguments": arguments, "expected": expected,
         **({"or": expected[0]} if listed and isinstance(expected, list) and len(expected) == 1
            else {})} for arguments, expected in tests]})


# ------------------------------------------------------------------- LiveCodeBench's hidden tests


class NothingToFind(pickle.Unpickler):
    """Loads plain data; a pickle that names any function or class is refused."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"a pickle that names {module}.{name} could run code")


def private_tests(text):
    """The hidden tests of a row: JSON, or base64 of zlib of a pickle of JSON text."""
    if not text:
        return []
    if text.lstrip().startswith("["):
        return json.loads(text)
    inflate = zlib.decompressobj()
    content = inflate.decompress(base64.b64decode(text, validate=True), LARGEST)
    if inflate.unconsumed_tail:
        raise ValueError(f"its tests are larger than {LARGEST // MB} MB")
    if not inflate.eof:
        raise ValueError("its tests are cut off")
    found = NothingToFind(io.BytesIO(content)).load()
    if not isinstance(found, str):
        raise ValueError(f"its tests are a {type(found).__name__}, not text")
    return json.loads(found)
