"""Reads a GGUF file, the format of llama.cpp, Ollama and LM Studio: a checkpoint in one file.

Its content is translated into the files of a Hugging Face folder, in memory, and then read as
those are; `convert` writes them. Two things differ. Weights are mostly quantized: the package gguf
dequantizes them. And llama.cpp rotates adjacent features of a head as pairs (interleaved RoPE), so
the rows of q and k in a file of a Llama are in another order.

The header is read here, and no size in it is believed before it is known to fit into the file.
gguf's own reader does not notice where the file ends, and takes twenty times as long or longer.
"""

import json
import math
import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from model import rotary_frequencies
from realcode.memory import available_bytes
from realcode.pretrained import (LLAMA3, PublishedConfig, is_positive, model_of, parse_config,
                                 scaled_frequencies)
from realcode.tokenizer_files import PRE_TOKENIZERS, parse_tokenizer
from support.files import write_text

ARCHITECTURES = {"llama": "LlamaForCausalLM",  # SmolLM2's too
                 "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # not quantized
# The types of values in a header, as struct spells them; 8 is a string and 9 a list.
SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, LIST = 8, 9
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens
SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}  # other names
NAMES = {"token_embd": "embed_tokens", "output": "lm_head", "output_norm": "norm",
         "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
         "attn_k_norm": "self_attn.k_norm", "attn_norm": "input_layernorm",
         "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
         "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
LARGEST_HEADER = 100_000_000  # bytes; Llama 3's, with its 128,256 tokens, takes 8 million
# At most, so that a hostile file takes neither time nor memory. The 14B models have some 600
# tensors; the largest vocabularies have 300,000 tokens and merges.
TENSORS, VALUES, STRINGS = 20_000, 10_000, 2_000_000


class Gguf(NamedTuple):
    """What a file says of itself, and its Tensors, by the names of llama.cpp."""

    metadata: dict
    tensors: dict


class Tensor(NamedTuple):
    """A weight in the file, mapped, which becomes a torch.Tensor with `to`."""

    raw: torch.Tensor    # (bytes,) uint8
    kind: object         # a gguf.GGMLQuantizationType
    shape: tuple
    heads: int = 0       # if its rows are in the order of llama.cpp: how many heads they have

    @property
    def dtype(self):
        return PLAIN.get(self.kind.name, torch.float32)

    def to(self, device, dtype):
        """The weight itself, as transformers would have it."""
        raw = self.raw if self.raw.storage_offset() % 4 == 0 else self.raw.clone()
        if self.kind.name in PLAIN:
            weight = raw.view(self.dtype)
        else:
            rows = raw.view(math.prod(self.shape[:-1]), -1).numpy()
            with np.errstate(all="ignore"):  # scales that are not numbers
                weight = torch.from_numpy(gguf_package().quants.dequantize(rows, self.kind))
        weight = weight.reshape(self.shape)
        if self.heads:  # the rows of a head: (D/2 pairs, 2) -> (2, D/2)
            weight = weight.unflatten(0, (self.heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        return weight.to(device, dtype)


def gguf_package():
    """The module gguf, which only this kind of checkpoint needs."""
    try:
        import gguf
    except ImportError:
        raise ValueError("a GGUF file is read with the package gguf: pip install gguf") from None
    return gguf


def is_gguf(path):
    """Whether a path names a GGUF file, by its ending or, as in Ollama's folder, by its content."""
    path = Path(path)
    if path.suffix.lower() == ".gguf" or not path.is_file():
        return path.suffix.lower() == ".gguf"
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def load_gguf(path, device="cpu", dtype=None):
    """(GPT, Tokenizer) of a GGUF file; ValueError says what is damaged or not supported.

    dtype: None for float32 if the file is quantized, else for its own.
    """
    found = read_gguf(path)
    quantized = any(tensor.kind.name not in PLAIN for tensor in found.tensors.values())
    try:
        files = folder_files(found)
        cfg = parse_config(files["config.json"])
        tokenizer = parse_tokenizer(
            *(files[f"{name}.json"] for name in (
                "tokenizer", "config", "generation_config", "tokenizer_config")))
        weights = {renamed(name): with_heads(name, tensor, cfg)
                   for name, tensor in found.tensors.items() if name != "rope_freqs.weight"}
        if len(weights) < len(found.tensors.keys() - {"rope_freqs.weight"}):
            raise ValueError("damaged (two weights have the same name)")
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        why = error if isinstance(error, ValueError) else f"damaged ({error!r})"
        raise ValueError(f"{path}: {why}") from None
    dtype = dtype or (torch.float32 if quantized else weights["embed_tokens.weight"].dtype)
    check_room(path, weights, device, dtype)
    return model_of(cfg, weights, path, device, dtype), tokenizer


def check_room(path, weights, device, dtype):
    """Raises a ValueError if a device has too little memory for weights that become this dtype."""
    needed = dtype.itemsize * sum(  # the others stay mapped; to put rows in order copies them
        math.prod(weight.shape) for weight in weights.values()
        if str(device) != "cpu" or weight.heads or weight.kind.name not in PLAIN
        or weight.dtype != dtype)
    free, name = available_bytes(device), str(dtype).removeprefix("torch.")
    if free is not None and needed > free:
        raise ValueError(f"{path} takes {needed / 1e9:.1f} GB as {name}, but only "
                         f"{free / 1e9:.1f} GB are free: choose a smaller model"
                         + ", or bfloat16, which takes half (--dtype)"
                         * (dtype.itemsize == 4 and needed <= 2 * free))


def write_folder_files(path, folder):
    """Writes what a GGUF file says besides its weights as a Hugging Face folder has it."""
    for name, content in folder_files(read_gguf(path)).items():
        if name != "config.json":  # the model's own, written with its weights
            text = content if isinstance(content, str) else json.dumps(content, indent=1)
            write_text(Path(folder, name), text + "\n")


# ------------------------------------------------------------------- the file


def read_gguf(path):
    """The Gguf in a file. FileNotFoundError, or ValueError that says what is damaged."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing or not a file: give a GGUF file, or a folder "
                                "with config.json and safetensors")
    package = gguf_package()
    try:
        with open(path, "rb") as file:
            metadata, entries, begin = Header(file, Path(path).stat().st_size).read()
        mapped = torch.from_numpy(np.memmap(path, np.uint8, "c"))
        tensors = {name: tensor_in(mapped, begin + offset, shape, kind, package)
                   for name, shape, kind, offset in entries}
        if len(tensors) < len(entries):
            raise ValueError("two tensors have the same name")
        if sum(len(tensor.raw) for tensor in tensors.values()) > len(mapped) - begin:
            raise ValueError("its tensors overlap, or it ends before they begin")
    except NotImplementedError as error:
        raise ValueError(f"{path}: {error}") from None
    except (ValueError, struct.error) as error:
        raise ValueError(f"{path} is damaged or not a GGUF file ({error}): fetch it again") \
            from None
    return Gguf(metadata, tensors)


class Header:
    """The head of a GGUF file, read value by value; ValueError where there is no more."""

    def __init__(self, file, size):
        self.file, self.left = file, min(size, LARGEST_HEADER)

    def take(self, size):
        if size > self.left:
            raise ValueError("it ends in the middle of its header")
        self.left -= size
        return self.file.read(size)

    def number(self, form):
        value = struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]
        return float(str(np.float32(value))) if form == "f" else value  # 1e-5, not 9.9999997e-6

    def string(self):
        return self.take(self.number("Q")).decode()

    def value(self, kind):
        is_list = kind == LIST
        if is_list:
            kind, count = self.number("I"), self.number("Q")
        if kind != STRING and kind not in SCALARS:
            raise ValueError(f"a value of the unknown type {kind}")
        if not is_list:
            return self.string() if kind == STRING else self.number(SCALARS[kind])
        if kind == STRING and count > STRINGS:
            raise ValueError(f"a list of {count} strings")
        if kind == STRING:
            return [self.string() for _ in range(count)]
        form = np.dtype(SCALARS[kind]).newbyteorder("<")
        return np.frombuffer(self.take(count * form.itemsize), form)

    def read(self):
        """(metadata, [(name, shape, type, offset)] of the tensors, where their data begin)."""
        magic, version = self.take(4), self.number("I")
        if magic != b"GGUF":
            raise ValueError(f"it begins with {magic!r}")
        if version not in (2, 3):
            raise NotImplementedError(f"unsupported version {version} of GGUF; supported: 2 and 3, "
                                      "little-endian")
        n_tensors, n_values, metadata, entries = self.number("Q"), self.number("Q"), {}, []
        if n_tensors > TENSORS or n_values > VALUES:
            raise ValueError(f"{n_tensors} tensors and {n_values} values")
        for _ in range(n_values):
            key = self.string()
            if key in metadata:
                raise ValueError(f"two values of {key!r:.80}")
            metadata[key] = self.value(self.number("I"))
        for _ in range(n_tensors):
            name, dims = self.string(), self.number("I")
            if dims > 4:
                raise ValueError(f"{name!r:.80} has {dims} dimensions")
            shape = tuple(self.number("Q") for _ in range(dims))[::-1]
            entries.append((name, shape, self.number("I"), self.number("Q")))
        alignment = metadata.get("general.alignment", 32)
        if not is_positive(alignment, True) or alignment % 8:
            raise ValueError(f"an alignment of {alignment!r:.80}")
        return metadata, entries, -(-self.file.tell() // alignment) * alignment


def tensor_in(mapped, begin, shape, kind, package):
    """The Tensor at a place in the mapped file; ValueError if it would not fit."""
    if kind not in list(package.GGMLQuantizationType):
        raise NotImplementedError(f"weights of the unknown type {kind}: a newer gguf may know it, "
                                  "pip install --upgrade gguf")
    kind = package.GGMLQuantizationType(kind)
    block, size = package.GGML_QUANT_SIZES[kind]
    count = math.prod(shape)
    end = begin + count // block * size
    if not count or not shape or shape[-1] % block or end > len(mapped):
        raise ValueError(f"a tensor {shape} of type {kind.name} at {begin} in {len(mapped)} bytes")
    if kind.name not in PLAIN:
        try:
            package.quants.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            raise NotImplementedError(f"unsupported weights of type {kind.name}") from None
    return Tensor(mapped[begin:end], kind, shape)


# ------------------------------------------------------------------- the files of a folder


def folder_files(found):
    """{file name: content} of the Hugging Face folder that says the same, but for its weights."""
    metadata, generation = found.metadata, {}
    architecture, kind = (metadata.get(key) for key in (
        "general.architecture", "tokenizer.ggml.model"))
    pre = metadata.get("tokenizer.ggml.pre")
    pre = SAME.get(pre, pre) if isinstance(pre, str) else pre
    for value, known, name in ((architecture, ARCHITECTURES, "architecture"),
                               (kind, ("gpt2",), "tokenizer"),
                               (pre, PRE_TOKENIZERS, "pre-tokenizer")):
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"unsupported {name} {str(value)[:80]!r}; supported: "
                             f"{', '.join(known)}")
    ends = [metadata[key] for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
            if key in metadata]
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if ends:
        generation = {"bos_token_id": bos, "eos_token_id": list(dict.fromkeys(ends))}
    tokens, names = metadata["tokenizer.ggml.tokens"], {"bos_token": bos, "eos_token": ends[:1]}
    files = {
        "config.json": config_of(found, ARCHITECTURES[architecture], bos, ends),
        "generation_config.json": generation,
        "tokenizer.json": tokenizer_of(metadata, pre, bos),
        # Without this file transformers guesses the pre-tokenizer from the model's type.
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **{
            name: tokens[i] for name, ids in names.items() for i in np.atleast_1d(ids)
            if i is not None}}}
    if isinstance(metadata.get("tokenizer.chat_template"), str):
        files["chat_template.jinja"] = metadata["tokenizer.chat_template"]
    return files


def config_of(found, architecture, bos, ends):
    """The config.json of a model; sizes that are missing are refused when it is parsed."""
    metadata, tensors = found.metadata, found.tensors
    prefix = f"{metadata['general.architecture']}."
    own = {key.removeprefix(prefix): value for key, value in metadata.items()
           if key.startswith(prefix)}
    if len(getattr(tensors.get("token_embd.weight"), "shape", ())) != 2:
        raise ValueError("token_embd.weight, the embedding, is missing or not a matrix")
    if metadata.get("split.count", 1) != 1:
        raise ValueError("one of several files of a model: join them with llama-gguf-split --merge")
    heads, theta = own.get("attention.head_count"), own.get("rope.freq_base", 10000.0)
    rows, width = tensors["token_embd.weight"].shape
    head_dim = own.get("attention.key_length") or (
        width // heads if is_positive(heads, True) else None)
    factor = own.get("rope.scaling.factor") or own.get("rope.scale_linear") or 1
    scaling = own.get("rope.scaling.type", "linear")  # as llama.cpp has it if there is none
    if scaling == "linear" and factor == 1:
        scaling = "none"
    for name, usual in (("rope.dimension_count", head_dim), ("rope.scaling.attn_factor", 1),
                        ("attention.scale", 0)):
        if name in own and own[name] != usual:
            raise ValueError(f"unsupported {name} {own[name]}; supported: {usual}")
    if scaling == "none" and "rope_freqs.weight" in tensors:
        scaling = llama3_scaling(tensors["rope_freqs.weight"], head_dim, theta)
    elif scaling != "none":
        scaling = {"rope_type": scaling}
    context, window = own.get("context_length"), own.get("attention.sliding_window")
    if window and context:  # within it, attention is full attention
        context = min(context, window)
    return {
        "architectures": [architecture], "vocab_size": rows, "hidden_size": width,
        "intermediate_size": own.get("feed_forward_length"),
        "num_hidden_layers": own.get("block_count"), "num_attention_heads": heads,
        "num_key_value_heads": own.get("attention.head_count_kv"),
        "head_dim": head_dim, "max_position_embeddings": context,
        "rms_norm_eps": own.get("attention.layer_norm_rms_epsilon"), "rope_theta": theta,
        "rope_scaling": None if scaling == "none" else scaling,
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        "bos_token_id": bos, "eos_token_id": ends[0] if ends else None}


def llama3_scaling(factors, head_dim, theta):
    """The rope_scaling of a Llama 3 whose angles are divided by `factors` (D / 2,).

    The file has only these, so the four numbers are searched for; ValueError if none fit.
    """
    if factors.shape != (head_dim // 2,):
        raise ValueError(f"rope_freqs for {factors.shape} features in a head of {head_dim}")
    factors = factors.to("cpu", torch.float32)
    plain = rotary_frequencies(head_dim, theta)
    for context in (2 ** k for k in range(5, 18)):  # published Llamas have 8192
        numbers = (float(factors.max()), 1.0, 4.0, context)
        scaling = {"rope_type": "llama3", **dict(zip(LLAMA3, numbers))}
        scaled = scaled_frequencies(PublishedConfig(
            head_dim=head_dim, rope_theta=theta, rope_scaling=scaling))
        if torch.allclose(plain / scaled, factors, rtol=1e-4):
            return scaling
    raise ValueError("its rope_freqs are not those of a Llama 3: unsupported RoPE scaling")


def tokenizer_of(metadata, pre, bos):
    """The tokenizer.json of a byte-level BPE."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type")
    if types is None:  # an old file
        ends = {value for key, value in metadata.items() if key.endswith("_token_id")}
        types = np.array([CONTROL if i in ends or re.fullmatch(r"<\|.*\|>", text) else NORMAL
                          for i, text in enumerate(tokens)])
    kinds = list(zip(range(len(tokens)), tokens, types.tolist(), strict=True))
    added = [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": kind == CONTROL}
             for i, text, kind in kinds if kind in (CONTROL, USER_DEFINED)]
    post = None
    if bos is not None and not (is_positive(bos + 1, True) and bos < len(tokens)):
        raise ValueError(f"bos_token_id is {bos!r:.80}")
    if bos is not None and metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        first = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}
        text = [{"Sequence": {"id": name, "type_id": k}} for k, name in enumerate("AB")]
        post = {"type": "TemplateProcessing", "single": [first, text[0]],
                "pair": [first, text[0], {"SpecialToken": {"id": tokens[bos], "type_id": 1}},
                         text[1]],
                "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos],
                                                 "tokens": [tokens[bos]]}}}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": PRE_TOKENIZERS[pre], "post_processor": post,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": pre == "llama-bpe",
                  "vocab": {text: i for i, text, kind in kinds if kind != UNUSED},
                  "merges": [[left, right] for left, right in (
                      pair.split(" ") for pair in metadata["tokenizer.ggml.merges"])]}}


def renamed(name):
    """A weight's name here. Example: blk.3.attn_q.weight -> layers.3.self_attn.q_proj.weight."""
    *layer, part, suffix = name.split(".")
    layer = [f"layers.{layer[1]}"] if len(layer) == 2 and layer[0] == "blk" else layer
    return ".".join([*layer, NAMES.get(part, part), suffix])


def with_heads(name, tensor, cfg):
    """The Tensor with the number of its heads, if llama.cpp changed the order of its rows."""
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    part = name.split(".")[-2]
    if cfg.architecture != "LlamaForCausalLM" or part not in heads:
        return tensor
    n = getattr(cfg, heads[part])
    if tensor.shape[0] % (2 * n):
        raise ValueError(f"{name} has {tensor.shape[0]} rows for {n} heads")
    return tensor._replace(heads=n)
