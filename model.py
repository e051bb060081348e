"""A Llama-style language model: forward, KV cache, sampling, load and save, optimizer.

The architecture is that of Qwen3 (RMSNorm, RoPE, SwiGLU, grouped-query attention with normalised
queries and keys, tied head), and every weight carries the name it has in published checkpoints.

    B  rows of a batch       C  hidden_size           H    num_attention_heads
    T  positions in a call   D  head_dim              Hkv  num_key_value_heads
    S  positions in a cache  V  vocab_size

This file knows nothing of problems, humans or the paper.
"""

import dataclasses
import functools
import json
import math
import os
import struct
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


ARCHITECTURE = "Qwen3ForCausalLM"  # the published family that this network belongs to


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The shape of a model; every field has the name that a Hugging Face config.json uses."""

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


# ------------------------------------------------------------------- the network


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        # Normalised in float32 and cast back before the weight: the order of the published models.
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


def rotary_tables(positions, head_dim, theta):
    """cos and sin of shape (*positions.shape, D / 2), in float32."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=positions.device) / head_dim)
    angle = positions[..., None].float() * frequency
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """RoPE on x (B, T, heads, D): feature i turns with feature i + D/2 (half-split, not pairs)."""
    cos, sin = cos[..., None, :].to(x.dtype), sin[..., None, :].to(x.dtype)  # (B, T, 1, D/2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
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
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None,
                                           enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, H * D))


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.up_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.down_proj = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
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
    def __init__(self, cfg, generator=None):
        super().__init__()
        self.config = cfg
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.lm_head = nn.Linear(cfg.hidden_size, cfg.vocab_size, bias=False)
        self.lm_head.weight = self.embed_tokens.weight  # tied
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02, generator=generator)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)  # each layer starts as the identity

    @property
    def device(self):
        return self.embed_tokens.weight.device

    def forward(self, ids, cache=None, rows=None):
        """Logits for every position: ids (B, T) -> (B, T, V).

        With a KVCache the ids continue `rows` of it (a tensor; None for all), each from its own
        length; the caller then moves `cache.lengths` on by as many ids as are no padding.
        """
        cfg, positions = self.config, torch.arange(ids.shape[1], device=ids.device)[None]
        mask = stores = None
        if cache is not None:
            positions, mask, stores = cache.place(ids, rows)
        cos, sin = rotary_tables(positions, cfg.head_dim, cfg.rope_theta)  # (B or 1, T, D/2)
        h = self.embed_tokens(ids)                                         # (B, T, C)
        for i, layer in enumerate(self.layers):
            h = layer(h, cos, sin, mask, stores and stores[i])
        return self.lm_head(self.norm(h))                                  # (B, T, V)

    def save_pretrained(self, directory):
        """Writes config.json and model.safetensors, as a published Qwen3 checkpoint has them."""
        os.makedirs(directory, exist_ok=True)
        config = {"architectures": [ARCHITECTURE], "model_type": "qwen3", "hidden_act": "silu",
                  "attention_bias": False, "tie_word_embeddings": True, "torch_dtype": "float32",
                  **dataclasses.asdict(self.config)}
        write_text(Path(directory, "config.json"), json.dumps(config, indent=2) + "\n")
        write_safetensors(Path(directory, "model.safetensors"),
                          {f"model.{name}": weight for name, weight in self.state_dict().items()
                           if name != "lm_head.weight"})  # tied: the file holds it once

    @classmethod
    def from_pretrained(cls, directory, device="cpu"):
        """The model that `save_pretrained` wrote; FileNotFoundError or ValueError where damaged."""
        config_path, path = Path(directory, "config.json"), Path(directory, "model.safetensors")
        try:
            config = json.loads(config_path.read_text(encoding="utf-8"))
            if config["architectures"] != [ARCHITECTURE]:
                raise ValueError(f"{config_path}: unsupported architecture "
                                 f"{config['architectures']}; supported: {ARCHITECTURE}")
            fields = {f.name: config[f.name] for f in dataclasses.fields(GPTConfig)}
        except (json.JSONDecodeError, UnicodeError, KeyError, TypeError) as error:
            raise ValueError(f"{config_path} is damaged: {error!r}") from None
        with torch.device("meta"):
            model = cls(GPTConfig(**fields))  # takes no memory
        weights = {name.removeprefix("model."): weight
                   for name, weight in read_safetensors(path).items()}
        weights["lm_head.weight"] = weights.get("embed_tokens.weight")
        try:
            model.load_state_dict(weights, strict=True, assign=True)
        except (RuntimeError, AttributeError) as error:
            raise ValueError(f"{path} does not fit {config_path}: {error}") from None
        model.lm_head.weight = model.embed_tokens.weight  # assign=True has untied them
        return model.to(device)


