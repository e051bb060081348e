"""A Llama-style language model: forward pass, costs in bits, KV cache, sampling, load and save.

One network covers the published families Llama 3, SmolLM2, Mistral, Qwen2 and Qwen3: RMSNorm,
RoPE, SwiGLU and grouped-query attention. Our own models are Qwen3 (normalised queries and keys)
with the head tied to the embedding. Weights are named as in published checkpoints.

    B  rows of a batch       C  hidden_size           H    num_attention_heads
    T  positions in a call   D  head_dim              Hkv  num_key_value_heads
    S  positions in a cache  V  vocab_size

This file knows nothing about problems, humans or the paper.
"""

import copy
import dataclasses
import functools
import json
import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as recomputed

from support.checkpoint import LLAMA3, read_config, weight_files
from support.files import read_safetensors, write_safetensors, write_text


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
    rope_scaling: dict | None = None           # or {"rope_type": "llama3", and four numbers}
    tie_word_embeddings: bool = True
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


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight: (..., size) -> (..., size)."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        # Normalise in float32 and cast back before applying the weight, as published models do.
        # Under autocast the weight is wider than x, but queries must stay as narrow as values.
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)
        return normed * self.weight.to(x.dtype)


def rotary_frequencies(cfg):
    """How far each pair of features turns per position, in radians: (D / 2,)."""
    # On the CPU even if the model is built without memory; in float32 and with the operations in
    # the same order as in transformers: after a few thousand positions the last bit matters.
    D = cfg.head_dim
    frequency = 1 / cfg.rope_theta ** (torch.arange(0, D, 2, device="cpu") / D)
    if cfg.rope_scaling is None:
        return frequency
    # llama3: slow pairs (fewer than `low` turns over the original context) become `factor` times
    # slower, fast ones (more than `high` turns) stay the same, those in between are interpolated.
    factor, low, high, context = (cfg.rope_scaling[name] for name in LLAMA3)
    keep = ((context / (2 * math.pi / frequency) - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * frequency / factor + keep * frequency


def rotate(x, cos, sin):
    """RoPE on x (B, T, heads, D): feature i pairs with i + D/2 (half-split, not interleaved).

    cos, sin: (B or 1, T, 1, D); the first half of `sin` is negated.
    """
    return x * cos.to(x.dtype) + x.roll(x.shape[-1] // 2, dims=-1) * sin.to(x.dtype)


def attend_last(q, k, v, mask):
    """Attention for one position of each row: q (B, Hkv, H / Hkv, D) -> (B, Hkv, H / Hkv, D).

    The queries of a group take the place of positions, so that its keys are read only once. In
    float32, with many rows and several cores, two plain products are faster than the fused kernel.
    """
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
        self.q_proj = nn.Linear(cfg.hidden_size, H * D, bias=cfg.qkv_bias)
        self.k_proj = nn.Linear(cfg.hidden_size, Hkv * D, bias=cfg.qkv_bias)
        self.v_proj = nn.Linear(cfg.hidden_size, Hkv * D, bias=cfg.qkv_bias)
        self.o_proj = nn.Linear(H * D, cfg.hidden_size, bias=cfg.attention_bias)
        self.q_norm = RMSNorm(D, cfg.rms_norm_eps) if cfg.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(D, cfg.rms_norm_eps) if cfg.qk_norm else nn.Identity()

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
        self.gate_proj = nn.Linear(C, inner, bias=cfg.mlp_bias)
        self.up_proj = nn.Linear(C, inner, bias=cfg.mlp_bias)
        self.down_proj = nn.Linear(inner, C, bias=cfg.mlp_bias)

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
    """The network.

    writable: ids from this one up have a row in the head but no token in the tokenizer.
    recompute: in training, keep only each layer's input and recompute the rest in the backward
    pass, which saves most of the memory and takes about a third longer.
    name: identifies a loaded checkpoint; None for a new model.
    """

    def __init__(self, cfg, generator=None):
        super().__init__()
        self.config = cfg
        self.writable, self.recompute, self.name = cfg.vocab_size, False, None
        self.frequencies = rotary_frequencies(cfg)
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.lm_head = nn.Linear(cfg.hidden_size, cfg.vocab_size, bias=False)
        if cfg.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02, generator=generator)
            if name.endswith(("o_proj.weight", "down_proj.weight", "bias")):
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
        the number of ids that are not padding to `cache.lengths`.
        """
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        mask = stores = None
        if cache is not None:
            positions, mask, stores = cache.place(ids)
        self.frequencies = self.frequencies.to(ids.device)  # moves on the first call only
        angle = positions[..., None].float() * self.frequencies            # (B or 1, T, D/2)
        cos = angle.cos().repeat(1, 1, 2)[:, :, None]                      # (B or 1, T, 1, D)
        sin = torch.cat((-angle.sin(), angle.sin()), -1)[:, :, None]
        recompute = self.recompute and cache is None and torch.is_grad_enabled()
        h = self.embed_tokens(ids)                                         # (B, T, C)
        for i, layer in enumerate(self.layers):
            run = functools.partial(recomputed, layer, use_reentrant=False) if recompute else layer
            h = run(h, cos, sin, mask, stores and stores[i])
        return self.norm(h)                                                # (B, T, C)

    def save_pretrained(self, directory):
        """Writes config.json and model.safetensors, which transformers can read too."""
        os.makedirs(directory, exist_ok=True)
        fields = dataclasses.asdict(self.config)
        config = {"architectures": [fields.pop("architecture")],
                  "model_type": self.config.model_type, "hidden_act": "silu",
                  "torch_dtype": str(self.dtype).removeprefix("torch."),
                  # max_position_embeddings never exceeds the window: see `parse_config`.
                  "sliding_window": None, "use_sliding_window": False, **fields}
        write_text(Path(directory, "config.json"), json.dumps(config, indent=2) + "\n")
        write_safetensors(Path(directory, "model.safetensors"),  # a tied head is written once
                          {name if name == "lm_head.weight" else f"model.{name}": weight
                           for name, weight in self.named_parameters()})

    @classmethod
    def from_pretrained(cls, directory, device="cpu", dtype=None):
        """The model in a folder with the Hugging Face layout; weights stay mapped if possible.

        dtype: None for the file's own. FileNotFoundError or ValueError says what is missing,
        damaged or not supported by this network.
        """
        fields, weights = read_config(directory), {}
        for path in weight_files(directory):
            weights |= {name.removeprefix("model."): weight
                        for name, weight in read_safetensors(path).items()
                        if not name.endswith("rotary_emb.inv_freq")}  # in old files; we compute it
        return cls.from_weights(fields, weights, directory, device, dtype)

    @classmethod
    def from_weights(cls, fields, weights, source, device="cpu", dtype=None):
        """The model with these fields of a GPTConfig and weights {name: tensor}, which it empties.

        A weight may be anything with shape, dtype and to(device, dtype). source: for messages.
        """
        cfg = GPTConfig(**fields)
        largest = max((max(weight.shape, default=0) for weight in weights.values()), default=0)
        if cfg.head_dim > largest or cfg.num_hidden_layers > len(weights) // 4:
            # Before a billion layers, or heads of a billion features, are built to be compared.
            raise ValueError(f"{source}: the weights do not match its configuration: "
                             f"{len(weights)} are too few for {cfg.num_hidden_layers} layers, or "
                             f"too small for heads of {cfg.head_dim} features")
        embedding = weights.get("embed_tokens.weight", torch.empty(0))
        head = weights.get("lm_head.weight", embedding)
        if cfg.tie_word_embeddings and (head is embedding or torch.equal(head, embedding)):
            weights.pop("lm_head.weight", None)
        else:  # a head in the file is used whatever config.json says, as in transformers
            cfg = dataclasses.replace(cfg, tie_word_embeddings=False)
        with torch.device("meta"):
            model = cls(cfg)  # takes no memory
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


# ------------------------------------------------------------------- costs in bits


def token_nll(logits, ids):
    """The cost of each token in bits, -log2 p(id): logits (..., T, V), ids (..., T) -> (..., T).

    Example: logits [0, 0] give each of two tokens probability 1/2, which costs 1 bit.
    """
    nll = F.cross_entropy(logits.flatten(0, -2).float(), ids.flatten(), reduction="none")
    return nll.view(ids.shape) / math.log(2)


def token_entropy(logits):
    """The entropy of the next token in bits: logits (..., V) -> (...).

    This is the mean of `token_nll` over the tokens that could come next (Section 4.3).
    Example: logits [0, 0, 0, 0] give 2 bits.
    """
    return torch.special.entr(logits.float().softmax(-1)).sum(-1) / math.log(2)


# ------------------------------------------------------------------- cache and sampling


class KVCache:
    """Keys and values of `rows` texts of different lengths, kept from call to call.

    lengths[r] says how many positions of row r are real; later ones are overwritten before they
    are ever attended to, so rolling a row back to an earlier length is one assignment.
    """

    def __init__(self, model, rows):
        cfg, weight = model.config, model.embed_tokens.weight
        shape = (cfg.num_hidden_layers, rows, cfg.num_key_value_heads, 0, cfg.head_dim)
        self.keys = torch.zeros(shape, device=weight.device, dtype=weight.dtype)
        self.values = torch.zeros_like(self.keys)                          # (layers, B, Hkv, S, D)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=weight.device)
        self.limit = cfg.max_position_embeddings

    def rollback(self, row, length):
        """Forgets everything in `row` after its first `length` positions."""
        self.lengths[row] = self.lengths[row].clamp(max=length)

    def select(self, rows):
        """Keeps only these rows, in this order, with at most 64 spare positions; any may repeat."""
        self.lengths = self.lengths[rows]
        room = int(self.lengths.max()) + 64
        self.keys, self.values = self.keys[:, rows, :, :room], self.values[:, rows, :, :room]

    def split(self, n):
        """Views of n rows each. Call `reserve` first: a view that grows is a view no longer."""
        for k in range(0, len(self.lengths), n):
            part = copy.copy(self)
            part.lengths = self.lengths[k:k + n]
            part.keys, part.values = self.keys[:, k:k + n], self.values[:, k:k + n]
            yield part

    def copy(self, rows):
        """A separate cache of these rows (a tensor of indices, or a mask)."""
        part = copy.copy(self)
        part.select(rows)
        return part

    def put_back(self, rows, part):
        """Writes back `part`, which began as a `copy` of these rows and may have grown."""
        S = int(part.lengths.max())
        self.reserve(S)
        self.keys[:, rows, :, :S] = part.keys[..., :S, :]
        self.values[:, rows, :, :S] = part.values[..., :S, :]
        self.lengths[rows] = part.lengths

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
            k, v = k.to(keys.dtype), v.to(keys.dtype)  # narrower under autocast
            keys[rows, :, positions] = k.transpose(1, 2)                   # (B, T, Hkv, D)
            values[rows, :, positions] = v.transpose(1, 2)
            return keys[:, :, :S], values[:, :, :S]                        # (B, Hkv, S, D)

        stores = [functools.partial(store, keys, values)
                  for keys, values in zip(self.keys, self.values)]
        return positions, mask, stores

    def reserve(self, size):
        """Makes room for `size` positions, plus 64 when it has to grow.

        Copying the cache every 64 positions is cheap: attention reads all of it for each of them.
        """
        if size > self.limit:
            raise ValueError(f"a text of {size} tokens is longer than the model's {self.limit}")
        missing = size - self.keys.shape[3]
        if missing > 0:
            grow = (0, 0, 0, missing + 64)
            self.keys, self.values = F.pad(self.keys, grow), F.pad(self.values, grow)


@torch.no_grad()
def extend(model, cache, texts, more=None):
    """Logits (B, M + 1, V): [b, j] is for the token that follows texts[b] + more[b][:j].

    texts, more: a list of ids for each row of the cache (more: None for none; M is the length of
    its longest). Before the call, row b may hold any prefix of texts[b]; afterwards it holds
    texts[b] + more[b]. Each row is fed what it lacks, padded to the longest of these chunks;
    ValueError if a row with this padding does not fit into the model's context.
    """
    device = cache.lengths.device
    more = more or [[] for _ in texts]
    sizes = torch.tensor([len(text) for text in texts], device=device)
    # The last token of a text is fed again even if it is cached: its logits are needed.
    start = cache.lengths = torch.minimum(cache.lengths, sizes - 1)
    chunks = [torch.tensor((text + tail)[begin:])
              for text, tail, begin in zip(texts, more, start.tolist())]
    ids = nn.utils.rnn.pad_sequence(chunks, batch_first=True).to(device)   # (B, T)
    cache.reserve(int(start.max()) + ids.shape[1])
    # About 4096 tokens at a time: this bounds the memory, and larger tensors are slow on a CPU.
    n = max(1, 4096 // ids.shape[1])
    hidden = torch.cat([model.hidden(some, part)                           # (B, T, C)
                        for some, part in zip(ids.split(n), cache.split(n))])
    tails = torch.tensor([len(tail) for tail in more], device=device)
    cache.lengths = sizes + tails
    at = (sizes - 1 - start)[:, None] + torch.arange(int(tails.max()) + 1, device=device)
    at = at.clamp(max=ids.shape[1] - 1)                                    # (B, M + 1)
    # Only these go through the head: with 150,000 tokens it is most of the work and the memory.
    return model.lm_head(hidden[torch.arange(len(texts), device=device)[:, None], at])


def draw(logits, temperature, top_p, generator):
    """One token for each row: logits (B, V) -> ids (B,). Temperature 0 picks the likeliest."""
    if temperature < 1e-6:  # as good as 0, and logits divided by it could overflow
        return logits.argmax(-1)
    p = F.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1:
        # Keep the fewest tokens that hold at least top_p of the probability: a token is dropped
        # if the likelier ones already hold that much.
        p, index = p.sort(dim=-1, descending=True)
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0).gather(-1, index.argsort(-1))
    # Invert the cumulative distribution, with one uniform number per row: multinomial draws a
    # number for each token of the vocabulary.
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
        if alive.sum() <= 0.75 * len(rows):  # drop the rows that have ended
            if part is not cache:
                cache.put_back(rows[~alive], part.copy(~alive))
            part = part.copy(alive)
            rows, cost, token, alive = rows[alive], cost[alive], token[alive], alive[alive]
        logits = model(token[:, None], part)[:, -1]                        # (rows, V)
        part.lengths += alive
    if part is not cache:
        cache.put_back(rows, part)
    return [[i for i in row if i >= 0] for row in new.tolist()], stopped.tolist()
