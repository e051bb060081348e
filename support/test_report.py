"""Tests of the tables, the paper's numbers in them, and transcripts."""

import types

import numpy as np
import pytest

from empower import Config
from simhuman import Assistant, Episode, Turn
from support import report
from support.paper import PAPER, paper_gain, paper_means, paper_name
from support.report import (check_stopping, claims_sentence, claims_table, leniency, marked,
                            paired_difference, share_saved, table, token_texts, transcript,
                            with_learned)
from support.test_helpers import family, tiny_gpt, tokenizer
from test_empower import episode


def test_leniency_counts_dear_suggestions_that_she_read():
    turns = [Turn([1, 2], [3.0, 4.0], True), Turn([3], [6.0], False), Turn([4], [5.0], True),
             Turn([5], [9.0], True, read=False), Turn([], [], False)]
    assert leniency([Episode(0, turns[:2]), Episode(1, turns[2:])]) == (1, 2)


def test_paper_gains_come_from_the_paper_s_table():
    """The means by hand: with Gemma, Empower has .524 / 3, SFT-10 .264 / 3, and so on."""
    assert paper_gain("SFT-10", "pass@1") == (pytest.approx(.524 / .264 - 1), "Gemma")
    assert paper_gain("SFT-20", "dpr") == (pytest.approx(.454 / .206 - 1), "Gemma")
    assert paper_gain("Base-10", "dpr") == (pytest.approx(.454 / .192 - 1), "Gemma")
    assert paper_gain("SFT-RAND", "pass@1") == (pytest.approx(.749 / .413 - 1), "Llama")
    assert paper_gain("Base-20", "dpr") == paper_gain("SFT-10", "share_saved") == (None, "")
    assert paper_gain("Base", "accept_ratio") == (pytest.approx(1.959 / 1.095 - 1), "Gemma")
    assert [paper_name(name, 4) for name in ("SFT-4", "Base-8", "SFT-RAND", "Base", "SFT-3")] == [
        "SFT-10", "Base-20", "SFT-RAND", "Base", "SFT-7.5"]
    for name in ("Empower (0.32), entropy", "Empower (4)", "Base stopped at 0.32 bits"):
        assert paper_name(name, 4) not in PAPER["Gemma"]
    assert paper_gain("Empower", "pass@1") == (None, "")
    assert paper_gain("SFT-10", "dpr", ("Llama",)) == (pytest.approx(.585 / .314 - 1), "Llama")
    assert paper_name("Empower (0.32)", 4) == "Empower" and paper_name("SFT-20", 10) == "SFT-20"
    assert paper_means("Llama", "SFT-20") == pytest.approx([.409 / 3, .545 / 3, .284 / 3])


def test_a_table_aligns_its_columns_and_shows_what_is_absent():
    rows = [{"name": "a", "x": 0.5, "x_se": 0.25}, {"name": "long", "x": None, "x_se": None}]
    assert table(rows, {"who": "{name}", "x": "{x:.1f} ± {x_se:.2f}"}).splitlines() == [
        "| who  |          x |", "|------|-----------:|", "| a    | 0.5 ± 0.25 |",
        "| long |          - |"]


class Writes(Assistant):
    """An assistant that writes these numbers of tokens."""

    def suggest(self, codes, stop_tokens, generator):
        return [[1] * self.lengths.pop(0) for _ in codes]


def test_stopping_is_judged_by_the_distribution_of_lengths():
    def row(asked, written):
        assistant = Writes(tiny_gpt(), 30)
        object.__setattr__(assistant, "lengths", list(written))
        [found] = with_learned([check_stopping("x", assistant, tokenizer(),
                                               [([1], [1] * n, True) for n in asked], 0)])
        return found

    same_mean = row([10] * 4, [0, 0, 20, 20])
    assert same_mean["asked"] == same_mean["written"] == 10 and same_mean["written_sd"] == 10
    assert same_mean["learned"] == "NO" and same_mean["distance"] == 0.5
    assert same_mean["written_empty"] == 0.5 and same_mean["within_2"] == 0
    shuffled = row([0, 3, 0, 5], [5, 0, 3, 0])  # as drawn at random: the lengths are right
    assert shuffled["learned"] == "yes" and shuffled["distance"] == 0
    near = row([4] * 20, [4] * 18 + [2, 7])
    assert row([50] * 3, [8] * 3)["asked"] == 30  # a completion that is longer than the cap
    assert near["within_2"] == 0.95 and near["distance"] == 0.05 and near["learned"] == "yes"


@pytest.mark.parametrize("layers, most", [(3, 40), (9, 26), (1000, 1)])
def test_the_check_of_stopping_keeps_its_cache_small(monkeypatch, layers, most):
    """3 * 2**25 numbers for a small model: here 2**13 for each layer and position, of 51."""
    shape = types.SimpleNamespace(num_hidden_layers=layers, num_key_value_heads=64, head_dim=64)
    model, sizes = types.SimpleNamespace(config=shape, parameters=lambda: []), []

    def suggest(prefixes, stops, generator):
        sizes.append(len(prefixes))
        return [[1]] * len(prefixes)

    model.device = "cpu"
    assistant = types.SimpleNamespace(model=model, max_tokens=50, suggest=suggest, begin=len)
    check_stopping("x", assistant, tokenizer(), [([5], [6], True)] * 40, 0)
    assert sizes[0] == most and sum(sizes) == 40


