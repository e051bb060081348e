"""python empower.py suggest FILE:LINE:COL [--model DIR] [--eta BITS]"""

import bisect
import codecs
import contextlib
import dataclasses
import functools
import math
import os
import sys
from typing import NamedTuple

import torch

from model import KVCache, extend, sample
from realcode.given import DTYPE, model_at_hand, read_around
from realcode.packed import spread
from support.cli import UserError, check_ranges, flag

HEALING = 0.32  # bits that the end of the word at the cursor may cost if --eta is not given
NEAR = 16       # tokens before the cursor that a model may write in another way
TRIED = 32      # tokens, of all that fit, with which the tokenizer is asked what it has before them
FOLLOWING = ("", "\N{CYRILLIC SMALL LETTER ZHE}", "0")  # white space: nothing, a word, a number
LAST = b"\xff" * 256  # comes after whatever a token goes on with


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
    after: bool = flag(False, "read what follows the cursor, too, if the model has the tokens for "
                              "it (Qwen2.5-Coder): tokens then cost less than in the paper, where "
                              "only what is before them is read")

    def __post_init__(self):
        check_ranges(self)


def suggest(cfg):
    """Prints an assistant's suggestion at a place in a file to stdout, and nothing else."""
    file, *place = cfg.place.rsplit(":", 2)
    if len(place) < 2:
        raise UserError(f"{cfg.place!r} is not a place: give FILE:LINE:COL, as in program.py:3:1")
    text, after = read_around(file, ":".join(place))
    found = model_at_hand(cfg, lambda config: f"Empower ({config['eta']:g})")
    model, encoding = found.model, found.encoding
    room = model.config.max_position_embeddings - cfg.max_suggestion - 1
    if room < 1:
        raise UserError(f"--max-suggestion is {cfg.max_suggestion}, but the model reads "
                        f"{model.config.max_position_embeddings} tokens: give less")

    framed, room = frame(encoding, after, room) if cfg.after else (None, room)
    ids, cache = encoding.encode_ordinary(text)[-room:], KVCache(model, 1)
    with numbers_only(model), spread(model):
        [(ids, typed, bits)] = heal(model, encoding, cache, [ids], framed)
        if bits > (HEALING if cfg.eta is None else cfg.eta):
            return  # the cursor is inside a choice: nothing is obvious
        [new], _ = sample(model, cache, [ids], cfg.max_suggestion, encoding.stops, temperature=0,
                          max_cost=math.inf if cfg.eta is None else cfg.eta - bits)
    [suggestion] = whole_characters([encoding.decode_bytes(ids[-1:] + new)[typed:]])
    print(suggestion, end="\n" if sys.stdout.isatty() else "")


