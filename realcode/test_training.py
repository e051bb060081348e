"""Tests of training in micro-batches, saved and resumed."""

import functools
import math
import random

import pytest
import torch

from data import collate
from empower import train
from realcode.training import Progress, gradient, train_and_save
from support.cli import UserError
from support.optim import adamw, muon_and_adamw
from support.test_helpers import gradients, interrupt, random_examples, tiny_gpt


def seeing(model, seen):
    """An optimizer that changes nothing and collects the gradient of each update."""
    class Seeing(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(gradients(model))

    return Seeing(model.parameters(), lr=0.0)


def test_an_update_is_the_gradient_of_the_mean_loss_over_all_labels():
    model, batch, seen = tiny_gpt(), random_examples(7), []
    ids, labels = collate(batch)
    loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1),
                                             labels[:, 1:].flatten())
    loss.backward()
    whole = gradients(model)
    for micro_batch in (7, 3, 1):  # added up: the same gradient
        model.zero_grad()
        losses = list(train(model, batch, 7, [seeing(model, seen)], random.Random(0),
                            functools.partial(gradient, micro_batch=micro_batch)))
        assert losses == [pytest.approx(loss.item(), abs=1e-5)]
        assert torch.allclose(seen.pop(), whole, atol=1e-5)


def test_gradients_are_clipped_to_a_length():
    model, seen = tiny_gpt(), []
    for clip in (None, 0.01):
        list(train(model, random_examples(8), 8, [seeing(model, seen)], random.Random(0),
                   functools.partial(gradient, clip=clip)))
    lengths = [each.norm().item() for each in seen]
    assert lengths[0] > 0.1 and lengths[1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("make", [lambda model: muon_and_adamw(model, 0.01),
                                  lambda model: adamw(model, 0.001)])
def test_training_that_was_interrupted_goes_on_to_the_same_weights(tmp_path, monkeypatch, make):
    def pass_over(progress=None):
        model = tiny_gpt()
        losses = train_and_save(model, random_examples(), 4, make(model), random.Random(0), "test",
                                progress or Progress(tmp_path / "not kept", math.inf))
        return losses, torch.cat([p.detach().flatten() for p in model.parameters()])

    whole, path = pass_over(), tmp_path / "progress.pt"
    interrupt(monkeypatch, torch.Tensor, "backward", 6)
    with pytest.raises(KeyboardInterrupt):
        pass_over(Progress(path, 0))
    monkeypatch.undo()
    kept = path.read_bytes()
    losses, weights = pass_over(Progress(path, math.inf))
    assert losses == whole[0] and torch.equal(weights, whole[1])
    path.write_bytes(kept[:len(kept) // 2])
    with pytest.raises(UserError, match="remove it"):
        pass_over(Progress(path, math.inf))
