"""Weights laid out for the processor before a text is written, not again for every token.

A matrix product first copies its weights into the order in which its inner loop reads them. With a
thousand rows that goes unnoticed; with two to sixty, as when texts are written side by side, it is
much of the work. oneDNN, which is part of PyTorch, can keep the copy.
"""

import contextlib
import functools

import torch
import torch.nn.functional as F
from torch import nn

from support.memory import available_bytes


@contextlib.contextmanager
def packed(*models):
    """Inside, the linear layers of these models multiply by a packed copy of their weights.

    It takes as much memory as the weights, and half a second for 135 million of them. They must not
    change inside. The copy is exact, but sums are taken in another order. A model stays as it is
    on a GPU, with weights narrower than float32, or if its copy would take more than half of the
    free memory.
    """
    changed = []
    try:
        for layer in (layer for model in models for layer in layers_to_pack(model)):
            weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
            layer.forward = functools.partial(product, layer, weight)
            changed.append(layer)
        yield
    finally:
        for layer in changed:
            vars(layer).pop("forward", None)  # again the method of its class


def layers_to_pack(model):
    """The linear layers of a model, or [] if packing is not possible or takes too much memory."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    size = sum(layer.weight.nbytes for layer in layers)
    fits = (torch.backends.mkldnn.is_available() and model.device.type == "cpu"
            and model.dtype == torch.float32 and size <= (available_bytes("cpu") or 0) / 2)
    return layers if fits else []


def product(layer, weight, x):
    """The output of a linear layer whose packed weight is given: x (..., in) -> (..., out)."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):  # it does not support these
        return F.linear(x, layer.weight, layer.bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")
