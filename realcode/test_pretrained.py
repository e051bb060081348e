"""Tests of published checkpoints: their logits match those of transformers."""

import contextlib
import functools
import json
import os
import re
import shutil
import struct

import numpy as np
import pytest
import torch

from model import KVCache, rotary_frequencies
from realcode.checkpoints import content_of, load_checkpoint, save_checkpoint
from realcode.pretrained import load_model, save_published
from realcode.training import recomputing
from support.files import read_safetensors, write_safetensors
from support.test_helpers import ROOT, published, tiny_gpt


def header_with(shape, content):
    """A safetensors file whose first shape is this text."""
    size = struct.unpack("<Q", content[:8])[0]
    header = re.sub(rb"\[32\]", shape.encode(), content[8:8 + size], count=1)
    return struct.pack("<Q", len(header)) + header + content[8 + size:]


def config_with(name, value, content):
    """A config.json with this value."""
    return json.dumps({**json.loads(content), name: value}).encode()


@pytest.mark.parametrize("name, damage, message", [
    ("model.safetensors", lambda b: b[:-1], "truncated"),
    ("model.safetensors", lambda b: b + b" ", "truncated or damaged"),
    ("model.safetensors", lambda b: b"<!DOCTYPE html><html>Sign in</html>", "an HTML page"),
    ("model.safetensors", lambda b: b[:4], "truncated"),
    ("model.safetensors", lambda b: b"version https://git-lfs" + b[:90], "Git-LFS"),
    ("model.safetensors", lambda b: b[:8] + b"[" + b[9:], "header cannot be read"),
    ("model.safetensors", lambda b: b.replace(b'"F32"', b'"F99"', 1), "F99"),
    ("model.safetensors", lambda b: b.replace(b"[32]", b"[33]", 1), "damaged"),
    ("model.safetensors", lambda b: b.replace(b'"data_offsets": [0,', b'"data_offsets": [8,', 1),
     "damaged"),
    *[("model.safetensors", functools.partial(header_with, shape), "header cannot be read")
      for shape in ("[32.0]", '"32"', '["32"]', "[true, 32]", f"[{2**70}, 0]", "[-4, -8]", "32",
                    "[" * 9999)],
    ("config.json", lambda b: b[:30], "config.json is damaged"),
    ("config.json", lambda b: b'["abc"]', "config.json is damaged"),
    ("config.json", lambda b: b"[" * 99999, "config.json is damaged"),
    *[("config.json", functools.partial(config_with, name, value), f"number for {name}")
      for name, value in (("rope_theta", 10**400), ("rms_norm_eps", 10**400),
                          ("num_attention_heads", 10**30), ("num_key_value_heads", True))],
    ("config.json", lambda b: b.replace(b"vocab_size", b"vocab_seize"), "vocab_size"),
    ("config.json", lambda b: b"[1, 2]", "config.json is damaged"),
])
def test_a_damaged_checkpoint_is_an_error(tmp_path, name, damage, message):
    save_published(tiny_gpt(), tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        load_model(tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


MODELS = ["llama", "llama3", "llama-bias", "smollm2", "qwen2", "qwen3", "mistral"]


def fixture(name):
    """A tiny checkpoint, token ids, and their logits in transformers (fixtures/README.md)."""
    folder = ROOT / "fixtures" / name
    ids, logits = (torch.from_numpy(np.load(folder / f)) for f in ("ids.npy", "logits.npy"))
    return load_model(folder, dtype=torch.float32), ids.long(), logits


def worst(logits, theirs):
    return (logits[:, 4::5] - theirs).abs().max().item()  # only every fifth position is kept


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_are_those_of_transformers_with_and_without_a_cache(name):
    model, ids, theirs = fixture(name)
    assert worst(model(ids), theirs) < 1e-3
    cache, parts = KVCache(model, 2), []
    for chunk in ids.split([17, 6, *[1] * 17], dim=1):
        parts.append(model(chunk, cache))
        cache.lengths += chunk.shape[1]
    assert worst(torch.cat(parts, dim=1), theirs) < 1e-3


def interleaved(model, monkeypatch):
    def rotate(x, cos, sin):
        a, b, (_, cos), (_, sin) = x[..., ::2], x[..., 1::2], cos.chunk(2, -1), sin.chunk(2, -1)
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)

    monkeypatch.setattr("model.rotate", rotate)


def no_scaling(model, _):
    model.frequencies = rotary_frequencies(model.config.head_dim, model.config.rope_theta)


def no_query_norm(model, _):
    for layer in model.layers:
        layer.self_attn.q_norm = torch.nn.Identity()


def large_eps(model, _):
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-3


def no_bias(part):
    def ignore(model, _):
        biases = [w for name, w in model.named_parameters() if name.endswith(f"{part}_proj.bias")]
        assert len(biases) == 2
        for bias in biases:
            bias.data.zero_()

    return ignore


@pytest.mark.parametrize("name, mistake", [
    *((name, interleaved) for name in MODELS), *((name, large_eps) for name in MODELS),
    ("llama3", no_scaling), ("qwen3", no_query_norm),
    *(("qwen2", no_bias(part)) for part in "qkv"),
    *(("llama-bias", no_bias(part)) for part in ("q", "k", "v", "o", "gate", "up", "down"))])
@torch.no_grad()
def test_each_mistake_shows_in_the_logits(name, mistake, monkeypatch):
    model, ids, theirs = fixture(name)
    mistake(model, monkeypatch)
    assert worst(model(ids), theirs) > 1e-3


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_published_model_survives_saving(name, dtype, tmp_path):
    model = load_model(ROOT / "fixtures" / name, dtype=dtype)
    save_published(model, tmp_path)
    loaded, config = load_model(tmp_path), (tmp_path / "config.json").read_text()
    assert loaded.config == model.config and loaded.config.eos_token_id == 2
    assert f"torch.{json.loads(config)['torch_dtype']}" == str(model.norm.weight.dtype)
    ours, theirs = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key])
        assert theirs[key].requires_grad


