"""Tests of the experiments and of what a student is given; each exercise has a file of its own."""

import ast
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import empower
import exercises
import own
import running
import stubs
from support import contest, miniature
from support.test_helpers import TINY

# ------------------------------------------------------------------- the experiments


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Settings of a run that takes seconds, whose stages all experiments share."""
    return empower.Config(
        out=str(tmp_path_factory.mktemp("run") / "out"), pretrain_steps=12, train_problems=40,
        held_out_problems=6, dev_problems=3, layers=1, width=32, max_suggestion=8, rounds=3,
        device="cpu")


DEFAULT = ["Base-4", "SFT-4", "Empower (0.32)"]


@pytest.mark.parametrize("number, names, minus", [
    (4, ["Price 0.05", "Price 0.2", "Price 0.8"], "Empower (0.32)"),
    (5, ["Unigram (4)", "Unigram (16)"], "Empower (0.32)"),
    (6, [f"{name}, care {care}" for care in ("0.5", "0.01", "0.001") for name in DEFAULT], ""),
    (7, ["Best half", "First half"], ""),
    (9, [f"{name}, another human, care {care}" for care in ("0.05", "0.01", "0.001")
         for name in DEFAULT], ""),
    (10, ["Your labels", "Prefix learned too", "No stop"], "Empower (0.32)")])
def test_an_experiment_prints_its_rows_next_to_the_default_ones(number, names, minus, tiny, capsys):
    found = running.experiment(exercises.EXPERIMENTS[number], tiny)
    printed = capsys.readouterr().out
    usual = ", care 0.05" if number in (6, 9) else ""
    rows = re.findall(r"^\| (\w.*?) +\|", printed, re.MULTILINE)
    assert rows == ["assistant", *(name + usual for name in DEFAULT), *names]
    if minus:
        assert list(found) == [(name, minus) for name in names]
    elif number == 7:
        assert list(found) == [("Best half", "First half")]
    else:  # Empower minus both others, with the same human
        assert len(found) == 6 and all(
            a.startswith("Empower") and a.partition(",")[2] == b.partition(",")[2]
            for a, b in found)
    assert all(list(values) == ["pass@1", "accept_ratio", "dpr"] for values in found.values())
    if number == 6:
        assert printed.count("of her own text she rejects") == 3


def test_your_labels_learn_what_empower_learns(tiny):
    """The examples of exercise 10, and its loss, are those of the project."""
    lab = empower.Lab(tiny)
    completions, _ = lab.completions(empower.empower(tiny.eta))
    encoding, given = lab.base.encoding, []
    keep = lab.kept
    lab.kept = lambda name, function, *arguments, **how: (
        given.append((name, arguments)), keep(name, function, *arguments, **how))[1]
    exercises.experiment_10(lab)
    examples = {name: arguments[2] for name, arguments in given if not name.startswith("row")}
    right = [empower.sft_example(encoding, *found) for found in completions if found[2]]
    assert examples["Your labels"] == right
    assert {start for _, start in examples["Prefix learned too"]} == {1}
    assert not any(ids[-1] == encoding.stop for ids, _ in examples["No stop"])
    model = lab.base.model
    losses = [gradient(model, right[:3]) for gradient in (empower.sft_gradient,
                                                          exercises.label_gradient)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_empowerment_is_shown_next_to_entropy_and_cost(tiny, capsys):
    assert running.experiment(exercises.experiment_11, tiny) == {}
    rows = re.findall(r"^\| ('.*?') +\| +([\d.]+) \| +(-?[\d.]+) \|", capsys.readouterr().out,
                      re.MULTILINE)
    assert len(rows) == 15
    assert all(float(known) <= float(entropy) + 1e-9 for _, entropy, known in rows)


def test_over_seeds_the_interval_is_that_of_their_differences():
    pair, rows = ("Mine", "Empower"), (0.1, 0.2, 0.3)
    each = [{pair: {"dpr": (value, -1, 1), "accept_ratio": (None, None, None)}} for value in rows]
    found = running.over_seeds(each)[pair]
    assert found["dpr"] == pytest.approx((0.2, 0.2 - 0.248, 0.2 + 0.248), abs=1e-3)
    assert found["accept_ratio"] == (None, None, None)
    assert "| +0.200 (-0.048 to +0.448) |" in running.differences({pair: found})


def test_the_terminal_says_what_the_intervals_are_over(tiny, capsys):
    running.play(own.experiment, tiny, [0])
    once = capsys.readouterr().out
    assert "trained once" in once and "--seeds 0 1 2" in once
    running.play(own.experiment, tiny, [0, 1])
    twice = capsys.readouterr().out
    assert "Over 2 seeds" in twice and "trained once" not in twice
    assert len(re.findall(r"\| Mine +\|", twice)) == 2 and twice.count("| Mine minus Empower (0.32) ") == 1


def test_a_rule_of_one_s_own_is_what_it_says():
    assert [own.mine(np.array(nll), None) for nll in ([0.5, 0.2, 0.6, 0], [9.0], [])] == [2, 0, 0]


def test_verdicts_say_which_of_her_programs_are_right(tiny):
    lab = empower.Lab(tiny)
    problems = {problem.statement: problem for problem in lab.contest.learn}
    right = contest.write_program(
        lab.contest.learn[0].parts, contest.draw_style(random.Random(0)))
    written = [{"statement": lab.contest.learn[0].statement, "program": right},
               {"statement": lab.contest.learn[1].statement, "program": "print('no')"}]
    assert miniature.verdicts(written, lab.contest.learn) == [True, False]
    assert len(lab.verdicts()) == len(lab.written)
    assert all(row["statement"] in problems for row in lab.written)


@pytest.mark.parametrize("number", [5, 7])
def test_a_program_that_was_cut_off_is_not_learned_as_if_it_ended(number, tiny, monkeypatch):
    given = []
    monkeypatch.setattr(exercises, "learned", lambda lab, rules, programs: (
        given.extend(programs) or {}))
    getattr(exercises, f"experiment_{number}")(empower.Lab(tiny))
    assert given and not all(ends for *_, ends in given)


def test_another_domain_goes_through_the_whole_experiment(tiny, monkeypatch, capsys):
    monkeypatch.setattr(contest, "DOMAINS", contest.DOMAINS)
    assert running.experiment(exercises.experiment_8, tiny) == {}
    assert "| Empower (0.32) " in capsys.readouterr().out
    assert Path(tiny.out, "another-domain", "results.json").exists()
    # So few problems may have no meaning of the new domain, but the contest has.
    assert {parts[0] for parts in contest.compositions()} == {0, 1, 2}


@pytest.mark.parametrize("arguments", [
    [], ["3"], ["x"], ["4", "--seeds", "0", "0"], ["4", "--seeds", *map(str, range(11))]])
def test_bad_arguments_get_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        running.main(exercises.EXPERIMENTS, arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert error.startswith("course/exercises.py: ")


# ------------------------------------------------------------------- what a student is given


def test_a_stub_is_the_docstring_and_an_error():
    source = 'x = 1\n\ndef f(x):\n    """Doubles."""\n    y = 2\n    return y * x\n\ndef g(x):\n' \
             '    """Halves.\n\n    Or so.\n    """\n    return x / 2\n'
    assert stubs.stubbed(source, {"f": "pass"}) == source.replace(
        "    y = 2\n    return y * x\n", "    pass\n")
    assert stubs.stubbed(source, {"f": "a\nb", "g": "a\nb"}).count("    a\n    b\n") == 2


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A student's copy; its name and a pytest.ini above it once made pytest choose other tests."""
    above = tmp_path_factory.mktemp("exercise")
    (above / "pytest.ini").write_text("[pytest]\npython_files = nothing.py\n")
    out = above / "empower-exercises"
    assert stubs.main([str(out)]) == 0
    return out


