"""Published checkpoints in Hugging Face's layout: config.json, safetensors, a tokenizer's files.

Covers the families Llama 3 (including SmolLM2), Mistral, Qwen2 and Qwen3, without the libraries
that wrote them. Anything unverified is refused with a one-sentence error: a wrong angle would not
crash, it would produce fluent nonsense.
"""

import dataclasses
import math
from pathlib import Path

import torch
from torch import nn

from model import GPT, GPTConfig, rotary_frequencies
from support.checkpoint import save_model
from support.files import read_json, read_safetensors

# ------------------------------------------------------------------- config.json

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
          "num_attention_heads", "max_position_embeddings")
OTHERS = "rope_interleaved", "elementwise_attn_output_gate", "headwise_attn_output_gate"
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclasses.dataclass(frozen=True)
class PublishedConfig(GPTConfig):
    """The shape of a published model, and in what its network differs from ours."""

    rope_scaling: dict | None = None           # or {"rope_type": "llama3", and four numbers}
    attention_bias: bool = False               # on q, k, v and o
    mlp_bias: bool = False
    architecture: str = "Qwen3ForCausalLM"     # the first of config.json's "architectures"
    bos_token_id: int | None = None            # these two are for software that serves the model
    eos_token_id: int | list | None = None

    @property
    def model_type(self):
        return self.architecture.removesuffix("ForCausalLM").lower()

    @property
    def qkv_bias(self):
        return self.attention_bias or self.model_type == "qwen2"  # has no config key for it

    @property
    def qk_norm(self):
        return self.model_type == "qwen3"


def read_config(directory):
    """The PublishedConfig of a checkpoint; FileNotFoundError or ValueError."""
    path, adapter = Path(directory, "config.json"), Path(directory, "adapter_config.json")
    if not path.exists():
        raise FileNotFoundError(
            f"{directory} holds only an adapter, for PEFT: finetune without --adapter writes a "
            "checkpoint" if adapter.exists() else f"{path} is missing: give the folder of a "
            "downloaded checkpoint, names are not looked up")
    if adapter.exists():
        raise ValueError(f"{directory} holds a checkpoint and an adapter, which transformers would "
                         f"add to it: move {adapter.name} away to use the checkpoint alone, or "
                         "merge them with PEFT")
    raw = read_json(path)
    try:
        return parse_config(raw)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None


