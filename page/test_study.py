"""Tests of the study's analysis: its statistics against known values, and its counts."""

import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest

from page.logs import MAPPING, Figures, as_log, changed, figures, read_log
from page.study import (analyse, incomplete_beta, main, paired_t, proportions_p, read_parts,
                        read_study, student_two_sided, votes_p)
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


def session(seed, actions=300):
    """(events, characters of suggestions deleted, suggested) of a session made at random.

    Every program is a list of (character, whether it was suggested). Text is typed anywhere, also
    at the end; some of it begins with a quotation mark, holds tabs, line breaks, or a backslash and
    an n; now and then the record says the program, as the published editor does.
    """
    rng, program, done, deleted, suggested = random.Random(seed), [], [], 0, 0
    for _ in range(actions):
        at = rng.choice([len(program), rng.randint(0, len(program))])
        new = rng.choice(["a", '"b', "c\td", "\n    ", 'print("\\n")', "\\r\\n"])
        done.append(("cursor_moved", "", at))
        if rng.random() < 0.3:
            end = rng.randint(at, min(len(program), at + 20))
            deleted += sum(mark for _, mark in program[at:end])
            done.append(("deletion", end - at, at))
            del program[at:end]
            continue
        if rng.random() < 0.1:
            done.append(("current_code", "".join(c for c, _ in program), at))
        accepted = rng.random() < 0.5
        if accepted:
            done.append(("proposed_suggestion", new, at))
            suggested += len(new)
        done.append(("accepted_suggestion" if accepted else "character_typed", new, at + len(new)))
        program[at:at] = [(c, accepted) for c in new]
    return events(*done), deleted, suggested


def test_who_wrote_what_is_known_after_any_editing(tmp_path):
    """From the record, and from a log of it, which does not tell all texts apart."""
    for seed in range(10):
        done, deleted, suggested = session(seed)
        found = figures(done)
        assert (found.deleted, found.suggested) == (deleted, suggested)
        (tmp_path / "log.csv").write_text(as_log(done))
        assert figures(read_log(tmp_path / "log.csv")) == found


@pytest.mark.parametrize("code, marks, new, expected", [
    ("abc", "sst", "abXc", "ss?t"), ("abc", "sst", "abc", "sst"), ("abc", "sst", "", ""),
    ("def f(x):\n    pass", "s" * 18, "def g(x):\n    pass # y", "s" * 4 + "?" + "s" * 13 + "????"),
    ("aXbYc", "stsTs", "abc", "sss"), ("", "", "ab", "??")])
def test_a_program_that_changed_unseen_keeps_who_wrote_what(code, marks, new, expected):
    assert changed(code, marks.lower(), new) == (new, expected)


def test_a_part_that_begins_within_a_program():
    """The record of the page says the program first; another one need not."""
    assert figures(events(("accepted_suggestion", "ab", 12), ("deletion", 4, 8))).deleted == 2


def test_a_log_has_one_line_for_each_action():
    log = as_log(events(("character_typed", "\"a\tb\r\n", 6), ("tick", "", 0), ("deletion", 2, 4)))
    assert log.splitlines() == [
        "timestamp\taction_type\taction_info\tcaret_index",
        '1970-01-01T00:00:01.000Z\tcharacter_typed\t"a\\tb\\r\\n\t6',
        "1970-01-01T00:00:03.000Z\tdeletion\t2\t4"]


def logged(folder, *parts, names=None, file="coding_log.csv"):
    """A person's folder with a log in each of assistant_1, assistant_2 ..., and who is who."""
    for k, actions in enumerate(parts, 1):
        (folder / f"assistant_{k}").mkdir(parents=True)
        (folder / f"assistant_{k}" / file).write_text(as_log(events(*actions)))
    if names:
        (folder / MAPPING).write_text(json.dumps({
            f"Assistant {k}": {"actualName": name, "obfuscatedDirName": f"assistant_{k}"}
            for k, name in enumerate(names, 1)}))
    return folder


def taken(deleted, text="print(x)"):
    """Two suggestions accepted, of which so many characters are deleted."""
    end = 2 * len(text)
    return [("current_code", "", 0), ("proposed_suggestion", text, 0),
            ("accepted_suggestion", text, len(text)), ("proposed_suggestion", text, len(text)),
            ("accepted_suggestion", text, end),
            *[("deletion", 1, end - k) for k in range(1, deleted + 1)]]


def test_folders_of_the_published_editor_are_read_as_they_are(tmp_path):
    """Its own samples have these figures: .75 ± .25 and 1.50 ± .00 deleted per accepted."""
    logged(tmp_path / "test_problem_1", taken(2), taken(3), names=("eta4", "untrained10"))
    person = logged(tmp_path / "test_problem_2", taken(3), taken(1), names=("untrained10", "eta4"),
                    file="merge_log.csv")
    (person / "no_assistant").mkdir()
    (person / "no_assistant" / "merge_log.csv").write_text(
        as_log(events(("character_typed", "x", 1))))
    rows = {row["name"]: row for row in analyse(read_study(tmp_path))["rows"]}
    assert {name: row["deleted"] for name, row in rows.items()} == {
        "eta4": "0.75 ± 0.25", "untrained10": "1.50 ± 0.00", "alone": None}
    for file in tmp_path.glob("*/*/*_log.csv"):  # and so are the logs that were once written here
        file.rename(file.with_name("the-sum.tsv"))
    for folder in tmp_path.iterdir():
        names = json.loads((folder / MAPPING).read_text()).values()
        (folder / MAPPING).unlink()
        (folder / "mapping.json").write_text(json.dumps(
            {name["obfuscatedDirName"]: name["actualName"] for name in names}))
    assert {row["name"]: row for row in analyse(read_study(tmp_path))["rows"]} == rows
    assert {row["people"] for row in rows.values()} == {1, 2}


