"""Problems with tests, from the files in which others publish them.

    LiveCodeBench           question_content, public_test_cases, private_test_cases, metadata
    HumanEval               prompt, entry_point, test
    MBPP                    text, test_list, test_setup_code
    APPS, TACO              question, input_output
    Codeforces (open-r1)    description, official_tests, examples

The format is detected from the fields of the first row. All become a `Problem`, which the judge can
try a program on: stdin tests directly, tests that call the program through harness.py.
"""

import ast
import base64
import collections
import dataclasses
import datetime
import io
import json
import pickle
import secrets
import sys
import warnings
import zlib
from pathlib import Path

from support.cli import UserError, checked
from support.files import read_bytes
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
        name = json.loads(self.calls)["tests"][0].get("call")
        return (f"Write a function {name}." if name
                else "Write the functions that the examples call.")

    def job(self, program):
        """(program, tests) for the judge."""
        if not self.calls:
            return program, self.tests
        token = secrets.token_hex(16)
        stdin = json.dumps({"program": program, "token": token, **json.loads(self.calls)})
        return HARNESS.read_text(encoding="utf-8"), ((stdin, token),)


def judge_programs(problems, programs, workers=None, label="judge"):
    """The judge's Verdict of each program on its problem, in order."""
    verdicts, groups = [None] * len(problems), {}
    for k, problem in enumerate(problems):
        groups.setdefault((problem.seconds, problem.memory), []).append(k)
    for (seconds, memory), group in groups.items():
        found = judge_all([problems[k].job(programs[k]) for k in group], workers, seconds, memory,
                          label=label, numbers=True)
        for k, verdict in zip(group, found):
            verdicts[k] = verdict
    return verdicts


# ------------------------------------------------------------------- reading


def read_problems(path, since="", difficulty="", limit=None):
    """The Problems in a JSONL or JSON file, in order.

    since: an ISO date; problems before it, or without a date, are left out. difficulty: only these,
    for instance "easy" or "easy,medium", or "1200" where it is a rating. limit: at most so many,
    the first. A UserError says what is wrong.
    """
    rows = read_rows(path)
    kind = next((kind for kind in KINDS if kind.fields <= rows[0].keys()), None)
    if not kind:
        raise UserError(f"{path} has no problems that this program knows; the first row has "
                        f"{', '.join(rows[0])}: give LiveCodeBench, HumanEval, MBPP, APPS, TACO or "
                        "Codeforces rows")
    since = since and checked_date(since)
    found, left_out = [], collections.Counter()
    for k, row in enumerate(rows):
        if limit is not None and len(found) == limit:
            break
        if since and published(row) < since:
            continue
        if difficulty and difficulty_of(row) not in difficulty.lower().split(","):
            continue
        try:
            found.append(kind.problem(row))
        except Unusable as reason:
            left_out[str(reason)] += 1
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError,
                SyntaxError, zlib.error, pickle.UnpicklingError, EOFError) as error:
            raise UserError(f"row {k + 1} of {path} is damaged ({type(error).__name__}: {error}): "
                            "download the file again") from None
    for reason, count in left_out.items():
        print(f"{count} problems of {path} are left out: {reason}")
    if not found:
        raise UserError(f"no problem of {path} is left after --since, --difficulty and --limit")
    return found


def read_rows(path):
    """The JSON objects in a file of JSON lines, or of one JSON list."""
    content = checked(read_bytes, Path(path))
    try:
        rows = (json.loads(content) if content.lstrip().startswith(b"[")
                else [json.loads(line) for line in content.splitlines() if line.strip()])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON lines ({error}): give a file of problems") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} has no rows: give a file of problems, one JSON object a line")
    return rows


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
    fields = {"prompt", "entry_point", "test"}

    def problem(row):
        parsed(row["test"])
        entry = row["entry_point"]
        given = [node for node in parsed(row["prompt"] + "\n    pass").body  # what checks may use
                 if getattr(node, "name", None) != entry]
        return Problem(row["task_id"], row["prompt"], row["prompt"], calls=json.dumps({
            "before": "", "setup": "\n".join(map(ast.unparse, given)), "names": [entry],
            "tests": [{"check": row["test"], "entry": entry}]}))


class MBPP:
    fields = {"text", "test_list"}

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
        statement = f"{row['text']}\nFor example:\n{row['test_list'][0]}"
        return Problem(str(row["task_id"]), statement, calls=json.dumps({
            "before": "", "setup": "\n".join([
                *imports, row.get("test_setup_code", "").replace("\r\n", "\n")]),
            "names": defined(solution),
            "tests": [{"assert": text} for text in asserts]}))


class Apps:
    fields = {"question", "input_output"}

    def problem(row):
        tests = as_json(row["input_output"])
        found = Problem(str(row.get("problem_id", row.get("id", row.get("name", "")))),
                        row["question"], row.get("starter_code") or "",
                        difficulty=difficulty_of(row), date=published(row))
        pairs = list(zip(tests["inputs"], tests["outputs"], strict=True))
        if tests.get("fn_name"):
            return dataclasses.replace(found, calls=calls(tests["fn_name"], pairs, listed=True))
        if not pairs:
            raise Unusable(NO_TESTS)
        return dataclasses.replace(found, tests=tuple(
            tuple("\n".join(map(str, part)) if isinstance(part, list) else part for part in pair)
            for pair in pairs))


class Codeforces:
    fields = {"description", "input_format"}

    def problem(row):
        tests = row.get("official_tests") or row.get("examples")
        statement = "\n\n".join(text for text in (
            row.get("title"), row["description"], "Input\n" + (row["input_format"] or ""),
            "Output\n" + (row.get("output_format") or "")) if text)
        if row.get("generated_checker") or row.get("interaction_format"):
            raise Unusable("many answers are right, or it is interactive: the judge compares")
        if not tests:
            raise Unusable(NO_TESTS)
        return Problem(row["id"], statement, date=published(row), difficulty=difficulty_of(row),
                       tests=tuple((test["input"], test["output"]) for test in tests),
                       seconds=float(row.get("time_limit") or SECONDS),
                       memory=int(float(row.get("memory_limit") or 512)) * MB)


KINDS = LiveCodeBench, HumanEval, MBPP, Apps, Codeforces


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
