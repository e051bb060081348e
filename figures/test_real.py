"""Tests of the study of real code, with a tiny model and a small corpus."""

import dataclasses
import functools
import json
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

import make  # first: it sets the path to the other files
import real
import real_tables
from empower import empower, new_assistant, sft
from model import KVCache, sample, token_nll
from realcode.all_states import lengths_in_every_state
from support.cli import UserError
from support.test_helpers import interrupt, published, small_corpus

PLAN = real.RealPlan(corpora=("small",), etas=(1, 20), thresholds=(1, 20), ns=(2, 5),
                     turn_tokens=4, held_out=3, context=40, pieces=10, also=(4,),
                     rates=(1e-3, 1e-2), rate_pieces=4, unseen_pieces=4, adapted=(4, 6, 10),
                     adapted_first=(10, 12))


@pytest.fixture(scope="module")
def at_hand(tmp_path_factory):
    """A model and a corpus in place of the packages."""
    folder = tmp_path_factory.mktemp("real")
    model, corpus = published(folder / "base"), folder / "corpus"
    corpus.mkdir()
    small_corpus(corpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "model_file", lambda: str(model))
        patch.setattr(real, "corpus_of", lambda name: str(corpus))
        yield folder


@pytest.fixture(scope="module")
def found(at_hand):
    return make.on_real_code("real", PLAN, str(at_hand / "out"), at_hand / "real.json", 1)


def test_every_row_has_its_numbers(found, at_hand, capsys, monkeypatch):
    some = found["seeds"]["0"]["small"]
    names = [row["name"] for row in some["rows"]]
    assert names[:5] == ["Human alone", "Base-2", "Base-5", "Base stopped at 1 bits",
                         "Base stopped at 20 bits"]
    assert "SFT-5, greedy" in names and "Empower (20), silent as asked" in names
    assert {(row["pieces"], row["way"]) for row in some["curve"]} == {
        (10, "all states"), (10, "one state"), (4, "all states"), (10, "adapted first"),
        (12, "adapted first")}
    assert all(row["tokens_written"] > 0 for row in some["rows"])
    interrupt(monkeypatch, torch.Tensor, "backward", 0)  # everything is kept
    again = make.on_real_code("real", PLAN, str(at_hand / "out"), at_hand / "real.json", 1)
    assert again["seeds"] == found["seeds"] == json.loads(
        (at_hand / "real.json").read_text())["seeds"]
    printed = capsys.readouterr().out
    assert all(block in printed for block in real_tables.blocks({"real": found}).values())


def test_other_seeds_have_other_programs_and_the_rate_is_given(at_hand):
    plan = dataclasses.replace(PLAN, etas=(20,), thresholds=(1, 20), ns=(2,), rates=(1e-3,),
                               ways=("all states",), also=(), seeds=(1, 2))
    found = make.on_real_code("real --repeat", plan, str(at_hand / "out"),
                              at_hand / "repeat.json", 1)
    labs = [real.laboratory(plan, str(at_hand / "out"), "small", seed) for seed in (0, 1, 2)]
    assert len({str(lab.goals) for lab in labs}) == 3
    assert list(found["seeds"]) == ["1", "2"] and labs[1].rate("SFT-2", "all states") == 1e-3
    assert all(corpora["small"]["rates"] == {} for corpora in found["seeds"].values())
    first, second = ([row["tokens_read"] for row in corpora["small"]["rows"]]
                     for corpora in found["seeds"].values())
    cells = [f"{(a + b) / 2:.0f} ± {abs(a - b) / 2 ** 0.5:.0f}" for a, b in zip(first, second)]
    game = real_tables.blocks({"real --repeat": found})["real --repeat, small: the game"]
    assert first != second and [line.split(" | ")[4].strip()
                                for line in game.splitlines()[2:]] == cells


@functools.cache
def trainings():
    """What was trained, seen by tests; what a cached function holds is in no stage's key."""
    return []