def test_logs_of_the_same_assistant_are_added_up(tmp_path):
    """Of two problems, of two folders, and of one of them in both formats once."""
    person = logged(tmp_path / "a", taken(2), taken(3), names=("eta4", "eta4"))
    (person / "assistant_1" / "coding_log.tsv").write_text("an older copy of the same")
    (person / "assistant_1" / "other_log.csv").write_text(as_log(events(*taken(1))))
    [row] = analyse(read_study(tmp_path))["rows"]
    assert (row["accepted"], row["deleted_per_accepted"]) == (6, 1.0)


def test_folders_are_names_only_if_nobody_is_blind(tmp_path):
    logged(tmp_path / "a", taken(2))
    assert [row["name"] for row in analyse(read_study(tmp_path))["rows"]] == ["assistant_1"]
    logged(tmp_path / "b", taken(2), names=("eta4",))
    with pytest.raises(UserError, match="/a cannot be read .* which assistant assistant_1 is"):
        read_study(tmp_path)
    (tmp_path / "a" / MAPPING).write_text('{"assistant_2": "eta4"}')
    with pytest.raises(UserError, match="/a cannot be read"):
        read_study(tmp_path)
    (tmp_path / "a" / MAPPING).write_text('{"assistant_1": "eta4"}')
    assert [row["people"] for row in analyse(read_study(tmp_path))["rows"]] == [2]


@pytest.mark.parametrize("file, text, said", [
    (MAPPING, "[1]", "an object in braces"), (MAPPING, '{"assistant_1": 7}', "name of an assistant"),
    (MAPPING, '{"assistant_1": ["eta4"]}', "name of an"), (MAPPING, '{"Assistant 1": {}}', "name of"),
    (MAPPING, "{", "Expecting property name"), (MAPPING, '{"Assistant 1": "eta4"}', "assistant_1 is"),
    ("answers.json", '{"enjoyed": "Assistant 1"}', "is 'Assistant 1': give one of .*assistant_1"),
    ("answers.json", '{"enjoyed": ["assistant_1"]}', "give one of"), ("answers.json", '["x"]', "braces"),
    ("assistant_1/coding_log.csv", "x\n", "first line of coding_log.csv is not"),
    ("assistant_1/coding_log.csv", "x\ty\tz\t99999999999\n", "line 2 of coding_log.csv"),
    ("assistant_1/coding_log.csv", "x\ty\tz\t-1\nx\ty\tz\t1\n", "line 2 of coding_log.csv"),
    ("assistant_1/coding_log.csv", "x\ty\nx\ty\tz\t1\n", "line 2 of coding_log.csv")])
def test_a_damaged_log_is_refused_with_its_name_and_line(file, text, said, tmp_path):
    person = logged(tmp_path / "teal-otter", taken(2), names=("eta4",))
    header = as_log([]) if file.endswith("csv") and text[1] == "\t" else ""
    (person / file).write_text(header + text)
    with pytest.raises(UserError, match=f"teal-otter cannot be read .*{said}"):
        read_study(tmp_path)


def test_half_a_line_at_the_end_of_a_log_is_ignored(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(as_log(events(("character_typed", "a", 1))) + "1970\tcharacter_ty")
    assert figures(read_log(path)).typed == 1


def test_a_backslash_and_an_n_are_two_characters(tmp_path):
    """In a log they look like a line break; the caret tells them apart."""
    done = events(("proposed_suggestion", 'x("\\n")\n', 0), ("accepted_suggestion", 'x("\\n")\n', 8),
                  ("deletion", 1, 7), ("current_code", 'x("\\n")', 7), ("deletion", 7, 0))
    (tmp_path / "log.csv").write_text(as_log(done))
    assert figures(read_log(tmp_path / "log.csv")) == figures(done) == Figures(
        proposed=1, accepted=1, suggested=8, deleted=8, shown=8)


@pytest.mark.parametrize("file, text", [
    ("events.jsonl", "{}\n"), ("events.jsonl", "x\n"), ("events.jsonl", '{"part": 7}\n'),
    ("events.jsonl", '{"part": 0, "type": "character_typed", "info": "a", "caret": 99999999999}\n'),
    ("tests.jsonl", "{}\n"), ("tests.jsonl", '{"part": [], "passed": true}\n'),
    ("answers.json", "[1]"), ("answers.json", '{"enjoyed": "A"}'),
    ("answers.json", '{"enjoyed": {}}'), ("person.json", "{}")])
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
            for log in study.glob("*/*/the-sum.csv")} == {True}
    results = analyse(read_study(study))
    for path in [*study.glob("*/events.jsonl"), *study.glob("*/person.json")]:
        path.unlink()
    assert analyse(read_study(study)) == results  # from what --logs has written
    assert main([str(study), "--logs"]) is None
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "plan.json").write_text("{}")
    capsys.readouterr()
    for folder, said in ((tmp_path / "begun", "nobody"), (tmp_path / "none", "no plan.json, and no")):
        with pytest.raises(SystemExit) as end:
            main([str(folder)])
        err = capsys.readouterr().err
        assert end.value.code == 2 and said in err and err.count("\n") == 1
