"""Suggestions at a caret for many editors at once.

All requests wait in one line that a single thread serves: those of the same assistant go through
the model as a batch. Each model has a KV cache with rows for many editors, so after a key only the
tokens that changed, and those of the word at the caret, are read again. A newer request of an
editor takes the place of an older one.
"""

import dataclasses
import functools
import math
import threading
from collections import OrderedDict

import torch

from model import KVCache, document_nll, extend, sample, shared, token_nll
from realcode.suggest import heal, numbers_only, whole_characters
from support.checkpoint import Checkpoint
from support.report import token_texts

WINDOW = 2048        # tokens before the caret that an assistant reads at most
MEMORY = 2**30       # bytes for the KV cache of one model
EDITORS = 32         # rows of a KV cache at most; the least recently used makes room
IN_LINE = 100        # requests that wait at most
PATIENCE = 120       # seconds after which a request that waits is given up
LIKELIEST = 5        # alternatives that are shown for each token


class Busy(Exception):
    """Too many requests wait, or this one waited too long."""


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
    costs: bool = False          # whether the cost of each token is wanted

    def group(self, editor):
        """Equal for requests that may share a batch, which has one seed and one cap on the cost."""
        alone = editor if self.temperature or self.eta < math.inf else None
        return self.max_tokens, self.costs, alone


@dataclasses.dataclass
class Suggestion:
    """What an assistant writes after the caret; the first token may be the rest of a typed one."""

    text: str
    pieces: list                 # the text of each token
    costs: list | None           # bits of each token under its own model, if asked for
    stopped: bool                # it ended by itself, not at a cap


# ------------------------------------------------------------------- the line


class Line:
    """Requests wait here for the one thread that uses the models."""

    def __init__(self):
        self.changed, self.waiting = threading.Condition(), OrderedDict()
        threading.Thread(target=self._work, daemon=True).start()

    def ask(self, key, group, work, item):
        """The result of `item`, from work([items]) for all that wait in its group.

        key: (who asks, for what); a newer request with the same key makes this one return None.
        Raises Busy, or what `work` raises.
        """
        job = _Job(group, work, item)
        with self.changed:
            if key in self.waiting:
                self.waiting.pop(key).done.set()
            if len(self.waiting) >= IN_LINE:
                raise Busy("too many requests are waiting: try again in a moment")
            self.waiting[key] = job
            self.changed.notify()
        if not job.done.wait(PATIENCE):
            with self.changed:
                if self.waiting.get(key) is job:
                    del self.waiting[key]
            raise Busy(f"no answer within {PATIENCE} s: try again, or use a smaller model")
        if job.error:
            raise job.error
        return job.result

    def _work(self):
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting)
                first = next(iter(self.waiting.values()))
                keys = [key for key, job in self.waiting.items() if job.group == first.group]
                jobs = [self.waiting.pop(key) for key in keys[:EDITORS]]
            try:
                results = first.work([job.item for job in jobs])
            except BaseException:  # one of them may not fit with the others: one by one
                for job in jobs:
                    job.answer(lambda: first.work([job.item])[0])
            else:
                for job, result in zip(jobs, results):
                    job.answer(lambda: result)


class _Job:
    def __init__(self, group, work, item):
        self.group, self.work, self.item = group, work, item
        self.done, self.result, self.error = threading.Event(), None, None

    def answer(self, work):
        """Keeps the result of work(), or its error, for whoever waits."""
        try:
            self.result = work()
        except BaseException as error:  # the line goes on
            self.error = error
        self.done.set()


# ------------------------------------------------------------------- caches that live on


