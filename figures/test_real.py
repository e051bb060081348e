"""Tests of the study of real code, with a tiny model and ten programs."""

import dataclasses
import functools
import json
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import make  # first: it sets the path to the other files
import real
import real_tables
from empower import empower
from model import KVCache, sample, token_nll
from realcode.all_states import lengths_in_every_state
from support.cli import UserError
from support.contest import draw_style, write_program
from support.test_helpers import interrupt, published, small_contest

PLAN = real.RealPlan(corpora=("small",), seeds=(0,), etas=(1, 20), thresholds=(1, 20), n=2,
                     turn_tokens=4, held_out=2, context=40, pieces=10, others=(2,), halved=(4, 10),
                     unseen_pieces=4)


@pytest.fixture(scope="module")
def at_hand(tmp_path_factory):
    """A model and ten programs in place of the packages."""
    folder, rng = tmp_path_factory.mktemp("real"), random.Random(0)
    model, corpus = published(folder / "base"), folder / "corpus"
    corpus.mkdir()
    for k, problem in enumerate(small_contest().learn[:10]):
        (corpus / f"{k}.py").write_text(write_program(problem.parts, draw_style(rng)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "model_file", lambda: str(model))
        patch.setattr(real, "corpus_of", lambda name: str(corpus))
        yield folder


@functools.cache
def trainings():
    """What was trained, seen by tests; what a cached function holds is in no stage's key."""
    return []


@pytest.fixture(scope="module")
def found(at_hand):
    """What the plan finds; `trainings` then has (trained weights, examples, rate) of each."""
    def train(model, examples, batch, optimizers, rng, work):
        weights = [weight for some in optimizers for group in some.param_groups
                   for weight in group["params"]]
        trainings().append((sum(weight.numel() for weight in weights), examples,
                            optimizers[0].param_groups[0]["lr"]))
        return before(model, examples, batch, optimizers, rng, work)

    before = real.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "train", train)
        yield make.on_real_code(PLAN, str(at_hand / "out"), at_hand / "real.json", 1)


@pytest.fixture(scope="module")
def lab(found, at_hand):
    return real.RealLab(PLAN, str(at_hand / "out"), "small", 0)


def test_every_row_is_played_and_kept(found, at_hand, capsys, monkeypatch):
    rows = found["seeds"]["0"]["small"]
    assert {names[0] for name in real_tables.ROWS for names in real_tables.named(
        found["plan"], [[name]], [PLAN.pieces])} < set(rows)
    assert {"Empower (1), 2 pieces", "Empower (20), one state, 10 pieces",
            "Empower (1), all weights, 10 pieces", "Adapted, stopped at 1 bits, 2 pieces",
            "Adapted, then Empower (20), 4 pieces"} < set(rows)
    assert all(tuple(row) == real.QUOTED for row in rows.values())
    assert len(trainings()) == real.count(PLAN)
    interrupt(monkeypatch, torch.Tensor, "backward", 0)  # everything is kept
    again = make.on_real_code(PLAN, str(at_hand / "out"), at_hand / "real.json", 1)
    assert again == found == json.loads((at_hand / "real.json").read_text())
    printed = capsys.readouterr().out
    assert f"{real.count(PLAN)} trainings" in printed and str(make.REAL_ON_GPU) in printed
    assert all(block in printed for block in real_tables.blocks(found).values())


def test_each_way_of_learning_has_its_weights_its_examples_and_its_rate(found, lab):
    whole = sum(weight.numel() for weight in lab.base.model.parameters())
    names = [f"{name} {n}" for name, _, n, _ in real.trainings(PLAN)]
    of = dict(zip(names, trainings()))
    low, full, one = (of[f"Empower (1){way} 10"] for way in ("", ", all weights", ", one state"))
    assert low[0] == one[0] < full[0] == whole
    assert [some[2] for some in (low, full, one)] == [1e-3, 1e-4, 3e-4]
    assert str(low[1]) == str(full[1]) and len(low[1]) == len(one[1]) == 10
    assert [len(of[f"Empower (1) {n}"][1]) for n in (2, 10)] == [2, 10]
    start, stop = lab.base.encoding.start, lab.base.encoding.stop
    assert trainings()[len(names)][1] == [([start, *ids, *[stop] * ends], 1)  # adapted to 2 pieces
                                          for ids, _, ends in lab.programs[:2]]


def test_other_seeds_have_other_programs(lab, at_hand):
    other = real.RealLab(PLAN, str(at_hand / "out"), "small", 1)
    assert lab.goals != other.goals and lab.programs[0][0] != other.programs[0][0]


