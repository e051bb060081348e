"""Tests of published checkpoints: tokenizers and logits match those of the families' libraries."""

import contextlib
import dataclasses
import functools
import json
import shutil
import unicodedata

import numpy as np
import pytest
import torch

import data
from model import GPT, KVCache, rotary_frequencies
from support import checkpoint
from support.files import read_safetensors, write_safetensors
from support.testing import ROOT, TOKENIZERS, family, tiny_gpt

# ------------------------------------------------------------------- tokenizers


def test_a_damaged_tokenizer_is_an_error(tmp_path):
    for text in ("", "{}", '{"model": 5}', "[]", "\x00"):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ValueError, match="tokenizer.json is damaged"):
            data.load_tokenizer(tmp_path)


FAMILIES = ["qwen", "qwen-files", "llama3", "llama3-ranks", "smollm2", "gpt2"]


def awkward_page(name):
    """[(text, its ids in the `tokenizers` library), ...] for a folder of fixtures."""
    expected = json.loads((TOKENIZERS / "expected.json").read_text(encoding="utf-8"))
    return list(zip(expected["page"], expected["ids"][name.split("-")[0]]))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_s_tokenizer_gives_the_ids_of_its_family_s_library(name):
    for text, ids in awkward_page(name):
        form = unicodedata.normalize("NFC", text) if "qwen" in name else text
        assert family(name).encode_ordinary(form) == ids, text
        if "Ա" not in text or name != "smollm2":  # it lacks a byte of Ա
            assert family(name).decode(family(name).encode_ordinary(text)) == text


@pytest.mark.parametrize("name, start, stops, bos", [
    # Qwen's instruct models stop at <|im_end|>, and <|endoftext|> is between their documents.
    ("qwen", "<|endoftext|>", ["<|im_end|>", "<|endoftext|>"], None),
    ("qwen-files", "<|endoftext|>", ["<|endoftext|>"], None),
    ("llama3", "<|begin_of_text|>", ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
     "<|begin_of_text|>"),
    ("llama3-ranks", "<|begin_of_text|>", ["<|end_of_text|>"], "<|begin_of_text|>"),
    ("smollm2", "<|endoftext|>", ["<|endoftext|>"], None),
    ("gpt2", "<|endoftext|>", ["<|endoftext|>"], None)])
def test_a_document_begins_and_ends_as_its_family_s_do(name, start, stops, bos):
    encoding = family(name)
    ids = {i: encoding.decode([i]) for i in (*encoding.stops, encoding.start, encoding.bos) if i
           is not None}
    assert [ids[i] for i in encoding.stops] == stops and encoding.eot_token == encoding.stop
    assert ids.get(encoding.bos) == bos and ids[encoding.start] == start
    document = data.document(encoding, "# Add.\n", "a + b\n")
    assert (document[0], document[-1]) == (encoding.start, encoding.stops[0])
    assert encoding.decode(document[1:-1]) == "# Add.\na + b\n"


@pytest.mark.parametrize("generation, config, stops", [
    (None, None, "<|endoftext|>"), (None, "<|im_end|>", "<|im_end|>"),
    ("<|im_start|>", "<|im_end|>", "<|im_start|>"), (None, ["<|im_start|>"], "<|im_start|>"),
    (["<|im_start|>", "<|im_end|>"], "<|im_end|>", "<|im_end|> <|im_start|>"),
    (["<|im_start|>", "<|im_end|>"], "<|endoftext|>", "<|im_start|> <|im_end|>")])
def test_stops_are_those_of_generation_and_the_first_is_the_config_s(
        tmp_path, generation, config, stops):
    shutil.copy(TOKENIZERS / "smollm2" / "tokenizer.json", tmp_path)
    ids = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    for name, eos in (("generation_config", generation), ("config", config)):
        eos = [ids[token] for token in eos] if isinstance(eos, list) else ids.get(eos)
        (tmp_path / f"{name}.json").write_text(json.dumps({"eos_token_id": eos}))
    assert data.load_tokenizer(tmp_path).stops == [ids[token] for token in stops.split()]


