"""Tests of reading problems, and of the judge on tests that call the program."""

import ast
import base64
import builtins
import json
import pickle
import zlib

import pytest

from section5 import problems
from section5.problems import Problem, judge_programs, private_tests, read_problems
from support.cli import UserError
from support.test_helpers import ROOT

DATA = ROOT.parent / "shared" / "data"
STDIN = [{"input": "2 3\n", "output": "5\n", "testtype": "stdin"},
         {"input": "1 1\n", "output": "2\n", "testtype": "stdin"}]
CALLS = [{"input": "[1, 2]\n3", "output": "[1, 2, 3]", "testtype": "functional"}]
ADD = "def add(a, b):\n    return a + b\n"


def hidden(tests):
    """Tests as LiveCodeBench hides them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def livecodebench(**changes):
    return {"question_title": "Sum", "question_content": "Add two numbers.", "platform": "atcoder",
            "question_id": "abc1_a", "contest_id": "abc1", "contest_date": "2024-09-07T00:00:00",
            "starter_code": "", "difficulty": "easy", "public_test_cases": json.dumps(STDIN[:1]),
            "private_test_cases": hidden(STDIN[1:]), "metadata": "{}", **changes}


def functional(**changes):
    return livecodebench(
        question_id="3000", difficulty="hard", contest_date="2025-01-11T18:30:00",
        starter_code="class Solution:\n    def append(self, a: List[int], x: int) -> List[int]:\n"
                     "        ",
        public_test_cases=json.dumps(CALLS), private_test_cases=json.dumps(
            [{"input": "[]\n0", "output": "[0]", "testtype": "functional"}]),
        metadata=json.dumps({"func_name": "append"}), **changes)


HUMANEVAL = {"task_id": "HumanEval/0", "prompt": "import math\n\ndef half(x):\n    ",
             "entry_point": "half", "canonical_solution": "return x / 2\n",
             "test": "def check(candidate):\n    assert math.isclose(candidate(3), 1.5)\n"
                     "    assert half(candidate(4)) == 1\n"}
MBPP = {"task_id": 7, "text": "Write a function to add.", "code": ADD, "test_setup_code": "",
        "test_list": ["assert add(1, 2) == 3", "assert set(add((1,), (2,))) == {1, 2}"],
        "challenge_test_list": ["assert not add(0, 0)"]}
APPS = {"problem_id": 4, "question": "Add.", "difficulty": "interview", "starter_code": "",
        "input_output": json.dumps({"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]})}
APPS_CALLS = {**APPS, "input_output": json.dumps(
    {"fn_name": "add", "inputs": [[1, 2], [[1], [2]]], "outputs": [[3], [[1, 2]]]})}
CODEFORCES = {"id": "1/A", "title": "Sum", "description": "Add.", "input_format": "Two numbers.",
              "output_format": "Their sum.", "time_limit": 2.0, "memory_limit": 256.0,
              "official_tests": [{"input": "1 2", "output": "3"}], "rating": 800}
READS = "print(sum(map(int, open(0).read().split())))"
APPENDS = "class Solution:\n    def append(self, a: List[int], x):\n        return a + [x]\n"
RIGHT = [(livecodebench(), READS), (functional(), APPENDS),
         (functional(), APPENDS.replace("a + [x]", "(*a, x)")),
         (functional(), "def append(a, x):\n    return a + [x]"),
         (HUMANEVAL, HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"]), (MBPP, ADD),
         (APPS, READS), (APPS_CALLS, ADD), (CODEFORCES, READS)]


def read(tmp_path, *rows, **options):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_problems(path, **options)


@pytest.mark.parametrize("row, program", RIGHT)
def test_every_format_gives_a_problem_whose_solution_passes(row, program, tmp_path):
    [problem] = read(tmp_path, row)
    assert problem.statement and problem.id and bool(problem.tests) != bool(problem.calls)
    wrong = program.replace("sum(", "max(").replace("a + ", "a and ").replace("/ 2", "/ 3").replace(
        "(*a, x)", "(x, *a)")
    assert wrong != program
    right, other = judge_programs([problem] * 2, [program, wrong], 1)
    assert right.passed, right
    assert other.outcome in ("wrong answer", "runtime error"), other


def test_a_row_keeps_what_the_human_needs(tmp_path):
    first, second = read(tmp_path, livecodebench(), functional())
    assert (first.date, first.difficulty, first.starter) == ("2024-09-07", "easy", "")
    assert first.tests == (("2 3\n", "5\n"), ("1 1\n", "2\n"))
    assert second.starter.startswith("class Solution")
    assert len(json.loads(second.calls)["tests"]) == 2
    [problem] = read(tmp_path, CODEFORCES)
    assert (problem.seconds, problem.memory) == (2.0, 256 * 2**20)
    assert "Two numbers." in problem.statement
    [problem] = read(tmp_path, MBPP)
    assert "assert add(1, 2) == 3" in problem.statement and "not add" not in problem.statement


def test_problems_are_chosen_by_date_difficulty_and_number(tmp_path):
    rows = livecodebench(), functional(), livecodebench(contest_date=None)
    assert len(read(tmp_path, *rows)) == 3
    assert [p.id for p in read(tmp_path, *rows, since="2025-01-01")] == ["3000"]
    assert len(read(tmp_path, *rows, difficulty="Easy, hard")) == 3
    assert len(read(tmp_path, *rows, difficulty="easy,medium")) == 2
    assert len(read(tmp_path, *rows, limit=1)) == 1
    with pytest.raises(UserError, match="no problem of .* is left"):
        read(tmp_path, *rows, since="2026-01-01")
    with pytest.raises(UserError, match="give a date"):
        read(tmp_path, *rows, since="soon")


def test_codeforces_rows_have_a_date_and_a_rating_and_some_cannot_be_judged(tmp_path, capsys):
    rows = [{**CODEFORCES, "contest_start": 1_700_000_000, "rating": 1200.0}, CODEFORCES,
            {**CODEFORCES, "id": "2/A", "generated_checker": "..."},
            {**CODEFORCES, "id": "3/A", "interaction_format": "Ask."},
            {**CODEFORCES, "id": "4/A", "official_tests": [], "examples": None},
            {**CODEFORCES, "id": "5/A", "input_mode": "file"}]
    first, second = read(tmp_path, *rows)
    assert (first.date, first.difficulty, second.date) == ("2023-11-14", "1200", "")
    printed = capsys.readouterr().out
    assert "2 problems of" in printed and "many answers are right" in printed
    assert "1 problems of" in printed and "no tests" in printed and "read a file" in printed
    [third] = read(tmp_path, {**CODEFORCES, "examples": [{"input": "4 5", "output": "9"}],
                              "note": "So it is."})
    assert third.statement.endswith("Example\n4 5\nAnswer\n9\n\nNote\nSo it is.")
    assert read(tmp_path, *rows, since="2023-01-01") == read(tmp_path, *rows, difficulty="1200") \
        == [first]
    [taco] = read(tmp_path, {**APPS, "date": "2019-12-31 00:00:00", "difficulty": "EASY"},
                  since="2019-12-31", difficulty="Easy")
    assert (taco.date, taco.difficulty) == ("2019-12-31", "easy")


def test_the_files_of_taco_have_limits_in_words_and_not_always_a_name(tmp_path):
    row = {**APPS, "time_limit": "2.5 seconds", "memory_limit": "64.0 megabytes"}
    del row["problem_id"]
    first, second, third = read(tmp_path, {**row, "name": None}, {**row, "name": "Sum"},
                                {**APPS, "time_limit": None})
    assert (first.id, second.id, third.id) == ("1", "Sum", "4")
    assert (first.seconds, first.memory, third.seconds) == (2.5, 64 * 2**20, problems.SECONDS)


def test_the_sanitized_mbpp_and_what_needs_numpy(tmp_path, capsys):
    row = {"task_id": 2, "prompt": "Write a function to add.", "code": ADD,
           "test_imports": ["import math"], "test_list": ["assert math.isclose(add(1, 2), 3)"]}
    [problem] = read(tmp_path, row)
    assert problem.statement.startswith("Write a function to add.\nFor example:\nassert math")
    assert judge_programs([problem], [ADD], 1)[0].passed
    plus = {**HUMANEVAL, "test": "import numpy as np\ndef check(candidate):\n    assert True\n"}
    assert len(read(tmp_path, plus, HUMANEVAL)) == 1
    assert "their tests need numpy" in capsys.readouterr().out


def test_large_tests_have_more_time_and_room(tmp_path):
    problem = Problem("1", "", tests=(("", "1" * 2**21),), seconds=2.0)
    assert problem.limits == (2.0, 512 * 2**20, 2**22)
    assert judge_programs([problem], ["print('1' * 2**21)"], 1)[0].passed
    assert Problem("1", "", calls=" " * (25 * 2**20), seconds=2.0).limits[0] == 4.0


def test_integers_may_have_any_number_of_digits(tmp_path):
    long = "7" * 5000
    row = {**APPS, "input_output": f'{{"fn_name": "f", "inputs": [[1]], "outputs": [{long}]}}'}
    [problem] = read(tmp_path, row)
    assert problem.task == "Write a function f."
    right, wrong = judge_programs([problem] * 2, [
        f"import sys\nsys.set_int_max_str_digits(0)\ndef f(x): return {part} * {part} * 0 + "
        f"int('7' * {size})" for part, size in ((1, 5000), (2, 4999))], 1)
    assert right.passed and wrong.outcome == "wrong answer"


def test_a_list_of_rows_is_a_file_too(tmp_path):
    (tmp_path / "list.json").write_text("\ufeff\n" + json.dumps([MBPP, {**MBPP, "task_id": 8}],
                                                                indent=1))
    assert [problem.id for problem in read_problems(tmp_path / "list.json")] == ["7", "8"]


class Runs:
    def __reduce__(self):
        return print, ("run",)


def zipped(content):
    return base64.b64encode(zlib.compress(content)).decode()


@pytest.mark.parametrize("text, wrong", [
    (zipped(pickle.dumps(Runs())), "builtins.print could run code"),
    (zipped(pickle.dumps([1])), "are a list, not text"),
    (hidden(STDIN)[:-8], "cut off"),
    ("no base64", "damaged"),
    (zipped(b"\x80"), "damaged")])
def test_damaged_and_hostile_tests_are_refused(text, wrong, tmp_path, capsys):
    with pytest.raises(UserError, match=wrong):
        read(tmp_path, livecodebench(private_test_cases=text))
    assert "run" not in capsys.readouterr().out


def test_a_zip_bomb_is_refused_before_it_is_large(monkeypatch):
    monkeypatch.setattr(problems, "LARGEST", 2**20)
    with pytest.raises(ValueError, match="larger than 1 MB"):
        private_tests(zipped(b"0" * 2**24))


@pytest.mark.parametrize("content, wrong", [
    ("", "has no rows"), ("[]", "has no rows"), ("[1]", "row 1 of .* is not a JSON object"),
    ("{", "not JSON lines"), (json.dumps(MBPP) + "\n{", "not JSON lines .*after 1 rows"),
    ('{"a": 1}', "no problems that this program knows; the first row has a"),
    (json.dumps({**MBPP, "test_list": ["assert ("], "challenge_test_list": []}), "row 1"),
    (json.dumps({**HUMANEVAL, "test": None}), "row 1"),
    (json.dumps({**APPS, "input_output": '{"inputs": [1]}'}), "row 1")])
def test_bad_files_are_named_in_one_sentence(content, wrong, tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=wrong):
        read_problems(path)
    with pytest.raises(UserError, match="absent"):
        read_problems(tmp_path / "absent")


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


def test_problems_without_tests_are_left_out(tmp_path, capsys):
    rows = [{**APPS, "input_output": '{"inputs": [], "outputs": []}'}, APPS,
            {**APPS, "input_output": ""},
            {**MBPP, "test_list": [], "challenge_test_list": []}]
    assert [problem.id for problem in read(tmp_path, *rows[:3])] == ["4"]
    assert "2 problems of" in capsys.readouterr().out
    with pytest.raises(UserError, match="no problem"):
        read(tmp_path, rows[3])


@pytest.mark.parametrize("row, task", [
    (livecodebench(), "It reads from standard input"), (functional(), "It begins with this code:"),
    (HUMANEVAL, "It begins with the code above"), (MBPP, "Write the functions that the examples"),
    (APPS_CALLS, "Write a function add.")])
def test_she_is_told_how_her_program_is_used(row, task, tmp_path):
    [problem] = read(tmp_path, row)
    assert problem.task.startswith(task)


def test_numbers_may_be_written_differently():
    problem = Problem("1", "", tests=(("", "0.5 yes\n3"),))
    programs = ["print('.50 yes\\n3.0')", "print('0.51 yes\\n3')", "print('0.5 no\\n3')",
                "print('0.5 yes')", "print('0.5 yes 3')"]
    found = judge_programs([problem] * len(programs), programs, 1)
    assert [verdict.passed for verdict in found] == [True, False, False, False, False]


# ------------------------------------------------------------------- real problems

needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs the development data")
TOO_SLOW = {"123"}  # takes longer than the time limit: amicable numbers by trial division


def solutions(name):
    """(problems, the program published with each)"""
    path = DATA / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return read_problems(path), [
        row["prompt"] + row["canonical_solution"] if name == "HumanEval"
        else row["code"].replace("\r\n", "\n") for row in rows]


def mutated(program):
    """The program with its last operator, comparison or number changed; None if it has none."""
    tree, found = ast.parse(program), None
    for node in ast.walk(tree):
        if isinstance(node, (ast.BinOp, ast.Compare)) or isinstance(
                node, ast.Constant) and type(node.value) is int:
            found = node
    if isinstance(found, ast.BinOp):
        found.op = ast.Sub() if isinstance(found.op, ast.Add) else ast.Add()
    elif isinstance(found, ast.Compare):
        found.ops[0] = ast.NotEq() if isinstance(found.ops[0], ast.Eq) else ast.Eq()
    elif found:
        found.value += 1
    return found and ast.unparse(tree)


@needs_data
@pytest.mark.parametrize("name, every", [("HumanEval", 8), ("mbpp", 30)])
def test_published_solutions_pass_and_changed_ones_mostly_fail(name, every):
    found = [pair for pair in list(zip(*solutions(name)))[::every] if pair[0].id not in TOO_SLOW]
    verdicts = judge_programs(*zip(*found))
    assert [(problem.id, verdict) for (problem, _), verdict in zip(found, verdicts)
            if not verdict.passed] == []
    changed = [(problem, mutated(program)) for problem, program in found]
    changed = [pair for pair in changed if pair[1]]
    passed = [verdict.passed for verdict in judge_programs(*zip(*changed))]
    assert len(passed) > 15 and sum(passed) < 0.3 * len(passed)