def copied(name, folder, **edits):
    """A copy of a fixture with some keys of its config.json changed (...: removed)."""
    shutil.copytree(ROOT / "fixtures" / name, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text()) | edits
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not ...}))
    return folder


@pytest.mark.parametrize("edits, message", [
    ({"architectures": ["GemmaForCausalLM"]}, "unsupported architecture GemmaForCausalLM; supp"),
    ({"architectures": ...}, "no architectures are named"),
    ({"quantization_config": {"bits": 4}}, "quantized"),
    ({"rope_interleaved": True}, "unsupported rope_interleaved"),
    ({"headwise_attn_output_gate": True}, "unsupported headwise_attn_output_gate"),
    ({"hidden_act": "gelu"}, "unsupported hidden_act gelu; supported: silu"),
    ({"rope_scaling": {"type": "yarn", "factor": 4}}, "unsupported RoPE scaling yarn; supported"),
    ({"rope_scaling": {"type": "llama3", "factor": 4}}, "no positive number for low_freq_factor"),
    ({"rope_scaling": "yarn"}, "config.json"),
    ({"rope_theta": None}, "no positive number for rope_theta"),
    ({"partial_rotary_factor": 0.5}, "unsupported partial_rotary_factor 0.5"),
    ({"num_attention_heads": ...}, "no positive number for num_attention_heads"),
    ({"hidden_size": None}, "no positive number for hidden_size"),
    ({"head_dim": ...}, r"k_proj.weight is \(16, 16\) in the file but should be \(8, 16\)"),
    ({"num_key_value_heads": 4}, "4 differ, first: layers.0.self_attn.k_proj.weight is"),
    ({"vocab_size": 33}, "embed_tokens.weight is"),
    ({"num_hidden_layers": 3}, "layers.2.input_layernorm.weight is absent in the file"),
    ({"num_hidden_layers": 1}, r"layernorm.weight is \(16,\) in the file but should be absent")])
def test_a_model_that_would_be_another_one_is_refused(edits, message, tmp_path):
    copied("mistral", tmp_path, **edits)
    with pytest.raises(ValueError, match=message) as error:
        load_model(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("absent, message", [
    ("config.json", "config.json is missing"),
    ("model-00002-of-00004.safetensors", "model-00002-of-00004.safetensors is missing but model"),
    ("model.safetensors.index.json", "has neither model.safetensors nor model.safetensors.index")])
def test_an_absent_file_is_named(absent, message, tmp_path):
    (copied("qwen3", tmp_path) / absent).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="give the folder of a downloaded checkpoint"):
        load_model(tmp_path / "nowhere")


def change_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = read_safetensors(path)
    change(tensors)
    write_safetensors(path, tensors)
    return load_model(folder)


