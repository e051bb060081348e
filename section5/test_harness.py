"""Tests of the judge on tests that call the program: what counts, and what cannot be forged."""

import builtins
import json

import pytest

from section5 import problems
from section5.problems import Problem, judge_programs
from section5.test_problems import (ADD, APPENDS, APPS, APPS_CALLS, HUMANEVAL, MBPP, functional,
                                    read)


FORGERS = {
    "prints and exits": "print(3)\nimport sys\nsys.exit(0)",
    "leaves at once": "import os\nos._exit(0)",
    "answers for the harness": 'import os\nos.write(1, b\'{"value": 3}\\n\')\n' + ADD.replace(
        "a + b", "0"),
    "equals everything": "class E:\n    def __eq__(self, other):\n        return True\n"
                         "def add(a, b):\n    return E()",
    "an int that equals everything": "class E(int):\n    def __eq__(self, other):\n        return "
                                     "True\n    __hash__ = int.__hash__\n"
                                     "def add(a, b):\n    return E(9)",
    "patches the comparison": "import builtins\nbuiltins.all = lambda some: True\n"
                              "builtins.set = lambda some: {1, 2}\ndef add(a, b):\n    return 9",
    "exits in the call": "def add(a, b):\n    raise SystemExit(0)",
    "skips the assertion": "def add(a, b):\n    raise AssertionError",
    "looks for the tests": """
import json, os
tests = []
for path in ("../stdin", f"/proc/{os.getppid()}/fd/0"):
    try:
        tests += json.load(open(path))["tests"]
    except (OSError, ValueError):
        pass
def add(a, b):
    return next(test["expected"] for test in tests if test.get("arguments") == [a, b])
""",
    "looks at the tests": "import sys\nfound = sys.stdin.read()\ndef add(a, b):\n"
                          "    print(found)\n    return found",
}


@pytest.mark.parametrize("how", FORGERS)
def test_a_program_cannot_forge_a_pass(how, tmp_path):
    calls, asserts = read(tmp_path, APPS_CALLS) + read(tmp_path, MBPP)
    for verdict in judge_programs([calls, asserts], [FORGERS[how]] * 2, 1):
        assert verdict.outcome in ("wrong answer", "runtime error"), verdict


def test_what_a_right_program_prints_does_not_matter(tmp_path):
    noisy = ("print('loading', flush=True)\nimport os\nos.write(1, b'more')\n"
             + ADD.replace("return", "print(a, b)\n    return"))
    assert judge_programs(read(tmp_path, APPS_CALLS), [noisy], 1)[0].passed


def test_a_program_cannot_replace_what_the_tests_use(tmp_path):
    """Neither a module of the tests, nor a function that HumanEval's prompt gives."""
    fake = "class math:\n    def isclose(*ignored):\n        return True\n"
    mbpp = {**MBPP, "test_list": ["assert math.isclose(add(1, 2), 3)"], "challenge_test_list": [],
            "test_setup_code": "import math"}
    given = {**HUMANEVAL, "prompt": "def twice(x):\n    return 2 * x\n\ndef half(x):\n    ",
             "test": "def check(candidate):\n    assert twice(candidate(3)) == 3\n"}
    wrong = judge_programs(read(tmp_path, mbpp) + read(tmp_path, given), [
        fake + "def add(a, b):\n    return 9", "def twice(x):\n    return 3\ndef half(x):\n"
        "    return 9"], 1)
    assert [verdict.outcome for verdict in wrong] == ["wrong answer"] * 2
    right = judge_programs(read(tmp_path, mbpp) + read(tmp_path, given), [
        ADD, given["prompt"] + "return x / 2"], 1)
    assert all(verdict.passed for verdict in right)


def test_what_runs_before_a_program_hides_nothing(tmp_path):
    space = {}
    exec(problems.PREAMBLE, space)
    assert all(space.get(name, value) is value for name, value in vars(builtins).items())
    row = {**functional(), "metadata": '{"func_name": "count"}'}  # itertools has a count too
    program = APPENDS.replace("append", "count")
    assert judge_programs(read(tmp_path, row), [program], 1)[0].passed
    modern = ("from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\n"
              "class A:\n    x: int\n") + ADD
    unimported = "def half(x: List[int]):\n    return x / 2"  # the prompt has the import
    typed = {**HUMANEVAL, "prompt": "from typing import List\nimport math\n\ndef half(x):\n    "}
    assert all(verdict.passed for verdict in judge_programs(
        read(tmp_path, APPS_CALLS) + read(tmp_path, typed), [modern, unimported], 1))


def test_values_keep_their_types(tmp_path):
    program = "def same(x):\n    return x"
    values = ["(1, [2.5])", "{1: (2,)}", "{(1, 2)}", "frozenset({1})", "b'a'", "1j", "10 ** 5000",
              "float('inf')", "None", "''", "True"]
    row = {**MBPP, "code": program, "challenge_test_list": [], "test_list": [
        f"assert (lambda x: x == {value} and type(x) is type({value}))(same({value}))"
        for value in values]}
    [verdict] = judge_programs(read(tmp_path, row), [program], 1)
    assert verdict.passed, verdict


