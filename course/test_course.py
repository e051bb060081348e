"""Tests of the exercises from the fourth on (1 to 3 are in test_empower.py), and of the stubs.

`pytest -k exercise` runs those of every exercise, `pytest -k exercise_4` those of one.
"""

import ast
import os
import random
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import exercises  # first: it sets the path to the other files
import empower
import stubs
from simhuman import Episode, Turn, typical, typical_limits
from support import cli, contest
from support.contest import compositions, draw_style, make_problem, swaps, write_program
from support.test_helpers import solves

# ------------------------------------------------------------------- the exercises


def test_exercise_4_by_hand():
    for nll, price, length in (([0, 1, 0], 0.2, 3),  # saves 0.8, 0.6, 0.9 tokens
                               ([0, 1, 0], 0.4, 1),  # 0.6, 0.2, 0.3
                               ([], 0.2, 0),
                               ([0, 0, 0], 0, 3),    # free to read, and certain
                               ([0, 0, 0], 1, 0),    # of equals the shortest
                               ([3, 0], 0.2, 0)):    # more likely read in vain
        assert exercises.priced_length(np.array(nll, dtype=float), price) == length


def test_exercise_4_saves_most_in_expectation():
    rng = np.random.default_rng(0)
    for _ in range(200):
        nll, price = rng.exponential(0.5, rng.integers(1, 30)), rng.uniform(0, 1)
        saved = [i * 2 ** -nll[:i].sum() - price * i for i in range(len(nll) + 1)]
        length = exercises.priced_length(nll, price)
        assert saved[length] == pytest.approx(max(saved)) and max(saved) >= 0


def test_exercise_5_by_hand():
    costs = exercises.unigram_nll([[1, 1], [1, 2]])
    assert [row.tolist() for row in costs] == [pytest.approx([np.log2(4 / 3)] * 2),
                                               pytest.approx([np.log2(4 / 3), 2])]


def test_exercise_5_mean_cost_is_the_entropy_of_the_tokens():
    rng = random.Random(0)
    programs = [[rng.randrange(5) ** 2 for _ in range(rng.randint(1, 9))] for _ in range(50)]
    ids = sum(programs, [])
    shares = [ids.count(i) / len(ids) for i in set(ids)]
    mean = np.concatenate(exercises.unigram_nll(programs)).mean()
    assert mean == pytest.approx(-sum(p * np.log2(p) for p in shares))


def test_exercise_6_by_hand():
    def accepts(nll):
        return sum(nll) <= 2

    for costs, n, share in (([[0, 1, 0, 3]], 2, 1 / 3), ([[0, 1, 0, 3]], 1, 1 / 4),
                            ([[0, 1, 0, 3]], 4, 1), ([[0, 3], [1]], 1, 1 / 3),
                            ([[0, 3], [1, 3]], 2, 1), ([[1, 1], [1]], 2, 0)):
        assert exercises.rejects_herself(accepts, costs, n) == pytest.approx(share)
    assert np.isnan(exercises.rejects_herself(accepts, [[1], []], 2))


def test_exercise_6_measures_her_care():
    rng = np.random.default_rng(0)
    costs = [rng.exponential(1.0, 40).tolist() for _ in range(300)]
    for care in (0.5, 0.1, 0.02):
        accepts = partial(typical, limits=typical_limits(costs, care, 8))
        for n in (1, 3, 8):
            share = exercises.rejects_herself(accepts, costs, n)
            assert share == pytest.approx(care, abs=1e-3)  # a sum may be rounded either way


def test_exercise_7_keeps_what_is_right_and_short():
    def written(passed, tokens):
        return Episode(0, [Turn([], [], False, [1] * tokens)], passed=passed)

    episodes = [written(False, 1), written(True, 1), written(True, 9), written(True, 1)]
    assert exercises.keep_best(episodes, 0.5, 0.9, 0.1, 0.5) == [1, 3]
    assert exercises.keep_best(episodes, 0.25, 0.9, 0.1, 0.5) == [1]  # of equals the earlier
    assert exercises.keep_best(episodes, 0.75, 0.9, 0.1, 0.5) == [1, 2, 3]
    assert exercises.keep_best(episodes, 0.01, 0.9, 0.1, 0.5) == [1]  # at least one
    assert exercises.keep_best(episodes, 1, 0.9, 0.1, 0.5) == [0, 1, 2, 3]
    read = Episode(0, [Turn([1] * 3, [], False, [])], passed=True)  # 0.3 to read, 0.5 to write
    assert exercises.keep_best([written(True, 1), read], 0.5, 0.9, 0.1, 0.5) == [1]
    assert exercises.keep_best(episodes + [read], 0.5, 0.9, 0.1, 0.5) == [1, 4]  # 2 of 5