def frame(encoding, after, room):
    """(function that puts `after` next to the ids before a cursor, tokens left for these ids).

    As Qwen2.5-Coder was trained: the text before and after, and then what belongs between them. A
    quarter of the room is for the text after.
    """
    names = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
    marks = [encoding._special_tokens.get(name) for name in names]
    if None in marks:
        raise UserError(f"the model has no token {names[marks.index(None)]}: leave out --after, or "
                        "choose a model that has learned to fill in, such as Qwen2.5-Coder")
    prefix, suffix, middle = marks
    after = encoding.encode_ordinary(after)[:room // 4]
    return (lambda before: [prefix, *before, suffix, *after, middle],
            room - len(after) - len(marks))


@contextlib.contextmanager
def numbers_only(*models):
    """Inside, an ArithmeticError ends the work if the logits of a model are not numbers.

    `sample` would take them for those of the first token.
    """
    def check(head, inputs, logits):
        if not logits.isfinite().all():
            raise ArithmeticError(f"the model's costs, in {logits.dtype}, are not numbers")

    handles = [model.lm_head.register_forward_hook(check) for model in models]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def whole_characters(tokens):
    """The texts of tokens (bytes) that follow each other; the last ends with a whole character.

    They end before the first byte that belongs to no character, too.
    """
    decoder, texts = codecs.getincrementaldecoder("utf-8")(), []
    for token in tokens:
        try:
            texts.append(decoder.decode(token))
        except UnicodeDecodeError as error:
            return [*texts, error.object[:error.start].decode()]
    return texts


# ------------------------------------------------------------------- the word at a cursor


class Way(NamedTuple):
    """One way to write the text at a cursor: tokens that end before it, and one that reaches it."""

    path: int     # the place in a list of paths of the one that begins with these tokens
    kept: int     # how many of its tokens they are
    typed: int    # bytes before the cursor that are left for the last token
    fits: list    # the ids of all tokens that begin with these bytes


@torch.no_grad()
def heal(model, encoding, cache, texts, framed=None):
    """[(text, bytes of its last token already typed, the cost of this choice in bits)] at cursors.

    What was typed may be the beginning of a longer token: "def go(" when the model writes "():" as
    one, or eight spaces when it writes a newline with seven and then " return". So the last tokens
    are chosen again, among all `ways` to write them. The cost of the likeliest one, among all of
    them, counts towards the cost of the suggestion.

    texts: the ids of one text for each row of the cache, which then serves the results. framed: a
    function that makes of the ids before a cursor what the model reads (None: it reads the start
    token before them).
    """
    framed = framed or (lambda before: [encoding.start, *before])
    found, healed, chosen = [ways(encoding, ids) for ids in texts], [], []
    rows = [row for row, (_, paths, _) in enumerate(found) for _ in paths]
    part = cache.select(rows) if len(rows) > len(texts) else cache
    logits = extend(model, part, [framed(found[row][0]) for row in rows],
                    [path for _, paths, _ in found for path in paths])     # (rows, M + 1, V)
    for row, (before, paths, choices) in enumerate(found):
        first = rows.index(row)
        log_p = [costs.float().log_softmax(-1) for costs in logits[first:first + len(paths)]]
        totals = [log_p[way.path][range(way.kept), paths[way.path][:way.kept]].sum()
                  + log_p[way.path][way.kept, way.fits] for way in choices]
        if not totals:
            chosen.append(first)
            healed.append((framed(before), len(encoding.decode_bytes(framed(before)[-1:])), 0.0))
            continue
        way, likely = max(zip(choices, totals), key=lambda each: each[1].max())
        bits = (torch.cat(totals).double().logsumexp(0) - likely.max()).item() / math.log(2)
        chosen.append(first + way.path)
        kept, token = paths[way.path][:way.kept], way.fits[int(likely.argmax())]
        healed.append(([*framed(before), *kept, token], way.typed, max(bits, 0.0)))
    if part is not cache:
        cache.put_back(list(range(len(texts))), part.select(chosen))
    return healed


def ways(encoding, ids):
    """(ids before, paths, [Way]): all ways to write a text so that its last token may be longer.

    Each path continues the ids before, which all ways share; a way's tokens begin one of the paths.
    A model knows only how its tokenizer writes whole texts, where what follows the cursor decides
    too. So the last token may begin at every byte near the cursor, if the tokenizer ever puts one
    there that begins with the rest.
    """
    near = max(0, len(ids) - NEAR)
    tail, found = encoding.decode_bytes(ids[near:]), {}
    for cut in range(len(tail)):
        fits = tokens_beginning_with(encoding, tail[cut:])
        if fits:
            own = tokens_of(encoding, ids[near:], cut)
            for path in [own] * (own is not None) + written_before(encoding, tail[:cut], fits):
                found[tuple(path)] = len(tail) - cut, fits
    if not found:
        return ids, [[]], []
    shared = os.path.commonprefix(list(found))
    paths = [path for path in found if not any(
        path == other[:len(path)] for other in found.keys() - {path})]
    return [*ids[:near], *shared], [list(path[len(shared):]) for path in paths], [
        Way(next(k for k, longer in enumerate(paths) if path == longer[:len(path)]),
            len(path) - len(shared), *rest) for path, rest in found.items()]


def written_before(encoding, text, fits):
    """[the tokens for these bytes where the first of the tokens that may follow them does so].

    White space is cut in another way before a word or a digit than at the end of a text.
    """
    for token in fits[::1 + len(fits) // TRIED]:
        with contextlib.suppress(UnicodeDecodeError):  # a cut inside a character, or a token's end
            whole = (text + encoding.decode_bytes([token])).decode()
            for following in FOLLOWING if whole[-1].isspace() else ("",):
                ids = encoding.encode_ordinary(whole + following)
                path = tokens_of(encoding, ids, len(text))
                if path is not None and ids[len(path)] == token:
                    return [path]
    return []


def tokens_of(encoding, ids, size):
    """The first of these ids, as many as are `size` bytes; None if one of them goes on after it."""
    for n in range(len(ids) + 1):
        if size <= 0:
            return ids[:n] if size == 0 else None
        size -= len(encoding.decode_single_token_bytes(ids[n])) if n < len(ids) else 0
    return None


def tokens_beginning_with(encoding, text):
    """The ids of all tokens that begin with these bytes."""
    tokens, ids = sorted_tokens(encoding)
    return ids[bisect.bisect_left(tokens, text):bisect.bisect_left(tokens, text + LAST)]


@functools.lru_cache(maxsize=4)
def sorted_tokens(encoding):
    """The bytes of all tokens in order, and their ids."""
    tokens = sorted(encoding.token_byte_values())
    return tokens, [encoding.encode_single_token(token) for token in tokens]