def test_all_weights_learn_from_the_same_examples_at_a_rate_of_their_own(at_hand, monkeypatch):
    plan = dataclasses.replace(PLAN, etas=(1,), thresholds=(1,), ns=(), also=(), adapted=(),
                               adapted_first=(), ways=("all states", "all weights"), offset=False,
                               seeds=(1, 2), rates=(1e-3, 1e-2), full_rates=(1e-4, 2e-4))

    def train(model, examples, batch, optimizers, rng, work):
        weights = [weight for some in optimizers for group in some.param_groups
                   for weight in group["params"]]
        trainings().append((sum(weight.numel() for weight in weights), examples, work.keywords,
                            optimizers[0].param_groups[0]["lr"]))
        return before(model, examples, batch, optimizers, rng, work)

    before, learned = real.train, trainings()
    learned.clear()
    monkeypatch.setattr(real, "train", train)
    out = str(at_hand / "full")
    found = make.on_real_code("real --full", plan, out, at_hand / "full.json", 1)
    lab = real.laboratory(plan, out, "small", 1)
    whole = sum(weight.numel() for weight in lab.base.model.parameters())
    assert len(learned) == real.count(plan) == 2 * (2 + 2 + 3)  # Empower (0.32) only all weights
    rates = found["seeds"]["1"]["small"]["rates"]
    assert {way: list(some) for way, some in rates.items()} == {
        "Empower, all states": ["0.001", "0.01"], "Empower, all weights": ["0.0001", "0.0002"]}
    low_rank, full = learned[2], learned[6]  # of seed 1, each after its rates: at 1 bit
    assert low_rank[0] < full[0] == whole and str(low_rank[1]) == str(full[1])
    assert set(low_rank[2]) == set(full[2]) == {"clip", "collate", "loss_of"}
    assert [f"{some[3]:g}" for some in (low_rank, full)] == [
        min(some, key=some.get) for some in rates.values()]
    differences = {(some["ours"], some["other"])
                   for some in found["seeds"]["1"]["small"]["differences"]}
    assert {("Empower (1), all weights, greedy", "Empower (1), greedy"),
            ("Empower (1), all weights, greedy", "Base stopped at 1 bits")} <= differences
    blocks = real_tables.blocks({"real --full": found})
    assert "Empower (1), all weights, greedy" in blocks["real --full, small: the game"]
    assert "all weights" in blocks["real --full, small: how often they are silent"]
    rate_rows = blocks["real --full, small: the rate"].splitlines()[2:]
    assert len(rate_rows) == 4 and sum(line.count("*") for line in rate_rows) == 4
    each = blocks["real --full, small: each seed"].splitlines()
    assert sum("all weights" in line.split("|")[1] and "greedy" in line.split("|")[2]
               for line in each) == 2  # share saved and accept ratio
    alone = real_tables.blocks({"real": {**found, "seeds": {"1": found["seeds"]["1"]}}})
    assert "all weights" in alone["real, small: pieces to learn from"]
    assert alone["real, small: the rate"].count(" 0.0001 ") == 1


def test_what_algorithm_1_asks_for_is_always_right(found, at_hand):
    """From the costs of each goal alone; K_H is 4."""
    lab = real.laboratory(PLAN, str(at_hand / "out"), "small", 0)
    stub = types.SimpleNamespace(cfg=lab.cfg, unseen=[(list(range(8)), np.array(
        [1, 9, 9, 9, 9, 0.5, 0.25, 0]), True)])
    [episode] = real.always_right(stub, 1)
    assert [(turn.suggestion, turn.typed) for turn in episode.turns] == [
        ([0], [1, 2, 3, 4]), ([5, 6, 7], [])]
    rows = {row["name"]: row for row in found["seeds"]["0"]["small"]["rows"]}
    for eta in PLAN.etas:
        row = rows[f"Algorithm 1, {eta} bits"]
        assert row["accept_ratio"] in (1, None)


def test_the_adapted_model_has_read_whole_pieces_and_is_stopped_by_a_threshold(found, at_hand):
    lab = real.laboratory(PLAN, str(at_hand / "out"), "small", 0)
    start, stop = lab.base.encoding.start, lab.base.encoding.stop
    assert lab.examples(None, lab.programs[:2], "whole pieces") == [
        ([start, *ids, *[stop] * ends], 1) for ids, _, ends in lab.programs[:2]]
    name = "Adapted, stopped at 20 bits"
    for n in (4, 10):
        model = lab.tuned(None, lab.programs[:n], "whole pieces", lab.rate("SFT", "all states"),
                          "Adapted")
        assistant = new_assistant(lab.cfg, dataclasses.replace(lab.base, model=model), max_cost=20)
        assert lab.episodes(name, assistant) == lab.adapted_rows(n)[name]
    assert {(some["ours"], some["other"]) for some in found["seeds"]["0"]["small"]["differences"]} \
        >= {("Empower (20), greedy", name), (name, "Base stopped at 20 bits"),
            ("Base stopped at 20 bits", "Human alone"), ("Base stopped at 20 bits", "Base-2")}


