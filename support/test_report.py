"""Tests of the tables, the paper's numbers in them, and transcripts."""

import pytest

from simhuman import Episode, Turn
from support.report import marked, paper_gain, paper_means, table, token_texts, transcript
from support.testing import family, tokenizer

def test_paper_gains_come_from_the_paper_s_table():
    """The means by hand: with Gemma, Empower has .524 / 3, SFT-10 .264 / 3, and so on."""
    assert paper_gain("SFT-10", "pass@1") == pytest.approx(.524 / .264 - 1)
    assert paper_gain("SFT-20", "dpr") == pytest.approx(.454 / .206 - 1)
    assert paper_gain("Base-10", "dpr") == pytest.approx(.454 / .192 - 1)
    assert paper_gain("SFT-RAND", "pass@1") == pytest.approx(.749 / .413 - 1)
    assert paper_gain("Base-20", "dpr") is None
    assert paper_gain("SFT-10", "share saved") is None
    assert paper_gain("Base", "accept_ratio") == pytest.approx(1.959 / 1.095 - 1)
    assert paper_means("Llama", "SFT-20") == pytest.approx([.409 / 3, .545 / 3, .284 / 3])


def test_a_table_aligns_its_columns_and_shows_what_is_absent():
    rows = [{"name": "a", "x": 0.5, "x_se": 0.25}, {"name": "long", "x": None, "x_se": None}]
    assert table(rows, {"who": "{name}", "x": "{x:.1f} ± {x_se:.2f}"}).splitlines() == [
        "| who  |          x |", "|------|-----------:|", "| a    | 0.5 ± 0.25 |",
        "| long |          - |"]


def test_a_transcript_tells_who_wrote_what():
    turns = [Turn([1, 2], [0.5, 1.5], True, [3]), Turn([4], [9.0], False, [5])]
    text = transcript(Episode(0, turns, True, True), "# goal\n", lambda ids: f"<{ids}>")
    assert "assistant  '<[1, 2]>'  1.00 bits a token: accepted" in text
    assert "'<[4]>'  9.00 bits a token: rejected" in text
    assert "<[1, 2, 3, 5]>\npassed: 3 tokens read, 2 written" in text


@pytest.mark.parametrize("text", ["é = '😀漢字'\n", "a\tb\x0c", "\U0001f469\u200d\U0001f4bb\n"])
@pytest.mark.parametrize("name", ["tests", "qwen", "llama3"])
def test_the_texts_of_tokens_make_up_the_program(name, text):
    encoding = tokenizer() if name == "tests" else family(name)
    ids = encoding.encode_ordinary(text)
    assert "".join(token_texts(encoding, ids)) == text and len(ids) > len(text.split())


def test_what_is_left_to_the_human_is_in_angles():
    assert marked(["a", "b\n", "c"], [0, 2]) == "‹a›b\n‹c›"
