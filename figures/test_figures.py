"""Tests of the sweep, of what it reports, and of every number in both README.md."""

import dataclasses
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import make  # first: it sets the path to the other files
import bound
import empower
import experiments
import intervals
import real
import real_tables
import report
from empower import Config
from experiments import Plan
from model import GPT, GPTConfig, token_nll
from simhuman import Assistant, Human, play, typical
from support.miniature import MINUTES
from support.test_helpers import in_process, random_texts, tiny_gpt
from test_empower import random_goals

HERE = Path(__file__).resolve().parent
TINY = {"pretrain_steps": 8, "train_problems": 20, "held_out_problems": 3, "dev_problems": 2,
        "layers": 1, "width": 32, "max_suggestion": 6, "rounds": 3, "device": "cpu"}
SMALL = Plan(seeds=2, attentions=(1, 0.6), cares=(0.5, 0.05), etas=(0.32, 60), ns=(4, 9),
             rounds=(1, 3), no_limit=5, less_able_steps=6, less_able_cares=(0.05,), own_lengths=(1, 4),
             horizons=(1, 2), futures=2, second_humans=2, her_width=64, attempts=2, calibrated=1,
             candidates=(1, 0.5), rates=(("AdamW", 1e-3), ("Muon", 1e-2)))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A tiny sweep: the path of its results, its settings, and the results."""
    folder = tmp_path_factory.mktemp("sweep")
    cfg, path = Config(out=str(folder / "out"), **TINY), folder / "results.json"
    make.sweep(SMALL, cfg, path, workers=2)
    return path, cfg, json.loads(path.read_text())


def test_a_sweep_has_every_section(swept):
    path, cfg, results = swept
    assert list(results["seeds"]) == ["0", "1"]
    for name in report.SECTIONS:
        assert results[name], name
    assert list(results["seeds"]["1"]) == ["table", "attention", "care", "less able", "lengths",
                                           "second human"]
    assert list(results["seeds"]["0"]["attention"]) == ["1", "0.65", "0.6"]
    names = [row["name"] for row in results["seeds"]["0"]["table"]["rows"]]
    assert names.count("Empower (0.32), entropy") == 1 and len(names) == 16
    assert cfg.out not in path.read_text()


def test_processes_and_a_single_one_give_the_same_results_from_the_same_stages(swept, tmp_path):
    """The processes made every stage: in this one, the same sweep makes nothing more."""
    _, cfg, results = swept
    before = sorted(Path(cfg.out).rglob("*"))
    make.sweep(SMALL, cfg, tmp_path / "again.json", workers=1)
    again = json.loads((tmp_path / "again.json").read_text())
    assert again.pop("environment")["processes"] == 1 and results["environment"]["processes"] == 2
    assert again == {name: part for name, part in results.items() if name != "environment"}
    assert sorted(Path(cfg.out).rglob("*")) == before


def test_a_sweep_goes_on_from_the_seeds_in_its_results(swept, tmp_path):
    path, cfg, results = swept
    begun, lost = tmp_path / "results.json", dataclasses.replace(cfg, out=str(tmp_path / "new"))
    shutil.copy(path, begun)
    make.sweep(SMALL, lost, begun, workers=1)  # nothing is left to do, even without the stages
    assert begun.read_bytes() == path.read_bytes() and not list(Path(lost.out).glob("stages/*"))
    asked = {"config": results["config"], "plan": results["plan"]}
    assert make.begun_before(begun, asked) == results
    for part, other in (("plan", {"etas": [1]}), ("config", {"eta": 1.0})):
        assert make.begun_before(begun, {**asked, part: {**asked[part], **other}}) is None


def test_a_sweep_has_the_rows_of_the_default_run(swept):
    """They are cut from games without a round limit, and equal those that were played with it."""
    _, cfg, results = swept
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    status, _, _ = in_process("--out", cfg.out, *flags)
    found, seed = json.loads(Path(cfg.out, "results.json").read_text()), results["seeds"]["0"]
    assert status == 0
    for rows, ours in ((found["rows"][1:], seed["table"]["rows"]),
                       (found["less attentive"]["rows"][1:], seed["attention"]["0.65"])):
        for row in rows:
            assert make.rounded(row) == report.row_of(ours, row["name"])


def test_what_is_shown_twice_comes_from_the_same_plays(swept):
    for seed in swept[-1]["seeds"].values():
        rows = {row["name"]: row for row in seed["table"]["rows"]}
        for row in seed["care"]["0.05"] + seed["attention"]["1"]:
            assert row == rows[row["name"]]
        for way, name in (("Empower", "Empower (0.32)"), ("SFT-N", "SFT-4"), ("Base-N", "Base-4"),
                          ("Base stopped", "Base stopped at 0.32 bits")):
            assert {"point": seed["lengths"][way][0]["point"], **rows[name]} \
                == seed["lengths"][way][0]
        assert SMALL.rounds[1] == TINY["rounds"]
        for share, some in (("1", rows), ("0.65", {row["name"]: row
                                                   for row in seed["attention"]["0.65"]})):
            for name, shares in seed["table"]["rounds"][share].items():
                assert len(shares) == 3 and shares[1] == some[name]["pass@1"]
        assert seed["table"]["rounds"]["1"]["Human alone"][2] \
            == rows["Human alone, no round limit"]["pass@1"]


def test_the_second_attention_is_where_base_is_accepted_as_in_the_paper(swept, tmp_path, capsys):
    found = make.calibrate(SMALL, swept[1], tmp_path / "calibrate.json", workers=1)
    assert found == json.loads((tmp_path / "calibrate.json").read_text())
    assert [row["attention"] for row in found["rows"]] == [1, 0.5]
    assert found["paper"] == pytest.approx((0.365 + 0.31567) / 2, abs=1e-4)
    assert found["chosen"] == min(found["rows"], key=lambda row: abs(
        row["accept_ratio"] - found["paper"]))["attention"]
    assert "comes closest" in capsys.readouterr().out.replace("\n", " ")


def test_no_limit_is_that_of_the_default_run():
    assert Plan().no_limit == empower.UNLIMITED_TOKENS // Config().turn_tokens + 1


def test_the_committed_second_attention_is_the_one_that_calibrate_chose():
    found = json.loads((HERE / "calibrate.json").read_text())
    assert found["chosen"] == Config().attention_low


@pytest.mark.parametrize("own, expected", [(None, 0.7), (0.0, 0.0), (1.5, 1.5)])
def test_assistants_may_have_a_temperature_of_their_own(swept, own, expected):
    cfg = dataclasses.replace(swept[1], temperature=0.7, assistant_temperature=own)
    lab = empower.Lab(cfg)
    rows = empower.rows_of_the_table(cfg, lab.base, {})
    assert lab.human.temperature == 0.7
    assert {row.temperature for row in rows.values() if row} == {expected}


def test_a_game_without_a_limit_goes_on_where_the_limit_cut_it(swept):
    lab = experiments.laboratory(swept[1])
    short = lab.play("Human alone", None)
    long = experiments.play_on(SMALL, lab, "Human alone", None)
    assert [episode.turns for episode in short] == [episode.turns[:3] for episode in long]
    assert any(len(episode.turns) > 3 for episode in long)


def test_a_program_that_was_cut_off_does_not_end_with_a_stop(swept, monkeypatch):
    _, cfg, _ = swept
    lab = experiments.laboratory(cfg)
    ended = [row["ended"] for row in lab.written]
    assert not all(ended) and [ends for *_, ends in lab.programs] == ended
    cut = [completion for completion in sum(lab.completions(empower.empower(1e9)), [])
           if not completion[2]]
    assert len(cut) == ended.count(False)
    given = []
    monkeypatch.setattr(lab, "train", lambda name, rule, programs: given.append(programs))
    monkeypatch.setattr(lab, "stopping", lambda *arguments: None)
    experiments.by_exact_entropy(lab)
    assert [ends for *_, ends in given[0]] == ended


def test_her_own_text_is_measured_by_hand(swept):
    _, cfg, results = swept
    lab = experiments.laboratory(cfg)
    found = results["seeds"]["0"]["table"]["own text"]
    assert list(found) == ["0.5", "0.05"]
    limits = lab.human_with(0.05).accepts.keywords["limits"]
    above = 0
    for row in lab.written:
        nll = row["her_nll"]
        above += any(sum(nll[k:k + 4]) > limits[3] + 1e-6 for k in range(len(nll) - 3))
    assert found["0.05"][1]["length"] == 4 and abs(found["0.05"][1]["programs"] - above) <= 1
    assert experiments.sums([1, 2, 4], 2).tolist() == [3, 6]
    assert experiments.sums([1, 2], 3).tolist() == []


def test_the_second_human_is_larger_and_reads_the_same_tokens(swept):
    _, cfg, results = swept
    sizes = results["seeds"]["0"]["second human"]["parameters"]
    assert sizes["human"] > sizes["assistants"]
    files = {(kind, file): {path.read_bytes() for path in Path(cfg.out, "stages").glob(
        f"{kind}-*/{file}")} for kind in ("base", "human")
        for file in ("tokenizer.json", "model.safetensors")}
    assert files["human", "tokenizer.json"] <= files["base", "tokenizer.json"] != set()
    assert not files["human", "model.safetensors"] & files["base", "model.safetensors"]


def test_costs_entropies_and_information_are_not_negative(swept):
    [states] = report.seeds_of(swept[-1], "bound")
    for state in states:
        assert state["nll"] >= 0 and state["entropy"] >= 0
        assert len(state["information"]) == 2 and state["information"][0] >= -1e-4


def test_obvious_tokens_are_paid_for_without_the_stop():
    """A model that likes to stop, but otherwise knows what comes next."""
    p = np.full((4, 4), 0.25)
    p[0], p[1] = [0, 0.25, 0.25, 0.5], [0, 0.125, 0.125, 0.75]  # the last token is the stop
    encoding = type("Encoding", (), {"start": 0, "stop": 3})
    programs = [([1, 2], np.array([0.01, 0.04]), True), ([1, 2], np.array([0.5, 0.01]), True)]
    found = experiments.cost_of_obvious(markov_chain(p), programs, encoding)
    assert found == pytest.approx(1, abs=1e-3)  # each time one of two, whatever the stop takes
    assert experiments.cost_of_obvious(markov_chain(p), [([1], np.array([9.0]), True)],
                                       encoding) is None


def test_tuning_names_the_smallest_loss(swept, tmp_path, capsys):
    _, cfg, *_ = swept
    best = make.tune(SMALL, cfg, tmp_path / "tune.json", workers=1)
    assert best in json.loads((tmp_path / "tune.json").read_text())
    printed = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in printed.splitlines() if re.match(r"\| (A|M)", line)]
    assert len(rows) == 2
    smallest = min(rows, key=lambda row: float(row[-2]))
    assert best["optimizer"] == smallest[0].strip() and f"{best['optimizer']} at" in printed
    assert float(smallest[-2]) == pytest.approx(np.mean([float(x) for x in smallest[2:-2]]),
                                                abs=1e-3)


def test_the_loss_of_examples_is_that_of_their_labels():
    model, examples = tiny_gpt(), [([0, 3, 5, 7, 2], 3), ([0, 4], 1), ([0, 1, 2, 3], 4)]
    each = [token_nll(model(torch.tensor([ids]))[0, :-1], torch.tensor(ids[1:]))[start - 1:]
            for ids, start in examples]
    for batch_size in (1, 2, 64):
        assert experiments.loss(model, examples, batch_size) == pytest.approx(
            torch.cat(each).mean().item(), rel=1e-4)


# ------------------------------------------------------------------- the report


def row(name, value, **more):
    """A row with one value for all metrics."""
    keys = ("pass@1", "accept_ratio", "dpr", "tokens_read", "tokens_written", "suggestion_length",
            "silent_share", "passes")
    return {"name": name, **dict.fromkeys(keys, value), **more}


def made_up(passed, other):
    """Results in which Empower has these shares, one a seed, and every other row has `other`."""
    rows = [[row(name, other) for name in (
        "Human alone, no round limit", "SFT-4", "SFT-8", "Base-4", "Base",
        "Base stopped at 0.32 bits")] + [row("Empower (0.32)", value)] for value in passed]
    return {"config": {"eta": 0.32, "turn_tokens": 4, "attention_low": 0.5},
            "seeds": {str(k): {"table": {"rows": r}, "attention": {"0.5": r[1:]}}
                      for k, r in enumerate(rows)}}


def test_the_table_over_seeds_by_hand():
    results = made_up([0.6, 0.7, 0.8], 0.5)
    rows = report.seeds_of(results, "table", "rows")
    found = report.row_of(report.averaged(rows), "Empower (0.32)")
    assert found["pass@1"] == pytest.approx(0.7) and found["pass@1_spread"] == pytest.approx(0.1)
    half = 4.303 * 0.1 / 3 ** 0.5
    assert report.minus(results, rows, "SFT-4", "dpr") == (
        f"+0.200 ({0.2 - half:+.3f} to {0.2 + half:+.3f})")
    assert report.gain(results, rows, "SFT-4") == pytest.approx(0.4)
    [line] = [line for line in report.differences(results, rows, ["SFT-4"], "Gemma").splitlines()
              if line.startswith("| SFT-4")]
    assert line.endswith(f", {0.454 / 0.227 - 1:+.0%} |")


def test_the_primary_hypotheses_by_hand():
    results = made_up([0.6, 0.7, 0.8], 0.5)
    lines = report.hypotheses(results).splitlines()[2:]
    assert [line.split(" |")[0] for line in lines] == [
        "| SFT-4                      ", "| Base-4                     ",
        "| Base stopped at 0.32 bits  ", "| Human alone, no round limit"]
    assert all(line.endswith("|     +40% | 0.074 |     0.3 |") for line in lines), lines
    assert intervals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert intervals.holm([0.5, 0.4, 0.01, 0.6]) == pytest.approx([1, 1, 0.04, 1])
    assert "here" in report.predicted(results) and "+98%" in report.predicted(results)


@pytest.mark.parametrize("n", intervals.STUDENT)
def test_at_the_end_of_the_interval_p_is_a_twentieth(n):
    rng = np.random.default_rng(n)
    noise = rng.standard_normal(n)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    assert intervals.p_value(intervals.STUDENT[n] / n ** 0.5 + noise) == pytest.approx(
        0.05, abs=1e-4)
    assert intervals.p_value([0.0] * n) == 1 and intervals.p_value([0.25] * n) == 0


def length_rows(*points):
    """Rows of a curve: (eta or N, tokens a turn, value)."""
    return [row("", value, point=point, suggestion_length=length, silent_share=0)
            for point, length, value in points]


def test_training_by_hand():
    assert report.per_turn({"suggestion_length": 8, "silent_share": 0.25}) == 6  # tokens a turn
    results = made_up([0.6, 0.7, 0.8], 0.5)
    for k, seed in enumerate(results["seeds"].values()):
        seed["care"] = {"0.05": seed["attention"]["0.5"]}
        seed["lengths"] = {"Empower": length_rows((1, 2, 0.9 + k / 100), (2, 4, 0.7)),
                           "Base stopped": length_rows((1, 3, 0.8), (2, 5, 0.7 - k / 10))}
    first, second, care, attention = report.training(results).splitlines()[2:]
    assert "+0.110 (+0.08" in first and "+0.100 (-0.14" in second
    assert care.startswith("| care 0.05") and attention.startswith("| attention 0.5")
    assert "+0.200 (-0.048 to +0.448)" in care


def test_leniency_is_pooled_over_seeds():
    results = made_up([0.6, 0.7], 0.5)
    for k, seed in enumerate(results["seeds"].values()):
        some = [row("Base-4", 0, dear=10 * (k + 1), dear_accepted=3 * k)]
        seed.update({"care": {"0.05": some}, "less able": {"0.05, 1": some, "0.05, 0.8": []},
                     "second human": {"rows": [row("Base-4", 0, dear=0, dear_accepted=0)]}})
    lines = [line.replace(" ", "") for line in report.leniency(results).splitlines()[2:]]
    assert lines == ["|care0.05|30|0.100|", "|lessable,care0.05|30|0.100|", "|secondhuman|0|-|"]


def test_the_mean_information_by_hand():
    states = [{"entropy_counted": 1.0, "information": [0.0, 1.0]},
              {"entropy_counted": 3.0, "information": [1.0, 2.0]}]
    results = {"plan": {"horizons": [1, 4]}, "seeds": {"0": {"bound": states}, "1": {}}}
    assert report.bound_by_horizon(results) == [{"k": 1, "information": 0.5, "share": 0.25},
                                                {"k": 4, "information": 1.5, "share": 0.75}]


# ------------------------------------------------------------------- the command line


@pytest.mark.parametrize("arguments, message", [
    (["sweep", "--seeds", "1"], "--seeds is 1: give 2 to 10"), (["draw"], "invalid choice"),
    (["sweep", "--seeds", "x"], "invalid int value"), (["sweep", "--see", "3"], "unrecognized"),
    (["sweep", "--out", "/dev/null/x"], "cannot write"),
    (["sweep", "--results", "nowhere/x.json"], "cannot write --results nowhere"),
    (["plot", "--results", "no.json"], "cannot read no.json"),
    (["report", "--results", str(HERE / "make.py")], "is not the result of a sweep"),
    (["sweep", "--results", str(HERE)], "cannot write --results"),
    (["report", "--results", "five.json"], "it is not an object"),
    (["report", "--results", "half.json"], "is not the result of a sweep"),
    (["report", "--results", str(HERE.parent / "fixtures" / "qwen3" / "config.json")],
     "it has no config"), (["sweep", "--workers", "0"], "--workers is 0"),
    ([], "required")])
def test_bad_input_gets_one_sentence_and_status_2(
        arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("five.json").write_text("5")
    Path("half.json").write_text(json.dumps({name: {"a": 1} for name in report.SECTIONS}))
    with pytest.raises(SystemExit) as end:
        make.main(arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1, error


@pytest.mark.parametrize("name, content, command", [
    ("real.json", "{", "real"), ("real.json", "[1]", "real"), ("real.json", "{}", "real"),
    ("tune.json", '[{"a": 1}]', "tune"), ("tune.json", "{}", "tune"),
    ("calibrate.json", "{}", "calibrate")])
def test_a_damaged_file_next_to_the_results_is_named(swept, tmp_path, capsys, name, content,
                                                     command):
    shutil.copy(swept[0], tmp_path / "results.json")
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit) as end:
        make.main(["report", "--results", str(tmp_path / "results.json")])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert f"{name} is damaged" in error and f"figures/make.py {command}" in error


def test_every_picture_is_drawn_and_the_same_results_draw_the_same(swept, tmp_path):
    pytest.importorskip("matplotlib")
    import draw
    assert make.main(["plot", "--results", str(swept[0])]) in (None, 0)
    drawn = sorted(path.name for path in swept[0].parent.glob("*.svg"))
    assert drawn == ["attention.svg", "care.svg", "lengths.svg", "rounds.svg"]
    for path in itertools.islice(draw.all_figures(swept[-1], {}, tmp_path), 2):
        assert path.read_bytes() == (swept[0].parent / path.name).read_bytes()


def test_a_killed_sweep_leaves_no_process_at_work(tmp_path):
    log = tmp_path / "log"
    sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", (
        f"import make; list(make.in_parallel([(exec, ({sleep!r},))] * 2, 'x', {str(log)!r}, 2))")],
        cwd=HERE)
    while not log.exists() or len(log.read_text().split()) < 2:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    deadline = time.time() + 20
    for child in map(int, log.read_text().split()):
        while Path(f"/proc/{child}").exists() and "Z" not in Path(
                f"/proc/{child}/stat").read_text().split()[2]:
            assert time.time() < deadline
            time.sleep(0.05)


# ------------------------------------------------------------------- the bound of Section 4.3


def markov_chain(p):
    """A model without layers whose next token depends only on the last one: p[last, next]."""
    V = len(p)
    model = GPT(GPTConfig(V, 32, 32, 0, 1, 1, 32, 256, tie_word_embeddings=False))
    for weight in model.parameters():
        weight.data = torch.zeros_like(weight)
    model.norm.weight.data += 1
    model.embed_tokens.weight.data[:, :V] = torch.eye(V)
    model.lm_head.weight.data[:, :V] = torch.tensor(p).clamp(min=1e-30).log().T / 32 ** 0.5
    return model


def information(p, samples=1, steps=3, **options):
    """What the token after token 0 says about the texts after it; the last token ends a text."""
    return bound.future_information(markov_chain(p), [0], len(p) - 1, steps, samples,
                                      torch.Generator().manual_seed(0), **options)[0].tolist()


def test_information_about_the_future_by_hand():
    # After 0 comes 1 or 2, half of the time each; after 1, always 3; after 2, 3 or 4, half each.
    p = np.zeros((6, 6))
    p[0, [1, 2]] = p[2, [3, 4]] = 0.5
    p[1, 3] = p[3, 5] = p[4, 5] = p[5, 5] = 1
    h = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)) - 0.5
    found = information(p, samples=4_000)
    assert found == pytest.approx([h] * 3, abs=0.02) and h == pytest.approx(0.311, abs=1e-3)
    p[1, [3, 4]] = 0.5  # now both say the same about what follows: nothing
    assert information(p) == pytest.approx([0] * 3, abs=1e-6)
    p[1], p[2] = np.eye(6)[3], np.eye(6)[4]  # now everything: every single sample meets the bound
    assert information(p) == pytest.approx([1] * 3, abs=1e-6)


def test_a_text_that_ended_stays_ended():
    p = np.zeros((4, 4))
    p[0, [1, 3]] = 0.5  # go on, or end: whoever sees the next position knows
    p[1, 1] = p[2, 2] = p[3, 1] = 1
    assert information(p, samples=8) == pytest.approx([1] * 3, abs=1e-6)


def test_information_leaves_out_what_is_unlikely():
    p = np.zeros((5, 5))
    p[0] = [0, 0.6, 0.3, 0.1, 0]
    p[1, 2] = p[2, 3] = p[3, 1] = p[4, 4] = 1
    likely = np.array([2 / 3, 1 / 3])
    found = information(p, samples=8_000, least=0.2)
    assert found == pytest.approx([-(likely * np.log2(likely)).sum()] * 3, abs=0.02)


def test_information_grows_with_the_text_and_stays_below_the_entropy():
    model, generator = tiny_gpt(), torch.Generator().manual_seed(0)
    prefix = [0, 3, 5]
    entropy = bound.token_entropy(model(torch.tensor([prefix]))[0, -1]).item()
    found, counted = bound.future_information(model, prefix, 1, 12, 800, generator)
    assert (np.diff(found) > -0.01).all() and 0 < found[0] < found[-1] < counted + 0.02
    assert counted == pytest.approx(entropy, abs=0.05) and counted <= entropy


def test_entropies_are_scored_as_costs_are():
    model, programs = tiny_gpt(), random_texts([5, 1, 17])
    for program, found in zip(programs, bound.entropies(model, programs, 0)):
        logits = model(torch.tensor([[0] + program]))[0, :-1]
        assert np.allclose(found, bound.token_entropy(logits).detach(), atol=1e-4)


# ------------------------------------------------------------------- intervals and budgets


def test_the_interval_over_seeds_by_hand():
    mean, low, high = intervals.seeds_interval([0.1, 0.2, 0.3])
    half = 4.303 * 0.1 / 3 ** 0.5
    assert (mean, low, high) == pytest.approx((0.2, 0.2 - half, 0.2 + half))


def test_quantiles_are_student_s():
    for n, quantile in intervals.STUDENT.items():
        x = torch.linspace(-4000, quantile, 4_000_001, dtype=torch.float64)
        density = torch.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2) - n / 2 * torch.log1p(
            x ** 2 / (n - 1))) / ((n - 1) * math.pi) ** 0.5
        assert torch.trapezoid(density, x).item() == pytest.approx(0.975, abs=2e-4)


def test_the_interval_over_seeds_holds_the_chance_in_seeds_and_in_problems():
    """The truth is inside in 95 of 100 experiments; not so with a bootstrap over five seeds."""
    rng, truth, within, too_short = np.random.default_rng(0), 0.3, 0, 0
    for _ in range(400):
        of_seeds = truth + 0.05 * rng.standard_normal((5, 1))
        problems = rng.random((5, 300)) < of_seeds  # each seed has its own problems
        _, low, high = intervals.seeds_interval(problems.mean(1))
        within += low <= truth <= high
        again = problems.mean(1)[rng.integers(0, 5, (1000, 5))].mean(1)
        low, high = np.quantile(again, [0.025, 0.975])
        too_short += not low <= truth <= high
    assert 0.92 <= within / 400 <= 0.98 and too_short / 400 > 0.1


def test_one_game_holds_every_budget():
    model, goals = tiny_gpt(3), random_goals([4, 7, 1, 9, 5, 3])
    human = Human(model, partial(typical, limits=[4 * n for n in range(1, 6)]), 3)
    whole, *shorter = ([*play(goals, human, Assistant(tiny_gpt(4), 5), rounds, 0, 0,
                              torch.Generator().manual_seed(0))] for rounds in (12, 1, 3, 7))
    assert any(e.finished for e in whole) and any(len(e.turns) == 12 for e in whole)
    for rounds, episodes in zip((1, 3, 7), shorter):
        assert [experiments.cut_off(e, rounds) for e in whole] == episodes
    whole[0].passed = True
    assert not experiments.cut_off(whole[0], 1).passed


# ------------------------------------------------------------------- README.md and README.md here

PAGES = {name: (HERE / name).read_text() for name in ("../README.md", "README.md")}
# Numbers on the pages that no run prints: settings, the paper's, sections, names and years.
SETTINGS = {*map(str, dataclasses.asdict(Config()).values()), "1", "0", "4", "1.25", "3.10",
            "2025", "2510.13709", "2", "8", "10", "20", "30", "95%", "5", "6", "9", "20%", "18", "61",
            "500",  # steps of pre-training of the less able human
            "400",  # tokens of a program, the paper's by assumption
            "192%",  # the paper's headline: Pass@1 above SFT's
            *map(str, make.MINUTES.values())}


def prose(page):
    """A page without tables, code, links and section numbers."""
    page = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", re.sub(r"(?m)^\|.*\n", "", page),
                  flags=re.DOTALL)
    return re.sub(r"(Sections?|Table|in|Eq.) [\d.]+(?=[\s.,)])", "", page)


def numbers(text):
    """Every number in a text, with its sign, as it is written."""
    return set(re.findall(r"(?<![\w.\-^])[+-]?\d(?:[\d,]*\d)?(?:\.\d+)?%?(?![\w-])", text))


@pytest.mark.parametrize("command", [command for page in PAGES.values() for command in re.findall(
    r"^python figures/(.*?)(?: *#.*)?$", page, re.MULTILINE)])
def test_readme_commands_of_this_folder_run(command, swept, capsys):
    script, *words = command.split()
    assert script == "make.py"
    if words[0] in ("calibrate", "sweep", "tune", "real", "plot"):
        return  # other tests run these
    assert not make.main([*words, "--results", str(swept[0])]) and capsys.readouterr().out


def test_without_matplotlib_one_sentence_names_it(swept, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "draw", raising=False)
    with pytest.raises(SystemExit) as end:
        make.main(["plot", "--results", str(swept[0])])
    assert end.value.code == 2 and "figures/requirements.txt" in capsys.readouterr().err


def committed():
    """(the committed results, their tables)."""
    results = report.read(HERE / "results.json")
    losses = json.loads((HERE / "tune.json").read_text())
    calibrated = json.loads((HERE / "calibrate.json").read_text())
    return results, {**report.tables(results), "tuning": report.tuning(losses),
                     "calibration": report.calibration(calibrated).split("\n\n")[0],
                     "calibrated": report.calibration(calibrated),
                     **real_tables.blocks(json.loads((HERE / "real.json").read_text()))}


@pytest.mark.parametrize("name", PAGES)
def test_every_number_on_a_page_is_in_a_table_of_the_committed_results(name):
    _, tables = committed()
    for block in re.findall(r"(?:^\|.*\n)+", PAGES[name], re.MULTILINE):
        if "| paper | here |" not in block:
            assert block.strip() in tables.values(), f"not what make.py report prints:\n{block}"
    printed = numbers(" ".join(tables.values()))
    unsigned = {number.lstrip("+-") for number in printed}
    assert not numbers(prose(PAGES[name])) - printed - unsigned - SETTINGS, "who prints these?"


@pytest.mark.parametrize("name", PAGES)
def test_every_interval_on_a_page_is_in_a_row_with_its_mean(name):
    _, tables = committed()
    lines = [line.replace(" | ", " ") for line in "\n".join(tables.values()).splitlines()]
    found = re.findall(r"([+-][\d.]+)\s+\(([+-][\d.]+)\s+to\s+([+-][\d.]+)\)", prose(PAGES[name]))
    assert len(found) >= 3
    for mean, low, high in found:
        row = re.compile(rf"{re.escape(mean)} +\(?{re.escape(low)} to {re.escape(high)}")
        assert any(row.search(line) for line in lines), f"{mean} ({low} to {high})"


def test_durations_are_those_that_the_commands_announce():
    course = (HERE.parent / "course" / "README.md").read_text()
    for page in (PAGES["../README.md"], course):
        assert f"about {MINUTES} minutes" in page
    for minutes in make.MINUTES.values():
        assert f"about {minutes} minutes" in PAGES["README.md"]


def test_the_committed_results_on_real_code_are_of_rows_that_the_plan_plays():
    found, plan = json.loads((HERE / "real.json").read_text()), real.RealPlan()
    assert found["plan"] == json.loads(json.dumps(dataclasses.asdict(plan)))
    assert list(found["seeds"]) == [*found["chosen_on"], *map(str, plan.seeds)]
    names = {name for rows in (real_tables.SIX, real_tables.MORE) for names in real_tables.named(
        found["plan"], rows, sorted({plan.pieces, *plan.others, *plan.halved})) for name in names}
    for seed, corpora in found["seeds"].items():
        assert list(corpora) == list(plan.corpora)
        assert sum(int(seed) in part["seeds"] for part in found["parts"]) == 1 + (seed == "0")
        for rows in corpora.values():
            assert set(rows) <= names and all(tuple(row) == real.QUOTED for row in rows.values())
    assert all(part["command"] and part["environment"]["torch"] for part in found["parts"])


def test_the_default_of_fine_tuning_is_what_tune_has_chosen():
    losses = json.loads((HERE / "tune.json").read_text())
    best = min(losses, key=lambda row: row["mean"])
    assert (best["optimizer"], best["rate"]) == ("AdamW", Config().sft_lr)
    assert empower.fine_tune.__defaults__[0] is experiments.OPTIMIZERS["AdamW"]


def test_the_committed_pictures_are_there_and_small():
    pictures = sorted({path.name for path in HERE.glob("*.[ps][nv]g")} - {"program.svg"})
    assert pictures == ["attention.svg", "care.svg", "lengths.svg", "real-code.svg", "rounds.svg"]
    assert all(f"({name})" in PAGES["README.md"] for name in pictures)
    assert sum(path.stat().st_size for path in HERE.glob("*.[ps][nv]g")) <= 700_000
    assert PAGES["README.md"].count("\n") <= 370 and len(PAGES["README.md"].encode()) <= 45_000


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert PAGES["../README.md"].count("\n") <= 110
    text = re.sub(r"```.*?```|^\|.*?$", "", PAGES["../README.md"], flags=re.DOTALL | re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 110
    for name, page in PAGES.items():
        for link in re.findall(r"\]\(([^)]*)\)", page):
            path, _, anchor = link.replace("\n", "").partition("#")
            if path.startswith("http"):
                continue
            target = (HERE / name).parent / path if path else HERE / name  # on the same page
            assert target.exists(), link
            if anchor:
                titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
                                  for title in titles], link


def test_entropy_is_the_mean_cost_of_the_next_token():
    assert bound.token_entropy(torch.zeros(4)).item() == pytest.approx(2)
    assert bound.token_entropy(torch.tensor([0.0, 0.0, -math.inf])).item() == pytest.approx(1)
    logits = torch.randn(3, 5, 7)
    each = torch.stack([token_nll(logits, torch.full((3, 5), i)) for i in range(7)], -1)
    assert torch.allclose(bound.token_entropy(logits), (logits.softmax(-1) * each).sum(-1), atol=1e-5)