def test_adapted_first_learns_to_stop_from_text_that_the_scorer_has_not_read(
        found, at_hand, monkeypatch):
    lab, learned, played = real.laboratory(PLAN, str(at_hand / "out"), "small", 0), [], []
    tuned, rates = lab.tuned, {"SFT": 1e-3, "Empower": 1e-2}

    def watched(rule, pieces, way, rate, label, begin=None):
        model = tuned(rule, pieces, way, rate, label, begin)
        learned.append((rule, pieces, way, rate, begin, model))
        return model

    monkeypatch.setattr(lab, "tuned", watched)
    monkeypatch.setattr(lab, "rate", lambda name, way: rates[name])
    monkeypatch.setattr(lab, "assistant", lambda *arguments: arguments)
    monkeypatch.setattr(lab, "results", lambda *arguments: played.append(arguments))
    monkeypatch.setattr(lab, "keep", lambda name, inputs, make: make())
    lab.adapted_first_rows(10)
    (rule, read, way, rate, begin, adapted), *others = learned
    assert (rule, read, way, rate, begin) == (None, lab.programs[:5], "whole pieces", 1e-3, None)
    assert len(others) == len(played) == len(PLAN.etas)
    for eta, (rule, pieces, way, rate, begin, model), (name, *_, assistant, unseen) in zip(
            PLAN.etas, others, played):
        assert (way, rate, name) == ("all states", 1e-2, f"Adapted, then Empower ({eta})")
        assert [rule(np.array([eta, 1.0]), None), rule(np.array([eta + 1.0]), None)] == [1, 0]
        assert begin is adapted and assistant == (model, rule, pieces)
        for scored, before in ((pieces, lab.programs[5:10]), (unseen, lab.unseen)):
            for (ids, nll, ends), (same_ids, others_nll, same_ends) in zip(
                    scored, before, strict=True):
                assert (ids, ends) == (same_ids, same_ends)
                assert np.allclose(nll, costs(adapted, lab, ids), atol=1e-4)
                assert not np.allclose(nll, others_nll, atol=1e-2)


def test_training_begins_with_the_model_that_is_given(found, at_hand):
    lab = real.laboratory(PLAN, str(at_hand / "out"), "small", 0)
    adapted = lab.adapted_model(4)
    same, base = (lab.tuned(None, lab.programs[:1], "whole pieces", 0, "nothing", begin)
                  for begin in (adapted, None))
    for expected, model in ((adapted, same), (lab.base.model, base)):
        assert model is not expected and all(
            torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters()))
    assert not torch.equal(adapted.layers[0].mlp.up_proj.weight,
                           lab.base.model.layers[0].mlp.up_proj.weight)


def test_an_assistant_is_capped_at_the_longest_completion_of_all_pieces(
        found, at_hand, monkeypatch):
    lab, pieces = real.laboratory(PLAN, str(at_hand / "out"), "small", 0), []
    monkeypatch.setattr(lab, "assistant", lambda model, rule, some: pieces.append(some))
    monkeypatch.setattr(lab, "results", lambda *arguments: {})
    monkeypatch.setattr(lab, "keep", lambda name, inputs, make: make()
                        if name.startswith("Empower (20) 4") else {"1": 0.0})
    lab.learned("Empower (20)", empower(20), 4, "all states")
    assert pieces == [lab.programs] and len(lab.programs) == 12
    monkeypatch.undo()
    costs = [([1] * 3, np.array([1, 0, 9.0]), True), ([1] * 2, np.array([9, 1.0]), True)]
    assert lab.assistant(lab.base.model, empower(1), costs).max_tokens == 2


def costs(model, lab, ids):
    """Bits of each token under a model, which reads the start token first."""
    logits = model(torch.tensor([[lab.base.encoding.start, *ids]]))[0, :-1]
    return token_nll(logits, torch.tensor(ids)).detach().numpy()


def test_rows_with_fewer_pieces_say_how_many_and_are_compared(found):
    some = found["seeds"]["0"]["small"]
    names = [row["name"] for row in some["rows"]]
    pairs = {(row["ours"], row["other"]) for row in some["differences"]}
    assert "Empower (1), greedy, 4 pieces" in names and "Adapted, stopped at 1 bits" in names
    assert "| Adapted, then Empower (1), greedy, 12 pieces " in real_tables.blocks(
        {"real": found})["real, small: lengths asked for and written"]
    assert pairs >= {("Empower (1), silent as asked", "Base stopped at 1 bits"),
                     ("Empower (1), greedy, 4 pieces", "Adapted, stopped at 1 bits, 4 pieces"),
                     ("Adapted, stopped at 1 bits, 4 pieces", "Base stopped at 1 bits"),
                     ("Adapted, then Empower (1), greedy", "Adapted, stopped at 1 bits"),
                     ("Adapted, then Empower (1), greedy", "Empower (1), greedy"),
                     ("Adapted, then Empower (1), greedy", "Human alone"),
                     ("Adapted, then Empower (1), greedy, 12 pieces",
                      "Adapted, stopped at 1 bits, 6 pieces"),
                     ("Adapted, then Empower (1), greedy, 12 pieces", "Base stopped at 1 bits")}


