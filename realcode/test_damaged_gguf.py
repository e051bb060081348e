"""Tests of damaged and hostile GGUF files: one sentence each, and nothing is read on their word."""

import math
import struct

import pytest

from realcode.checkpoints import load_checkpoint
from realcode.gguf_file import read_gguf
from realcode.test_gguf_file import file, large_random_gpt, written  # noqa: F401
from support.test_helpers import ROOT, in_process


def header(*parts, version=3, tensors=0, values=1):
    """A file with these values after its counts."""
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + b"".join(parts)


def text(content):
    return struct.pack("<Q", len(content)) + content.encode()


def tensor(name, *shape, kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


LIST = struct.pack("<I", 9)
HOSTILE = {
    "empty": b"", "magic": b"GGML" + bytes(60), "old": header(version=1),
    "big-endian": header(version=3 << 24), "cut": header()[:20],
    "a long key": header(struct.pack("<Q", 2 ** 62) + b"x" * 50),
    "many values": header(values=2 ** 62), "many tensors": header(tensors=2 ** 62, values=0),
    "too many values": header(*[text(f"{i}") + struct.pack("<IB", 7, 0) for i in range(10_001)],
                              values=10_001),
    "too many tensors": header(*[tensor(f"{i}", 8) for i in range(20_001)], bytes(999),
                               tensors=20_001, values=0),
    "too many strings": header(text("a") + LIST + struct.pack("<IQ", 8, 2_000_001)
                               + bytes(8 * 2_000_001)),
    "only a header": header(tensors=0, values=0),
    # gguf.GGUFReader does not notice that this list is longer than the file, and takes 19 GB.
    "a long list": header(text("a") + LIST + struct.pack("<IQ", 0, 30_000_000)),
    "a long list of strings": header(text("a") + LIST + struct.pack("<IQ", 8, 2 ** 61)),
    "lists in lists": header(text("a") + LIST + struct.pack("<IQ", 9, 1) + bytes(64)),
    "an unknown type": header(text("a") + struct.pack("<I", 77)),
    "half a character": header(struct.pack("<Q", 1) + b"\xff" + struct.pack("<I", 7) + b"\0"),
    "many dimensions": header(text("w") + struct.pack("<I", 2 ** 31), tensors=1, values=0),
    "an overflow": header(tensor("w", 2 ** 32, 2 ** 32), tensors=1, values=0),
    "no numbers": header(tensor("w", 0, 4), bytes(64), tensors=1, values=0),
    "beyond the end": header(tensor("w", 4, offset=2 ** 63), bytes(64), tensors=1, values=0),
    "an unknown weight": header(tensor("w", 32, kind=99), bytes(999), tensors=1, values=0),
    "half a block": header(tensor("w", 31, kind=8), bytes(999), tensors=1, values=0),
    "overlap": header(tensor("v", 200), tensor("w", 200), bytes(999), tensors=2, values=0),
    "alignment 0": header(text("general.alignment") + struct.pack("<II", 4, 0)),
    "a value twice": header(*[text("a") + struct.pack("<II", 4, 0)] * 2, values=2),
    "twice": header(tensor("w", 8), tensor("w", 8), bytes(999), tensors=2, values=0),
    "a word for a number": header(text("general.alignment") + struct.pack("<I", 8) + text("x")),
}


NOT_DAMAGED = {"old": ": unsupported version 1 of GGUF", "big-endian": ": unsupported version",
               "an unknown weight": ": weights of the unknown type 99: .*--upgrade gguf"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_file_is_one_sentence(tmp_path, name):
    path, otherwise = tmp_path / "x.gguf", " is damaged or not a GGUF file"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match=f"x.gguf{NOT_DAMAGED.get(name, otherwise)}"):
        read_gguf(path)


@pytest.mark.parametrize("name, sentence", [
    ("too many values", "0 tensors and 10001 values"), ("too many tensors", "20001 tensors and 0"),
    ("too many strings", "a list of 2000001 strings"), ("only a header", "ends before they begin")])
def test_what_no_model_has_is_refused_before_it_is_read(tmp_path, name, sentence):
    (tmp_path / "x.gguf").write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match=sentence):
        read_gguf(tmp_path / "x.gguf")


