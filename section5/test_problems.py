"""Tests of reading problems, and of the judge on tests that call the program."""

import ast
import base64
import json
import pickle
import zlib

import pytest

from section5 import formats, problems
from section5.formats import private_tests
from section5.problems import Problem, judge_programs, read_problems
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


@pytest.mark.parametrize("time, memory, found", [
    ("500 ms", "1 GB", (0.5, 2**30)), ("1500 milliseconds", "64 megabytes", (1.5, 2**26)),
    ("2 s", "512KB", (2, 2**19)), (3, 256.0, (3, 2**28)),
    ("1 minute", "1048576 bytes", (60, 2**20)),
    (None, "", (6, 2**29))])
def test_limits_have_units(time, memory, found, tmp_path):
    [problem] = read(tmp_path, {**APPS, "time_limit": time, "memory_limit": memory})
    assert (problem.seconds, problem.memory) == found


def test_a_limit_in_an_unknown_unit_is_refused(tmp_path):
    with pytest.raises(UserError, match="row 1 .*a limit of 5 parsecs"):
        read(tmp_path, {**APPS, "time_limit": "5 parsecs"})


@pytest.mark.parametrize("date", ["2024-09-07", "2024-09-07T18:30:00Z", "Sep 07, 2024", 1725667200,
                                  "September 7, 2024", "7 Sep 2024", "1725667200", 1725667200000.0,
                                  "20240907", "2024/09/07"])
def test_a_date_is_compared_however_it_is_written(date, tmp_path, capsys):
    rows = livecodebench(contest_date=date), livecodebench(contest_date="2025-01-01")
    assert read(tmp_path, rows[0], since="2024-09-07")[0].date == "2024-09-07"
    assert len(read(tmp_path, *rows, since="2024-09-08")) == 1
    assert "left out" not in capsys.readouterr().out
    assert len(read(tmp_path, livecodebench(contest_date="soon"), rows[1], since="2024-01-01")) == 1
    assert "1 problems of" in capsys.readouterr().out


def test_tests_may_be_numbers_lists_and_lines_of_windows(tmp_path):
    numbers = {**APPS, "input_output": {"inputs": [5, [1, [2]]], "outputs": [5, "3"]}}
    [problem] = read(tmp_path, numbers)
    assert problem.tests == (("5", "5"), ("1\n2", "3"))
    tests = [{"input": 5, "output": 5, "testtype": "stdin"},
             {"input": "a\r\nb\r\n", "output": "b\r\n", "testtype": "stdin"}]
    [problem] = read(tmp_path, livecodebench(public_test_cases=tests, private_test_cases=tests))
    assert problem.tests == (("5", "5"), ("a\nb\n", "b\n")) * 2
    called = [{"input": "\"a\u2028b\"\n5", "output": 6, "testtype": "functional"}]
    [problem] = read(tmp_path, {**functional(), "public_test_cases": json.dumps(
        called, ensure_ascii=False), "private_test_cases": called})
    assert json.loads(problem.calls)["tests"][1]["arguments"] == ["a\u2028b", 5]
    with pytest.raises(UserError, match="row 1 .*a test with None"):
        read(tmp_path, livecodebench(public_test_cases=[{**tests[0], "input": None}]))


def judged(programs, tests=(("1\n", "5\n"),), **options):
    """The outcome of each program on a problem of standard input and output."""
    problem = Problem("1", "", tests=tests, seconds=options.pop("seconds", 10.0))
    return [verdict.outcome for verdict in judge_programs([problem] * len(programs), programs, 1,
                                                          **options)]


RIGHT_THERE = [  # programs that LiveCodeBench's grader passes
    "print(bisect.bisect_left([1, 2, 3, 4, 5, 6], 6))", "print(datetime.datetime(5, 1, 1).year)",
    "print(deepcopy([5])[0] if pow(2, 3, 5) == 3 == reduce(add, [1, 2]) else 0)",
    "print(5 if maxsize == sys.maxsize and json.loads('5') and ascii_lowercase else 0)",
    "print(5 if timedelta(days=1) and search('a', 'a') and argv == sys.argv else 0)",
    "from __future__ import annotations\nprint(list(accumulate([2, 3]))[1])",
    "print(len(stdin.readline()) + 3)", "@cache\ndef f(n): return n and 1 + f(n - 1)\n"
    "print(f(20000) // 4000)",
    "print()\nprint()\nprint(5)", "print('5\\n\\n')", "print('5.0')", "print(5)\nexit(1)",
    "print(5)\nsys.exit('done')", "len(str(10**5000))\nprint(5)",
    "import sys\nsys.stderr.write('x' * 3 * 10**6)\nprint(5)",
    "import threading\nfor k in range(9): threading.Thread(target=list).start()\nprint(5)"]


def test_a_program_finds_what_graders_give_it():
    assert judged(RIGHT_THERE) == ["passed"] * len(RIGHT_THERE)


def test_the_rest_is_judged_as_ever():
    wrong = ["print(4)\nprint()\nprint(5)", "print(4)\nexit()", "import sys\nprint(5)\n1 / 0",
             "import os\nprint(5)\nos._exit(1)", "print(5)\nprint('x' * 3 * 10**6)",
             "print('5')\nprint()\nprint('6')"]
    assert judged(wrong) == ["wrong answer"] * 2 + ["runtime error"] * 2 + [
        "output limit", "wrong answer"]
    assert judged(["print(5)", "print('\\n5')", "print('5\\n\\n6')"], (("", "\n\n5\n"),)) == [
        "passed", "passed", "wrong answer"]
    assert judged(["print('5\\n6')"], (("", "5\n\n6"),)) == ["wrong answer"]


def test_packages_are_imported_when_they_are_asked_for():
    numpy = ["import numpy\nprint(numpy.arange(6).max())"]
    assert judged(numpy) == ["runtime error"] and judged(numpy, packages=True) == ["passed"]


def test_the_sanitized_mbpp_and_what_needs_numpy(tmp_path, capsys):
    row = {"task_id": 2, "prompt": "Write a function to add.", "code": ADD,
           "test_imports": ["import math"], "test_list": ["assert math.isclose(add(1, 2), 3)"]}
    [problem] = read(tmp_path, row)
    assert problem.statement.startswith("Write a function to add.\nFor example:\nassert math")
    assert judge_programs([problem], [ADD], 1)[0].passed
    plus = {**HUMANEVAL, "test": "import numpy as np\ndef check(candidate):\n    assert True\n"}
    assert len(read(tmp_path, plus, HUMANEVAL)) == 1
    assert "their tests import packages, see --packages" in capsys.readouterr().out
    assert len(read(tmp_path, plus, HUMANEVAL, packages=True)) == 2


def test_large_tests_have_more_time_and_room(tmp_path):
    problem = Problem("1", "", tests=(("", "1" * 2**21),), seconds=2.0)
    assert problem.limits == (2.0, 512 * 2**20, 2**22)
    assert judge_programs([problem], ["print('1' * 2**21)"], 1)[0].passed
    assert Problem("1", "", calls=" " * (25 * 2**20), seconds=2.0).limits[0] == 22.0


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
    monkeypatch.setattr(formats, "LARGEST", 2**20)
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
