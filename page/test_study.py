"""Tests of the study's analysis: its statistics against known values, and its counts."""

import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest

from page.study import (Figures, analyse, as_log, figures, incomplete_beta, main, paired_t,
                        proportions_p, read_parts, read_study, student_two_sided, votes_p)
from support.cli import UserError
from support.test_helpers import ROOT


@pytest.mark.parametrize("votes, p, half", [(14, .015, .0005), (11, .240, .0005),
                                            (17, .00007, .000005)])
def test_the_papers_votes_have_the_papers_p(votes, p, half):
    assert votes_p(votes, 18) == pytest.approx(p, abs=half)
    assert votes_p(0, 18) == 1
    assert votes_p(2, 2, choices=3) == pytest.approx(1 / 9)
    assert votes_p(1, 2, choices=3) == pytest.approx(5 / 9)


def test_the_papers_accept_ratios_have_the_papers_p():
    """8.08% of 208 suggestions against 6.18% of 333, of 18 people each: p = .0002."""
    n, m = 18 * 208, 18 * 333
    assert proportions_p(round(.0808 * n), n, round(.0618 * m), m) == pytest.approx(.0002, abs=5e-5)
    assert math.isnan(proportions_p(0, 5, 5, 5)) and math.isnan(proportions_p(0, 0, 1, 5))
    assert proportions_p(1, 4, 3, 4) > 0.9


@pytest.mark.parametrize("t, freedom, p", [  # from tables of Student's t
    (12.706, 1, .05), (2.228, 10, .05), (3.169, 10, .01), (2.110, 17, .05), (2.567, 17, .02),
    (1.960, 10**6, .05), (0, 5, 1), (63.657, 1, .01), (-2.228, 10, .05)])
def test_students_t_has_the_values_of_the_tables(t, freedom, p):
    assert student_two_sided(t, freedom) == pytest.approx(p, abs=2e-4)


def test_the_incomplete_beta_function():
    for a, b, x in ((1, 1, 0.3), (1, 3, 0.2), (4, 1, 0.7)):
        exact = {1: 1 - (1 - x) ** b}.get(a, x ** a)  # I_x(1, b) and I_x(a, 1)
        assert incomplete_beta(a, b, x) == pytest.approx(exact, rel=1e-12)
    assert incomplete_beta(2, 3, 0.4) + incomplete_beta(3, 2, 0.6) == pytest.approx(1)
    assert (incomplete_beta(2, 3, 0), incomplete_beta(2, 3, 1)) == (0, 1)


def test_the_paired_test():
    t, p = paired_t([1, 2, 3, 4], [0, 2, 1, 1])  # differences 1, 0, 2, 3: mean 1.5, deviation 1.29
    assert t == pytest.approx(1.5 / (math.sqrt(5 / 3) / 2)) and p == pytest.approx(0.1027, abs=1e-3)
    assert math.isnan(paired_t([1], [2])[1]) and math.isnan(paired_t([1, 2], [2, 3])[1])
    rng = np.random.default_rng(0)
    small = [paired_t(*rng.normal(size=(2, 8)))[1] < 0.05 for _ in range(2000)]
    assert np.mean(small) == pytest.approx(0.05, abs=0.015)


def events(*actions, part=0):
    """Events of a part from (type, info, caret)."""
    return [{"n": n, "part": part, "ms": 1000 * n, "type": kind, "info": str(info), "caret": caret}
            for n, (kind, info, caret) in enumerate(actions, 1)]


def written(folder, *parts, order=("A", "B"), answers=None, alone=0):
    """A person's folder with the events of each part."""
    folder.mkdir(parents=True)
    (folder.parent / "plan.json").write_text(json.dumps({"minutes_alone": alone}))
    (folder / "person.json").write_text(json.dumps({"assistants": order, "problem": "the sum"}))
    (folder / "events.jsonl").write_text("".join(
        json.dumps(event) + "\n" for part, actions in enumerate(parts)
        for event in events(*actions, part=part)))
    if answers is not None:
        (folder / "answers.json").write_text(json.dumps(answers))
    return folder


def test_every_character_belongs_to_somebody():
    found = figures(events(
        ("current_code", "x\n", 2), ("character_typed", "a", 3),
        ("proposed_suggestion", "bcd\n", 3), ("accepted_suggestion", "bcd\n", 7),
        ("proposed_suggestion", "e", 7), ("deletion", 2, 5), ("cursor_moved", "", 3),
        ("tick", "", 0), ("deletion", 1, 2), ("deletion", 1, 1)))
    assert found == Figures(proposed=2, accepted=1, suggested=4, deleted=2, typed=1, shown=5)


def test_who_wrote_what_is_known_after_any_editing():
    """Against a list of characters, in which suggestions are capitals."""
    rng, program, actions = random.Random(0), [], []
    deleted = suggested = 0
    for _ in range(500):
        at = rng.randint(0, len(program))
        new = rng.choice(["a", "bc", "D", "EFG"])
        if rng.random() < 0.5:
            end = rng.randint(at, len(program))
            actions.append(("deletion", end - at, at))
            deleted += "".join(program[at:end]).count("s")
            del program[at:end]
        else:
            actions.append(("accepted_suggestion" if new.isupper() else "character_typed", new,
                            at + len(new)))
            program[at:at] = ["s" if new.isupper() else "t"] * len(new)
            suggested += new.isupper() * len(new)
    found = figures(events(*actions))
    assert (found.deleted, found.suggested) == (deleted, suggested)


