"""Exercise 10: what is learned? The oracle is cross-entropy on what is learned alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from exercises import label_nll, labels


@pytest.mark.parametrize("prefix, completion, ids, learned", [
    pytest.param([7, 8], [9], [0, 7, 8, 9, 1], [-100, -100, -100, 9, 1],
                 id="the example of the docstring"),
    pytest.param([7], [], [0, 7, 1], [-100, -100, 1], id="silence is learned too"),
    pytest.param([], [5, 6], [0, 5, 6, 1], [-100, 5, 6, 1], id="an empty prefix"),
])
def test_labels_by_hand(prefix, completion, ids, learned):
    found = labels(prefix, completion, 0, 1)
    assert found[0].tolist() == ids
    assert found[1].tolist() == learned
    assert all(tensor.dtype == torch.long for tensor in found), "ids are integers (torch.long)"


def test_costs_by_hand():
    assert label_nll(torch.zeros(3, 2), torch.tensor([-100, -100, 1])).tolist() == [0, 1]
    # 3/4 and 1/4 in the first place, which is about the label in the second.
    logits = torch.tensor([[math.log(3), 0.0], [0, 0]])
    found = label_nll(logits, torch.tensor([-100, 1])).tolist()
    assert found != [1.0], "logits[t] are about labels[t + 1], not about labels[t]"
    assert found == pytest.approx([2.0]), "nats, not bits" * (found == pytest.approx([math.log(4)]))


def test_costs_are_those_of_what_is_learned():
    logits, targets = torch.randn(4, 6, 7), torch.randint(7, (4, 6))
    targets[:, :2], targets[3, 4:] = -100, -100  # a prefix, and padding
    found = label_nll(logits, targets)
    assert found.shape == (4, 5), f"{tuple(found.shape)} for logits (4, 6, 7), not (4, 5)"
    assert (found[targets[:, 1:] < 0] == 0).all(), "a label of -100 costs something"
    right = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), reduction="sum")
    assert found.sum().item() == pytest.approx(right.item() / math.log(2), rel=1e-5)


def test_only_what_is_learned_has_a_gradient():
    logits, targets = torch.randn(5, 7, requires_grad=True), torch.tensor([-100, -100, 3, -100, 2])
    label_nll(logits, targets).sum().backward()
    assert logits.grad.abs().sum(-1).gt(0).tolist() == [False, True, False, True, False]


def test_large_and_narrow_logits_give_finite_costs():
    found = label_nll(torch.tensor([[1e4, 0.0], [0, 0]]), torch.tensor([-100, 1]))
    assert found.isfinite().all(), "an exponential of 1e4 overflows: use log_softmax or logsumexp"
    found = label_nll(torch.zeros(2, 3000, dtype=torch.float16), torch.tensor([-100, 7]))
    assert found.dtype == torch.float32, "costs are computed in float32"
    assert found.item() == pytest.approx(math.log2(3000), abs=1e-4)


def test_the_input_is_unchanged():
    logits, targets = torch.zeros(3, 2), torch.tensor([-100, -100, 1])
    label_nll(logits, targets)
    assert targets.tolist() == [-100, -100, 1] and not logits.any(), "label_nll changes its input"