def test_a_process_takes_whole_laboratories_or_single_rows():
    plan = dataclasses.replace(PLAN, corpora=("a", "b"), seeds=(1, 2))
    whole = [[(real.answer, (plan, "out", corpus, seed)) for corpus in "ab" for seed in (1, 2)]]
    assert real.tasks(plan, "out", 4) == real.tasks(plan, "out", 2) == whole
    rates, others = real.tasks(plan, "out", 3)
    assert len(rates) == 4 * 3 and len(others) == 4 * (4 + len(real.trainings(plan)) + 5)
    assert len(real.tasks(dataclasses.replace(plan, rates=(1e-3,)), "out", 3)) == 1


def test_how_many_trainings_there_are(at_hand, monkeypatch):
    """By hand for two plans; and for one, how often something is trained."""
    assert real.count(real.ADAPT) == 2 * 3 * (6 + 5 + 6)
    assert real.count(real.FURTHER) == 3 * 3 + (4 + 2)
    assert real.count(real.FULL) == 2 * 3 * (2 * 3 + 2 * 2)
    plan = dataclasses.replace(PLAN, also=(), ways=("all states",))
    calls = trainings()
    calls.clear()
    monkeypatch.setattr(real, "train", lambda *arguments: trainings().append(arguments) or [])
    real.answer(plan, str(at_hand / "count"), "small", 0)
    assert len(calls) == real.count(plan)


def test_the_tasks_make_every_stage_of_the_answer(at_hand, monkeypatch):
    """With as few rows as can be, and what the plans of the command line leave out."""
    plan = dataclasses.replace(PLAN, etas=(20,), thresholds=(20,), ns=(), pieces=10, also=(),
                               ways=("all states",), rates=(1e-3,), offset=False, adapted=(4,),
                               adapted_first=(10,))
    out = str(at_hand / "tasks")
    for some in real.tasks(plan, out, 3):
        for function, arguments in some:
            function(*arguments)
    interrupt(monkeypatch, torch.Tensor, "backward", 0)
    answer = real.answer(plan, out, "small", 0)
    assert [row["name"] for row in answer["rows"]] == [
        "Human alone", "Base stopped at 20 bits", "Algorithm 1, 20 bits",
        "Adapted, stopped at 20 bits, 4 pieces", "Empower (20), greedy",
        "Adapted, then Empower (20), greedy"]
    assert {(some["ours"], some["other"]) for some in answer["differences"]} == {
        ("Adapted, stopped at 20 bits, 4 pieces", "Base stopped at 20 bits"),
        ("Empower (20), greedy", "Base stopped at 20 bits"),
        ("Adapted, then Empower (20), greedy", "Base stopped at 20 bits"),
        ("Adapted, then Empower (20), greedy", "Empower (20), greedy"),
        *((row, "Human alone") for row in ("Empower (20), greedy", "Base stopped at 20 bits",
                                           "Adapted, then Empower (20), greedy"))}


def test_every_plan_of_the_command_line_has_pieces_enough_or_says_so(at_hand):
    for k, (plan, _) in enumerate(make.REAL.values()):
        small = dataclasses.replace(plan, corpora=("small",), context=40, held_out=3, turn_tokens=4)
        lab = at_hand / f"plan-{k}", "small", 0
        if plan == real.RealPlan():
            assert len(real.RealLab(small, *lab).programs) == 64
        elif (most := real.most_pieces(plan)) > 64:
            with pytest.raises(UserError, match=f"asks for {most}: name a larger corpus"):
                real.RealLab(small, *lab)


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
        make.in_parallel(tasks, "tasks", {str(tmp_path / "log")!r}, 2)