def test_adapted_first_learns_to_stop_from_text_that_the_scorer_has_not_read(lab, monkeypatch):
    learned, before = [], lab.learned

    def watched(*arguments):
        learned.append((*arguments, before(*arguments)))
        return learned[-1][-1]

    monkeypatch.setattr(lab, "learned", watched)
    monkeypatch.setattr(lab, "game", lambda name, assistant: assistant)
    found = lab.adapted_rows(5)
    adapted = found["Adapted, stopped at 1 bits, 5 pieces"].model
    assert found["Adapted, stopped at 1 bits, 5 pieces"].max_cost == 1
    assert len(learned) == len(PLAN.etas)
    for eta, (rule, pieces, way, name, begin, model) in zip(PLAN.etas, learned):
        assert way == "all states" and begin is adapted and found[name].model is model
        assert name == f"Adapted, then Empower ({eta}), 10 pieces"
        assert [rule(np.array([eta, 1.0]), None), rule(np.array([eta + 1.0]), None)] == [1, 0]
        for (ids, nll, ends), (same, others_nll, same_ends) in zip(
                pieces, lab.programs[5:10], strict=True):
            assert (ids, ends) == (same, same_ends)
            assert np.allclose(nll, costs(adapted, lab, ids), atol=1e-4)
            assert not np.allclose(nll, others_nll, atol=1e-3)


def costs(model, lab, ids):
    """Bits of each token under a model, which reads the start token first."""
    logits = model(torch.tensor([[lab.base.encoding.start, *ids]]))[0, :-1]
    return token_nll(logits, torch.tensor(ids)).detach().numpy()


def test_training_begins_with_the_model_that_is_given(lab):
    examples = [([lab.base.encoding.start, *lab.programs[0][0]], 1)]
    other = lab.tuned(examples, 1e-2, "other")
    for expected, begin in ((other, other), (lab.base.model, None)):
        model = lab.tuned(examples, 0, "nothing", begin)
        assert model is not expected and all(
            torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters()))
    assert not torch.equal(other.layers[0].mlp.up_proj.weight,
                           lab.base.model.layers[0].mlp.up_proj.weight)


def test_an_assistant_is_capped_at_the_longest_completion_of_all_pieces(lab, monkeypatch):
    costs = [([1] * 3, np.array([1, 0, 9.0]), True), ([1] * 2, np.array([9, 1.0]), True)]
    assert lab.assistant(lab.base.model, empower(1), costs).max_tokens == 2
    pieces = []
    monkeypatch.setattr(lab, "assistant", lambda model, rule, some: pieces.append(some))
    monkeypatch.setattr(lab, "game", lambda name, assistant: {})
    lab.taught("Empower (20)", empower(20), 2, "all states")
    assert pieces == [lab.programs] and len(lab.programs) == 10


def test_the_offset_makes_it_silent_as_often_as_asked(lab):
    model, rule, stop = lab.base.model, empower(30), lab.base.encoding.stop
    asked = np.mean([length == 0 for _, nll, _ in lab.measured
                     for length in lengths_in_every_state(rule, nll)])
    prefixes = [[lab.base.encoding.start, *ids[:n]] for ids, nll, _ in lab.measured
                for n in range(len(ids))]
    with real.stop_logit(model, stop, lab.stop_offset(model, rule)):
        new, _ = sample(model, KVCache(model, len(prefixes)), prefixes, 1, stop, temperature=0)
    assert 0.05 < asked < 0.95
    assert np.mean([not ids for ids in new]) == pytest.approx(asked, abs=2 / len(prefixes))
    assert not model.lm_head._forward_hooks


def test_states_held_out_are_not_learned(lab, at_hand):
    goals = [(goal[:end],) for goal, end in zip(lab.goals, lab.ends)]
    texts = [lab.base.encoding.decode(ids) for some in (lab.programs, lab.measured, goals)
             for ids, *_ in some]
    programs = [path.read_text() for path in sorted((at_hand / "corpus").glob("*.py"))]
    of = [{k for k, program in enumerate(programs) if text in program} for text in texts]
    n, m = len(lab.programs), len(lab.programs) + len(lab.measured)
    for some, others in ((of[:n], of[n:]), (of[n:m], of[m:])):
        assert all(len(one) > 1 or not any(one & other for other in others) for one in some)


def test_a_plan_with_too_many_pieces_says_so(at_hand):
    plan = dataclasses.replace(PLAN, others=(500,))
    with pytest.raises(UserError, match="asks for 500: name a larger corpus"):
        real.RealLab(plan, at_hand / "out", "small", 0)


