"""A small language model: the network, costs in bits, a cache of keys and values, sampling.

The network is that of Qwen3: RMSNorm, RoPE, grouped-query attention with normalised queries and
keys, and SwiGLU. Its weights have the names that published checkpoints give them, so realcode/ can
fill it with theirs.

    B  rows of a batch       C  hidden_size           H    num_attention_heads
    T  positions in a call   D  head_dim              Hkv  num_key_value_heads
    S  positions in a cache  V  vocab_size

This file knows nothing about problems, humans or the paper.
"""

import copy
import dataclasses
import functools
import math
import os

import torch
import torch.nn.functional as F
from torch import nn

# ------------------------------------------------------------------- the network


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The shape of a model; the fields are named as in a Hugging Face config.json."""

    vocab_size: int = 512
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight: (..., size) -> (..., size)."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        # We normalise in float32 and cast back before applying the weight, as published models do.
        # The weight may be wider than x in mixed precision, but q, k and v must have one dtype.
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)
        return normed * self.weight.to(x.dtype)


def rotary_frequencies(head_dim, theta):
    """How far each pair of features turns per position, in radians: (D / 2,)."""
    # In transformers' order of operations: after a few thousand positions the last bit matters.
    return 1 / theta ** (torch.arange(0, head_dim, 2, device="cpu") / head_dim)


def rotate(x, cos, sin):
    """RoPE on x (B, T, heads, D): feature i pairs with i + D/2 (half-split, not interleaved).

    cos, sin: (B or 1, T, 1, D); the first half of `sin` is negated.
    """
    return x * cos.to(x.dtype) + x.roll(x.shape[-1] // 2, dims=-1) * sin.to(x.dtype)


def attend_last(q, k, v, mask):
    """Attention for one position of each row: q (B, Hkv, H / Hkv, D) -> (B, Hkv, H / Hkv, D)."""
    # The queries of a group take the place of positions, so its keys are read only once. For many
    # rows in float32, two plain products are faster than the fused kernel.
    if len(q) == 1 or q.dtype != torch.float32:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)                 # (B, Hkv, H / Hkv, S)
    return scores.where(mask, -math.inf).softmax(-1) @ v


class Attention(nn.Module):
    """Causal attention with grouped queries: (B, T, C) -> (B, T, C)."""

    def __init__(self, cfg):
        super().__init__()
        self.heads = (cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim)
        H, Hkv, D = self.heads
        self.q_proj = nn.Linear(cfg.hidden_size, H * D, bias=False)
        self.k_proj = nn.Linear(cfg.hidden_size, Hkv * D, bias=False)
        self.v_proj = nn.Linear(cfg.hidden_size, Hkv * D, bias=False)
        self.o_proj = nn.Linear(H * D, cfg.hidden_size, bias=False)
        self.q_norm = RMSNorm(D, cfg.rms_norm_eps)
        self.k_norm = RMSNorm(D, cfg.rms_norm_eps)

    def forward(self, x, cos, sin, mask, store):
        B, T, _ = x.shape
        H, Hkv, D = self.heads
        q = rotate(self.q_norm(self.q_proj(x).view(B, T, H, D)), cos, sin)
        k = rotate(self.k_norm(self.k_proj(x).view(B, T, Hkv, D)), cos, sin)
        v = self.v_proj(x).view(B, T, Hkv, D)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))                   # (B, heads, T, D)
        if store is not None:
            k, v = store(k, v)                                             # (B, Hkv, S, D)
        if T == 1 and store:
            y = attend_last(q.reshape(B, Hkv, H // Hkv, D), k, v, mask).reshape(B, H, T, D)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None,
                                               enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, H * D))


class MLP(nn.Module):
    """SwiGLU, for each position: (B, T, C) -> (B, T, C)."""

    def __init__(self, cfg):
        super().__init__()
        C, inner = cfg.hidden_size, cfg.intermediate_size
        self.gate_proj = nn.Linear(C, inner, bias=False)
        self.up_proj = nn.Linear(C, inner, bias=False)
        self.down_proj = nn.Linear(inner, C, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """A block: attention, then the MLP, each added to its input: (B, T, C) -> (B, T, C)."""

    def __init__(self, cfg):
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.self_attn = Attention(cfg)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.mlp = MLP(cfg)

    def forward(self, h, cos, sin, mask, store):
        h = h + self.self_attn(self.input_layernorm(h), cos, sin, mask, store)
        return h + self.mlp(self.post_attention_layernorm(h))


class GPT(nn.Module):
    """The network; `generator` draws its weights."""

    def __init__(self, cfg, generator=None):
        super().__init__()
        self.config = cfg
        self.writable = cfg.vocab_size  # ids from here on are padding, and are never written
        self.frequencies = rotary_frequencies(cfg.head_dim, cfg.rope_theta)
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.lm_head = nn.Linear(cfg.hidden_size, cfg.vocab_size, bias=False)
        if cfg.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02, generator=generator)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)  # each layer starts as the identity

    @property
    def device(self):
        return self.embed_tokens.weight.device

    @property
    def dtype(self):
        return self.embed_tokens.weight.dtype

    def forward(self, ids, cache=None):
        """Logits for every position: ids (B, T) -> (B, T, V); cache as in `hidden`."""
        return self.lm_head(self.hidden(ids, cache))

    def hidden(self, ids, cache=None):
        """The input of the head at every position: ids (B, T) -> (B, T, C).

        With a KVCache, the ids continue its rows, each from its own length; the caller then adds
        how many of them are not padding to `cache.lengths`. ValueError: the text is too long.
        """
        T, limit = ids.shape[1], self.config.max_position_embeddings
        if T > limit:
            raise ValueError(f"a text of {T} tokens is longer than the model's {limit}")
        positions, mask, stores = cache.place(ids) if cache is not None else (
            torch.arange(T, device=ids.device)[None], None, None)
        self.frequencies = self.frequencies.to(ids.device)  # moves on the first call only
        angle = positions[..., None].float() * self.frequencies            # (B or 1, T, D/2)
        cos = angle.cos().repeat(1, 1, 2)[:, :, None]                      # (B or 1, T, 1, D)
        sin = torch.cat((-angle.sin(), angle.sin()), -1)[:, :, None]
        h = self.embed_tokens(ids)                                         # (B, T, C)
        for i, layer in enumerate(self.layers):
            h = layer(h, cos, sin, mask, stores and stores[i])
        return self.norm(h)                                                # (B, T, C)


# ------------------------------------------------------------------- costs in bits


def token_nll(logits, ids):
    """The cost of each token in bits, -log2 p(id): logits (..., T, V), ids (..., T) -> (..., T).

    Example: logits [0, 0] give each of two tokens probability 1/2, which costs 1 bit.
    """
    nll = F.cross_entropy(logits.flatten(0, -2).float(), ids.flatten(), reduction="none")
    return nll.view(ids.shape) / math.log(2)


def document_nll(model, ids, cost=token_nll):
    """Cost in bits of ids[:, 1:], each given all tokens before it: (B, T) -> (B, T-1).

    cost: a function of (logits, ids). ArithmeticError: a cost is not a number.
    """
    # With a large vocabulary, the logits of all positions at once would not fit into memory.
    hidden, targets = model.hidden(ids[:, :-1]), ids[:, 1:]                # (B, T-1, C)
    size = max(1, 2**26 // (len(ids) * model.config.vocab_size))
    nll = torch.cat([cost(model.lm_head(h), t) for h, t in
                     zip(hidden.split(size, 1), targets.split(size, 1))], 1)
    if not nll.isfinite().all():
        raise ArithmeticError(f"the model's costs, in {model.dtype}, are not numbers")
    return nll


# ------------------------------------------------------------------- cache and sampling


class KVCache:
    """Keys and values of several texts of different lengths, kept from call to call.

    held: for each row, the ids of a text and of what was tried after it. `extend` compares them
    with its texts and feeds only the rest, so nobody has to say what became of a suggestion.
    """

    def __init__(self, model, rows):
        cfg, weight = model.config, model.embed_tokens.weight
        shape = (cfg.num_hidden_layers, rows, cfg.num_key_value_heads, 0, cfg.head_dim)
        self.keys = torch.zeros(shape, device=weight.device, dtype=weight.dtype)
        self.values = torch.zeros_like(self.keys)                          # (layers, B, Hkv, S, D)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=weight.device)
        self.held, self.limit = [([], [])] * rows, cfg.max_position_embeddings

    def select(self, rows):
        """A separate cache of these rows (a list of int), in this order; any may repeat."""
        part = self._part(rows, int(self.lengths[rows].max()) + 64)  # a few spare positions
        part.held = [self.held[row] for row in rows]
        return part

    def put_back(self, rows, part):
        """Writes back a part that was selected as these rows and may have grown."""
        if part is self:
            return
        S = int(part.lengths.max())
        self.reserve(S)
        self.keys[:, rows, :, :S] = part.keys[..., :S, :]
        self.values[:, rows, :, :S] = part.values[..., :S, :]
        self.lengths[rows] = part.lengths
        for row, held in zip(rows, part.held):
            self.held[row] = held

    def split(self, n):
        """Views of n rows each. Call `reserve` first: a view that grows is a view no longer."""
        return [self._part(slice(k, k + n)) for k in range(0, len(self.lengths), n)]

    def _part(self, rows, room=None):
        part = copy.copy(self)
        part.lengths = self.lengths[rows]
        part.keys, part.values = self.keys[:, rows, :, :room], self.values[:, rows, :, :room]
        return part

    def place(self, ids):
        """Where ids (B, T) go: positions (B, T), mask (B, 1, T, S), and a store for each layer."""
        rows = torch.arange(len(self.lengths), device=ids.device)[:, None]  # (B, 1)
        positions = self.lengths[:, None] + torch.arange(ids.shape[1], device=ids.device)
        S = int(positions.max()) + 1
        self.reserve(S)
        # A position sees itself and those before it, all of them real or written in this call. For
        # a long text in an empty cache this is just causal: a mask would cost B * T * T, and time.
        mask = (None if S == ids.shape[1] > 512 else
                torch.arange(S, device=ids.device) <= positions[:, None, :, None])

        def store(keys, values, k, v):
            k, v = k.to(keys.dtype), v.to(keys.dtype)  # k and v are narrower in mixed precision
            keys[rows, :, positions] = k.transpose(1, 2)                   # (B, T, Hkv, D)
            values[rows, :, positions] = v.transpose(1, 2)
            return keys[:, :, :S], values[:, :, :S]                        # (B, Hkv, S, D)

        return positions, mask, [functools.partial(store, *layer)
                                 for layer in zip(self.keys, self.values)]

    def reserve(self, size):
        """Makes room for `size` positions, plus 64 when it has to grow: copying is rare and cheap.
        """
        if size > self.limit:
            raise ValueError(f"a text of {size} tokens is longer than the model's {self.limit}")
        missing = size - self.keys.shape[3]
        if missing > 0:
            grow = (0, 0, 0, missing + 64)
            self.keys, self.values = F.pad(self.keys, grow), F.pad(self.values, grow)


def shared(before, tried, text):
    """How many of a text's first tokens a cache can serve, with all or none of what was tried.

    (Part of it would do too, but its last bits, and so the numbers drawn, would depend on what was
    tried.) Example: it holds [1, 2] and then [3, 4]: 4 of [1, 2, 3, 4, 5], but 2 of [1, 2, 3, 5].
    """
    whole = before + tried
    return len(whole) if text[:len(whole)] == whole else len(os.path.commonprefix([before, text]))


@torch.no_grad()
def extend(model, cache, texts, more=None):
    """Logits (B, M + 1, V): [b, j] is for the token that follows texts[b] + more[b][:j].

    texts, more: a list of ids for each row of the cache (more: None for none; M is the length of
    its longest). Each row is fed what it lacks, padded to the longest of these chunks.
    """
    device, more = cache.lengths.device, more or [[] for _ in texts]
    wholes = [text + tail for text, tail in zip(texts, more)]
    # We feed the last token of a text even if it is cached, since its logits are needed.
    start = [min(shared(*held, text), len(text) - 1) for held, text in zip(cache.held, texts)]
    cache.lengths = torch.tensor(start, device=device)
    ids = nn.utils.rnn.pad_sequence([torch.tensor(whole[begin:]) for whole, begin in zip(
        wholes, start)], batch_first=True).to(device)                      # (B, T)
    cache.reserve(max(start) + ids.shape[1])
    # About 4096 tokens at a time: this bounds the memory, and larger tensors are slow on a CPU.
    n = max(1, 4096 // ids.shape[1])
    hidden = torch.cat([model.hidden(some, part)                           # (B, T, C)
                        for some, part in zip(ids.split(n), cache.split(n))])
    cache.held = list(zip(texts, more))
    cache.lengths = torch.tensor(list(map(len, wholes)), device=device)
    at = (torch.tensor([len(text) - 1 - begin for text, begin in zip(texts, start)])[:, None]
          + torch.arange(max(map(len, more)) + 1)).clamp(max=ids.shape[1] - 1)
    # Only these go through the head: with 150,000 tokens it is most of the work and the memory.
    return model.lm_head(hidden[torch.arange(len(texts))[:, None], at])    # at: (B, M + 1)


def draw(logits, temperature, top_p, generator):
    """One token for each row: logits (B, V) -> ids (B,). Temperature 0 picks the likeliest."""
    if temperature < 1e-6:  # as good as 0, and logits divided by it could overflow
        return logits.argmax(-1)
    p = F.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1:
        # A token is dropped if the likelier ones already hold top_p of the probability.
        p, index = p.sort(dim=-1, descending=True)
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0).gather(-1, index.argsort(-1))
    # One uniform number per row is enough; torch.multinomial draws one for each token.
    cum = p.cumsum(-1)                                                     # (B, V)
    u = torch.rand(len(p), 1, generator=generator, device=p.device) * cum[:, -1:]
    return torch.searchsorted(cum, u, right=True)[:, 0]


@torch.no_grad()
def sample(model, cache, texts, max_new_tokens, stop_tokens, temperature=1.0, top_p=1.0,
           max_cost=math.inf, generator=None):
    """Continues the text of each row of the cache by at most `max_new_tokens` ids, in lockstep.

    A row ends before a stop token (an id or a list of them), or before the token that would take
    its own cost (the sum of -log2 p at temperature 1, in bits) above `max_cost`.
    Returns (new, stopped): a list of ids for each row, and whether a stop token ended it.
    """
    logits = extend(model, cache, texts)[:, -1]                            # (B, V)
    device, B = logits.device, len(texts)
    stop_tokens = torch.tensor(stop_tokens, device=device).reshape(-1)
    new = torch.full((B, max_new_tokens), -1, device=device)               # -1: nothing written
    stopped = torch.zeros(B, dtype=torch.bool, device=device)
    alive = torch.ones(B, dtype=torch.bool, device=device)                 # still writing
    rows, part = torch.arange(B, device=device), cache  # the rows in the batch and their cache
    cost = torch.zeros(B, device=device)
    for step in range(max_new_tokens):
        token = draw(logits[:, :model.writable], temperature, top_p, generator)    # (rows,)
        if max_cost < math.inf:
            cost += token_nll(logits, token)
        stop = (token[:, None] == stop_tokens).any(-1)
        stopped[rows] |= alive & stop
        alive &= ~stop & (cost <= max_cost)
        new[rows[alive], step] = token[alive]
        if not alive.any() or step + 1 == max_new_tokens:
            break
        if alive.sum() <= 0.75 * len(rows):  # go on without the rows that have ended
            cache.put_back(rows.tolist(), part)
            part = part.select(alive.nonzero()[:, 0].tolist())
            rows, cost, token, alive = rows[alive], cost[alive], token[alive], alive[alive]
        logits = model(token[:, None], part)[:, -1]                        # (rows, V)
        part.lengths += alive
    cache.put_back(rows.tolist(), part)
    written = [[i for i in row if i >= 0] for row in new.tolist()]
    cache.held = [(text, ids[:length - len(text)]) for text, ids, length in
                  zip(texts, written, cache.lengths.tolist())]
    return written, stopped.tolist()
