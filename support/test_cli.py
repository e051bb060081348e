"""Tests of the command line: what a person hands over wrongly gets one sentence."""

import pytest

import empower
from empower import Config
from support import cli
from support.test_helpers import TINY, in_process


@pytest.mark.parametrize("arguments, warned", [
    (["--turn-tokens", "8"], True), (["--turn-tokens", "8", "--rounds", "10"], False), ([], False)])
def test_whoever_changes_how_much_she_can_type_in_all_is_told(arguments, warned, capsys):
    cli.parse(arguments, Config, empower.run)
    error = capsys.readouterr().err
    assert ("with --rounds 10 it stays the same" in error) == warned == bool(error)


@pytest.mark.parametrize("arguments, message", [
    (["--eta", "-1"], "--eta is -1.0"), (["--eta", "nan"], "--eta is nan"),
    (["--eta", "many"], "--eta"), (["--rounds", "0"], "--rounds is 0"),
    (["--max-suggestion", "4000"], "--max-suggestion is 4000"),
    (["--no-such-flag"], "--no-such-flag"), (["--width", "40"], "multiple of 32"),
    (["--care", "0"], "--care is 0.0"), (["--attention-low", "1.5"], "--attention-low is 1.5"),
    (["--device", "tpu"], "--device tpu"), (["--device", "meta"], "--device meta"),
    (["--turn-tokens", "5000"], "--turn-tokens is 5000"),
    (["--pretrain-lr", "1e30"], "is not finite: give a smaller learning rate"),
    (["--vocab-size", "10000000000000"], "out of memory"),
    (["--gamma", "2"], "--gamma is 2.0"), (["--top-p", "0"], "--top-p is 0"),
    (["--train-problems", "9999"], "lower --train-problems"),
    (["--out", "/dev/null/x"], "cannot write"),
])
def test_bad_input_gets_one_sentence_and_status_2(arguments, message, tmp_path):
    status, _, error = in_process("--out", tmp_path / "out", *TINY, *arguments)
    assert status == 2 and message in error and error.count("\n") == 1, error