def test_a_part_that_begins_within_a_program():
    """The record of the page says the program first; another one need not."""
    assert figures(events(("accepted_suggestion", "ab", 12), ("deletion", 4, 8))).deleted == 2


def test_a_log_has_one_line_for_each_action():
    log = as_log(events(("character_typed", "\"a\tb\r\n", 6), ("tick", "", 0), ("deletion", 2, 4)))
    assert log.splitlines() == [
        "timestamp\taction_type\taction_info\tcaret_index",
        '1970-01-01T00:00:01.000Z\tcharacter_typed\t"a\\tb\\r\\n\t6',
        "1970-01-01T00:00:03.000Z\tdeletion\t2\t4"]


@pytest.mark.parametrize("file, text", [
    ("events.jsonl", "{}\n"), ("events.jsonl", "x\n"), ("events.jsonl", '{"part": 7}\n'),
    ("tests.jsonl", "{}\n"), ("answers.json", "[1]"), ("answers.json", '{"enjoyed": "A"}'),
    ("person.json", "{}")])
def test_a_damaged_file_is_refused_with_the_name_of_the_person(file, text, tmp_path):
    person = written(tmp_path / "teal-otter", [("character_typed", "a", 1)])
    (person / file).write_text(text)
    with pytest.raises(UserError, match="teal-otter"):
        read_study(tmp_path)


@pytest.fixture
def study(tmp_path):
    """Three people; A deletes one suggested character of four each time, B two of four."""
    for k in range(3):
        order = "BA" if k == 1 else "AB"
        parts = []
        for name in order:
            deleted = (1 if name == "A" else 2) + (k == 2)
            parts.append([("current_code", "", 0), ("proposed_suggestion", "wxyz", 0),
                          ("accepted_suggestion", "wxyz", 4), ("deletion", deleted, 4 - deleted),
                          *[("proposed_suggestion", "q", 4 - deleted)] * (name == "B")])
        written(tmp_path / f"person-{k}", *parts, order=order, answers={"enjoyed": "assistant_1"})
    return tmp_path


def test_a_study_is_unblinded_and_counted(study):
    results = analyse(read_study(study))
    a, b = results["rows"]
    assert (a["name"], a["accept_ratio"], b["accept_ratio"]) == ("A", 1, 0.5)
    assert a["deleted_per_accepted"] == pytest.approx(4 / 3) and b["suggestions"] == 2
    assert results["votes"] == [{"question": "enjoyed", "most": "A", "votes": 2, "people": 3,
                                 "p": 0.5}]
    ratio, deleted = results["tests"]
    assert ratio["first"] == "A" and ratio["p"] == proportions_p(3, 3, 3, 6)
    assert deleted["p"] is None  # each person's difference is the same


def test_answers_without_events_of_an_assistant_are_not_votes(tmp_path):
    """Somebody who left after the part without an assistant."""
    written(tmp_path / "a", [("character_typed", "x", 1)], alone=25,
            answers={"enjoyed": "assistant_1"})
    results = analyse(read_study(tmp_path))
    assert [row["name"] for row in results["rows"]] == ["alone"]
    assert results["tests"] == [] and results["people"] == 1


def test_ties_three_assistants_and_solved_problems(study):
    """Each of three people votes for another one of three assistants; one solved it with C."""
    for k, vote in enumerate(("assistant_1", "assistant_2", "assistant_3")):
        person = study / f"person-{k}"
        with open(person / "events.jsonl", "a") as file:
            file.write(json.dumps(events(("proposed_suggestion", "w", 0), part=2)[0]) + "\n")
        (person / "person.json").write_text('{"assistants": ["A", "B", "C"], "problem": "sum"}')
        (person / "answers.json").write_text(json.dumps({"enjoyed": vote}))
    (study / "person-0" / "tests.jsonl").write_text(
        '{"part": "assistant_1", "passed": false}\n{"part": "assistant_3", "passed": true}\n')
    (study / "person-2" / "answers.json").unlink()
    results = analyse(read_study(study))
    assert results["votes"] == [{"question": "enjoyed", "most": "a tie: A, B", "votes": 1,
                                 "people": 2, "p": None}]
    assert (results["people"], results["finished"]) == (3, 2)
    assert [row["solved"] for row in results["rows"]] == [0, 0, 1]
    assert [(test["first"], test["second"]) for test in results["tests"][::2]] == [
        ("A", "B"), ("A", "C"), ("B", "C")]
    (study / "person-1" / "answers.json").write_text('{"enjoyed": "assistant_1"}')
    [vote] = analyse(read_study(study))["votes"]
    assert vote["most"] == "A" and vote["p"] == pytest.approx(1 / 9)


def test_the_command_prints_the_table_and_json(study, tmp_path, capsys):
    path = tmp_path / "found.json"
    done = subprocess.run([sys.executable, "page/study.py", study, "--json", path], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "| enjoyed" in done.stdout and "paired t over 3" in done.stdout
    assert json.loads(path.read_text())["people"] == 3
    assert not list(study.glob("*/*/*"))
    main([str(study), "--logs"])
    assert {log.read_text() == as_log(read_parts(log.parent.parent)[1][log.parent.name])
            for log in study.glob("*/*/the-sum.tsv")} == {True}
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "plan.json").write_text("{}")
    capsys.readouterr()
    for folder, said in ((tmp_path / "begun", "nobody"), (tmp_path / "none", "no plan.json")):
        with pytest.raises(SystemExit) as end:
            main([str(folder)])
        err = capsys.readouterr().err
        assert end.value.code == 2 and said in err and err.count("\n") == 1