def test_tests_may_use_what_the_program_defines(tmp_path):
    program = ("class Node:\n    def __init__(self, value):\n        self.value = value\n"
               "def value(node):\n    return node.value\n"
               "def sum(a, b):\n    return a * b\n")
    row = {**MBPP, "code": program, "test_setup_code": "root = Node(5)", "challenge_test_list": [],
           "test_list": ["assert value(root) == 5", "assert value(Node(2)) == 2",
                         "assert Node(3).value == 3", "assert sum(2, 5) == 10"]}
    [verdict] = judge_programs(read(tmp_path, row), [program], 1)
    assert verdict.passed, verdict


def test_an_expected_list_of_one_may_be_the_list_or_its_element(tmp_path):
    """APPS puts expected values into lists, but not always."""
    row = {**APPS, "input_output": json.dumps(
        {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1], [2]]})}
    programs = ["def f(x): return x", "def f(x): return [x]", "def f(x): return [[x]]",
                "def f(x): return [x, x]"]
    verdicts = judge_programs(read(tmp_path, row) * 4, programs, 1)
    assert [verdict.passed for verdict in verdicts] == [True, True, False, False]


def test_what_json_made_of_keys_is_undone_as_the_evaluator_of_apps_does(tmp_path):
    row = {**APPS, "input_output": json.dumps({"fn_name": "f", "inputs": [[{"1": "a"}]],
                                               "outputs": [[{"1": "a"}]]})}
    text = {**row, "input_output": row["input_output"].replace('"1"', '"x"')}
    [problem], [other] = read(tmp_path, row), read(tmp_path, text)
    right, alone, wrong, also = judge_programs([problem] * 3 + [other], [
        "def f(d): return [{1: d[1]}]", "def f(d): return {1: d[1]}",
        "def f(d): return {'1': d[1]}", "def f(d): return {'x': d['x']}"], 1)
    assert right.passed and alone.passed and also.passed and wrong.outcome == "wrong answer"


def tried(program, *asserts, setup="", canonical=None):
    """The verdict of a program on asserts, or on the lines of HumanEval's check(candidate)."""
    if "candidate" not in "".join(asserts):
        row = {**MBPP, "code": canonical or program, "test_list": asserts,
               "challenge_test_list": [], "test_setup_code": setup}
    else:
        row = {**HUMANEVAL, "prompt": "def f():\n    ", "entry_point": "f", "test":
               "def check(candidate):\n" + "".join(f"    {line}\n" for line in asserts)}
    return Problem(**problems.format_of(row, "")(row)), program


RIGHT = {
    "an iterator": tried("def f(x): return filter(None, x)", "assert set(f((0, 2))) == {2}",
                         "assert list(f([3])) == [3]", "assert next(f([4])) == 4"),
    "one without an end": tried("import itertools\ndef f(): return itertools.count()",
                                "assert [k for k, _ in zip(f(), range(3))] == [0, 1, 2]"),
    "views": tried("def f(x): return x.keys(), x.values(), x.items()",
                   "assert list(f({1: 2})[1]) == [2]",
                   "assert f({1: 2})[0] == {1} and f({1: 2})[2] == {(1, 2)}"),
    "a range": tried("def f(x): return range(x)", "assert f(2) == range(2)",
                     "assert list(f(2)) == [0, 1]"),
    "a deque": tried("import collections\ndef f(x): return collections.deque(x)",
                     "assert f([1])[0] == 1", "assert f([1]) == collections.deque([1])"),
    "numbers": tried("from decimal import Decimal\nfrom fractions import Fraction\n"
                     "def f(x): return Decimal(x) + 1, Fraction(x)",
                     "assert f('2') == (3, 2)", "assert f('.5')[1] == Fraction(1, 2)"),
    "a date": tried("import datetime\ndef f(x): return datetime.date(2024, 2, x)",
                    "assert f(29) - f(28) == datetime.timedelta(1)"),
    "keywords": tried("def f(x, *, y=1): return x - y", "assert candidate(x=3, y=2) == 1",
                      "assert candidate(3) == 2"),
    "an exception": tried("def f(x): return 1 / x", "try:", "    candidate(0)",
                          "except ZeroDivisionError:", "    pass", "else:", "    assert False"),
    "an exception of its own": tried("class Odd(KeyError): pass\ndef f(x): raise Odd('a', x)",
                                     "try:", "    candidate(0)", "except KeyError as error:",
                                     "    assert error.args == ('a', 0)"),
    "in place": tried("def f(a, b, c):\n    a.sort()\n    b[1] = 2\n    c.add(3)",
                      "a, b, c = [2, 1], {}, set()", "assert candidate(a, b, c) is None",
                      "assert (a, b, c) == ([1, 2], {1: 2}, {3})"),
    "functions": tried("def f(g, x): return lambda y: g(x, y)",
                       "assert candidate(lambda a, b: a - b, 5)(3) == 2",
                       "assert sorted([1, 2], key=candidate(pow, -1)) == [1, 2]"),
    "a type": tried("def f(x, kind): return [y for y in x if not isinstance(y, kind)]",
                    "assert f((1, 'a'), int) == ['a']"),
    "names": tried("import math\nfrom math import sqrt\na, (b, c) = 1, (2, 3)\nd: int = 4\n"
                   "try:\n    def e(): return 5\nexcept ImportError:\n    pass\n"
                   "if a:\n    def f(x): return x\nfor g in (7,):\n    pass",
                   "assert [a, b, c, d, e(), f(6), g] == [1, 2, 3, 4, 5, 6, 7]",
                   "assert all(f(x) == y for x, y in [(1, 1), (2, 2)])",
                   "assert sqrt(f(4)) == math.sqrt(4)"),
    "objects": tried("class Node:\n    next = None\n    def __init__(self, x): self.x = x\n"
                     "    def __eq__(self, other): return self.x == other.x\n"
                     "    def __len__(self): return self.x\n    def __hash__(self): return 1\n"
                     "def f(node): return node.next",
                     "assert f(root).x == 2 and f(root) == Node(2) != Node(3)",
                     "assert len(Node(3)) == 3", "assert f(Node(1)) is None",
                     setup="root = Node(1)\nroot.next = Node(2)"),
}


