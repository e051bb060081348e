"""Products of few rows, as when texts are written token by token, that keep the processor busy.

A matrix product of a few rows, as when texts are written side by side, spends part of its time on
copying the weights into the order in which its inner loop reads them. oneDNN, which is part of
PyTorch, can keep the copy. A single text gains nothing from it: its product reads each weight once,
in any order. But PyTorch computes it on one thread, which cannot read as fast as several.
"""

import contextlib
import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

SMALL, LARGE = 10_000_000, 1_000_000_000  # weights of a model: fewer gain nothing, more take 4 GB
FEWEST, MOST = 4, 64                      # rows for which the copy is used


@contextlib.contextmanager
def packed(*models):
    """Inside, the linear layers of these models use a packed copy of their weights for a few rows.

    The copy takes as much memory as the weights, and half a second for 135 million of them; oneDNN
    keeps another half megabyte for each shape of a product. Sums are taken in another order, so the
    last bits differ. Inside, a model cannot be copied or pickled. A model stays as it is on a GPU,
    with weights narrower than float32, or if it is smaller than SMALL or larger than LARGE.
    """
    changed = []
    try:
        for layer in layers_to_pack(models, LARGE):
            weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
            changed.append(layer)
            layer.forward = functools.partial(product, layer, weight, layer.weight._version)
        yield
    finally:
        for layer in changed:
            vars(layer).pop("forward", None)  # again the method of its class


@contextlib.contextmanager
def spread(*models):
    """Inside, linear layers of these models share the product of a single row among the threads.

    Nothing is copied, and the last bits may differ. A model stays as it is where `packed` would
    leave it, but for its size: it may be large.
    """
    changed = list(layers_to_pack(models, math.inf))
    try:
        for layer in changed:
            layer.forward = functools.partial(spread_product, layer)
        yield
    finally:
        for layer in changed:
            vars(layer).pop("forward", None)


def spread_product(layer, x):
    """The output of a linear layer: x (..., K) -> (..., N), each thread computing a part of N."""
    (N, K), parts = layer.weight.shape, torch.get_num_threads()
    if x.numel() != K or N % parts or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return F.linear(x, layer.weight, layer.bias)
    y = torch.bmm(x.reshape(1, 1, K).expand(parts, 1, K),
                  layer.weight.view(parts, -1, K).transpose(1, 2))         # (parts, 1, N / parts)
    y = y.view(*x.shape[:-1], N)
    return y if layer.bias is None else y + layer.bias


def layers_to_pack(models, largest):
    """The linear layers, not changed yet, of the models for which it helps; largest: in weights."""
    for model in dict.fromkeys(models):
        size = sum(weight.numel() for weight in model.parameters())
        if (torch.backends.mkldnn.is_available() and model.device.type == "cpu"
                and model.dtype == torch.float32 and SMALL <= size <= largest):
            yield from (layer for layer in model.modules()
                        if isinstance(layer, nn.Linear) and "forward" not in vars(layer))


def product(layer, weight, version, x):
    """The output of a linear layer: x (..., in) -> (..., out).

    weight: its packed weights, made when layer.weight had this version.
    """
    few = FEWEST <= x.numel() // x.shape[-1] <= MOST
    plain = not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))  # not supported
    if few and plain and layer.weight._version == version:
        return torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")
    return F.linear(x, layer.weight, layer.bias)
