"""What the user names on the command line: a checkpoint, a source file, a place in it.

A checkpoint is a folder in Hugging Face's layout, or a GGUF file: Llama, Mistral, Qwen2 or Qwen3.
A document begins with its family's BOS or, if there is none, with the end-of-text token that
separates documents; what an assistant learns ends with the family's stop token.
"""

import json
import re
import sys
from pathlib import Path

import torch

from realcode import parallel
from realcode.checkpoints import load_checkpoint
from realcode.corpus import LONGEST, lines_of
from realcode.gguf_file import is_gguf
from support.cli import UserError, checked, pick_device, reading

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
DTYPE = ("type of the checkpoint's weights: float32, bfloat16, or auto (the file's, but float32 if "
         "it is quantized)")
ETA = "threshold of Empower, bits (Section 5.1)"


def given_model(cfg, device):
    """The Checkpoint given by --model; a warning if its weights are slow on this device."""
    found = loaded(cfg, device)
    slow = str(device) == "cpu" and found.model.dtype != torch.float32
    if slow and cfg.dtype == "auto" and parallel.rank() == 0:
        size = 4 * sum(weight.numel() for weight in found.model.parameters())
        kind = str(found.model.dtype).removeprefix("torch.")
        print(f"empower.py: {cfg.model} has weights of type {kind}, which most processors multiply "
              f"many times slower: give --dtype float32, which takes {size / 1e9:.1f} GB",
              file=sys.stderr)
    return found


def loaded(cfg, device):
    """The Checkpoint given by --model."""
    if cfg.dtype not in DTYPES:
        raise UserError(f"--dtype is {cfg.dtype!r}: choose {', '.join(DTYPES)}")
    path = Path(cfg.model)
    if not path.is_dir() and not is_gguf(path):
        raise UserError(f"--model {path} is {'no GGUF file' if path.exists() else 'not there'}: "
                        "name a folder in Hugging Face's layout, or a GGUF file")
    return checked(load_checkpoint, cfg.model, device, DTYPES[cfg.dtype])


def check_context(cfg, limit, round_tokens):
    """Raises unless a piece, the token before it and one round after it fit in the context."""
    room = limit - 1 - round_tokens
    if room < 16:
        flags = [name for name in ("--max-suggestion", "--turn-tokens")
                 if hasattr(cfg, name[2:].replace("-", "_"))]
        raise UserError(f"a round may take {round_tokens} tokens, but the model reads {limit} in "
                        f"all: give a smaller {' or '.join(flags)}")
    if cfg.context > room:
        raise UserError(f"--context is {cfg.context}, but the model reads {limit} tokens: give at "
                        f"most {room}" + ", to leave room for a suggestion" * bool(round_tokens))


def model_at_hand(cfg, name):
    """The Checkpoint given by --model, or the one called `name` of the last finished run in --out.

    name: a function of the settings of that run. Example: lambda config: "base".
    """
    device, results = pick_device(cfg.device), Path(cfg.out, "results.json")
    if cfg.model:
        return given_model(cfg, device)
    if not results.exists():
        raise UserError(f"there is no small GPT in {cfg.out}: run python empower.py first, which "
                        "makes one, or name a checkpoint with --model")
    with reading(results):
        found = json.loads(results.read_text())
        stage, given = found["models"].get(name(found["config"])), found["config"].get("model")
    if not stage:
        raise UserError(f"the run in {cfg.out} used --model {given}: give it here too" if given else
                        f"the run in {cfg.out} has no such model: run it again, or give --model")
    folder = Path(cfg.out, "stages", stage)
    print(f"empower.py: using {folder}", file=sys.stderr)
    with reading(folder):
        return load_checkpoint(folder, device)


def read_source(path):
    """The text of a program that the user names, with \\n line ends."""
    return not_too_long(text_of(path), path)


def read_around(path, place):
    """The text of a program before LINE:COL, and what comes after it."""
    text = text_of(path)
    n = offset(text, place, path)
    return not_too_long(text[:n], f"{path} before {place}"), text[n:n + LONGEST]


def text_of(path):
    """The text of a file that the user names; a UserError if it cannot be read."""
    try:
        return lines_of(Path(path))
    except OSError as error:
        raise UserError(f"cannot read {path or 'FILE'} ({error.strerror}): give a text file") \
            from None
    except ValueError as error:
        raise UserError(str(error)) from None


def not_too_long(text, what):
    """A text as it is; a UserError if it is too long for a tokenizer."""
    if len(text) > LONGEST:
        raise UserError(f"{what} has {len(text):,} characters: give at most {LONGEST:,}")
    return text


def offset(text, place, file):
    """The number of characters before LINE:COL, both counted from 1.

    Example: "ab\\ncd\\n", "2:2" -> 4, between c and d.
    """
    match, lines = re.fullmatch(r"(\d{1,9}):(\d{1,9})", place), text.split("\n")
    line, column = map(int, match.groups()) if match else (0, 0)
    if not 1 <= line <= len(lines):
        raise UserError(f"{place!r} is not a place in {file}, which has {len(lines)} lines: give "
                        "LINE:COL, both from 1")
    if not 1 <= column <= len(lines[line - 1]) + 1:
        raise UserError(f"line {line} of {file} has {len(lines[line - 1])} characters, but the "
                        f"column is {column}: give 1 to {len(lines[line - 1]) + 1}")
    return sum(len(before) + 1 for before in lines[:line - 1]) + column - 1
