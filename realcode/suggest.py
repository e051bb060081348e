"""python empower.py suggest FILE:LINE:COL [--model DIR] [--eta BITS]"""

import bisect
import dataclasses
import functools
import math
import sys

import torch

from model import KVCache, extend, sample
from realcode.given import DTYPE, model_at_hand, offset, read_source
from support.cli import UserError, check_ranges, flag

HEALING = 0.32  # bits that the end of the word at the cursor may cost if --eta is not given
LONGEST_WORD = 8  # tokens at the cursor that may be the beginning of a single one


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
    found = model_at_hand(cfg, lambda config: f"Empower ({config['eta']:g})")
    model, encoding = found.model, found.encoding
    room = model.config.max_position_embeddings - cfg.max_suggestion - 1
    if room < 1:
        raise UserError(f"--max-suggestion is {cfg.max_suggestion}, but the model reads "
                        f"{model.config.max_position_embeddings} tokens: give less")

    ids, cache = encoding.encode_ordinary(text)[-room:], KVCache(model, 1)
    before, word = split_word(encoding, ids)
    logits = extend(model, cache, [[encoding.start, *before]], [word[:-1]])[0]
    ids, typed, bits = heal(encoding, before, word, logits)
    if bits > (HEALING if cfg.eta is None else cfg.eta):
        return  # the cursor is inside a choice: nothing is obvious
    [new], _ = sample(model, cache, [[encoding.start, *ids]], cfg.max_suggestion,
                      encoding.stops, temperature=0,
                      max_cost=math.inf if cfg.eta is None else cfg.eta - bits)
    suggestion = encoding.decode_bytes(ids[-1:] + new)[typed:]
    print(suggestion.decode(errors="replace"), end="\n" if sys.stdout.isatty() else "")


def split_word(encoding, ids):
    """(ids before, ids of the word at a cursor): the most tokens that may begin a single one."""
    n = max((k for k in range(1, min(len(ids), LONGEST_WORD) + 1) if tokens_beginning_with(
        encoding, encoding.decode_bytes(ids[-k:]))), default=0)
    return ids[:len(ids) - n], ids[len(ids) - n:]


@torch.no_grad()
def heal(encoding, before, word, logits):
    """(ids, bytes of the last one already typed, the cost of this choice in bits) at a cursor.

    What was typed may be the beginning of a longer token: "def go(" when the model writes "():" as
    one, or " retu", two tokens, when it writes " return". So the tokens of the word are chosen
    again: its first ones are kept, from none to all but one, and one token that begins with the
    text of the others takes their place. The cost of the best choice, among all of them, counts
    towards the cost of the suggestion. logits (tokens of the word, V): for each of them.

    A cache that holds the word as typed, without its last token, serves the result too: what
    is kept is the same, and the last token of a text is always read again.
    """
    log_p, kept, found = logits.float().log_softmax(-1), 0.0, []
    for k in range(len(word)):
        fits = tokens_beginning_with(encoding, encoding.decode_bytes(word[k:]))
        found += zip((kept + log_p[k, fits]).tolist(), fits, [k] * len(fits))
        kept += log_p[k, word[k]].item()
    if not found:
        return before, len(encoding.decode_bytes(before[-1:])), 0.0
    best, token, k = max(found)
    bits = (torch.tensor([each[0] for each in found]).double().logsumexp(0).item() - best) \
        / math.log(2)
    return [*before, *word[:k], token], len(encoding.decode_bytes(word[k:])), max(bits, 0.0)


@functools.lru_cache(maxsize=256)
def tokens_beginning_with(encoding, text):
    """The ids of all tokens that begin with these bytes."""
    tokens = sorted_tokens(encoding)
    first = last = bisect.bisect_left(tokens, text)
    while last < len(tokens) and tokens[last].startswith(text):
        last += 1
    ids = map(encoding.encode_single_token, tokens[first:last])
    return [i for i in ids if i < encoding.n_vocab]


@functools.lru_cache(maxsize=4)
def sorted_tokens(encoding):
    """The bytes of all tokens, sorted."""
    return sorted(encoding.token_byte_values())