def test_special_tokens_are_found_where_they_are_allowed():
    encoding = family("qwen")
    ids = encoding.encode("<tool_call>1</tool_call><|im_end|>", allowed_special="all")
    assert ids == [encoding._special_tokens["<tool_call>"], *encoding.encode_ordinary("1"),
                   encoding._special_tokens["</tool_call>"], encoding.stop]
    assert encoding.stop not in encoding.encode_ordinary("<|im_end|>")


def test_bytes_without_a_token_are_dropped():
    encoding = family("smollm2")
    saved = json.loads((TOKENIZERS / "smollm2" / "tokenizer.json").read_text(encoding="utf-8"))
    assert encoding.n_vocab == encoding.size == len(saved["model"]["vocab"])
    assert encoding.decode_bytes(encoding.encode_ordinary("aԱ\x00b")) == b"a\xb1b"
    assert encoding.decode_bytes(encoding.encode("aԱ\x00b")) == b"a\xb1b"


def merged(token, ranks):
    """The tokens that the bytes of `token` become by merging the neighbours of lowest rank."""
    pieces = [bytes([byte]) for byte in token]
    while found := [(ranks[a + b], k) for k, (a, b) in enumerate(zip(pieces, pieces[1:]))
                    if a + b in ranks]:
        _, k = min(found)
        pieces[k:k + 2] = [pieces[k] + pieces[k + 1]]
    return pieces


@pytest.mark.parametrize("name", FAMILIES)
def test_the_merged_bytes_of_a_token_are_the_token(name):
    """Except one token of Llama 3 that is only found whole: `ignore_merges` is for it."""
    ranks = family(name)._mergeable_ranks
    assert sum(merged(token, ranks) != [token] for token in ranks) == ("llama3" in name)


def test_the_plain_pattern_is_wrong_for_smollm2():
    right = family("smollm2")
    plain = checkpoint._GPT2.replace(r" ?\p{N}+", r"\p{N}")
    wrong = data.Tokenizer(plain, right._mergeable_ranks, right._special_tokens, [0])
    differ = [text for text, ids in awkward_page("smollm2") if wrong.encode_ordinary(text) != ids]
    assert "a  1" in differ and "a   b" not in differ


def with_json(folder, name, change):
    """A copy of a fixture in `folder`, with `change` made to its tokenizer.json."""
    shutil.copytree(TOKENIZERS / name, folder, dirs_exist_ok=True)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(content, content["model"])
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def shuffle_ids(content, model):
    """The same tokens and merges, with the ids of two merged tokens swapped."""
    a, b = list(model["vocab"])[-2:]
    model["vocab"][a], model["vocab"][b] = model["vocab"][b], model["vocab"][a]


def added_token(**flags):
    return lambda content, model: content["added_tokens"].append(
        {"id": 600, "content": "<x>", **flags})


