"""Suggestions at a caret for many editors at once.

All requests wait in one line (page/line.py). Those for the same model write together, a token each
in every step, and a newer one joins them between two steps. Each model has a KV cache with rows for
many editors, so after a key only the tokens that changed, and those of the word at the caret, are
read again.
"""

import codecs
import dataclasses
import math
import os

import torch

from model import KVCache, document_nll, draw, extend, shared, token_nll
from page.line import Call, Job, Line
from realcode.packed import spread
from realcode.suggest import heal, numbers_only
from support.checkpoint import Checkpoint
from support.report import token_texts

WINDOW = 2048        # tokens before the caret that an assistant reads at most
LONGEST = 100_000    # characters of a text that are tokenized at most: more than WINDOW tokens have
MEMORY = 2**30       # bytes for the KV cache of one model
EDITORS = 32         # rows of a KV cache at most; the least recently used makes room
SHORT = 16           # tokens that are read in the same step in which others write one
PART = 256           # tokens of a long text that are read at a time
LIKELIEST = 5        # alternatives that are shown for each token


@dataclasses.dataclass(frozen=True)
class Choice:
    """An assistant that the page offers."""

    checkpoint: Checkpoint
    max_tokens: int              # a cap on one suggestion
    needs_eta: bool = False      # not trained to stop: stops before its text costs more than eta
    healing: float = math.inf    # bits that the rest of the word at the caret may cost


@dataclasses.dataclass(frozen=True)
class Request:
    """What an editor asks for."""

    text: str                    # the code before the caret
    eta: float = math.inf        # bits
    max_tokens: int = 10**6      # the assistant's own cap counts too
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclasses.dataclass
class Suggestion:
    """What an assistant writes after the caret; the first token may be the rest of a typed one."""

    text: str
    tokens: int
    bits: float                  # their cost under its own model


# ------------------------------------------------------------------- one suggestion


