"""Tests of grade.py: right, wrong and hostile submissions."""

import csv
import json
import time

import pytest

import grade
import graded
import stubs
from support.judge import Verdict

ANSWERS = {file: (stubs.ROOT / file).read_text() for file in grade.FILES}
EXERCISES = "course/exercises.py"


# One submission that does something else in each exercise, and is right in the rest.
MIXED = {
    2: ("left_to_human", "while True: pass", "it does not end: did you forget the human's token?"),
    4: ("priced_length", "import os\nwhile True: os.fork()", "it starts processes"),
    5: ("unigram_nll", "print('x' * 10_000_000)\nreturn 0",
        "it prints or writes more than 1 MB"),
    6: ("rejects_herself", "import shutil\nshutil.rmtree('.')\nreturn 0",
        "it changes or deletes its tests"),
    7: ("keep_best", "return len(bytearray(9 * 10 ** 9))", "MemoryError"),
    9: ("another_human", "import os\nos._exit(0)", "it ends the process of its tests"),
}
# Others, of which two exercises are graded.
OTHERS = {
    "wrong": {"empower.py": ANSWERS["empower.py"].replace(
        "np.cumsum(nll, dtype=float) <= eta).sum()", "np.cumsum(nll, dtype=float) < eta).sum()")},
    "nothing": {"readme.txt": "sorry"},
    "imports the answers": {EXERCISES: "import sys\n" + "".join(
        f"sys.path.insert(0, {str(path)!r})\n" for path in (stubs.ROOT, stubs.ROOT / "course"))
        + "import stubs\n"},
    "ends its parent": {EXERCISES: stubs.stubbed(
        ANSWERS[EXERCISES], {"left_to_human": "import os\nos.kill(os.getppid(), 9)"})},
    "hangs at once": {EXERCISES: "while True: pass"},
    "is no Python": {"exercises.py": "def f(:"},
}


def grades(folder, submissions, *arguments):
    """{NAME: row of grades.csv} of {NAME: {file: text}}."""
    for name, files in submissions.items():
        for file, text in files.items():
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    grade.main([str(folder), *arguments])
    with open(folder / "grades.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["NAME"] for row in rows] == sorted(submissions)
    return {row["NAME"]: row for row in rows}


def test_each_exercise_has_its_share_or_a_reason(tmp_path):
    bodies = {name: body for name, body, _ in MIXED.values()}
    row = grades(tmp_path, {"mixed": {**ANSWERS, EXERCISES: stubs.stubbed(
        ANSWERS[EXERCISES], bodies)}}, "--seconds", "10")["mixed"]
    assert list(row) == ["NAME", *map(str, stubs.EXERCISES), "notes"]
    for number in stubs.EXERCISES:
        if number in MIXED:
            assert float(row[str(number)]) < 1
            assert f"{number}: {MIXED[number][-1]}" in row["notes"]
        else:
            assert row[str(number)] == "1.00", row["notes"]
    assert row["notes"].count(": ") >= len(MIXED) and row["notes"].count("; ") >= len(MIXED) - 1


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return grades(tmp_path_factory.mktemp("class"), OTHERS, "--exercises", "1", "2",
                  "--seconds", "5")


def test_the_cause_is_named_and_what_is_not_handed_in_is_empty(others):
    assert 0 < float(others["wrong"]["1"]) < 1 and others["wrong"]["2"] == ""
    assert "equality is kept" in others["wrong"]["notes"]
    assert others["nothing"] == {"NAME": "nothing", "1": "", "2": "",
                                 "notes": "no course/exercises.py and no empower.py"}


@pytest.mark.parametrize("name, reason", [
    ("imports the answers", "it reads the project's own files"),
    ("ends its parent", "runtime error"), ("hangs at once", "importing it: time limit"),
    ("is no Python", "SyntaxError")])
def test_a_submission_that_cannot_be_graded_is_a_row_with_the_reason(name, reason, others):
    assert others[name]["notes"].count(reason) == 1
    assert others[name]["2"] in ("", "0.00")


@pytest.mark.parametrize("work", [lambda: time.sleep(999), lambda: sum(iter(int, 1))])
def test_what_waits_or_computes_for_too_long_is_ended(work, monkeypatch):
    monkeypatch.setattr(graded, "PATIENCE", 2)
    assert graded.alone(1, work) == {"notes": ["time limit: still running after 1 s"]}
    assert graded.alone(1, lambda: {"notes": []}) == {"notes": []}


def test_a_folder_without_submissions_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        grade.main([str(tmp_path)])
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_row_without_results_has_the_reason(tmp_path):
    row = grade.row("A", ["1"], tmp_path / "none.json", Verdict("memory limit", 0, "at 2048 MB"))
    assert row["notes"] == "memory limit: at 2048 MB" and json.dumps(row)


def test_the_project_is_not_on_the_path_of_a_submission():
    assert str(stubs.ROOT) not in grade.libraries()