def test_how_many_trainings_there_are():
    """By hand: SFT-3, Empower in 3 ways and from 3 other sizes, 4 adapted models, 2 taught."""
    assert real.count(real.RealPlan()) == 2 * 9 * (1 + 2 * (3 + 3) + 4 + 2 * 2)


def test_a_missing_package_is_named():
    with pytest.raises(UserError, match="pip install --no-deps no-such==1"):
        real.installed("no_such_module", "no-such==1")


# ------------------------------------------------------------------- the tables and the picture


def made_up(**seeds):
    """Results of one corpus: each row has its share saved, with an error of 0.03."""
    numbers = {"accept_ratio": None, "tokens_read": 5.0, "silent_share": 0.5, "dpr": 0.9,
               "share_saved_se": 0.03, "accept_ratio_se": None}
    plan = {"corpora": ["a"], "n": 3, "etas": [1], "thresholds": [1], "pieces": 256, "others": [64],
            "halved": [256]}
    return {"plan": plan, "chosen_on": ["0"], "seeds": {seed.strip("s"): {"a": {
        name: {**numbers, "share_saved": share} for name, share in rows.items()}}
        for seed, rows in seeds.items()}}


def test_means_and_differences_over_seeds_by_hand():
    ours, less = (f"Empower (1), {n} pieces" for n in (256, 64))
    other = "Base stopped at 1 bits"
    blocks = real_tables.blocks(made_up(
        s0={ours: 9.0, other: 8.5, less: 8.9}, s1={ours: 0.3, other: 0.2},
        s2={ours: 0.5, other: 0.3}, s3={ours: 0.7, other: 0.4, less: 0.65}, s4={ours: 0.5}))
    lines = {tuple(map(str.strip, line.strip("| ").split(" | ")))[:3]: line
             for block in blocks.values() for line in block.splitlines()}
    assert "0.500 ± 0.163 |" in lines[ours, "1 to 4", "0.500 ± 0.163"]
    # Mean 0.2, standard deviation 0.1, so 4.303 * 0.1 / sqrt(3) = 0.248 on either side.
    assert "+0.200 (-0.048 to +0.448) |" in lines[ours, other, "1 to 3"]
    # One seed: 1.96 * sqrt(0.03 ** 2 + 0.03 ** 2) = 0.083 on either side; no accept ratio.
    assert "+0.050 (-0.033 to +0.133) |  " in lines[ours, less, "3"]
    assert lines[ours, less, "3"].split(" | ")[4].strip() == "-"
    assert "with the offset" not in str(blocks)  # was not played


def test_a_seed_on_which_a_rate_was_chosen_counts_only_if_there_is_no_other():
    rows = {"Empower (1), 64 pieces": 0.5, "Empower (1), one state, 64 pieces": 0.2}
    found = made_up(s0=rows, s1={"Empower (1), 64 pieces": 0.1})
    assert list(real_tables.played(found, "a", list(rows))) == ["0"]
    assert list(real_tables.played(found, "a", list(rows)[:1])) == ["1"]


def test_the_picture_has_a_curve_for_each_method_that_was_played():
    draw = pytest.importorskip("draw", reason="needs matplotlib")
    names = "SFT-3, 256 pieces", "Empower (1), 256 pieces", "Adapted, then Empower (1), 256 pieces"
    found = made_up(s1=dict(zip(names, (0.1, 0.2, 0.3))), s2=dict(zip(names, (0.3, 0.6, 0.3))))
    [ax] = draw.real_code(found).axes
    assert ax.get_legend_handles_labels()[1] == ["SFT-3", "Empower", "Adapted, then Empower"]
    lines = [curve.lines[0] for curve in ax.containers]
    assert [list(line.get_xdata()) for line in lines] == [[5]] * 3
    assert [float(*line.get_ydata()) for line in lines] == pytest.approx([0.2, 0.4, 0.3])


# ------------------------------------------------------------------- several processes


def test_ctrl_c_ends_the_processes_without_a_warning(tmp_path):
    """Each process has shown a bar, and is at work."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import signal, sys, time
sys.path[:0] = [{str(real.__file__.rpartition("/")[0])!r}]
import make
from tqdm import tqdm
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tasks = [(tqdm.get_lock, ())] * 2 + [(time.sleep, (600,))] * 2
    with make.cli.plain_errors("script"):
        list(make.in_parallel(tasks, "tasks", {str(tmp_path / "log")!r}, 2))
""")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as host:
        for _ in range(2):  # a lock cannot be sent back
            assert "a process failed" in host.stdout.readline()
        host.send_signal(signal.SIGINT)
        error = host.communicate(timeout=60)[1]
    assert host.returncode == 130 and "interrupted" in error and "Warning" not in error