def test_a_claim_holds_if_its_whole_interval_is_above_zero():
    def row(*passed):
        return [Episode(k, [Turn([], [], False, [1])], True, bool(p)) for k, p in enumerate(passed)]

    cfg = Config()
    rows = {"Empower (0.32)": row(*[1] * 12, *[0] * 8), "clearly worse": row(*[0] * 20),
            "hardly worse": row(*[0, 1] * 10), "better": row(*[1] * 20)}
    found = {claim["baseline"]: claim for claim in report.claims(cfg, rows, report.metrics(cfg))
             if claim["metric"] == "pass@1"}
    assert {name: claim["holds"] for name, claim in found.items()} == {
        "clearly worse": True, "hardly worse": False, "better": False}
    assert found["hardly worse"]["low"] < 0 < found["hardly worse"]["difference"] < 0.2


def test_claims_are_told_as_they_are():
    found = [{"baseline": name, "metric": metric, "difference": 0.25, "low": low, "high": 0.5,
              "holds": low > 0, "paper_gain": gain, "paper_human": "Gemma"}
             for name, metric, low, gain in (("SFT-4", "pass@1", 0.125, 1.0),
                                             ("SFT-4", "dpr", -0.125, 0.5),
                                             ("Human alone", "pass@1", -1.0, None))]
    mine = [{**found[0], "baseline": name} for name in ("Mine", "Base stopped at 1 bits",
                                                        "Empower (4)")]
    assert claims_sentence(found + mine) == claims_sentence(found)
    found.append({"baseline": "Human alone", "metric": "accept_ratio", "difference": None,
                  "low": None, "high": None, "holds": False, "paper_gain": None, "paper_human": ""})
    assert claims_sentence(found) == ("Against the paper's baselines, 1 of 2 intervals are above zero, but "
                              "not: DPR against SFT-4.")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]]
            for line in claims_table(found).splitlines()]
    assert rows[0] == ["Empower minus", "Pass@1", "DPR", "accept ratio", "the paper's gains"]
    assert rows[2] == ["SFT-4", "+0.250 (+0.125 to +0.500)", "+0.250 (-0.125 to +0.500)", "-",
                       "+100%, +50% (Gemma)"]
    assert rows[3][2:] == ["-", "-", "-"]
    unknown = {**found[0], "metric": "share_saved", "paper_gain": None, "paper_human": ""}
    assert "| +100%, +50% (Gemma) |" in claims_table([unknown, *found])


def test_a_transcript_tells_who_wrote_what():
    turns = [Turn([1, 2], [0.5, 1.5], True, [3]), Turn([4], [9.0], False, [5]),
             Turn([6], [8.0], True, read=False)]
    text = transcript(Episode(0, turns, True, True), "# goal\n", lambda ids: f"<{ids}>")
    assert "assistant  '<[1, 2]>'  2.0 bits for 2 tokens: accepted" in text
    assert "'<[4]>'  9.0 bits for 1 tokens: rejected" in text
    assert "'<[6]>'  8.0 bits for 1 tokens: accepted without reading it" in text
    assert "<[1, 2, 3, 5, 6]>\npassed: 4 tokens read, 2 written" in text


@pytest.mark.parametrize("text", ["é = '😀漢字'\n", "a\tb\x0c", "\U0001f469\u200d\U0001f4bb\n"])
@pytest.mark.parametrize("name", ["tests", "qwen", "llama3"])
def test_the_texts_of_tokens_make_up_the_program(name, text):
    encoding = tokenizer() if name == "tests" else family(name)
    ids = encoding.encode_ordinary(text)
    assert "".join(token_texts(encoding, ids)) == text and len(ids) > len(text.split())


def test_what_is_left_to_the_human_is_in_angles():
    assert marked(["a", "b\n", "c"], [0, 2]) == "‹a›b\n‹c›"


def test_the_share_saved_by_hand():
    half = episode(accepted=1, size=4, written=4), episode(written=2)
    assert share_saved(half)[0] == 0.4 and share_saved(half[:1]) == (0.5, 0.0)
    assert share_saved([episode(False, accepted=1, size=4, written=4)])[0] == 0  # it is wrong


def test_paired_difference_uses_the_pairing():
    rng = np.random.default_rng(0)
    hard = rng.random(400)  # what both rows share
    ours, theirs, others = ([(value, 1) for value in row]
                            for row in (hard + 0.1, hard, rng.permutation(hard)))
    mean, low, high = paired_difference(ours, theirs, rng)
    assert mean == pytest.approx(0.1) and high - low < 1e-9
    mean, low, high = paired_difference(theirs, others, rng)
    assert low < 0 < high


def test_a_difference_of_ratios_is_pooled():
    rng = np.random.default_rng(0)
    a, b = [(1, 1), (1, 3)] * 50, [(0, 1), (2, 2)] * 50  # 2 of 4, and 2 of 3
    mean, low, high = paired_difference(a, b, rng)
    assert mean == pytest.approx(2 / 4 - 2 / 3) and low < mean < high
    again = [np.array(a)[k].sum(0) for k in rng.integers(0, 100, (2000, 100))]
    error = np.std([part / whole for part, whole in again])
    fixed = paired_difference(a, [(1, 2)] * 100, rng)
    assert fixed[2] - fixed[1] == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert paired_difference(a, [(0, 0)] * 100, rng) == (None, None, None)
