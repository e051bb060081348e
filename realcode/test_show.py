"""Tests of `show`, and of the one-sentence errors of every command."""

import dataclasses
import functools
import importlib
import itertools
import json
import re
import shlex
import shutil
import types
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import data
from empower import empower_lengths
from realcode import given
from realcode import show as show_
from realcode.corpus import read_corpus
from realcode.checkpoints import load_checkpoint
from support.checkpoint import Checkpoint
from support.cli import UserError
from support.report import left_to_human
from support.test_helpers import (ROOT, TINY, contents, empower_py, in_process, published,
                                  small_corpus, tiny_gpt, tiny_run, write_files)

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run"))


# ------------------------------------------------------------------- show


@pytest.mark.parametrize("place, n", [
    ("1:1", 0), ("1:3", 2), ("2:1", 3), ("2:2", 4), ("3:1", 6), ("0:1", "has 3 lines"),
    ("4:1", "has 3 lines: give LINE:COL"), ("1:4", "line 1 of f.py has 2 characters.*give 1 to 3"),
    ("1:0", "column is 0: give 1 to 3"), ("3:2", "give 1 to 1"), ("2", "'2' is not a place in f"),
    ("a:b", "'a:b' is not a place"), ("-1:1", "'-1:1' is not a place"), ("", "'' is not a place")])
def test_a_place_in_a_file_is_a_line_and_a_column_from_1(place, n):
    if isinstance(n, int):
        assert given.offset("é😀\ncd\n", place, "f.py") == n
    else:
        with pytest.raises(UserError, match=n):
            given.offset("é😀\ncd\n", place, "f.py")


def show(monkeypatch, folder, text, costs, *arguments, merges=0, **options):
    """What `show` prints if each token is a byte, but for some merges, and has this cost."""
    encoding = data.train_tokenizer([text], 257 + merges)
    base = Checkpoint(tiny_gpt(vocab_size=encoding.n_vocab), encoding, None)
    monkeypatch.setattr(show_, "model_at_hand", lambda cfg, name: base)
    monkeypatch.setattr(show_, "score", lambda model, programs, start: [
        np.array(costs, dtype=float)] if [len(costs)] == list(map(len, programs)) else None)
    (folder / "program.py").write_text(text)
    status, stdout, stderr = in_process("show", folder / "program.py", "--eta", "0.25", *arguments,
                                        **options)
    assert status == 0, stderr
    return stdout


def test_a_file_is_read_as_in_a_corpus(tmp_path):
    (tmp_path / "a.py").write_bytes(b"\xef\xbb\xbfx = 1\r\ny\r\n")
    assert given.read_source(tmp_path / "a.py") == "x = 1\ny\n"
    assert read_corpus(tmp_path)[0] == ["x = 1\ny\n"]