def test_a_right_program_passes_whatever_it_returns():
    found = judge_programs(*zip(*RIGHT.values()), 1)
    assert [(kind, verdict) for kind, verdict in zip(RIGHT, found) if not verdict.passed] == []


def test_a_wrong_one_fails_as_itself():
    """The verdict names the test and what was wrong, and shows nothing of the harness."""
    calls = Problem("1", "", calls=json.dumps({"before": "", "setup": "", "names": [], "tests": [
        {"call": "f", "arguments": [k], "expected": k, "apps": False} for k in range(9)]}),
        seconds=2.0)
    cases = [
        ((calls, "def f(x): return min(x, 3)"), ("wrong answer", 4, "expected 4, got 3")),
        ((calls, "def f(x): return [0, 1][x]"), ("runtime error", 2, "IndexError: list index out "
                                                                     "of range")),
        ((calls, "def f(x):\n    while x: pass\n    return x"),
         ("time limit", 1, "still running after 2 s")),
        ((calls, "def f(x): return [0] * 10**9"), ("memory limit", 0, "MemoryError")),
        ((calls, "import os\ndef f(x): os._exit(0)"), ("runtime error", 0, "the program ended")),
        ((calls, "import sys\ndef f(x): sys.exit(0)"), ("runtime error", 0, "SystemExit: 0")),
        ((calls, "assert 0"), ("runtime error", 0, "AssertionError:")),
        ((calls, "def f(: pass"), ("runtime error", 0, "SyntaxError: invalid syntax (program.py, "
                                                       "line 1)")),
        (tried("def f(x): return [x]", "assert f(1) == [1]", "assert f(2) == 2"),
         ("wrong answer", 1, "assert f(2) == 2")),
        (tried("def g(x): return x", "assert f(1) == 1"),
         ("runtime error", 0, "NameError: name 'f' is not defined")),
        (tried("def f(x): return {x}.__iter__()", "assert f(1) == 1"),
         ("wrong answer", 0, "assert f(1) == 1")),
        (tried("def f(x):\n    while True: pass", "try:", "    candidate(0)", "except Exception:",
               "    pass"), ("time limit", 0, "still running after 6 s"))]
    found = judge_programs(*zip(*(case for case, _ in cases)), 2)
    assert [(verdict.outcome, verdict.test, verdict.detail) for verdict in found] == [
        right for _, right in cases]


def test_each_call_has_the_limit_of_time_and_all_together_ten_times_that():
    calls = {"before": "import time", "setup": "", "names": [], "tests": [
        {"call": "f", "arguments": [], "expected": 1, "apps": False}] * 4}
    slow = Problem("1", "", calls=json.dumps(calls), seconds=0.5)
    assert slow.limits[0] == 5
    program = "def f():\n    time.sleep(0.2)\n    print('x' * 10**6)\n    return 1"
    assert judge_programs([slow], [program], 1)[0].passed
    calls["tests"] *= 9
    [verdict] = judge_programs([Problem("1", "", calls=json.dumps(calls), seconds=0.5)], [program],
                               1)
    assert (verdict.outcome, verdict.detail) == ("time limit", "still running after 5.0 s")


def test_a_program_cannot_replace_a_module_of_the_tests():
    """Neither by writing a file nor by what it does with a function of theirs."""
    fakes = tried("with open('bisect.py', 'w') as file:\n"
                  "    file.write('def bisect(*x): return 1')\ndef f(x): return 9", "import bisect",
                  "assert bisect.bisect([], candidate(1))")
    reaches = tried("def f(g):\n    g.__globals__['candidate'] = None\n    return 1",
                    "assert candidate(lambda: 1) == 1")
    found = judge_programs(*zip(fakes, reaches), 1)
    assert [verdict.outcome for verdict in found] == ["wrong answer", "runtime error"]
