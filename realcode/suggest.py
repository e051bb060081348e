"""python empower.py suggest FILE:LINE:COL [--model DIR] [--eta BITS]"""

import dataclasses
import functools
import math
import sys

import torch

from model import KVCache, extend, sample, token_nll
from realcode.given import DTYPE, model_at_hand, offset, read_source
from support.cli import UserError, check_ranges, flag

HEALING = 0.32  # bits that the token at the cursor may cost if --eta is not given


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of `suggest`."""

    out: str = flag("out", "folder of the run whose assistant is used without --model")
    device: str = flag("auto", "auto, cpu, cuda or mps")
    place: str = flag("", "FILE:LINE:COL, counted from 1", positional=True)
    model: str = flag("", "a checkpoint folder or GGUF file (default: Empower of the last run "
                           "in --out)")
    dtype: str = flag("auto", DTYPE)
    eta: float = flag(None, "for a model that has not learned to stop: it stops before its "
                               "text costs more than this, bits", 0)
    max_suggestion: int = flag(100, "cap on the suggestion, tokens", 1)

    def __post_init__(self):
        check_ranges(self)


def suggest(cfg):
    """Prints an assistant's suggestion at a place in a file to stdout, and nothing else."""
    file, *place = cfg.place.rsplit(":", 2)
    if len(place) < 2:
        raise UserError(f"{cfg.place!r} is not a place: give FILE:LINE:COL, as in program.py:3:1")
    text = read_source(file)
    text = text[:offset(text, ":".join(place), file)]
    model, encoding, _ = model_at_hand(cfg, lambda config: f"Empower ({config['eta']:g})")
    room = model.config.max_position_embeddings - cfg.max_suggestion - 1
    if room < 1:
        raise UserError(f"--max-suggestion is {cfg.max_suggestion}, but the model reads "
                        f"{model.config.max_position_embeddings} tokens: give less")

    ids, cache = encoding.encode_ordinary(text)[-room:], KVCache(model, 1)
    logits = extend(model, cache, [[encoding.start, *ids[:-1]]])[0, -1]
    ids, typed, bits = heal(encoding, ids, logits)
    if bits > (HEALING if cfg.eta is None else cfg.eta):
        return  # the cursor is inside a choice: nothing is obvious
    [new], _ = sample(model, cache, [[encoding.start, *ids]], cfg.max_suggestion,
                      encoding.stops, temperature=0,
                      max_cost=math.inf if cfg.eta is None else cfg.eta - bits)
    suggestion = encoding.decode_bytes(ids[-1:] + new)[typed:]
    print(suggestion.decode(errors="replace"), end="\n" if sys.stdout.isatty() else "")


@torch.no_grad()
def heal(encoding, ids, logits):
    """(ids, bytes of the last one already typed, its cost in bits) at a cursor.

    What was typed may be the beginning of a longer token: "def go(" when the model writes "():" as
    one. So the last token is chosen again, among all tokens that begin with its text; the cost of
    this choice counts towards the cost of the suggestion. logits (V,): for its place.
    """
    if not ids:
        return ids, 0, 0.0
    typed = encoding.decode_single_token_bytes(ids[-1])
    fits = torch.tensor(tokens_beginning_with(encoding, typed), device=logits.device)
    best = logits[fits].argmax()
    bits = 0.0 if len(fits) == 1 else token_nll(logits[fits][None], best[None]).item()
    return [*ids[:-1], int(fits[best])], len(typed), bits


@functools.lru_cache(maxsize=256)
def tokens_beginning_with(encoding, text):
    """The ids of all tokens that begin with these bytes."""
    return [i for i in map(encoding.encode_single_token, (
        token for token in encoding.token_byte_values() if token.startswith(text)))
        if i < encoding.size]