""")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as host:
        for _ in range(2):  # a lock cannot be sent back
            assert "a process failed" in host.stdout.readline()
        host.send_signal(signal.SIGINT)
        error = host.communicate(timeout=60)[1]
    assert host.returncode == 130 and "interrupted" in error and "Warning" not in error


def test_the_interval_of_a_difference_over_seeds_by_hand():
    row = {"ours": "a", "other": "b", "metric": "dpr", "low": 0.0, "high": 0.0}
    some = real_tables.over_seeds([{**row, "difference": value} for value in (0.1, 0.2, 0.3)])
    assert [some["difference"], some["low"], some["high"]] == pytest.approx(
        [0.2, 0.2 - 0.248, 0.2 + 0.248], abs=1e-3)
    none = {**row, "difference": 0.1, "low": None}
    assert real_tables.over_seeds([{**row, "difference": 0.1}, none])["low"] is None


def test_seeds_of_several_plans_are_pooled_by_hand():
    def plan(pieces, *values):
        row = {"ours": "Empower (1), greedy", "other": "Base stopped at 1 bits",
               "metric": "share_saved", "low": 0.0, "high": 1.0}
        other = {**row, "ours": "Empower (1), greedy, 768 pieces", "difference": 9.0}
        return {"plan": {"pieces": pieces, "corpora": ["a"]}, "seeds": {
            str(k): {"a": {"differences": [{**row, "difference": value}, other]}}
            for k, value in enumerate(values)}}

    found = real_tables.pooled({"x": plan(256, 0.1, 0.3), "y": plan(256, 0.1, 0.3),
                                "of other pieces": plan(64, 9.0, 9.0), "one seed": plan(256, 9.0)})
    # Mean 0.2, standard deviation 0.1155, so 3.182 * 0.1155 / 2 = 0.184 to each side.
    assert list(found) == ["a: differences on 4 seeds"]
    assert "+0.200 (+0.016 to +0.384)" in found["a: differences on 4 seeds"]
    assert found["a: differences on 4 seeds"].count("Empower") == 1
    assert real_tables.pooled({"x": plan(256, 0.1, 0.3)}) == {}


def test_the_rate_is_that_with_the_smallest_loss(found, at_hand):
    lab = real.laboratory(PLAN, str(at_hand / "out"), "small", 0)
    for kind, name, way in (("Empower", "Empower (4)", "one state"),
                            ("SFT", "SFT-3", "all states")):
        rates = lab.rates(kind, way)
        assert rates[f"{lab.rate(name, way):g}"] == min(rates.values()) and len(rates) == 2


def test_the_offset_makes_it_silent_as_often_as_asked(found, at_hand):
    lab = real.laboratory(PLAN, str(at_hand / "out"), "small", 0)
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


def test_states_held_out_are_not_learned(found, at_hand):
    lab = real.laboratory(PLAN, str(at_hand / "out"), "small", 0)
    texts = [lab.base.encoding.decode(ids) for some in (lab.programs, lab.measured, lab.unseen)
             for ids, *_ in some]
    programs = [path.read_text() for path in sorted((at_hand / "corpus").glob("*.py"))]
    of = [{k for k, program in enumerate(programs) if text in program} for text in texts]
    n, m = len(lab.programs), len(lab.programs) + len(lab.measured)
    for some, others in ((of[:n], of[n:]), (of[n:m], of[m:])):
        assert all(len(one) > 1 or not any(one & other for other in others) for one in some)
    assert len(lab.examples(sft(3), lab.programs, "one state")) == 12


def test_the_picture_has_a_row_for_each_corpus(found):
    draw = pytest.importorskip("draw", reason="needs matplotlib")
    figure = draw.real_code({"real": json.loads(json.dumps(found))})
    left, right = figure.axes
    assert len(left.get_legend_handles_labels()[1]) == 5
    assert "Base stopped at 1 bits" in right.get_legend_handles_labels()[1]


def test_the_picture_of_adapting_first_has_a_point_for_each_number_of_pieces(found):
    draw = pytest.importorskip("draw", reason="needs matplotlib")
    figure = draw.adapt({"real --adapt": json.loads(json.dumps(found))})
    [saved] = figure.axes
    rows = {row["name"]: row for row in found["seeds"]["0"]["small"]["rows"]}
    for curve, row, sizes in zip(saved.containers, (
            "Adapted, stopped at 1 bits", "Adapted, then Empower (1), greedy",
            "Empower (1), greedy"), ((4, 6, 10), (10, 12), (4, 10)), strict=True):
        line = curve.lines[0]
        assert [tuple(line.get_xdata()), list(line.get_ydata())] == [sizes, [
            rows[real_tables.sized(row, n, 10)]["share_saved"] for n in sizes]]
    assert "Base stopped at 1 bits, has read none" in saved.get_legend_handles_labels()[1]


def test_a_missing_package_is_named():
    with pytest.raises(UserError, match="pip install --no-deps no-such==1"):
        real.installed("no_such_module", "no-such==1")
