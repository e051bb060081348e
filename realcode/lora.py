"""Low-rank updates of a frozen model (LoRA, Hu et al. 2021), and files of them in PEFT's format.

Each projection W of attention and MLP gets an update of low rank, W + alpha / rank * B A. Only A
and B are trained, in float32. B is 0 at the start, so training begins with the model as it is.
"""

import json
import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from support.files import write_safetensors, write_text

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALPHA = 2  # alpha / rank: the updates of every rank have the same size


class LowRank(nn.Module):
    """A frozen linear layer and its trained update: x (..., in) -> (..., out)."""

    def __init__(self, linear, rank, generator):
        super().__init__()
        rows, columns = linear.weight.shape
        bound = 1 / math.sqrt(columns)  # as PEFT initialises A
        A = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
        self.linear = linear
        self.A = nn.Parameter(A.to(linear.weight.device))                  # (rank, in)
        self.B = nn.Parameter(torch.zeros(rows, rank, device=linear.weight.device))

    def forward(self, x):
        y = self.linear(x)
        # Autocast would make the wide copy of x narrow again, and keep the result.
        wide = x if torch.is_autocast_enabled(x.device.type) else x.to(self.A.dtype)
        update = F.linear(F.linear(wide, self.A), ALPHA * self.B)
        y += update  # in place, since it is large; y may be bfloat16, the update float32
        return y


def add_lora(model, rank, generator):
    """Freezes the GPT and gives each of its projections an update of this rank; in place."""
    model.requires_grad_(False)
    for parent, name, linear in projections(model):
        setattr(parent, name, LowRank(linear, rank, generator))


@torch.no_grad()
def merge_lora(model):
    """Adds the updates to the weights, which makes the model an ordinary GPT again; in place."""
    for parent, name, layer in projections(model):
        weight, update = layer.linear.weight, ALPHA * (layer.B @ layer.A)
        weight.copy_(weight.to(update.dtype) + update)
        setattr(parent, name, layer.linear)
    model.requires_grad_(True)


def projections(model):
    """(parent module, name, layer) of every projection in a GPT."""
    return [(parent, name, getattr(parent, name)) for layer in model.layers
            for parent in (layer.self_attn, layer.mlp) for name in PROJECTIONS
            if hasattr(parent, name)]


def save_adapter(model, base, folder):
    """Writes only the updates, in PEFT's format: adapter_config.json, adapter_model.safetensors.

    base: the folder of the model to which they belong.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LowRank)}
    rank = next(iter(layers.values())).A.shape[0]
    write_text(Path(folder, "adapter_config.json"), json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM",
        "base_model_name_or_path": os.path.abspath(base),
        "r": rank, "lora_alpha": ALPHA * rank, "lora_dropout": 0.0, "bias": "none",
        "target_modules": list(PROJECTIONS), "fan_in_fan_out": False, "inference_mode": True,
        "init_lora_weights": True}, indent=2) + "\n")
    write_safetensors(Path(folder, "adapter_model.safetensors"), {
        f"base_model.model.model.{name}.lora_{part}.weight": getattr(layer, part)
        for name, layer in layers.items() for part in "AB"})