def test_the_head_is_the_file_s_or_else_the_embedding(tmp_path):
    folder = copied("llama3", tmp_path)  # tied, no head in the file
    embedding = read_safetensors(folder / "model.safetensors")["model.embed_tokens.weight"]
    same = change_weights(folder, lambda t: t.update({"lm_head.weight": embedding.clone()}))
    assert same.config.tie_word_embeddings and same.lm_head.weight is same.embed_tokens.weight
    other = change_weights(folder, lambda t: t.update({"lm_head.weight": 2 * embedding}))
    assert not other.config.tie_word_embeddings
    assert torch.equal(other.lm_head.weight, 2 * other.embed_tokens.weight)
    copied("llama", tmp_path)  # not tied
    with pytest.raises(ValueError, match="lm_head.weight is absent in the file"):
        change_weights(folder, lambda t: t.pop("lm_head.weight"))


def test_files_and_tensors_that_are_not_the_model_s_do_no_harm(tmp_path):
    model, ids, theirs = fixture("llama")
    folder = copied("llama", tmp_path)
    (folder / "consolidated.safetensors").write_bytes(b"the weights once more, in Meta's layout")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7], "top_p": 0.9}')
    loaded = change_weights(folder, lambda t: t.update(
        {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert torch.equal(loaded(ids), model(ids))
    assert loaded.config.eos_token_id == model.config.eos_token_id  # the other is the tokenizer's


def test_the_path_of_a_file_may_be_any(tmp_path):
    folder = tmp_path / os.fsdecode(b"mod\xe8le")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system wants names in UTF-8")
    write_safetensors(folder / "weights", {"a": torch.arange(3.0)})
    assert read_safetensors(folder / "weights")["a"].tolist() == [0, 1, 2]


def test_weights_are_mapped_and_the_file_is_never_written(tmp_path):
    path = copied("llama", tmp_path) / "model.safetensors"
    before = path.read_bytes()
    model = load_model(tmp_path)
    assert len({weight.untyped_storage().data_ptr() for weight in model.parameters()}) == 1
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert path.read_bytes() == before
    save_published(model, tmp_path)  # over the file it is mapped from
    assert not load_model(tmp_path).norm.weight.any()


@pytest.mark.parametrize("name", ["llama", "mistral"])  # 4 and 2 bytes per number
def test_tensors_may_lie_at_any_offset(name, tmp_path):
    model, ids, theirs = fixture(name)
    path = copied(name, tmp_path) / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    path.write_bytes((size + 1).to_bytes(8, "little") + content[8:8 + size] + b" "
                     + content[8 + size:])
    assert torch.equal(load_model(tmp_path, dtype=torch.float32)(ids), model(ids))


def test_scalars_and_empty_tensors_are_saved_and_loaded(tmp_path):
    tensors = {"a": torch.tensor(2.5), "b": torch.zeros(3, 0), "c": torch.ones(2, 3).mT.half()}
    write_safetensors(tmp_path / "t", tensors)
    loaded = read_safetensors(tmp_path / "t")
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("name, edits, limit", [
    ("mistral", {"sliding_window": None}, 128), ("mistral", {"sliding_window": 64}, 64),
    ("mistral", {"sliding_window": ..., "max_position_embeddings": 8192}, 4096),
    ("mistral", {"sliding_window": 4096}, 128), ("llama", {"sliding_window": 64}, 128),
    ("qwen2", {"sliding_window": 64, "use_sliding_window": False}, 128),
    ("qwen2", {"sliding_window": 64, "use_sliding_window": True}, 64),
    ("qwen3", {"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}, 64)])
def test_the_context_ends_where_a_sliding_window_would_begin_to_slide(name, edits, limit, tmp_path):
    model = load_model(copied(name, tmp_path, **edits))
    assert model.config.max_position_embeddings == KVCache(model, 1).limit == limit


def test_a_sliding_window_must_be_a_size(tmp_path):
    for k, window in enumerate((-5, 10.5, "64")):
        with pytest.raises(ValueError, match="no positive number for sliding_window"):
            load_model(copied("mistral", tmp_path / str(k), sliding_window=window))


def test_what_a_config_omits_is_as_in_the_library(tmp_path):
    """transformers 5.24: 1e-06 and 10000.0 in all four families."""
    cfg = load_model(copied("qwen2", tmp_path, rms_norm_eps=..., rope_theta=...,
                            rope_parameters=..., rope_scaling=...)).config
    assert (cfg.rms_norm_eps, cfg.rope_theta) == (1e-6, 10000)


def test_a_tied_matrix_may_have_either_name_and_integers_are_left_out(tmp_path):
    folder = copied("smollm2", tmp_path)
    weights, model = read_safetensors(folder / "model.safetensors"), load_model(folder)
    assert model.config.tie_word_embeddings
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    write_safetensors(folder / "model.safetensors", weights)
    ids = torch.arange(9)[None]
    assert torch.equal(load_model(folder)(ids), model(ids))
    content = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + size])
    end = len(content) - 8 - size
    for name, sentence in (("model.position_ids", None), ("model.x.weight", "stored as I64")):
        more = json.dumps({**header, name: {"dtype": "I64", "shape": [2],
                                            "data_offsets": [end, end + 16]}}).encode()
        (folder / "model.safetensors").write_bytes(
            struct.pack("<Q", len(more)) + more + content[8 + size:] + bytes(16))
        if sentence:
            with pytest.raises(ValueError, match=sentence):
                load_model(folder)
        else:
            assert torch.equal(load_model(folder)(ids), model(ids))


def test_an_adapter_next_to_a_checkpoint_is_refused(tmp_path):
    folder = copied("llama", tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="a checkpoint and an adapter, which transformers would"):
        load_model(folder)


def test_a_checkpoint_is_known_by_its_content(tmp_path):
    first, second = published(tmp_path / "a"), published(tmp_path / "b")
    name = load_checkpoint(first, "cpu").name
    os.utime(second / "config.json", (1, 1))
    assert load_checkpoint(second, "cpu").name == name
    content = bytearray((second / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (second / "model.safetensors").write_bytes(content)
    assert load_checkpoint(second, "cpu").name != name
    large = tmp_path / "large"
    large.write_bytes(bytes(3 * 2**20))
    before = content_of(large)
    for place in (0, 3 * 2**20 - 1, None):
        with open(large, "r+b") as file:  # in training every weight changes
            file.seek(place or 0)
            file.write(b"x" * (1 if place is not None else 3 * 2**20))
        assert content_of(large)[:2] == before[:2] and content_of(large)[2] != before[2]
        large.write_bytes(bytes(3 * 2**20))


@pytest.mark.parametrize("eos, generation", [
    (None, {}), (None, {"temperature": 1}), (350, {"eos_token_id": [350, 352]}),
    (None, {"eos_token_id": 352}), ([352, 350], {"eos_token_id": None})])
def test_the_stop_that_is_trained_ends_a_text_in_other_software(tmp_path, eos, generation):
    folder = published(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": eos}))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    found = load_checkpoint(folder, "cpu")
    save_checkpoint(found, tmp_path / "b")
    for name in ("config", "generation_config"):
        saved = json.loads((tmp_path / "b" / f"{name}.json").read_text())
        assert not saved or found.encoding.stop in np.atleast_1d(saved["eos_token_id"])
    assert load_checkpoint(tmp_path / "b", "cpu").encoding.stop == found.encoding.stop


def test_head_dim_is_read_or_derived(tmp_path):
    cfg = load_model(copied("qwen2", tmp_path, head_dim=None)).config
    assert cfg.head_dim == cfg.hidden_size // cfg.num_attention_heads == 4
    with pytest.raises(ValueError, match="128"):  # Qwen3's own default
        load_model(copied("qwen3", tmp_path, head_dim=...))


def test_recomputing_gives_the_same_gradients_and_keeps_less():
    model, ids, _ = fixture("llama-bias")
    gradients, kept = [], []
    for enabled in (False, True):
        sizes = []
        with recomputing(model, enabled), torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x,
                                                      lambda x: x):
            loss = model(ids).logsumexp(-1).mean()
            kept.append(sum(sizes))
            model.zero_grad()
            loss.backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    assert all(map(torch.equal, *gradients)) and kept[1] < kept[0] / 2


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_autocast_and_bfloat16_run_with_and_without_a_cache(name):
    model, ids, _ = fixture(name)
    full, seen = model(ids), []
    narrow = load_model(ROOT / "fixtures" / name, dtype=torch.bfloat16)
    for module, context in [(model, torch.autocast("cpu", torch.bfloat16)),
                            (narrow, contextlib.nullcontext())]:
        for cache in (None, KVCache(module, 2)):
            module.layers[0].self_attn.o_proj.register_forward_pre_hook(
                lambda _, inputs: seen.append(inputs[0].dtype))
            with context:
                logits = module(ids, cache)
            assert (logits - full).std() < 0.1 * full.std()
    assert set(seen) == {torch.bfloat16}
