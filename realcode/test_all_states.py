"""Tests of learning from every state of a program at once."""

import functools
import random

import numpy as np
import pytest
import torch

from data import collate
from empower import empower_lengths, sft_example, sft_loss, train
from realcode import all_states
from realcode.all_states import all_states_example, all_states_loss, places
from realcode.training import gradient
from support.optim import adamw
from support.test_helpers import family, tiny_gpt


def test_the_example_of_the_docstring():
    lengths = empower_lengths([4, 0.1, 2, 0.1], 1)
    assert lengths.tolist() == [0, 1, 0, 1]
    assert places(lengths).tolist() == [[0, 1], [1, 0], [0, 2], [1, 0], [0, 1]]
    assert places(lengths, ends=False).tolist()[-1] == [0, 0]


def some_programs(encoding, rng):
    """[(token ids, lengths, whether it ends)]"""
    return [([int(i) for i in rng.integers(0, encoding.n_vocab, N)], rng.integers(0, 6, N), ends)
            for N, ends in ((7, True), (4, False), (1, True), (12, True))]


@torch.no_grad()
def test_the_loss_is_that_of_the_examples_of_all_states():
    encoding, rng = family("qwen"), np.random.default_rng(0)
    model = tiny_gpt(vocab_size=encoding.n_vocab)
    for program, lengths, ends in some_programs(encoding, rng):
        one_by_one = sum(sft_loss(model, *collate([sft_example(
            encoding, program[:n], program[n:n + lengths[n]],
            bool(ends or n + lengths[n] < len(program)))])) for n in range(len(program)))
        example = all_states_example(encoding, program, lengths, ends)
        scale = places(lengths, ends).sum() / len(example[2])
        together = all_states_loss(model, *all_states.collate([example]), encoding.stop)
        assert together.item() * scale == pytest.approx(one_by_one.item(), rel=1e-5)
        assert example[2].mean() * 2 == pytest.approx(1)


@torch.no_grad()
def test_padding_changes_nothing():
    encoding, rng = family("qwen"), np.random.default_rng(1)
    model = tiny_gpt(vocab_size=encoding.n_vocab)
    examples = [all_states_example(encoding, *program) for program in some_programs(encoding, rng)]
    alone = sum(float(all_states_loss(model, *all_states.collate([example]), encoding.stop))
                for example in examples)
    assert float(all_states_loss(model, *all_states.collate(examples),
                                 encoding.stop)) == pytest.approx(alone, rel=1e-5)


def test_training_learns_how_often_to_stop():
    """After training on one program, p(stop) at each place is the share of states that stop."""
    encoding = family("qwen")
    model, lengths = tiny_gpt(vocab_size=encoding.n_vocab), [2, 0, 3, 0, 0, 1]
    example = all_states_example(encoding, [1, 2, 3, 4, 5, 6], lengths)
    list(train(model, [example] * 300, 1, adamw(model, 0.01), random.Random(0), functools.partial(
        gradient, collate=all_states.collate,
        loss_of=functools.partial(all_states_loss, stop=encoding.stop))))
    with torch.no_grad():
        p = model(torch.tensor([example[0][:-1]])).softmax(-1)[0, :, encoding.stop]
    wanted = places(lengths)
    assert p.numpy() == pytest.approx(wanted[:, 1] / wanted.sum(1), abs=0.03)