def test_a_pipe_that_lacks_a_letter_gets_another_one(shelf, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    status, stdout, stderr = empower_py("show", "a.py", "--model", "model", cwd=shelf)
    assert status == 0 and stdout.startswith("?x??"), stderr


COSTS = [3, 0, 0.125, 0.25, 2, 0]  # of a, b, newline, c, d, newline

SHOWN = [
    ("every", "‹a›b\n‹c›‹d›\n\nThe assistant would have written 3 of 6 tokens, and the human 3, "
              "one where each suggestion stops (eta = 0.25 bits).\n"),
    ("1:1", "▸┃ab\ncd\n\nAt 1:1 the assistant would have written nothing; the next token costs "
            "3.00 bits (eta = 0.25 bits).\n"),
    ("1:2", "a▸b\n┃cd\n\nAt 1:2 the assistant would have written 'b\\n', 0.12 bits; the next token "
            "costs 0.25 bits (eta = 0.25 bits).\n"),
    ("2:3", "ab\ncd▸\n┃\n\nAt 2:3 the assistant would have written '\\n', 0.00 bits "
            "(eta = 0.25 bits).\n"),
    ("3:1", "ab\ncd\n▸┃\n\nAt 3:1 the assistant would have written nothing (eta = 0.25 bits).\n"),
]


@pytest.mark.parametrize("at, printed", SHOWN)
def test_a_figure_worked_by_hand(at, printed, tmp_path, monkeypatch):
    assert show(monkeypatch, tmp_path, "ab\ncd\n", COSTS, "--at", at) == printed


@pytest.mark.parametrize("text, merges, at, n", [
    ("abab", 1, "1:1", 0), ("abab", 1, "1:2", 0), ("abab", 1, "1:3", 1), ("abab", 1, "1:4", 1),
    ("abab", 1, "1:5", 2), ("é=1", 0, "1:1", 0), ("é=1", 0, "1:2", 2), ("x😀y", 0, "1:2", 1),
    ("x😀y", 0, "1:3", 5)])
def test_a_state_is_before_the_token_at_the_cursor(text, merges, at, n, tmp_path, monkeypatch):
    """At a cursor inside a token, or before a character of several tokens: before all of it."""
    size = len(data.train_tokenizer([text], 257 + merges).encode_ordinary(text))
    costs = [1 + k for k in range(size)]
    printed = show(monkeypatch, tmp_path, text, costs, "--at", at, merges=merges)
    assert f"nothing; the next token costs {n + 1}.00 bits (" in printed or n == size
    assert ("; the next" in printed) == (n < size)
    if merges:  # tokens "ab": 1:2 and 1:4 are inside one
        assert (", where the token begins, the" in printed) == (at in ("1:2", "1:4"))


def plain(picture):
    """A picture without its colours and bars."""
    return re.sub("\033\\[[0-9;]*m|[┃▸]", "", picture)


@pytest.mark.parametrize("at", ["every", "1:2", "3:1"])
def test_a_terminal_gets_colours_and_nothing_else_does(at, tmp_path, monkeypatch):
    draw = functools.partial(show, monkeypatch, tmp_path, "ab\ncd\n", COSTS, "--at", at)
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, piped = draw(terminal=True), draw()
    assert "\033[1;31m" in coloured and "\033" not in piped
    picture, said = coloured.rstrip("\n").rsplit("\n", 1)
    assert plain(picture).rstrip("\n") == "ab\ncd" and piped.endswith(f"\n\n{said}\n")
    assert picture.count("┃") == (3 if at == "every" else 1)
    monkeypatch.setenv("NO_COLOR", "1")
    assert draw(terminal=True) == piped
    monkeypatch.setenv("NO_COLOR", "")
    assert draw(terminal=True) == coloured


@pytest.mark.parametrize("bits, colour", [(0, None), (0.09, None), (0.1, 230), (0.49, 230),
                                          (0.5, 229), (1.5, 222), (3, 215), (7.9, 209), (99, 203)])
def test_a_token_is_shaded_by_its_cost(bits, colour):
    assert (show_.shade(bits) or [None])[0] == colour
    picture = show_.shaded(["a\n", "\nb"], [bits, 0], {})
    begin, end = (f"\033[30;48;5;{colour}m", "\033[0m") if colour else ("", "")
    assert picture == f"{begin}a{end}\n{begin}{end}\nb"  # no colour goes on past a line


def test_a_program_as_long_as_the_context_is_shown(tmp_path):
    folder, path = published(tmp_path / "model"), tmp_path / "a.py"
    encoding = load_checkpoint(folder, "cpu").encoding
    for n, status in ((256, 0), (257, 2)):
        path.write_text(encoding.decode(encoding.encode_ordinary("(=)" * 300)[:n]))
        assert len(encoding.encode_ordinary(path.read_text())) == n
        assert in_process("show", path, "--model", folder)[0] == status


@pytest.mark.parametrize("text", ["ab\ncd\n", "a<b> & 'c'\n\n\tif \"d\":\n", "é = '😀漢'\n",
                                  "a\x0c\n\x0cb\x1b[2Jc\x00\n"])
def test_an_svg_is_xml_with_every_character_and_a_bar_for_each_stop(text, tmp_path, monkeypatch):
    costs = [(k % 7) / 4 for k in range(len(text.encode()))]
    printed = show(monkeypatch, tmp_path, text, costs, "--svg", tmp_path / "a.svg")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    shapes = [(shape.tag.rpartition("}")[2], shape.attrib, shape.text) for shape in root]
    assert sum(tag == "rect" and of["fill"] == "#cc0000" for tag, of, _ in shapes) == len(
        left_to_human(empower_lengths(costs, 0.25))) == printed.count("‹")
    written = sorted((int(of["y"]), int(of["x"]), content)
                     for tag, of, content in shapes if tag == "text")
    lines = [[content for _, _, content in row]
             for _, row in itertools.groupby(written, key=lambda row: row[0])]
    said = printed.splitlines()[-1]
    assert lines.pop()[0] == "bits of a token, from"
    while " ".join(lines[-1]) in said:  # the caption, wrapped
        said = said.removesuffix(lines.pop()[0]).rstrip()
    expected = ["".join(c for c in line if c.isprintable() and c != " ")
                for line in text.split("\n")]
    drawn = ["".join(parts).replace("\ufffd", "") for parts in lines]
    assert not said and drawn == list(filter(None, expected))
    assert not list(tmp_path.glob("*.tmp"))


def test_a_stage_is_a_model_and_can_be_converted(finished, tmp_path):
    stage = next((finished[0] / "stages").glob("base-*"))
    program = tmp_path / "a.py"
    program.write_text("n = int(input())\n")
    shown = [in_process("show", program, "--out", finished[0], *more)
             for more in ([], ["--model", stage])]
    assert shown[0][:2] == shown[1][:2] and shown[0][0] == 0
    status, stdout, stderr = in_process("convert", stage, tmp_path / "dir")
    assert status == 0 and f"in {tmp_path / 'dir'}" in stdout, stderr
    files = contents(stage)
    assert contents(tmp_path / "dir").keys() == files.keys()
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "dir" / name).read_bytes() == files[name]
    config, before = (json.loads((folder / "config.json").read_text())
                      for folder in (tmp_path / "dir", stage))
    assert {name: config[name] for name in before} == before
    status, _, stderr = in_process("convert", stage, tmp_path / "dir")
    assert status == 2 and "is not empty: name a new folder" in stderr