@pytest.fixture
def domain(monkeypatch):
    """The new domain, as the third of the contest."""
    caches = contest._bank, contest._bank_answers, contest._wrong_answers
    for cache in caches:
        cache.cache_clear()
    found, rng = exercises.another_domain(), random.Random(0)
    assert found.text or min(found.draw(rng) for _ in range(300)) < 0, "draw a negative number too"
    monkeypatch.setattr(contest, "DOMAINS", (*contest.DOMAINS, found))
    yield found
    for cache in caches:
        cache.cache_clear()


def new_problems(n):
    """n problems of the new domain."""
    found = [parts for parts in compositions() if parts[0] == 2 and not contest.ambiguous(parts)]
    assert len(found) >= 100, "parts that mean the same leave too few problems"
    return [make_problem(parts) for parts in random.Random(0).sample(found, n)]


def test_exercise_8_has_parts_of_each_kind_that_are_told_apart(domain):
    for parts in (domain.select, domain.change, domain.reduce):
        assert len(parts) >= 3
        assert len({part.phrase for part in parts}) == len({part.code for part in parts}) \
            == len(parts)
    assert domain.noun not in {other.noun for other in contest.DOMAINS[:2]}
    rng = random.Random(0)
    drawn = [domain.draw(rng) for _ in range(300)]
    if domain.text:
        assert all(len(x.split()) == 1 for x in drawn)
    else:
        assert all(type(x) is int for x in drawn) and min(drawn) < 0
    assert domain.stop not in map(str, drawn)
    for part in domain.select:
        assert any(map(part.meaning, drawn)), f"{part.phrase}: keeps nothing that is drawn"


def test_exercise_8_programs_solve_their_problems_and_swapped_ones_do_not(domain):
    rng, solved, tried = random.Random(1), 0, 0
    for problem in new_problems(40):
        program = write_program(problem.parts, draw_style(rng))
        assert solves(program, problem), (problem, program)
        for parts in swaps(problem.parts):
            tried += 1
            solved += solves(write_program(parts, draw_style(rng)), problem)
    assert solved <= 0.01 * tried, (solved, tried)


@pytest.mark.parametrize("care", [0.1, 0.02])
def test_exercise_9_keeps_to_her_care_in_another_way(care):
    rng = np.random.default_rng(0)
    hers, others = ([(rng.exponential(1.0, 40) ** 2).tolist() for _ in range(400)]
                    for _ in range(2))
    accepts = exercises.another_human(hers, care)
    typically = partial(typical, limits=typical_limits(hers, care, 40))
    for n in (1, 4, 10):
        runs = [nll[k:k + n] for nll in others for k in range(41 - n)]
        verdicts = [bool(accepts(run)) for run in runs]
        assert care / 3 <= 1 - np.mean(verdicts) <= 2 * care
        if n > 1:
            assert verdicts != [bool(typically(run)) for run in runs]
    assert accepts([0.0] * 60) and not accepts([1e9] * 60)  # longer than any of her programs