@pytest.mark.parametrize("change, message", [
    (lambda c, m: m.update(type="Unigram"), "is a Unigram model"),
    (lambda c, m: m.update(byte_fallback=True), "sets byte_fallback"),
    (lambda c, m: m.update(unk_token="<unk>"), "sets unk_token"),
    (lambda c, m: m.update(continuing_subword_prefix="##"), "sets continuing_subword_prefix"),
    (lambda c, m: c.update(normalizer={"type": "Lowercase"}), "has the normalizer Lowercase"),
    (lambda c, m: c.update(pre_tokenizer=None), r"has an unknown pre_tokenizer \(null\)"),
    (lambda c, m: c.update(pre_tokenizer={"type": "Metaspace"}), r"\(Metaspace\)"),
    (lambda c, m: c["pre_tokenizer"]["pretokenizers"][0].update(invert=True),
     r"\(Split \+ ByteLevel\)"),
    (lambda c, m: c["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
     r"\(Split \+ ByteLevel\)"),
    (lambda c, m: c.update(post_processor={"type": "RobertaProcessing"}), "RobertaProcessing"),
    (shuffle_ids, "ids in a different order from its merges"),
    (lambda c, m: m["merges"].pop(), "tokens that no merge makes"),
    (added_token(lstrip=True), "added token '<x>'"),
    (added_token(single_word=True), "added token '<x>'"),
    (added_token(content="  "), "added token '  '"),
    (added_token(content="<|im_"), "'<|im_' that begins '<|im_end|>'"),
    (added_token(id=3), "two tokens have the id 3"),
    (added_token(id=640), "the id 640 is beyond the vocab_size 640"),
    (lambda c, m: m["vocab"].update({"<|endoftext|>": 5}), "two ids for '<|endoftext|>'"),
    (lambda c, m: m["vocab"].pop("Z"), "no tokens for 'Z'"),
    (lambda c, m: c["added_tokens"].pop(2), "eos_token_id .* is not an added token"),
    (lambda c, m: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="("), "damaged"),
    (lambda c, m: m["merges"].insert(0, ["a", "no"]), "damaged"),
])
def test_a_tokenizer_of_another_kind_is_refused(tmp_path, change, message):
    with_json(tmp_path, "qwen", change)
    with pytest.raises(ValueError, match=message.replace("|", r"\|")) as error:
        data.load_tokenizer(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(error.value) and ": c" in str(error.value)


def test_merges_are_pairs_or_strings_and_ignore_merges_needs_none(tmp_path):
    text, ids = awkward_page("qwen")[10]
    with_json(tmp_path, "qwen", lambda c, m: m.update(merges=[" ".join(p) for p in m["merges"]]))
    assert data.load_tokenizer(tmp_path).encode_ordinary(text) == ids
    with_json(tmp_path, "qwen", lambda c, m: m.update(merges=[], ignore_merges=True))
    assert data.load_tokenizer(tmp_path).encode_ordinary(text) == ids


@pytest.mark.parametrize("name, file, content, message", [
    ("smollm2", "tokenizer.json", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ("llama3-ranks", "original/tokenizer.model", b"version https://git-lfs.", "git lfs pull"),
    ("llama3-ranks", "original/tokenizer.model", b"\n\x0e\n\x05<unk>\x15", "SentencePiece"),
    ("llama3-ranks", "original/tokenizer.model", b"YQ== 0\nYg==", "is damaged"),
    ("qwen-files", "config.json", b'{"model_type": "phi"}', "of model_type phi"),
    ("qwen-files", "merges.txt", b"\xff", "not UTF-8 text"),
    ("qwen-files", "tokenizer_config.json", b"{", "tokenizer_config.json is damaged"),
    ("gpt2", "tokenizer.json", b'{"model": {"vocab"', "is damaged"),
    ("gpt2", "tokenizer.json", None, "has none of tokenizer.json, vocab.json"),
])
def test_a_damaged_file_of_a_tokenizer_is_one_sentence(tmp_path, name, file, content, message):
    shutil.copytree(TOKENIZERS / name, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        data.load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_fine_tuned_checkpoint_copies_what_belongs_to_its_tokenizer():
    names = [path.name for path in checkpoint.tokenizer_files(TOKENIZERS / "qwen")]
    assert names == ["tokenizer.json", "generation_config.json"]
    assert checkpoint.tokenizer_files(TOKENIZERS / "llama3-ranks") == [
        TOKENIZERS / "llama3-ranks" / "original" / "tokenizer.model"]


# ------------------------------------------------------------------- models


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
    ("config.json", lambda b: b[:30], "config.json is damaged"),
    ("config.json", lambda b: b.replace(b"vocab_size", b"vocab_seize"), "vocab_size"),
    ("config.json", lambda b: b"[1, 2]", "config.json is damaged"),
])
def test_a_damaged_checkpoint_is_an_error(tmp_path, name, damage, message):
    tiny_gpt().save_pretrained(tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        GPT.from_pretrained(tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


MODELS = ["llama", "llama3", "llama-bias", "smollm2", "qwen2", "qwen3", "mistral"]


def fixture(name):
    """A tiny checkpoint, token ids, and their logits in transformers (fixtures/README.md)."""
    folder = ROOT / "fixtures" / name
    ids, logits = (torch.from_numpy(np.load(folder / f)) for f in ("ids.npy", "logits.npy"))
    return GPT.from_pretrained(folder, dtype=torch.float32), ids.long(), logits


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
        a, b, cos, sin = x[..., ::2], x[..., 1::2], cos[..., None, :], sin[..., None, :]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)

    monkeypatch.setattr("model.rotate", rotate)


def no_scaling(model, _):
    model.frequencies = rotary_frequencies(dataclasses.replace(model.config, rope_scaling=None))


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
    model = GPT.from_pretrained(ROOT / "fixtures" / name, dtype=dtype)
    model.save_pretrained(tmp_path)
    loaded, config = GPT.from_pretrained(tmp_path), (tmp_path / "config.json").read_text()
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
    ({"hidden_act": "gelu"}, "unsupported hidden_act gelu; supported: silu"),
    ({"rope_scaling": {"type": "yarn", "factor": 4}}, "unsupported RoPE scaling yarn; supported"),
    ({"rope_scaling": {"type": "llama3", "factor": 4}}, "no positive number for low_freq_factor"),
    ({"rope_scaling": "yarn"}, "config.json"),
    ({"rope_theta": ...}, "no positive number for rope_theta"),
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
        GPT.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("absent, message", [
    ("config.json", "config.json is missing"),
    ("model-00002-of-00004.safetensors", "model-00002-of-00004.safetensors is missing but model"),
    ("model.safetensors.index.json", "has neither model.safetensors nor model.safetensors.index")])
def test_an_absent_file_is_named(absent, message, tmp_path):
    (copied("qwen3", tmp_path) / absent).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        GPT.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="give the folder of a downloaded checkpoint"):
        GPT.from_pretrained(tmp_path / "nowhere")


def change_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = read_safetensors(path)
    change(tensors)
    write_safetensors(path, tensors)
    return GPT.from_pretrained(folder)


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


def test_weights_are_mapped_and_the_file_is_never_written(tmp_path):
    path = copied("llama", tmp_path) / "model.safetensors"
    before = path.read_bytes()
    model = GPT.from_pretrained(tmp_path)
    assert len({weight.untyped_storage().data_ptr() for weight in model.parameters()}) == 1
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert path.read_bytes() == before
    model.save_pretrained(tmp_path)  # over the file it is mapped from
    assert not GPT.from_pretrained(tmp_path).norm.weight.any()


@pytest.mark.parametrize("name", ["llama", "mistral"])  # 4 and 2 bytes per number
def test_tensors_may_lie_at_any_offset(name, tmp_path):
    model, ids, theirs = fixture(name)
    path = copied(name, tmp_path) / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    path.write_bytes((size + 1).to_bytes(8, "little") + content[8:8 + size] + b" "
                     + content[8 + size:])
    assert torch.equal(GPT.from_pretrained(tmp_path, dtype=torch.float32)(ids), model(ids))


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
    model = GPT.from_pretrained(copied(name, tmp_path, **edits))
    assert model.config.max_position_embeddings == KVCache(model, 1).limit == limit


def test_head_dim_is_read_or_derived(tmp_path):
    cfg = GPT.from_pretrained(copied("qwen2", tmp_path, head_dim=None)).config
    assert cfg.head_dim == cfg.hidden_size // cfg.num_attention_heads == 4
    with pytest.raises(ValueError, match="128"):  # Qwen3's own default
        GPT.from_pretrained(copied("qwen3", tmp_path, head_dim=...))


def test_recomputing_gives_the_same_gradients_and_keeps_less():
    model, ids, _ = fixture("llama-bias")
    gradients, kept = [], []
    for model.recompute in (False, True):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x,
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
    narrow = GPT.from_pretrained(ROOT / "fixtures" / name, dtype=torch.bfloat16)
    for module, context in [(model, torch.autocast("cpu", torch.bfloat16)),
                            (narrow, contextlib.nullcontext())]:
        for cache in (None, KVCache(module, 2)):
            module.layers[0].self_attn.o_proj.register_forward_pre_hook(
                lambda _, inputs: seen.append(inputs[0].dtype))
            with context:
                logits = module(ids, cache)
            assert (logits - full).std() < 0.1 * full.std()
    assert set(seen) == {torch.bfloat16}
