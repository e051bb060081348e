"""Tests of the sweep, of what it reports, and of every number in the README."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

import make  # first: it knows where the other files are
import empower
import report
from empower import Config
from realcode import ReplayConfig

HERE = Path(__file__).resolve().parent
TINY = {"pretrain_steps": 12, "train_problems": 40, "held_out_problems": 6, "dev_problems": 3,
        "layers": 1, "width": 32, "max_suggestion": 8, "rounds": 3, "device": "cpu"}
SMALL = {"ETAS": (0.32, 60), "NS": (10,), "ROUNDS": (1, 3, 101), "AT_TAU": (1,), "HORIZONS": (1, 2),
         "FUTURES": 4, "SECOND_HUMAN": {"width": 64}}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A tiny sweep by the command line: its arguments, its settings, its bar, what it found."""
    folder, bars = tmp_path_factory.mktemp("sweep"), []
    (folder / "corpus").mkdir()
    for k in range(10):
        (folder / "corpus" / f"{k}.py").write_text(f"def f{k}(x):\n    return x + {k}\n")
    arguments = ["--out", str(folder / "out"), "--results", str(folder / "results.json")]
    replay = {"vocab_size": 300, "width": 32, "layers": 1, "pretrain_tokens": 2000, "context": 64,
              "max_suggestion": 8, "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(make, name, value)
        bar = make.Bar
        patch.setattr(make, "Bar", lambda total: bars.append(bar(total)) or bars[-1])
        patch.setattr(make, "Config", lambda out: Config(out=out, **TINY))
        patch.setattr(make.realcode, "ReplayConfig", lambda out, corpus: ReplayConfig(
            out=out, corpus=str(folder / "corpus"), **replay))
        patch.setattr(empower, "TAU", {"skim": 1.1})
        assert make.main(["sweep", "--seeds", "2", *arguments]) == 0
        results = json.loads((folder / "results.json").read_text())
        assert make.main(["sweep", "--seeds", "2", *arguments]) == 0  # all from its stages
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


def test_a_sweep_shares_its_stages_with_the_default_run(swept, capsys):
    _, cfg, _, results = swept
    ran = empower.run(cfg)
    assert "kept in" not in capsys.readouterr().out
    for row in ran["rows"]:
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


def test_states_of_the_bound_keep_it(swept):
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
    silent = [{"suggestion_length": None, "silent_share": 1.0, "y": None}]  # 0 tokens, nothing won
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
    (["report", "--results", str(HERE / "make.py")], "is not what a sweep leaves"),
    (["sweep", "--results", str(HERE)], "cannot write --results"),
    (["report", "--results", "five.json"], "it is no object"),
    (["report", "--results", "half.json"], "is not what a sweep leaves"),
    (["report", "--results", str(HERE.parent / "fixtures" / "qwen3" / "config.json")],
     "it has no config"), ([], "required")])
def test_bad_input_gets_one_sentence_and_status_2(
        arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("five.json").write_text("5")
    Path("half.json").write_text(json.dumps({name: {"a": 1} for name in report.SECTIONS}))
    try:
        status = make.main(arguments)
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2 and message in error and error.count("\n") == 1, error


def test_every_picture_is_drawn_and_the_same_results_draw_the_same(swept, tmp_path):
    pytest.importorskip("matplotlib")
    import draw
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths = list(draw.all_figures(swept[-1], tmp_path / name))
    assert len(paths) == 10
    for path in paths:
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()


# ------------------------------------------------------------------- the README

README = (HERE.parent / "README.md").read_text()
COMMITTED = HERE / "results.json"
# Numbers of the README that no run finds: settings, the paper's, names and years.
SETTINGS = {*map(str, (field for field in dataclasses.asdict(Config()).values())), "1", "0",
            *(f"{tau:g}" for tau in empower.TAU.values()), "4", "1.25", "0.999", "2510.13709",
            "3.10", "2025", "2", "10", "20", "30", "95%", str(empower.MINUTES),
            f"{make.expected_seconds(make.SEEDS) / 60:.0f}"}


def squeezed(text):
    """Text with every run of white space as one blank."""
    return " ".join(text.split())


@pytest.mark.parametrize("command", re.findall(r"^python figures/(.*?)(?: *#.*)?$", README, re.M))
def test_readme_commands_of_this_folder_run(command, swept, capsys, monkeypatch):
    script, *words = command.split()
    assert script == "make.py"
    for name, value in SMALL.items():
        monkeypatch.setattr(make, name, value)
    if words == ["sweep"]:
        return  # `swept` has run it
    status = make.main([*words, "--results", swept[0][-1]])
    printed = capsys.readouterr()
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        if words == ["plot"]:
            assert status == 2 and "figures/requirements.txt" in printed.err
            return
    assert status == 0 and printed.out


def test_every_number_in_the_readme_is_in_the_committed_results():
    results = report.read(COMMITTED)
    found, rest = report.tables(results), README
    for block in re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE):
        if "| paper | here |" not in block:
            assert block.strip() in found.values(), f"not what make.py report prints:\n{block}"
        rest = rest.replace(block, "")
    rest = squeezed(re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", rest, flags=re.DOTALL))
    for sentence in report.sentences(results).values():
        rest = rest.replace(re.sub(r"`[^`]*`", "", sentence), "")
    rest = re.sub(r"Sections? [\d.]+", "", rest)
    numbers = re.findall(r"(?<![\w.\-^])[+-]?\d(?:[\d,]*\d)?(?:\.\d+)?%?(?![\w-])", rest)
    assert not set(numbers) - SETTINGS, "no command prints these"


def test_the_committed_tables_and_pictures_are_of_the_committed_results():
    results = report.read(COMMITTED)
    assert (HERE / "tables.md").read_text() == report.text(results) + "\n"
    pictures = sorted(path.name for path in HERE.glob("*.png"))
    assert pictures == ["bound.png", "budget.png", "lengths.png", "rows-as-bars.png", "stdlib.png"]
    assert sum(p.stat().st_size for p in HERE.glob("*.[ps][nv]g")) <= 600_000


def test_the_readme_is_short_and_results_come_first():
    assert README.count("\n") < 200
    assert README.index("## What it found") < README.index("## Paper to code")
