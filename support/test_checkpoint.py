"""Tests of our own models and tokenizers on disk."""

import json

import torch

from model import GPT, GPTConfig
from realcode import checkpoints
from support.checkpoint import (Checkpoint, load_checkpoint, load_tokenizer, save_checkpoint,
                                save_tokenizer)
from support.test_helpers import random_texts, small_contest, tokenizer
from test_empower import AWKWARD


def test_tokenizer_is_saved_and_loaded(tmp_path):
    save_tokenizer(tokenizer(), tmp_path)
    loaded = load_tokenizer(tmp_path)
    for text in AWKWARD + [problem.statement for problem in small_contest().dev]:
        assert loaded.encode_ordinary(text) == tokenizer().encode_ordinary(text)
    assert loaded.n_vocab == tokenizer().n_vocab and loaded.stop == tokenizer().stop
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    vocab = saved["model"]["vocab"]  # each merge makes the next token, in order of rank
    made = [vocab["".join(pair)] for pair in saved["model"]["merges"]]
    assert made == list(range(256, tokenizer().n_vocab - 1))
    # transformers chooses by this file: with another class it would cut text by another pattern.
    more = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert more["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_checkpoint_is_saved_and_loaded_and_is_one_of_a_published_family(tmp_path):
    shape = GPTConfig(tokenizer().n_vocab, 32, 64, 2, 4, 2, 8)
    model, ids = GPT(shape, torch.Generator().manual_seed(0)), torch.tensor(random_texts([9, 9]))
    torch.nn.init.normal_(model.layers[0].self_attn.o_proj.weight)  # else each layer is nothing
    save_checkpoint(Checkpoint(model, tokenizer()), tmp_path)
    ours, theirs = load_checkpoint(tmp_path, "cpu", "name"), checkpoints.load_checkpoint(
        tmp_path, "cpu")
    assert ours.name == "name" and ours.model.config == shape
    assert torch.equal(ours.model(ids), model(ids)) and torch.equal(theirs.model(ids), model(ids))
    assert ours.model.lm_head.weight is ours.model.embed_tokens.weight
    for found in (ours, theirs):
        assert found.encoding.encode_ordinary("a = 1\n") == tokenizer().encode_ordinary("a = 1\n")
        assert (found.encoding.start, found.encoding.stops) == (tokenizer().stop, [tokenizer().stop])
    theirs.model.norm.weight.data.fill_(0)  # changes memory, never the file
    assert torch.equal(load_checkpoint(tmp_path, "cpu", "name").model(ids), model(ids))
    theirs.model.to(torch.bfloat16)
    checkpoints.save_checkpoint(theirs, tmp_path / "narrow")
    assert checkpoints.load_checkpoint(tmp_path / "narrow", "cpu").model.dtype == torch.bfloat16
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == tokenizer().stop
