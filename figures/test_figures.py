"""Tests of the sweep, of what it reports, and of every number in both README.md."""

import dataclasses
import functools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import make  # first: it sets the path to the other files
import bound
import report
import simhuman
from empower import Config
from model import GPT, GPTConfig, token_entropy
from realcode import replay
from simhuman import Assistant, Human, play
from support.testing import in_process, random_texts, tiny_gpt
from test_empower import random_goals

HERE = Path(__file__).resolve().parent
TINY = {"pretrain_steps": 12, "train_problems": 40, "held_out_problems": 6, "dev_problems": 3,
        "layers": 1, "width": 32, "max_suggestion": 8, "rounds": 3, "device": "cpu"}
SMALL = {"ETAS": (0.32, 60), "NS": (10,), "ROUNDS": (1, 3, 101), "AT_TAU": (1,), "HORIZONS": (1, 2),
         "FUTURES": 4, "SECOND_HUMAN": {"width": 64}}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A tiny sweep from the command line: its arguments, settings, bar and results."""
    folder, bars = tmp_path_factory.mktemp("sweep"), []
    (folder / "corpus").mkdir()
    for k in range(10):
        (folder / "corpus" / f"{k}.py").write_text(f"def f{k}(x):\n    return x + {k}\n")
    arguments = ["--out", str(folder / "out"), "--results", str(folder / "results.json")]
    small = {"vocab_size": 300, "width": 32, "layers": 1, "pretrain_tokens": 2000, "context": 64,
              "max_suggestion": 8, "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(make, name, value)
        bar = make.Bar
        patch.setattr(make, "Bar", lambda total: bars.append(bar(total)) or bars[-1])
        patch.setattr(make, "Config", lambda out: Config(out=out, **TINY))
        config = replay.Config
        patch.setattr(replay, "Config", lambda out, corpus: config(
            out=out, corpus=str(folder / "corpus"), **small))
        patch.setattr(simhuman, "ACCEPTANCE", {"skim": simhuman.ACCEPTANCE["skim"]})
        make.main(["sweep", "--seeds", "2", *arguments])
        results = json.loads((folder / "results.json").read_text())
        make.main(["sweep", "--seeds", "2", *arguments])  # all from finished stages
    assert json.loads((folder / "results.json").read_text()) == results
    return arguments, Config(out=str(folder / "out"), **TINY), bars[0], results


def test_a_sweep_has_every_section_and_its_bar_ends_where_it_said(swept):
    arguments, cfg, bar, results = swept
    assert bar.done == bar.bar.total
    assert list(results["seeds"]) == ["0", "1"]
    for name in report.SECTIONS:
        assert results[name], name
    names = [row["name"] for row in results["seeds"]["0"]["rows"]]
    assert names.count("Empower (0.32), entropy") == 1 and len(names) == 13
    assert cfg.out not in Path(arguments[-1]).read_text()


def test_a_sweep_shares_its_stages_with_the_default_run(swept):
    _, cfg, _, results = swept
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    status, stdout, _ = in_process("--out", cfg.out, *flags)
    assert status == 0 and "kept in" not in stdout
    for row in json.loads(Path(cfg.out, "results.json").read_text())["rows"]:
        assert make.rounded(row) == report.row_of(results["seeds"]["0"]["rows"], row["name"])


def test_the_second_human_is_larger_and_reads_the_same_tokens(swept):
    _, cfg, _, results = swept
    sizes = results["second human"]["parameters"]
    assert sizes["human"] > sizes["assistants"]
    [base] = [p for p in Path(cfg.out, "stages").glob("base-*") if json.loads(
        (p / "inputs.json").read_text())["seed"] == 0]
    [human] = Path(cfg.out, "stages").glob("human-*")
    for path in base.glob("tokenizer*"):
        assert path.read_bytes() == (human / path.name).read_bytes()
    assert (base / "model.safetensors").read_bytes() != (human / "model.safetensors").read_bytes()


def test_costs_entropies_and_information_are_not_negative(swept):
    for state in swept[-1]["bound"]:
        assert state["nll"] >= 0 and state["entropy"] >= 0
        assert len(state["information"]) == 2 and state["information"][0] >= -1e-4


def test_a_long_enough_budget_is_no_limit(swept):
    results = swept[-1]
    no_limit = report.row_of(results["seeds"]["0"]["rows"], "Human alone, no round limit")
    assert results["budget"]["Human alone"][-1] == no_limit["pass@1"]
    for shares in results["budget"].values():
        assert len(shares) == len(results["rounds"])


# ------------------------------------------------------------------- the report


def made_up(passed, other):
    """Results in which Empower has these shares on three seeds, and every other row has `other`."""
    rows = [[{"name": name, **{key: value if name == "Empower (0.32)" else other for key in (
        "pass@1", "accept_ratio", "dpr", "tokens_read", "tokens_written", "suggestion_length",
        "silent_share")}} for name in ("SFT-10", "Empower (0.32)")] for value in passed]
    return {"config": {"eta": 0.32}, "seeds": {str(k): {"rows": r} for k, r in enumerate(rows)}}


def test_the_table_over_seeds_by_hand():
    results = made_up([0.6, 0.7, 0.8], 0.5)
    row = report.row_of(report.seeds_table(results), "Empower (0.32)")
    assert row["pass@1"] == pytest.approx(0.7) and row["pass@1_sd"] == pytest.approx(0.1)
    found = report.difference(results, "SFT-10", "dpr")
    half = 4.303 * 0.1 / 3 ** 0.5
    assert [found[key] for key in ("mean", "low", "high")] == pytest.approx(
        [0.2, 0.2 - half, 0.2 + half])
    assert found["gain"] == pytest.approx(0.4)
    assert found["paper"] == pytest.approx(0.454 / 0.227 - 1)


def test_a_curve_is_compared_where_both_have_lengths():
    assert report.per_turn({"suggestion_length": 8, "silent_share": 0.25}) == 6  # tokens a turn
    def rows(*points):
        return [{"suggestion_length": 2 * x, "silent_share": 0.5, "y": y} for x, y in points]

    line = rows((10, 0.0), (2, 0.8))
    assert report.above(rows((1, 1), (4, 0.61), (6, 0.39), (11, 1)), line, "y") == (1, 2)
    silent = [{"suggestion_length": None, "silent_share": 1.0, "y": None}]  # 0 tokens, y = 0
    assert report.above(silent, line, "y") == (0, 0)
    assert report.above(rows((1, 0.3), (1, 0.5)), line + silent, "y") == (1, 2)  # 0.4 at 1 token


def test_the_mean_information_by_hand():
    results = {"horizons": [1, 4], "bound": [{"entropy_counted": 1.0, "information": [0.0, 1.0]},
                                             {"entropy_counted": 3.0, "information": [1.0, 2.0]}]}
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
     "it has no config"), (["calibrate", "--accepts", "rash", "--out", "x"], "--accepts is 'rash'"),
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


def test_every_picture_is_drawn_and_the_same_results_draw_the_same(swept, tmp_path):
    pytest.importorskip("matplotlib")
    import draw
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths = list(draw.all_figures(swept[-1], tmp_path / name))
    assert len(paths) == 10
    for path in paths:
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()


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
    found = information(p, samples=20_000)
    assert found == pytest.approx([h] * 3, abs=0.01) and h == pytest.approx(0.311, abs=1e-3)
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
    found = information(p, samples=40_000, least=0.2)
    assert found == pytest.approx([-(likely * np.log2(likely)).sum()] * 3, abs=0.01)


def test_information_grows_with_the_text_and_stays_below_the_entropy():
    model, generator = tiny_gpt(), torch.Generator().manual_seed(0)
    prefix = [0, 3, 5]
    entropy = token_entropy(model(torch.tensor([prefix]))[0, -1]).item()
    found, counted = bound.future_information(model, prefix, 1, 12, 2000, generator)
    assert (np.diff(found) > -0.01).all() and 0 < found[0] < found[-1] < counted + 0.02
    assert counted == pytest.approx(entropy, abs=0.05) and counted <= entropy


def test_entropies_are_scored_as_costs_are():
    model, programs = tiny_gpt(), random_texts([5, 1, 17])
    for program, found in zip(programs, bound.entropies(model, programs, 0)):
        logits = model(torch.tensor([[0] + program]))[0, :-1]
        assert np.allclose(found, token_entropy(logits).detach(), atol=1e-4)


# ------------------------------------------------------------------- intervals, budgets, tolerance


def test_the_interval_over_seeds_by_hand():
    mean, low, high = report.seeds_interval([0.1, 0.2, 0.3])
    half = 4.303 * 0.1 / 3 ** 0.5
    assert (mean, low, high) == pytest.approx((0.2, 0.2 - half, 0.2 + half))


def test_quantiles_are_student_s():
    for n, quantile in report.STUDENT.items():
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
        _, low, high = report.seeds_interval(problems.mean(1))
        within += low <= truth <= high
        again = problems.mean(1)[rng.integers(0, 5, (1000, 5))].mean(1)
        low, high = np.quantile(again, [0.025, 0.975])
        too_short += not low <= truth <= high
    assert 0.92 <= within / 400 <= 0.98 and too_short / 400 > 0.1


def test_one_game_holds_every_budget():
    model, goals = tiny_gpt(3), random_goals([4, 7, 1, 9, 5, 3])
    human = Human(model, functools.partial(simhuman.skim, tau=4), 3)
    whole, *shorter = ([*play(goals, human, Assistant(tiny_gpt(4), 5), rounds, 0, 0,
                              torch.Generator().manual_seed(0))] for rounds in (12, 1, 3, 7))
    assert any(e.finished for e in whole) and any(len(e.turns) == 12 for e in whole)
    for rounds, episodes in zip((1, 3, 7), shorter):
        assert [make.cut_off(e, rounds) for e in whole] == episodes
    whole[0].passed = True
    assert not make.cut_off(whole[0], 1).passed


def test_calibration_names_the_tau_that_is_closest_to_the_paper(swept, monkeypatch, capsys):
    _, cfg, *_ = swept
    monkeypatch.setattr(make, "Config", lambda out, accepts: Config(
        out=out, accepts=accepts, **TINY))
    make.main(["calibrate", "--out", cfg.out])
    printed = capsys.readouterr().out
    rows = [line.split("|")[1:5] for line in printed.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == len(make.TAUS["skim"])
    best = min(rows, key=lambda row: float(row[3]))
    for row in rows:
        distance = math.dist((float(row[1]), float(row[2])), (0.365, 0.587))
        assert float(row[3]) == pytest.approx(distance, abs=2e-3)
    assert f"--tau {best[0].strip()} is closest" in printed


# ------------------------------------------------------------------- README.md and README.md here

PAGES = {name: (HERE / name).read_text() for name in ("../README.md", "README.md")}
COMMITTED = HERE / "results.json"
# Numbers on the pages that no run prints: settings, the paper's, sections, names and years.
SETTINGS = {*map(str, dataclasses.asdict(Config()).values()), "1", "0", "1.1", "4", "1.25", "3.10",
            "2025", "2510.13709", "2", "10", "20", "30", "95%", "5", "8", "11", "20%",
            "18", f"{make.expected_seconds(make.SEEDS) / 60:.0f}"}


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
def test_readme_commands_of_this_folder_run(command, swept, capsys, monkeypatch):
    script, *words = command.split()
    assert script == "make.py"
    for name, value in SMALL.items():
        monkeypatch.setattr(make, name, value)
    if words[0] in ("sweep", "calibrate"):
        return  # other tests run these
    try:
        status = make.main([*words, "--results", swept[0][-1]])
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr()
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        if words == ["plot"]:
            assert status == 2 and "figures/requirements.txt" in printed.err
            return
    assert not status and printed.out


@pytest.mark.parametrize("name", PAGES)
def test_every_number_on_a_page_is_in_a_table_of_the_committed_results(name):
    tables = report.tables(report.read(COMMITTED))
    for block in re.findall(r"(?:^\|.*\n)+", PAGES[name], re.MULTILINE):
        if "| paper | here |" not in block:
            assert block.strip() in tables.values(), f"not what make.py report prints:\n{block}"
    printed = numbers(" ".join(tables.values()))
    unsigned = {number.lstrip("+-") for number in printed}
    assert not numbers(prose(PAGES[name])) - printed - unsigned - SETTINGS, "who prints these?"


def test_the_evidence_is_complete_and_its_counts_are_right():
    results = report.read(COMMITTED)
    for block in report.tables(results).values():
        assert block in PAGES["README.md"]
    against = [report.difference(results, name, key) for name in report.BASELINES
               for key in report.METRICS]
    assert len(against) == 18 and all(row["low"] > 0 for row in against)
    stopping = report.with_verdict(results["stdlib"]["stopping"])
    assert [row["close"] for row in stopping].count("NO") == 4 and len(stopping) == 5


def test_the_committed_pictures_are_there_and_small():
    pictures = sorted(path.name for path in HERE.glob("*.png"))
    assert pictures == ["bound.png", "budget.png", "lengths.png", "rows-as-bars.png", "stdlib.png"]
    assert all(f"({name})" in PAGES["README.md"] for name in pictures)
    assert sum(p.stat().st_size for p in HERE.glob("*.[ps][nv]g")) <= 600_000


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert PAGES["../README.md"].count("\n") <= 120
    for name, page in PAGES.items():
        for link in re.findall(r"\]\(([^)]*)\)", page):
            path, _, anchor = link.replace("\n", "").partition("#")
            if path.startswith("http"):
                continue
            target = (HERE / name).parent / path
            assert target.exists(), link
            if anchor:
                titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
                                  for title in titles], link