class Writing:
    """A suggestion that is being written.

    text: the ids that are read next. Once the word at the caret is healed, it grows, a token after
    the other.
    """

    def __init__(self, choice, request, window):
        self.choice, self.request = choice, request
        self.encoding = encoding = choice.checkpoint.encoding
        self.most = min(choice.max_tokens, request.max_tokens, window // 2)
        ids = end_of(encoding.encode_ordinary(end_of(request.text, LONGEST)),
                     max(2, window - self.most - 2))
        self.ids, self.read = ids, len(ids)     # of the text before the caret
        self.text, self.healed = [encoding.start, *ids], False
        self.bits, self.row = 0.0, None  # row: of the cache, when it was last written
        self.generator = torch.Generator(choice.checkpoint.model.device).manual_seed(request.seed)
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def begin(self, found, job):
        """Takes what `realcode.suggest.heal` has found for the word at the caret."""
        self.text, typed, self.bits = found
        self.healed = True
        if self.bits > min(self.choice.healing, self.request.eta):
            return job.end("stop")  # the caret is in a word whose end is not obvious
        rest = self.encoding.decode_bytes(self.text[-1:])[typed:]
        if rest and self.most > 0:
            self.most = min(self.most, self.request.max_tokens - 1)
            self.give(rest, self.bits, job)
        if self.most <= 0:
            job.end("length")

    def add(self, token, bits, job):
        """Takes the next token, which costs so many bits."""
        self.bits += bits
        if token in self.encoding.stops or self.bits > self.request.eta:
            return job.end("stop")
        self.text, self.most = [*self.text, token], self.most - 1  # the cache keeps the old list
        self.give(self.encoding.decode_single_token_bytes(token), bits, job)
        if self.most <= 0:
            job.end("length")

    def give(self, text, bits, job):
        """Gives the next bytes as text: whole characters, and none after bytes that are none."""
        try:
            job.give((self.decoder.decode(text), bits))
        except UnicodeDecodeError:
            job.end("stop")


def end_of(text, limit):
    """The end of a text, characters or ids, with at most `limit` of them.

    It is cut by half the limit at a time: cut by one after every key, no text would have
    anything in common with the one before it.
    """
    half = limit // 2
    return text[max(0, math.ceil((len(text) - limit) / half)) * half:]


# ------------------------------------------------------------------- a model and its cache


class Writer:
    """A model that writes for many editors, each of which has a row of its KV cache."""

    def __init__(self, model, line):
        cfg = model.config
        token = 2 * cfg.num_hidden_layers * cfg.num_key_value_heads * cfg.head_dim * (
            model.dtype.itemsize)  # bytes
        self.model, self.line = model, line
        self.window = min(WINDOW, cfg.max_position_embeddings)
        self.size = max(1, min(EDITORS, MEMORY // (token * self.window)))
        self.cache = KVCache(model, self.size)
        self.order = list(range(self.size))               # of the rows, least recently used first

    @torch.no_grad()
    def round(self, jobs):
        """Reads a part of the texts that are long, or writes until a job comes or some have ended.

        So a text of which there is much to read keeps others waiting once and not for long, and
        what was read for a client that hung up serves its next request.
        """
        jobs = [job for job in jobs if not job.ended][:self.size]
        sources = self.rows_for([job.item for job in jobs])
        long, texts = [], []
        for k, job in enumerate(jobs):
            text = job.item.text
            cached = shared(*self.cache.held[sources[k]], text)
            if len(text) - cached > SHORT and all(
                    len(os.path.commonprefix([text, other])) <= cached + SHORT for other in texts):
                long.append(k)  # what two texts have in common is read once
                texts.append(text[:cached + PART])
        if long:
            part = self.cache.select([sources[k] for k in long])
            extend(self.model, part, texts)
            self.cache.put_back([jobs[k].item.row for k in long], part)
        elif jobs:
            part = self.cache.select(sources)  # a copy: if something fails, the cache is as it was
            with numbers_only(self.model), spread(self.model):
                self.write(jobs, part)
            self.cache.put_back([job.item.row for job in jobs], part)

    def write(self, jobs, part):
        """Writes a token for each job at a time; part: the rows of the cache for them."""
        entered = self.line.entered
        while True:
            self.step(jobs, part)
            self.line.sweep()
            if self.line.entered > entered or sum(
                    not job.ended for job in jobs) <= 0.75 * len(jobs):
                break

    def step(self, jobs, part):
        """Writes one token for each job, or heals the words at the carets of those that are new."""
        items = [job.item for job in jobs]
        new = [k for k, job in enumerate(jobs) if not (job.ended or job.item.healed)]
        if new:
            own = part.select(new)
            for k, found in zip(new, heal(self.model, items[new[0]].encoding, own,
                                          [items[k].ids for k in new])):
                items[k].begin(found, jobs[k])
            return part.put_back(new, own)
        first = extend(self.model, part, [item.text for item in items])[:, -1]       # (B, V)
        tokens = first[:, :self.model.writable].argmax(-1)                 # (B,)
        for k, item in enumerate(items):
            if item.request.temperature:
                tokens[k] = draw(first[k:k + 1, :self.model.writable], item.request.temperature,
                                 item.request.top_p, item.generator)[0]
        costs = token_nll(first, tokens)
        for job, token, bits in zip(jobs, tokens.tolist(), costs.tolist()):
            if not job.ended:  # else it stays for a few steps, to be fed its last token again
                job.item.add(token, bits, job)

    def rows_for(self, items):
        """The row of the cache that holds most of the beginning of each text.

        item.row becomes the row that each gets: the same one, unless another text has it or most of
        it is something else. Then another editor will need it, and the least recently used row is
        taken.
        """
        held, taken, sources = self.cache.held, [], {}
        mine = [item.row is not None and shared(*held[item.row], item.text) >= len(item.text) - 1
                for item in items]
        for k in sorted(range(len(items)), key=lambda k: not mine[k]):  # who has a row keeps it
            item = items[k]
            same = {row: shared(*held[row], item.text)
                    for row in ([item.row] if mine[k] else self.order)}
            source = max(same, key=same.get)
            free = [row for row in self.order if row not in taken]
            item.row = source if source in free and 2 * same[source] > sum(
                map(len, held[source])) else free[0]
            self.order.remove(item.row)
            self.order.append(item.row)
            taken.append(item.row)
            sources[k] = source
        return [sources[k] for k in range(len(items))]


# ------------------------------------------------------------------- what the models are asked


class Models:
    """The models of a page, which share one line."""

    def __init__(self, scorer, choices):
        self.scorer, self.choices, self.line = scorer, choices, Line()
        models = {choice.checkpoint.model.name: choice.checkpoint.model
                  for choice in choices.values()}
        self.writers = {name: Writer(model, self.line) for name, model in models.items()}

    def ask(self, name, request, call=Call(), key=None):
        """A Job for an assistant: `line.answer` yields (text, bits) of each token.

        It ends with "stop", by itself, or "length", at a cap; else it was overtaken. key: who asks.
        """
        choice = self.choices[name]
        writer = self.writers[choice.checkpoint.model.name]
        return Job(writer.round, Writing(choice, request, writer.window), key or call.client,
                   key and (key, name), call.gone)

    def suggest(self, name, key, request, call=Call()):
        """The Suggestion of an assistant, or None if the same editor has asked again since."""
        job = self.ask(name, request, call, key)
        parts = [part for part in self.line.answer(job) if part]
        if job.outcome is None:
            return None
        return Suggestion("".join(text for text, _ in parts), len(parts),
                          sum(bits for _, bits in parts))

    def read(self, editor, text, call=Call()):
        """What the scorer makes of a program, as in `read_program`; None if it is overtaken."""
        job = Job(self._read, text, editor, (editor, "read"), call.gone)
        return next(filter(None, self.line.answer(job)), None)

    def _read(self, jobs):
        jobs[0].give(read_program(self.scorer, jobs[0].item))
        jobs[0].end()


# ------------------------------------------------------------------- the costs of a program


def read_program(scorer, text):
    """([(text of a token, bits, [(alternative, its probability)])], all its tokens) of a program.

    Of a long program only the beginning is read.
    """
    model, encoding = scorer.model, scorer.encoding
    whole = encoding.encode_ordinary(text)
    ids = whole[:min(WINDOW, model.config.max_position_embeddings) - 1]
    if not ids:
        return [], 0
    document = torch.tensor([[encoding.start, *ids]], device=model.device)
    k = min(LIKELIEST, model.writable)
    found = document_nll_and_likeliest(model, document, k)[0]              # (N, 1 + 2 K)
    texts = token_texts(encoding, ids)
    return [(piece, row[0], [(shown(encoding, int(i)), p) for p, i in zip(row[1:1 + k],
                                                                          row[1 + k:])])
            for piece, row in zip(texts, found.tolist())], len(whole)


@torch.no_grad()
def document_nll_and_likeliest(model, ids, k):
    """The bits of each token, and the k likeliest tokens with probabilities: (B, T-1, 1 + 2 k)."""
    def cost(logits, targets):
        likeliest = logits[..., :model.writable].float().softmax(-1).topk(k)
        return torch.cat([token_nll(logits, targets)[..., None], likeliest.values,
                          likeliest.indices.float()], -1)  # ids below 2^24 are exact in float32

    return document_nll(model, ids, cost)


def shown(encoding, token):
    """The text of one token; a token that ends a document, and the like, has none."""
    try:
        return encoding.decode_single_token_bytes(token).decode(errors="replace")
    except KeyError:
        return ""