def test_a_file_that_lacks_its_end_is_refused(tmp_path, file):
    content = file[0].read_bytes()
    for size in (10, 100, 1000, 10_000, len(content) // 2, len(content) - 1):
        (tmp_path / "x.gguf").write_bytes(content[:size])
        with pytest.raises(ValueError, match="damaged or not a GGUF file"):
            load_checkpoint(tmp_path / "x.gguf", "cpu")


def test_a_file_that_lacks_a_value_or_lies_about_it_is_refused(tmp_path):
    model = large_random_gpt()
    for name, value, sentence in (
            ("block_count", None, "num_hidden_layers"), ("block_count", 10 ** 9, "do not match"),
            ("block_count", 3, "do not match"), ("embedding_length", 128, None),
            ("attention.head_count", 3, "3 heads"), ("attention.head_count", 0, "num_attention"),
            ("attention.head_count", None, "num_attention"),
            ("attention.head_count_kv", 7, "7 keys"), ("attention.head_count_kv", 2.0, "num_key"),
            ("attention.head_count_kv", "2", "num_key"), ("attention.key_length", -2, "head_dim"),
            ("attention.key_length", 2 ** 31 - 2, "do not match"),
            ("attention.key_length", 63, "63 features"),
            ("attention.key_length", math.nan, "RoPE|head_dim"),
            ("rope.dimension_count", 32, "unsupported rope.dimension_count 32"),
            ("rope.scale_linear", 2.0, "RoPE scaling linear"),
            ("rope.freq_base", math.nan, "rope_theta"),
            ("attention.layer_norm_rms_epsilon", math.inf, "rms_norm_eps"),
            ("context_length", "x", "max_position"),
            ("attention.key_length", 32, "do not match"), ("attention.sliding_window", 4, None),
            ("context_length", None, "max_position_embeddings"),
            ("feed_forward_length", 9, "do not match")):
        path = written(tmp_path / "x.gguf", model, **{name: value})
        if sentence is None:  # the shape of the embedding says it, or it bounds the context
            found = load_checkpoint(path, "cpu").model.config
            assert found.max_position_embeddings == (4 if "window" in name else 512)
            continue
        with pytest.raises(ValueError, match=sentence):
            load_checkpoint(path, "cpu")


@pytest.mark.parametrize("key", ["tokenizer.ggml.tokens", "tokenizer.ggml.token_type",
                                 "tokenizer.ggml.merges", "tokenizer.ggml.eos_token_id"])
def test_a_damaged_tokenizer_is_refused(file, monkeypatch, key):
    for value in (None, [], ["x"], 5, "text", 10 ** 9):
        found = read_gguf(file[0])
        found.metadata[key] = value
        monkeypatch.setattr("realcode.gguf_file.read_gguf", lambda path: found)
        if (key, value) in (("tokenizer.ggml.eos_token_id", None),
                            ("tokenizer.ggml.token_type", None)):  # old files lack it
            continue
        with pytest.raises(ValueError, match="tiny.gguf: "):
            load_checkpoint(file[0], "cpu")


def test_without_the_package_one_sentence_names_it(file, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    status, _, stderr = in_process("show", str(ROOT / "data.py"), "--model", str(file[0]))
    assert status == 2 and stderr == (
        "empower.py: a GGUF file is read with the package gguf: pip install gguf\n")


def test_integers_are_not_weights(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(header(tensor("w", 32, kind=26), bytes(999), tensors=1, values=0))
    with pytest.raises(ValueError, match="x.gguf: unsupported weights of type I32"):
        read_gguf(path)