# ------------------------------------------------------------------- the model at hand


def test_without_a_model_the_last_finished_run_has_one(finished, tmp_path):
    out, program = tmp_path / "out", ROOT / "figures" / "program.py"
    shutil.copytree(finished[0], out)
    commands = ["show", program], ["suggest", f"{program}:3:1"]
    for eta in ("0.5", "0.32"):  # each run leaves its own assistant next to the older ones
        assert in_process("--out", out, *TINY, "--eta", eta)[0] == 0
        models = json.loads((out / "results.json").read_text())["models"]
        for command, name in zip(commands, ("base", f"Empower ({eta})")):
            status, stdout, stderr = in_process(*command, "--out", out, "--device", "cpu")
            assert status == 0 and "using" not in stdout
            assert stderr == f"empower.py: using {out}/stages/{models[name]}\n"
    (out / "results.json").write_text("{")
    status, _, stderr = in_process("show", program, "--out", out)
    assert status == 2 and "results.json cannot be read" in stderr


# ------------------------------------------------------------------- errors


def edited_json(path, **edits):
    path.write_text(json.dumps({**json.loads(path.read_text()), **edits}))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with a good corpus, a good model, and bad ones."""
    shelf = tmp_path_factory.mktemp("shelf")
    (shelf / "corpus").mkdir()
    small_corpus(shelf / "corpus")
    write_files(shelf, {
        "empty/note.txt": "", "few/a.py": "a = 1\n", "few/b.py": "b = 1\n", "few/c.py": "c = 1\n",
        "long.py": "x = 1\n" * 200, "nothing.py": "", "blank.py": " " * 10 ** 6,
        "latin.py": b"s = '\xe9'\n", "a.py": "x = 1\n", "rows.jsonl": '{"body": "x"}\n',
        "adapter/adapter_config.json": "{}",
        "given/results.json": json.dumps({"models": {}, "config": {"model": "there"}}),
        "lacking/results.json": json.dumps({"models": {}, "config": {}}), "busy/note.txt": "mine"})
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for name in ("model", "gpt2", "truncated", "pointer", "config-pointer", "unigram", "bare"):
        published(shelf / name)
    weights = shelf / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-99])
    (shelf / "pointer" / "model.safetensors").write_bytes(pointer)
    (shelf / "config-pointer" / "config.json").write_bytes(pointer)
    edited_json(shelf / "gpt2" / "config.json", architectures=["GPT2LMHeadModel"])
    edited_json(shelf / "unigram" / "tokenizer.json", model={"type": "Unigram", "vocab": []})
    (shelf / "bare" / "tokenizer.json").unlink()
    return shelf


MODELS = [("absent", "--model absent is not there: name a folder"),
          ("a.py", "--model a.py is no GGUF file: name a folder"),
          ("gpt2", "unsupported architecture GPT2LMHeadModel; supported: Llama"),
          ("truncated", "model.safetensors is truncated or damaged"),
          ("pointer", "model.safetensors is a Git-LFS pointer: fetch"),
          ("config-pointer", "config.json is only a Git LFS pointer: fetch"),
          ("adapter", "adapter holds only an adapter, for PEFT: finetune without --adapter"),
          ("unigram", "tokenizer.json is a Unigram model, which is not supported: choose"),
          ("bare", "bare has none of tokenizer.json, .*: copy"),
          ("model --dtype int4", "--dtype is 'int4': choose auto, float32, bfloat16")]

CORPORA = [("", "--corpus is missing: give a folder"),
           ("--corpus absent", "there is no absent: name a folder"),
           ("--corpus empty", r"no .py file under empty \(found 1 files: .txt; .*\): name another"),
           ("--corpus model/model.safetensors", "is not a corpus: name a folder"),
           ("--corpus rows.jsonl", "rows.jsonl has no field code.* has body: name"),
           ("--corpus rows.jsonl --field text", "rows.jsonl has no field text"),
           ("--corpus latin.py", "latin.py is not UTF-8 text: convert")]

USES = ["replay --corpus corpus --out new", "finetune --corpus corpus --out new", "show a.py",
        "suggest a.py:1:2"]


@pytest.mark.parametrize("command, message", [
    *((f"{use} --model {model}", message) for use in USES for model, message in MODELS),
    *((f"{use} {corpus}", message) for use in ("replay --out new", "finetune --model model "
                                               "--out new") for corpus, message in CORPORA),
    ("replay --corpus few --out new", "a replay needs 2, and so at least 10 programs"),
    ("replay --corpus corpus --out a.py", "cannot write to --out a.py"),
    ("replay --corpus corpus --out busy", "--out busy is not empty and was not written by this"),
    ("replay --corpus corpus --out new --model model --context 250",
     "--context is 250, but the model reads 256 tokens: give at most"),
    ("replay --corpus corpus --out new --model model --context 240 --max-suggestion 8",
     "give at most 237"),  # after it comes a suggestion of 8 tokens, and the author types 10
    ("replay --corpus corpus --out new --model model --turn-tokens 150",
     "a round may take 250 tokens, but the model reads 256 in all: .* or --turn-tokens"),
    ("show a.py --out given", "the run in given used --model there: give it here too"),
    ("show a.py --out lacking", "the run in lacking has no such model: run it again, or give"),
    ("finetune --corpus corpus --out new --model model --context 256 --rule whole",
     r"but the model reads 256 tokens: give at most 255\n$"),
    ("suggest a.py:1234567890:1 --model model", "is not a place in a.py"),
    ("replay --corpus corpus --out new --context 5000", "the model reads 4096 tokens: give at"),
    ("replay --corpus corpus --out new --context 8", "--context is 8: give"),
    ("finetune --corpus corpus --out new", "--model is missing: give a folder"),
    ("finetune --corpus corpus --model model", "--out is missing: give a folder"),
    ("finetune --corpus corpus --model model --out new", "--context is 1024, but the model reads "
                                                         "256 tokens: give at most 155"),
    ("finetune --corpus corpus --model model --out busy --context 64", "busy holds something else"),
    ("finetune --corpus corpus --model model --out model --context 64", "model holds something"),
    ("finetune --corpus corpus --model model --out a.py/new --context 64", "a.py"),
    *((f"finetune --corpus corpus --model model --out new --rule {rule}", f"--rule is '{rule}': "
       "choose empower, sft-rand, whole or sft-N") for rule in ("sft-0", "sft", "dpo", "SFT-10",
                                                                          "sft-1234567890")),
    ("show", "FILE; see --help"), ("show absent.py", "cannot read absent.py .*: give a text file"),
    ("show empty", "cannot read empty .*: give"),
    ("show latin.py", "latin.py is not UTF-8 text: convert"),
    ("show a.py", "there is no small GPT in out: run python empower.py first"),
    ("show long.py --model model", "long.py has .* tokens, .* at most 256: show a part of it"),
    ("show nothing.py --model model", "nothing.py is empty: show another file"),
    ("show blank.py --model model", "blank.py has 1,000,000 characters: give at most 400,000"),
    ("suggest blank.py:1:900000 --model model", "blank.py before 1:900000 has 899,999 characters: give"),
    ("show a.py --model model --at 9:1", "'9:1' is not a place in a.py, which has 2 lines: give"),
    ("show a.py --model model --at here", "'here' is not a place in a.py"),
    ("show a.py --model model --svg absent/a.svg", "cannot write absent/a.svg .*: name another"),
    ("suggest", "PLACE; see --help"), ("suggest a.py --model model", "'a.py' is not a place: give"),
    ("suggest a.py:1 --model model", "'a.py:1' is not a place: give FILE:LINE:COL"),
    ("suggest absent.py:1:1 --model model", "cannot read absent.py .*: give"),
    ("suggest a.py:1:99 --model model", "line 1 of a.py has 5 characters.* give 1 to 6"),
    ("suggest a.py:1:1 --out absent", "there is no small GPT in absent: run python empower.py"),
    ("suggest a.py:1:1 --model model --max-suggestion 300", "--max-suggestion is 300.*give less"),
    ("suggest a.py:1:1 --eta -1", "--eta is -1.0: give"),
    *((f"{use} --no-such-flag", "unrecognized arguments: --no-such-flag; see --help")
      for use in USES),
    ("retrain --corpus corpus", "there is no command 'retrain': choose from show"),
])
def test_bad_input_gets_one_sentence_and_writes_nothing(
        command, message, shelf, monkeypatch):
    monkeypatch.chdir(shelf)
    before = contents(shelf)
    status, _, stderr = in_process(*shlex.split(command))
    assert status == 2 and re.search(message, stderr), stderr
    assert stderr.startswith("empower.py: ") and stderr.count("\n") == 1
    assert contents(shelf) == before


@pytest.mark.parametrize("name", ["show", "suggest", "replay", "finetune"])
def test_help_of_a_command_explains_every_setting(name):
    config = importlib.import_module(f"realcode.{name}").Config
    status, text, _ = in_process(name, "--help")
    text = "".join(text.split())  # lines are broken at hyphens too
    for field in dataclasses.fields(config):
        positional = field.metadata["positional"]
        flag = field.name.upper() if positional else f"--{field.name.replace('_', '-')}"
        assert status == 0 and flag in text and "".join(field.metadata["help"].split()) in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slow_weights_are_said(tmp_path, capsys, dtype):
    folder = published(tmp_path, dtype=dtype)
    for chosen in "auto", "float32":
        given.given_model(types.SimpleNamespace(model=folder, dtype=chosen), "cpu")
        said = "has weights of type bfloat16" in capsys.readouterr().err
        assert said == (dtype == torch.bfloat16 and chosen == "auto")