def bodies(path):
    """{name: source} of what a file defines."""
    return {getattr(node, "name", k): ast.unparse(node) for k, node in enumerate(
        ast.parse(path.read_text()).body)}


def test_stubs_differ_from_the_project_in_nothing_else(student):
    changed = {}
    for path in sorted(student.rglob("*.py")):
        ours, theirs = bodies(stubs.ROOT / path.relative_to(student)), bodies(path)
        assert list(ours) == list(theirs)
        for name in ours:
            if ours[name] != theirs[name]:
                changed.setdefault(str(path.relative_to(student)), set()).add(name)
                docstrings = [ast.get_docstring(ast.parse(some[name]).body[0])
                              for some in (ours, theirs)]
                assert docstrings[0] and docstrings[0] == docstrings[1]
    left = {"support/report.py": {"left_to_human"}}  # which is what exercise 2 has written
    for file, names in stubs.EXERCISES.values():
        left[file] = left.get(file, set()) | set(names)
    assert changed == left


def test_a_student_s_copy_has_no_answers(student):
    """Neither the functions nor what says them in other words: see the box of the course's page."""
    text = {path: path.read_text(encoding="utf-8") for path in student.rglob("*") if path.is_file()}
    for words in ("np.cumsum(nll, dtype=float) <= eta", "np.searchsorted(cum, cum[:-1]",
                  "algorithm_1", "eacher", "-logits.log_softmax", "n += int(lengths"):
        assert [path for path in text if words in text[path]] == [], words
    assert not (student / "page").exists() and not list((student / "figures").glob("*.md"))
    assert not list(student.rglob("stubs.py")) and not list(student.rglob("test_empower.py"))