# ------------------------------------------------------------------- the experiments


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Settings of a run that takes seconds, whose stages all experiments share."""
    return exercises.empower.Config(
        out=str(tmp_path_factory.mktemp("run") / "out"), pretrain_steps=12, train_problems=40,
        held_out_problems=6, dev_problems=3, layers=1, width=32, max_suggestion=8, rounds=3,
        device="cpu")


@pytest.mark.parametrize("number, names", [
    (4, ["Price 0.05", "Price 0.2", "Price 0.8"]), (5, ["Unigram (4)", "Unigram (16)"]),
    (6, [f"{name}, care {care}" for care in ("0.5", "0.01", "0.001")
         for name in ("Base-4", "SFT-4", "Empower (0.32)")]),
    (7, ["Best half", "First half"]),
    (9, [f"{name}, another human, care {care}" for care in ("0.05", "0.01", "0.001")
         for name in ("Base-4", "SFT-4", "Empower (0.32)")])])
def test_an_experiment_prints_its_rows_next_to_the_default_ones(number, names, tiny, capsys):
    rows = exercises.experiment(number, tiny)
    assert [row["name"] for row in rows] == ["Base-4", "SFT-4", "Empower (0.32)", *names]
    printed = capsys.readouterr().out
    assert all(f"| {name} " in printed for name in names)
    kinds = {name.partition(", ")[2] for name in names}  # the same human
    assert printed.count("Pass@1 of") == len(names) - len(kinds)
    if number == 6:
        assert printed.count("of her own text she rejects") == 3


@pytest.mark.parametrize("number", [5, 7])
def test_a_program_that_was_cut_off_is_not_learned_as_if_it_ended(number, tiny, monkeypatch):
    given = []
    monkeypatch.setattr(exercises, "learned", lambda lab, rules, programs: (
        given.extend(programs) or {}))
    getattr(exercises, f"experiment_{number}")(empower.Lab(tiny))
    assert given and not all(ends for *_, ends in given)


def test_another_domain_goes_through_the_whole_experiment(tiny, monkeypatch, capsys):
    monkeypatch.setattr(contest, "DOMAINS", contest.DOMAINS)
    assert exercises.experiment(8, tiny) == []
    assert "| Empower (0.32) " in capsys.readouterr().out
    assert Path(tiny.out, "another-domain", "results.json").exists()
    # So few problems may have no meaning of the new domain, but the contest has.
    assert {parts[0] for parts in compositions()} == {0, 1, 2}


@pytest.mark.parametrize("arguments", [[], ["3"], ["x"], ["4", "--out", "/dev/null/x"]])
def test_bad_arguments_get_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        exercises.main(arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert error.startswith("course/exercises.py: ")


# ------------------------------------------------------------------- what a student is given


def test_a_stub_is_the_docstring_and_an_error():
    source = 'x = 1\n\ndef f(x):\n    """Doubles."""\n    y = 2\n    return y * x\n\ndef g(x):\n' \
             '    """Halves.\n\n    Or so.\n    """\n    return x / 2\n'
    assert stubs.stubbed(source, ["f"]) == source.replace(
        "    y = 2\n    return y * x\n", "    raise NotImplementedError\n")
    assert stubs.stubbed(source, ["f", "g"]).count("raise NotImplementedError") == 2


def test_stubs_fail_and_differ_from_the_project_in_nothing_else(tmp_path, capsys):
    out = tmp_path / "student"
    assert stubs.main([str(out)]) == 0
    assert f"{len(stubs.EXERCISES)} exercises in {out}" in capsys.readouterr().out
    assert all((out / f"{module.replace('.', '/')}.py").exists()
               for module in cli.COMMANDS.values())
    for file, names in stubs.EXERCISES.values():
        ours, theirs = ({getattr(node, "name", k): ast.unparse(node) for k, node in enumerate(
            ast.parse((root / file).read_text()).body)} for root in (stubs.ROOT, out))
        assert list(ours) == list(theirs)
        for name in names:
            assert theirs[name].endswith("raise NotImplementedError")
            assert ast.get_docstring(ast.parse(ours[name]).body[0]) \
                == ast.get_docstring(ast.parse(theirs[name]).body[0])
        left = {name for _, (other, some) in stubs.EXERCISES.items() if other == file
                for name in some}
        assert {name for name in ours if ours[name] != theirs[name]} == left
    ran = subprocess.run([sys.executable, "-m", "pytest", "-q", "-k", "exercise", "--no-header",
                          "-p", "no:cacheprovider"], cwd=out, capture_output=True, text=True,
                         env={**os.environ, "COLUMNS": "300"})
    last = ran.stdout.splitlines()[-1]
    assert " failed" in last and "passed" not in last, ran.stdout
    for number in stubs.EXERCISES:
        assert re.search(rf"(FAILED|ERROR) \S+test_exercise_{number}_.*NotImplementedError",
                         ran.stdout), number


@pytest.mark.parametrize("make, message", [
    (lambda path: path.write_text("mine"), "not an empty folder"),
    (lambda path: (path.mkdir(), (path / "mine").write_text("mine")), "not an empty folder"),
    (lambda path: path.symlink_to(stubs.ROOT / "course" / "new"), "within the project")])
def test_stubs_overwrite_nothing(make, message, tmp_path, capsys):
    make(tmp_path / "out")
    assert stubs.main([str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_text_describes_all():
    text = (stubs.ROOT / "course" / "README.md").read_text()
    for number, (file, names) in stubs.EXERCISES.items():
        section = re.search(rf"## {number}\. .*?(?=\n## |\Z)", text, re.DOTALL)[0]
        assert file.split("/")[-1].removesuffix(".py") in section
        assert all(f"{name}`" in section for name in names)
        assert f"pytest -k exercise_{number}" in section and "Hand in" in section
        assert (f"python course/exercises.py {number}" in section) == (
            number in exercises.EXPERIMENTS)
