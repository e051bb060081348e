"""How much memory fine-tuning takes, as an estimate, and how much the machine has.

    weights, gradients, AdamW     16 bytes a parameter in full training, all in float32 (18 under
                                  autocast, which keeps copies in bfloat16); with LoRA
                                  the frozen weights in their own type, and 16 bytes for each
                                  parameter of the updates
    activations                   what a layer keeps for the backward pass, for every token; with
                                  recomputing, its input for every token and all of it in one layer
    logits                        three times the vocabulary for every label: logits, a float32
                                  copy of them, and their gradient
    gaps                          0.3 of the last two: they come and go, and an allocator leaves
                                  gaps between them

Several processes (realcode/parallel.py) share the first. Each also gathers two layers, and the
embedding and the head twice, in a buffer and as copied out of it, and has the gradients of the
largest of these parts. `python fixtures/compare.py lora` measures memory on a CPU, `memory` on a
GPU.
"""

import os
from pathlib import Path

import torch

GAPS = 0.3
LABELS = 100  # labels of an example, at most, in most corpora: the cap on a suggestion


def widths(cfg):
    """The columns of a GPTConfig's residual stream, queries, keys (and values), and MLP."""
    return (cfg.hidden_size, cfg.num_attention_heads * cfg.head_dim,
            cfg.num_key_value_heads * cfg.head_dim, cfg.intermediate_size)


def embedding_and_head(cfg):
    """Their parameters, which are the same if the weights are tied."""
    return cfg.vocab_size * cfg.hidden_size * (1 if cfg.tie_word_embeddings else 2)


def parameter_counts(cfg, rank):
    """(parameters of the model, of all updates of this rank); norms and biases are left out."""
    C, Q, K, inner = widths(cfg)
    layer = 2 * C * Q + 2 * C * K + 3 * C * inner
    updates = rank * (2 * (C + Q) + 2 * (C + K) + 3 * (C + inner))
    return (cfg.num_hidden_layers * layer + embedding_and_head(cfg),
            cfg.num_hidden_layers * updates)


def activation_bytes(cfg, tokens, rank, recompute, width=4):
    """What the layers keep of so many tokens for the backward pass; width: bytes of a number."""
    C, Q, K, inner = widths(cfg)
    # Two norms with input, normalised and scaled copy; queries and keys before and after rotating,
    # values, the mixed values; the gate before and after its nonlinearity, up, their product.
    layer = 6 * C + 3 * Q + 3 * K + 4 * inner + (2 * (Q + K) if cfg.qk_norm else 0)
    layer += 7 * rank
    kept = cfg.num_hidden_layers * C + layer if recompute else cfg.num_hidden_layers * layer
    return tokens * kept * width


def training_bytes(cfg, rank=0, weight_bytes=4, micro_batch=4, context=1024, recompute=False,
                   width=4, processes=1, labels=LABELS):
    """An estimate of the memory in bytes that fine-tuning takes, in each of so many processes.

    cfg: a GPTConfig. rank: of LoRA, or 0 for full training. weight_bytes: of a frozen weight.
    width: of a number in the activations, 2 under autocast. labels: of an example, at most.
    """
    model, updates = parameter_counts(cfg, rank)
    copies = 2 if width == 2 and processes == 1 else 0  # of autocast; FSDP has its own
    weights = (model * weight_bytes + 16 * updates if rank else (16 + copies) * model) / processes
    if processes > 1:
        ends = embedding_and_head(cfg)
        layer = (model - ends) / cfg.num_hidden_layers
        weights += 2 * (ends + layer) * (min(width, weight_bytes) if rank else width) + (
            0 if rank else max(ends, layer) * (width + 4))
    logits = micro_batch * min(labels, context) * cfg.vocab_size * 4 * 3
    activations = activation_bytes(cfg, micro_batch * context, rank, recompute, width)
    return weights + (1 + GAPS) * (activations + logits)


def available_bytes(device):
    """The memory that is free on a device, or None if the system does not say.

    Without /proc, as on macOS, that is all memory of the machine.
    """
    if str(device).startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    if str(device).startswith("mps"):
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    found = []
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        found.append(1024 * int(lines["MemAvailable"].split()[0]))
    limit = group / "memory.max"  # of a container
    if limit.exists() and limit.read_text().strip().isdigit():
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        found.append(int(limit.read_text()) - int((group / "memory.current").read_text())
                     + int(stat.get("inactive_file", 0)))  # files that can be dropped
    if not found and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    # The processes of torchrun on this machine share it.
    return min(found) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if found else None