def parse_config(raw):
    """The PublishedConfig in a config.json; ValueError if our network would differ.

    Anything not known to be the same is refused: wrong angles write fluent nonsense.
    """
    # transformers 4 wrote rope_theta and rope_scaling, transformers 5 writes rope_parameters.
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    numbers = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, **raw, **rope}  # the library's defaults
    needed = (*COUNTS, "rms_norm_eps", "rope_theta", *LLAMA3 * (kind == "llama3"))
    missing = [name for name in needed if not is_positive(numbers.get(name), name in COUNTS)]
    missing += [name for name in ("num_key_value_heads", "head_dim")
                if raw.get(name) is not None and not is_positive(raw[name], True)]
    activation, part = raw.get("hidden_act", "silu"), numbers.get("partial_rotary_factor") or 1
    others = [name for name in OTHERS if raw.get(name)]
    [architecture, *_] = raw.get("architectures") or [None]
    for refused, why in [
            (architecture is None, "no architectures are named: use the publisher's own file"),
            (architecture not in ARCHITECTURES, f"unsupported architecture {architecture}; "
             f"supported: {', '.join(ARCHITECTURES)}"),
            (raw.get("quantization_config"), "quantized weights; use the unquantized ones"),
            (activation != "silu", f"unsupported hidden_act {activation}; supported: silu"),
            (kind not in ("default", "llama3"),
             f"unsupported RoPE scaling {kind}; supported: default, llama3"),
            (others, f"unsupported {', '.join(others)}"),
            (part != 1, f"unsupported partial_rotary_factor {part}; supported: 1"),
            (missing, f"no positive number for {', '.join(missing)}")]:
        if refused:
            raise ValueError(why)
    llama, mistral, _, qwen3 = (architecture == name for name in ARCHITECTURES)
    heads, context = raw["num_attention_heads"], raw["max_position_embeddings"]
    kv_heads = raw.get("num_key_value_heads") or heads
    head_dim = raw.get("head_dim") or (128 if qwen3 else raw["hidden_size"] // heads)
    if heads % kv_heads or head_dim % 2 or not head_dim:
        raise ValueError(f"{heads} heads of {head_dim} features cannot share {kv_heads} keys")
    # Within its sliding window, attention is full attention, so the window bounds the context.
    if mistral or not llama and (raw.get("use_sliding_window")
                                 or "sliding_attention" in (raw.get("layer_types") or [])):
        context = min(context, window_of(raw) or context)
    return PublishedConfig(**{name: numbers[name] for name in (*COUNTS, "rms_norm_eps")} | {
        "architecture": architecture,
        "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "max_position_embeddings": context,
        "rope_theta": numbers["rope_theta"],
        "rope_scaling": None if kind == "default" else {
            "rope_type": kind, **{name: numbers[name] for name in LLAMA3}},
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings")),
        "attention_bias": bool(raw.get("attention_bias")) and (llama or qwen3),
        "mlp_bias": bool(raw.get("mlp_bias")) and llama,
        "bos_token_id": raw.get("bos_token_id"), "eos_token_id": raw.get("eos_token_id")})


def window_of(raw):
    """The size of the sliding window in a config.json, or None."""
    window = raw.get("sliding_window", 4096)
    if window and not is_positive(window, True):
        raise ValueError(f"no positive number for sliding_window: {window}")
    return window


def is_positive(value, whole):
    """Whether a value is a positive number of sensible size, and an int if it has to be whole."""
    kinds, most = (int, 2**31) if whole else ((int, float), 1e30)
    return isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < most


# ------------------------------------------------------------------- weights


def weight_files(directory):
    """The files of a checkpoint's weights. There may be others next to them, in another layout."""
    single = Path(directory, "model.safetensors")
    index = Path(directory, "model.safetensors.index.json")
    if single.exists():
        return [single]
    if not index.exists():
        raise FileNotFoundError(f"{directory} has neither {single.name} nor {index.name}: "
                                "pytorch_model.bin and consolidated.* are not supported, and a "
                                "GGUF file is given by its own name")
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        paths = [Path(directory, name) for name in names]
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is damaged: its weight_map cannot be read") from None
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing but {index.name} lists it: fetch it")
    return paths


# ------------------------------------------------------------------- the network


def new_model(cfg, generator=None):
    """A GPT of the family of a PublishedConfig, with new weights."""
    model = GPT(cfg, generator)
    model.frequencies = scaled_frequencies(cfg)
    for layer in model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        if not cfg.qk_norm:
            attention.q_norm = attention.k_norm = nn.Identity()
        biased = [attention.q_proj, attention.k_proj, attention.v_proj] * cfg.qkv_bias + [
            attention.o_proj] * cfg.attention_bias + [
            mlp.gate_proj, mlp.up_proj, mlp.down_proj] * cfg.mlp_bias
        for linear in biased:
            linear.bias = nn.Parameter(linear.weight.new_zeros(len(linear.weight)))
    return model


def scaled_frequencies(cfg):
    """`model.rotary_frequencies`, scaled as in Llama 3 if the configuration says so: (D / 2,)."""
    frequency = rotary_frequencies(cfg.head_dim, cfg.rope_theta)
    if cfg.rope_scaling is None:
        return frequency
    # Slow pairs (fewer than `low` turns over the original context) become `factor` times slower,
    # fast ones (more than `high` turns) stay the same, those in between are interpolated.
    factor, low, high, context = (cfg.rope_scaling[name] for name in LLAMA3)
    keep = ((context / (2 * math.pi / frequency) - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * frequency / factor + keep * frequency


def load_model(directory, device="cpu", dtype=None):
    """The GPT in a folder with the Hugging Face layout; weights stay mapped if possible.

    dtype: None for the file's own. FileNotFoundError or ValueError says what is missing, damaged or
    not supported by our network.
    """
    cfg, weights = read_config(directory), {}
    for path in weight_files(directory):
        weights |= {name.removeprefix("model."): weight
                    for name, weight in read_safetensors(path).items()
                    if not name.endswith("rotary_emb.inv_freq")}  # in old files; we compute it
    return model_of(cfg, weights, directory, device, dtype)


def model_of(cfg, weights, source, device="cpu", dtype=None):
    """The GPT with a PublishedConfig and weights {name: tensor}, which it empties.

    A weight may be anything with shape, dtype and to(device, dtype). source: for messages.
    """
    largest = max((max(weight.shape, default=0) for weight in weights.values()), default=0)
    if cfg.head_dim > largest or cfg.num_hidden_layers > len(weights) // 4:
        # Before a billion layers, or heads of a billion features, are built to be compared.
        raise ValueError(f"{source}: the weights do not match its configuration: "
                         f"{len(weights)} are too few for {cfg.num_hidden_layers} layers, or "
                         f"too small for heads of {cfg.head_dim} features")
    if cfg.tie_word_embeddings and "lm_head.weight" in weights:  # under either name
        weights.setdefault("embed_tokens.weight", weights["lm_head.weight"])
    embedding = weights.get("embed_tokens.weight", torch.empty(0))
    head = weights.get("lm_head.weight", embedding)
    if cfg.tie_word_embeddings and (head is embedding or torch.equal(head, embedding)):
        weights.pop("lm_head.weight", None)
    else:  # a head in the file is used whatever config.json says, as in transformers
        cfg = dataclasses.replace(cfg, tie_word_embeddings=False)
    with torch.device("meta"):
        model = new_model(cfg)  # takes no memory
    expected = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if wrong:
        raise ValueError(
            f"{source}: the weights do not match its configuration: {len(wrong)} differ, "
            f"first: {wrong[0]} is {found.get(wrong[0], 'absent')} in the file but should be "
            f"{expected.get(wrong[0], 'absent')}")
    for name in weights:  # one at a time: never two copies of all of them
        weights[name] = weights[name].to(device, dtype or embedding.dtype)
    model.load_state_dict(weights, strict=False, assign=True)
    if cfg.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight  # assign=True untied them
    return model


def save_published(model, directory, **changed):
    """Writes config.json, with these fields changed, and model.safetensors of a model."""
    fields = {**dataclasses.asdict(model.config), **changed}
    save_model(model, directory, {"architectures": [fields.pop("architecture")],
                                  "model_type": model.config.model_type, **fields})