class EditorCaches:
    """A KVCache of one model with a row for each editor."""

    def __init__(self, model):
        cfg = model.config
        token = 2 * cfg.num_hidden_layers * cfg.num_key_value_heads * cfg.head_dim * (
            model.dtype.itemsize)  # bytes
        self.window = min(WINDOW, cfg.max_position_embeddings)
        self.size = max(1, min(EDITORS, MEMORY // (token * self.window)))
        self.cache = KVCache(model, self.size)
        self.order = list(range(self.size))               # of the rows, least recently used first

    def rows_for(self, texts):
        """The row of the cache for each text.

        A text gets the row that holds most of its beginning, unless most of that row is something
        else: then another editor will need it, and the least recently used row is taken.
        """
        rows = []
        for text in texts:
            free = [row for row in self.order if row not in rows]
            same = {row: shared(*self.cache.held[row], text) for row in free}
            best = max(free, key=same.get)
            row = best if 2 * same[best] > sum(map(len, self.cache.held[best])) else free[0]
            self.order.remove(row)
            self.order.append(row)
            rows.append(row)
        return rows

    def window_of(self, ids, room):
        """The end of `ids` that an assistant reads, with `room` left for what it writes.

        It is cut by half a window at a time: cut by a token after every key, no text would have
        anything in common with the one before it.
        """
        limit = max(2, self.window - room)
        half = limit // 2
        return ids[max(0, math.ceil((len(ids) - limit) / half)) * half:]


# ------------------------------------------------------------------- what the models are asked


class Models:
    """The models of a page, asked one batch after another."""

    def __init__(self, scorer, choices):
        self.scorer, self.choices, self.line = scorer, choices, Line()
        self.caches = {}  # {name of a checkpoint: EditorCaches}

    def suggest(self, name, editor, request):
        """The Suggestion of an assistant, or None if the same editor has asked again since."""
        work = functools.partial(self._suggest, self.choices[name])
        return self.line.ask((editor, name), (name, *request.group(editor)), work, request)

    def read(self, editor, text):
        """What the scorer makes of a program, as in `read_program`."""
        return self.line.ask((editor, "read"), editor, lambda texts: [
            read_program(self.scorer, text) for text in texts], text)

    @torch.no_grad()
    def _suggest(self, choice, requests):
        model, encoding = choice.checkpoint.model, choice.checkpoint.encoding
        if model.name not in self.caches:
            self.caches[model.name] = EditorCaches(model)
        caches = self.caches[model.name]
        if len(requests) > caches.size:  # a large model: fewer editors at a time
            return [found for k in range(0, len(requests), caches.size)
                    for found in self._suggest(choice, requests[k:k + caches.size])]
        most = min(choice.max_tokens, requests[0].max_tokens, caches.window // 2)
        written = [caches.window_of(encoding.encode_ordinary(request.text), most + 2)
                   for request in requests]
        rows = caches.rows_for([[encoding.start, *ids] for ids in written])
        part = caches.cache.select(rows)  # a copy: if something fails, the cache stays as it was
        with numbers_only(model):
            healed = heal(model, encoding, part, written)
            texts = [ids for ids, _, _ in healed]
            first = requests[0]
            generator = torch.Generator(model.device).manual_seed(first.seed)
            new, stopped = sample(model, part, texts, most, encoding.stops, first.temperature,
                                  first.top_p, first.eta - healed[0][2], generator)
            costs = own_costs(model, part, texts, new) if first.costs else [None] * len(new)
        caches.cache.put_back(rows, part)
        return [finished(encoding, *each, min(choice.healing, first.eta), most)
                for each in zip(healed, new, costs, stopped)]


def own_costs(model, cache, texts, new):
    """The bits of each new token after its text, under the model that wrote it."""
    logits = extend(model, cache, texts, new)                              # (B, M + 1, V)
    return [token_nll(row[:len(ids)], torch.tensor(ids, device=row.device)).tolist() if ids else []
            for row, ids in zip(logits, new)]


def finished(encoding, healed, new, costs, stopped, allowed, most):
    """The Suggestion, empty if the caret is in a word whose end costs more than `allowed` bits."""
    ids, typed, bits = healed
    if bits > allowed:
        return Suggestion("", [], costs and [], True)
    rest = encoding.decode_bytes(ids[-1:])[typed:]
    pieces = whole_characters(
        [rest] * bool(rest) + [encoding.decode_single_token_bytes(i) for i in new])
    if costs is not None and rest:
        costs = [bits, *costs]
    return Suggestion("".join(pieces), pieces, costs and costs[:len(pieces)],
                      stopped or len(new) < most)


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
