"""Our own models on disk: a folder with config.json, model.safetensors and tokenizer.json.

transformers reads these folders too. realcode/pretrained.py reads those of published models.
"""

import dataclasses
import json
from pathlib import Path

import torch

import data
from data import END_OF_TEXT, PATTERN
from model import GPT, GPTConfig
from support.files import read_json, read_safetensors, write_safetensors, write_text


@dataclasses.dataclass
class Checkpoint:
    """A language model, its tokenizer, and the folder or file that both were read from."""

    model: GPT
    encoding: data.Tokenizer
    folder: Path = dataclasses.field(default=None, compare=False)

    @property
    def name(self):
        """Identifies the checkpoint."""
        return self.model.name


def save_checkpoint(checkpoint, folder):
    """Writes the model and the tokenizer of a Checkpoint."""
    model, end = checkpoint.model, checkpoint.encoding.stop
    save_model(model, folder, {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False,
        "rope_scaling": None, **dataclasses.asdict(model.config),
        "bos_token_id": end, "eos_token_id": end})
    save_tokenizer(checkpoint.encoding, folder)


def save_model(model, folder, config):
    """Writes model.safetensors, and config.json with these keys and those that never differ."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_text(Path(folder, "config.json"), json.dumps({
        **config, "hidden_act": "silu", "torch_dtype": str(model.dtype).removeprefix("torch."),
        "sliding_window": None, "use_sliding_window": False}, indent=2) + "\n")
    write_safetensors(Path(folder, "model.safetensors"),  # a tied head is written once
                      {name if name == "lm_head.weight" else f"model.{name}": weight
                       for name, weight in model.named_parameters()})


def load_checkpoint(folder, device, name):
    """The Checkpoint in a folder from `save_checkpoint`; weights stay mapped if possible.

    name: by which a digest knows the model. ValueError, KeyError or RuntimeError: it is damaged.
    """
    config = read_json(Path(folder, "config.json"))
    with torch.device("meta"):  # takes no memory
        model = GPT(GPTConfig(**{field.name: config[field.name]
                                 for field in dataclasses.fields(GPTConfig)}))
    weights = {name.removeprefix("model."): weight.to(device) for name, weight in
               read_safetensors(Path(folder, "model.safetensors")).items()}
    weights.setdefault("lm_head.weight", weights["embed_tokens.weight"])
    model.load_state_dict(weights, assign=True)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight  # assign=True untied them
    model.name = name
    return Checkpoint(model.eval(), load_tokenizer(folder), Path(folder))


# ------------------------------------------------------------------- tokenizers


def save_tokenizer(encoding, directory):
    """Writes a tokenizer from `data.train_tokenizer` as files that transformers reads too."""
    letters = byte_letters()
    tokens = {i: encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab - 1)}
    ranks = {token: i for i, token in tokens.items()}
    written = {i: "".join(letters[byte] for byte in token) for i, token in tokens.items()}
    merges = [[written[i] for i in _last_pair(token, ranks)]
              for token in tokens.values() if len(token) > 1]
    special = {"id": encoding.n_vocab - 1, "content": END_OF_TEXT, "single_word": False,
               "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated",
             "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": False}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {text: i for i, text in written.items()}, "merges": merges},
    }
    write_text(Path(directory, "tokenizer.json"),
               json.dumps(content, ensure_ascii=False, indent=1))
    # Without this, transformers would choose a class by model_type, with a pattern of its own.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT,
              "clean_up_tokenization_spaces": False}
    write_text(Path(directory, "tokenizer_config.json"), json.dumps(config, indent=1) + "\n")


def load_tokenizer(folder):
    """The data.Tokenizer that `save_tokenizer` wrote."""
    content = read_json(Path(folder, "tokenizer.json"))
    byte_of = {letter: byte for byte, letter in byte_letters().items()}
    ranks = {bytes(map(byte_of.__getitem__, text)): i
             for text, i in content["model"]["vocab"].items()}
    pattern = content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    [end] = content["added_tokens"]
    return data.Tokenizer(pattern, ranks, {end["content"]: end["id"]}, end["id"], [end["id"]])


def _last_pair(token, ranks):
    """The ids of the two tokens that merge into `token`: byte-pair encoding, one step short."""
    pieces = [bytes([byte]) for byte in token]
    while len(pieces) > 2:
        _, k = min((ranks.get(a + b, len(ranks)), k)
                   for k, (a, b) in enumerate(zip(pieces, pieces[1:])))
        pieces[k:k + 2] = [pieces[k] + pieces[k + 1]]
    return [ranks[piece] for piece in pieces]


def byte_letters():
    """The letter that stands for each byte in a tokenizer.json (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {b: chr(256 + n) for n, b in enumerate(rest)}
