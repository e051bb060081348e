"""Training of real models: in micro-batches, in many processes, saved and resumed.

`empower.train` has two openings for this: the gradient of a batch is an argument, and the state of
the training can be saved between two updates.
"""

import contextlib
import functools
import math
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint as recomputed
from tqdm import tqdm

import data
from empower import sft_loss, train
from realcode import parallel
from support.cli import UserError, is_out_of_memory
from support.files import replacing


def gradient(model, batch, micro_batch=None, clip=None, collate=data.collate, loss_of=sft_loss):
    """`empower.sft_gradient`, a few examples at a time, shared among the processes, and clipped.

    On CUDA the forward pass is in bfloat16. micro_batch: examples at a time, None for all. clip:
    the maximum norm of the gradient, 0 or None for no limit. collate, loss_of: for examples of
    another kind (realcode/all_states.py).
    """
    size = min(micro_batch or len(batch), parallel.share(len(batch)))
    micro = [collate(batch[i:i + size]) for i in range(0, len(batch), size)]
    count, total = sum(int((labels[:, 1:] >= 0).sum()) for _, labels, *_ in micro), 0.0
    for tensors in parallel.mine(micro):
        with torch.autocast(model.device.type, torch.bfloat16,
                            enabled=model.device.type == "cuda"):
            loss = loss_of(model, *tensors) / count
        (loss * parallel.size()).backward()  # gradients are averaged over processes
        total += loss.item()
    if clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    return parallel.total(total)


@contextlib.contextmanager
def recomputing(model, enabled=True):
    """Inside, a layer keeps only its input and recomputes the rest in the backward pass.

    That saves most of the memory of a training, which takes about a third longer.
    """
    layers = model.layers if enabled else ()
    for layer in layers:
        layer.forward = functools.partial(recomputed, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # again the method of its class


def train_and_save(model, examples, batch_size, optimizers, rng, label, progress, **options):
    """The losses of `empower.train` on the examples, resumed from `progress` and saved there.

    options: of `gradient`.
    """
    parts, updates = (model, *optimizers), math.ceil(len(examples) / batch_size)
    losses = progress.load(*parts)
    with progress.saved_on_interrupt(), tqdm(
            total=updates, initial=len(losses), desc=label, unit="update", leave=False,
            disable=None) as bar:
        for loss in train(model, examples, batch_size, optimizers, rng,
                          functools.partial(gradient, **options), len(losses)):
            losses.append(loss)
            bar.set_postfix_str(f"loss {np.mean(losses[-50:]):.3f}", refresh=False)
            bar.update()
            progress.save(losses, *parts, last=len(losses) == updates)
    return losses


class Progress:
    """The state of a training in one file, saved every so many seconds, and when it ends.

    Of a model it holds the weights that are trained: with LoRA, not the frozen ones. Another number
    of processes can resume from it.
    """

    def __init__(self, path, seconds):
        self.path, self.seconds, self.saved = Path(path), seconds, time.time()
        self.interrupted = False

    @contextlib.contextmanager
    def saved_on_interrupt(self):
        """Inside, Ctrl-C ends the training after the update at hand and saves it; a second at once.

        torchrun ends its processes in its own way.
        """
        def later(*_):
            self.interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.write(2, b"\nending after this update; Ctrl-C again ends at once\n")

        alone = parallel.size() == 1 and signal.getsignal(
            signal.SIGINT) is signal.default_int_handler
        if alone:
            signal.signal(signal.SIGINT, later)
        try:
            yield
        finally:
            if alone:
                signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.interrupted:  # and no update followed
            raise KeyboardInterrupt

    def load(self, *parts):
        """Restores the state of the parts (model, optimizers, ...); returns the losses so far."""
        if not parallel.by_rank_0(self.path.exists):
            return []
        try:
            state = torch.load(self.path, mmap=True, weights_only=True, map_location="cpu"
                               if parallel.size() > 1 else parts[0].device)
            for part, values in zip(parts, state["parts"], strict=True):
                restore(part, values)
            return state["losses"]
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError,
                pickle.UnpicklingError) as error:
            if is_out_of_memory(error):
                raise
            raise UserError(f"{self.path} cannot be read ({error}): remove it to start training "
                            "from the beginning") from None

    def save(self, losses, *parts, last=False):
        """Saves the state if it is time to, or after Ctrl-C or the last update, all or nothing.

        After the last update, only the weights are needed. Raises KeyboardInterrupt after Ctrl-C.
        """
        if not parallel.by_rank_0(lambda: last or self.interrupted
                                  or time.time() - self.saved > self.seconds):
            return
        state = {"losses": losses, "parts": [
            {} if last and not isinstance(part, torch.nn.Module) else gathered(trained_state(part))
            for part in parts]}
        if parallel.rank() == 0:
            with replacing(self.path) as temporary:
                torch.save(state, temporary)
        self.saved = time.time()
        if self.interrupted:
            raise KeyboardInterrupt


def trained_state(part):
    """The state of an optimizer, or the weights of a model that are trained."""
    if not isinstance(part, torch.nn.Module):
        return part.state_dict()
    return {name: weight.detach() for name, weight in part.named_parameters()
            if weight.requires_grad}


def gathered(state):
    """A state with whole tensors where they are spread over processes: on the CPU, in rank 0."""
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list):
        return [gathered(value) for value in state]
    if not hasattr(state, "full_tensor"):
        return state
    tensor = parallel.whole(state)
    return tensor.cpu() if parallel.rank() == 0 else None


def restore(part, values):
    """Gives an optimizer or a model the state that `trained_state` returned."""
    if not values:  # the training had ended
        return None
    if isinstance(part, torch.nn.Module):
        weights = trained_state(part)
        if values.keys() != weights.keys():
            raise ValueError("it holds the weights of another model")
        return part.load_state_dict({name: parallel.spread_like(value, weights[name])
                                     for name, value in values.items()}, strict=False)
    if isinstance(part, torch.optim.Optimizer):
        weights = [weight for group in part.param_groups for weight in group["params"]]
        values["state"] = {i: {
            name: parallel.spread_like(value, weights[i]) if value.shape == weights[i].shape
            else value for name, value in state.items()} for i, state in values["state"].items()}
    part.load_state_dict(values)