# ------------------------------------------------------------------- cache and sampling


class KVCache:
    """Keys and values of `rows` texts of different lengths, kept for as long as a game lasts.

    lengths[r] says how many positions of row r are real; what lies behind is overwritten before
    it is ever attended to. So rolling a row back to an earlier length is one assignment.
    """

    def __init__(self, model, rows):
        cfg, weight = model.config, model.embed_tokens.weight
        shape = (cfg.num_hidden_layers, rows, cfg.num_key_value_heads, 0, cfg.head_dim)
        self.keys = torch.zeros(shape, device=weight.device, dtype=weight.dtype)
        self.values = torch.zeros_like(self.keys)                          # (layers, B, Hkv, S, D)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=weight.device)
        self.limit = cfg.max_position_embeddings

    def rollback(self, row, length):
        """Forgets what `row` holds beyond its first `length` positions."""
        self.lengths[row] = self.lengths[row].clamp(max=length)

    def keep(self, rows):
        """Forgets all rows but these, which are numbered anew in the order given."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.lengths = self.lengths[rows]

    def place(self, ids, rows=None):
        """Where ids (B, T) go: positions (B, T), mask (B, 1, T, S), and a store for each layer."""
        subset = rows is not None and len(rows) < len(self.lengths)
        if not subset:
            rows = torch.arange(len(self.lengths), device=ids.device)
        positions = self.lengths[rows, None] + torch.arange(ids.shape[1], device=ids.device)
        S = int(positions.max()) + 1
        self._reserve(S)
        # A position sees itself and those before it, all of them real or written in this call.
        mask = torch.arange(S, device=ids.device) <= positions[:, None, :, None]

        def store(keys, values, k, v):
            keys[rows[:, None], :, positions] = k.transpose(1, 2)          # (B, T, Hkv, D)
            values[rows[:, None], :, positions] = v.transpose(1, 2)
            if subset:  # these have to be copied; all rows together need no copy
                keys, values = keys.index_select(0, rows), values.index_select(0, rows)
            return keys[:, :, :S], values[:, :, :S]                        # (B, Hkv, S, D)

        stores = [functools.partial(store, keys, values)
                  for keys, values in zip(self.keys, self.values)]
        return positions, mask, stores

    def _reserve(self, size):
        """Room for `size` positions, and half as many again when it has to grow."""
        if size > self.limit:
            raise ValueError(f"a text of {size} tokens is longer than the model's {self.limit}")
        missing = size - self.keys.shape[3]
        if missing > 0:
            grow = (0, 0, 0, missing + size // 2)
            self.keys, self.values = F.pad(self.keys, grow), F.pad(self.values, grow)


@torch.no_grad()
def extend(model, cache, texts, more=None):
    """Logits (B, M + 1, V): [b, j] is for the token that follows texts[b] + more[b][:j].

    texts, more: a list of ids for each row of the cache (more: nothing where None; M is its
    longest). Row b may hold any prefix of texts[b] beforehand and holds texts[b] + more[b]
    afterwards: what the rows lack is fed in one call, all together. ValueError where a row plus
    the longest of these chunks would not fit into the model's context.
    """
    device = cache.lengths.device
    more = more or [[] for _ in texts]
    sizes = torch.tensor([len(text) for text in texts], device=device)
    # The last token of a text is fed again even where it is known: its logits are wanted.
    start = cache.lengths = torch.minimum(cache.lengths, sizes - 1)
    chunks = [torch.tensor((text + tail)[begin:])
              for text, tail, begin in zip(texts, more, start.tolist())]
    ids = nn.utils.rnn.pad_sequence(chunks, batch_first=True).to(device)   # (B, T)
    logits = model(ids, cache)                                             # (B, T, V)
    tails = torch.tensor([len(tail) for tail in more], device=device)
    cache.lengths = sizes + tails
    at = (sizes - 1 - start)[:, None] + torch.arange(int(tails.max()) + 1, device=device)
    at = at.clamp(max=ids.shape[1] - 1)                                    # (B, M + 1)
    return logits[torch.arange(len(texts), device=device)[:, None], at]


def draw(logits, temperature, top_p, generator):
    """One token for each row: logits (B, V) -> ids (B,). Temperature 0 takes the likeliest."""
    if temperature == 0:
        return logits.argmax(-1)
    p = F.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1:
        # The fewest tokens with at least top_p of the probability: one goes when those that are
        # likelier hold as much without it.
        p, index = p.sort(dim=-1, descending=True)
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0).gather(-1, index.argsort(-1))
    return torch.multinomial(p, 1, generator=generator)[:, 0]


@torch.no_grad()
def sample(model, cache, texts, max_new_tokens, stop_token, temperature=1.0, top_p=1.0,
           max_cost=math.inf, generator=None):
    """Continues the text of each row of the cache by at most `max_new_tokens` ids, in lockstep.

    A row ends before a stop token, and before the token with which its own cost (-log2 of its
    probability at temperature 1, summed, in bits) would pass `max_cost`. Returns (new, stopped):
    a list of ids for each row, and whether a stop token ended it.
    """
    logits = extend(model, cache, texts)[:, -1]                            # (B, V)
    device, B = logits.device, len(texts)
    new = torch.full((B, max_new_tokens), -1, device=device)               # -1: nothing written
    stopped = torch.zeros(B, dtype=torch.bool, device=device)
    rows = torch.arange(B, device=device)
    cost = torch.zeros(B, device=device)
    alive = torch.ones(B, dtype=torch.bool, device=device)                 # still writing
    for step in range(max_new_tokens):
        token = draw(logits, temperature, top_p, generator)                # (rows,)
        cost -= F.log_softmax(logits.float(), -1).gather(-1, token[:, None])[:, 0] / math.log(2)
        stopped[rows] |= alive & (token == stop_token)
        alive &= (token != stop_token) & (cost <= max_cost)
        new[rows[alive], step] = token[alive]
        if not alive.any() or step + 1 == max_new_tokens:
            break
        if 2 * alive.sum() <= len(rows):  # go on without those that have ended
            rows, cost, token, alive = rows[alive], cost[alive], token[alive], alive[alive]
        logits = model(token[:, None], cache, rows)[:, -1]                 # (rows, V)
        cache.lengths[rows] += alive
    return [[i for i in row if i >= 0] for row in new.tolist()], stopped.tolist()


# ------------------------------------------------------------------- load and save

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def write_text(path, text):
    """Writes a file under a temporary name and moves it into place: all of it or nothing."""
    temporary = Path(f"{path}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_safetensors(path, tensors):
    """{name: tensor} as safetensors: size of the header, header in JSON, little-endian data."""
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    temporary = Path(f"{path}.tmp")
    with open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    os.replace(temporary, path)


def read_safetensors(path):
    """{name: tensor}, mapped from the file and not copied. ValueError says what is damaged."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if start == b"version ":
            raise ValueError(f"{path} is a Git-LFS pointer, not the weights: fetch the file itself")
        if length > size - 8:
            raise ValueError(f"{path} is truncated or no safetensors file: {size} bytes, "
                             f"of which the header claims {length}")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = [(name, e["dtype"], e["shape"], *e["data_offsets"])
                       for name, e in header.items()]
            expected = 8 + length + max((end for *_, end in entries), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} is damaged: its header cannot be read") from None
    if expected != size:
        raise ValueError(f"{path} is truncated or damaged: {size} bytes in place of {expected}")
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[8 + length:]
    tensors = {}
    for name, dtype, shape, begin, end in entries:
        if dtype not in _DTYPES:
            raise ValueError(f"{path}: {name} is stored as {dtype}; read are {', '.join(_DTYPES)}")
        if end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
            raise ValueError(f"{path} is damaged: {name} {shape} {dtype} has {end - begin} bytes")
        raw = data[begin:end]
        aligned = raw if raw.storage_offset() % _DTYPES[dtype].itemsize == 0 else raw.clone()
        tensors[name] = aligned.view(_DTYPES[dtype]).reshape(shape)
    return tensors


# ------------------------------------------------------------------- optimizer


class Muon(torch.optim.Optimizer):
    """Momentum whose update, for each weight matrix, is made orthogonal (K. Jordan, 2024).

    The update of torch.optim.Muon, whose arithmetic in bfloat16 is slow on a CPU that has no
    instructions for it: `python test_empower.py` prints the ratio. Here it is float32, and matrices
    of one shape go through it together.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for weight in group["params"]:
                buffer = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(buffer, group["momentum"])  # Nesterov's look ahead
                shapes.setdefault(weight.shape, []).append((weight, update))
            for (rows, columns), pairs in shapes.items():
                scale = group["lr"] * max(1, rows / columns) ** 0.5
                updates = orthogonalize(torch.stack([update for _, update in pairs]))
                for (weight, _), update in zip(pairs, updates):
                    weight.sub_(update, alpha=scale)


def orthogonalize(x, steps=5):
    """Singular values of x (n, rows, columns) brought near 1: a quintic Newton-Schulz iteration.

    The coefficients are Jordan's: five steps take any singular value above 0.01 to about 0.7..1.2.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonalize(x.mT, steps).mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return x