def pytest_in(folder, *arguments):
    """What pytest prints there, in another process, and its exit status."""
    ran = subprocess.run([sys.executable, "-m", "pytest", "-q", "--no-header", "-p",
                          "no:cacheprovider", *arguments], cwd=folder, capture_output=True,
                         text=True, env={**os.environ, "COLUMNS": "300", "PYTHONPATH": ""})
    return ran.stdout, ran.returncode


def test_every_test_of_a_student_s_copy_fails_until_the_functions_are_written(student):
    printed, _ = pytest_in(student)
    last = printed.splitlines()[-1]
    assert " failed" in last and "passed" not in last, printed
    for number, (file, names) in stubs.EXERCISES.items():
        for name in names:
            assert re.search(rf"(FAILED|ERROR) course/test_exercise_{number}\.py::.*exercise "
                             rf"{number} is not done: write {name} in {file}", printed), name


def test_the_project_s_run_says_what_is_not_written_before_it_trains(student, tmp_path):
    """Here exercise 2 alone is left."""
    copy = shutil.copytree(student, tmp_path / "copy")
    shutil.copyfile(stubs.ROOT / "empower.py", copy / "empower.py")
    ran = subprocess.run([sys.executable, "empower.py", *TINY], cwd=copy, capture_output=True,
                         text=True)
    assert ran.returncode == 2 and ran.stdout == "", ran
    assert ran.stderr == ("empower.py: exercise 2 is not done: write left_to_human in "
                          "course/exercises.py\n")


@pytest.mark.parametrize("wrong", ["the rule", "the lengths"])
def test_rules_and_lengths_are_tried_before_anything_is_trained(wrong, capsys):
    def raises(*arguments):
        raise NotImplementedError(wrong)

    rule, lengths = empower.sft(4), empower.empower_lengths
    with pytest.raises(NotImplementedError, match=wrong):
        miniature.announce(empower.Config(), {"Mine": raises if wrong == "the rule" else rule},
                           raises if wrong == "the lengths" else lengths)
    assert capsys.readouterr().out == ""


def test_what_a_student_s_copy_lacks_is_named(student):
    ran = subprocess.run([sys.executable, "empower.py", "page"], cwd=student, capture_output=True,
                         text=True)
    assert ran.returncode == 2
    assert ran.stderr == "empower.py: this copy has no page/: page is in the whole project\n"


def test_an_experiment_is_not_played_with_a_function_that_is_wrong(student):
    ran = subprocess.run([sys.executable, "course/exercises.py", "4"], cwd=student,
                         capture_output=True, text=True)
    assert ran.returncode == 2 and "exercise 4 is not done: write priced_length" in ran.stdout
    assert ran.stderr == ("course/exercises.py: exercise 4 does not pass its tests, so its "
                          "experiment would mean nothing: pytest course/test_exercise_4.py\n")
    assert not (student / "out").exists()


# Windows has none of these; a module that is None cannot be imported.
WINDOWS = """
import os, sys
sys.modules.update(dict.fromkeys(("fcntl", "resource", "termios", "pwd", "grp")))
del os.fork
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def test_functions_are_tested_without_what_windows_lacks():
    files = [f"course/test_exercise_{number}.py" for number in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12)]
    ran = subprocess.run([sys.executable, "-c", WINDOWS, *files], cwd=stubs.ROOT,
                         capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("make, message", [
    (lambda path: path.write_text("mine"), "not an empty folder"),
    (lambda path: (path.mkdir(), (path / "mine").write_text("mine")), "not an empty folder"),
    (lambda path: path.symlink_to(stubs.ROOT / "course" / "new"), "within the project")])
def test_stubs_overwrite_nothing(make, message, tmp_path, capsys):
    make(tmp_path / "out")
    assert stubs.main([str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


TEXT = (stubs.ROOT / "course" / "README.md").read_text(encoding="utf-8")


def test_the_text_describes_all():
    for number, (file, names) in stubs.EXERCISES.items():
        section = re.search(rf"## {number}\. .*?(?=\n## |\Z)", TEXT, re.DOTALL)[0]
        assert f"`{file}`" in section and "Hand in" in section
        assert all(f"`{name}`" in section for name in names)
        assert f"Test: `pytest course/test_exercise_{number}.py`" in section
        assert (f"python course/exercises.py {number}`" in section) == (
            number in exercises.EXPERIMENTS)


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_snippets_of_the_text_run(snippet, tiny, capsys):
    """As they stand there, with a tiny run in place of the reader's."""
    assert "Lab(Config())" in snippet
    exec(snippet.replace("Lab(Config())", "Lab(tiny)"), {"tiny": tiny, "__name__": "snippet"})
    assert capsys.readouterr().out
