"""Exercise 5: a scorer without context."""

import random

import numpy as np
import pytest

from exercises import unigram_nll


def test_by_hand():
    costs = unigram_nll([[1, 1], [1, 2]])
    assert [list(row) for row in costs] == [pytest.approx([np.log2(4 / 3)] * 2),
                                            pytest.approx([np.log2(4 / 3), 2])]


def test_a_share_is_that_of_all_programs_together():
    costs = unigram_nll([[5], [7, 7, 7]])
    assert list(costs[0]) == pytest.approx([2]), "one token of four costs 2 bits in every program"


def test_the_mean_cost_is_the_entropy_of_the_tokens():
    rng = random.Random(0)
    programs = [[rng.randrange(5) ** 2 for _ in range(rng.randint(1, 9))] for _ in range(50)]
    ids = sum(programs, [])
    shares = [ids.count(i) / len(ids) for i in set(ids)]
    costs = unigram_nll(programs)
    assert list(map(len, costs)) == list(map(len, programs))
    assert np.concatenate(costs).mean() == pytest.approx(-sum(p * np.log2(p) for p in shares))


def test_the_input_is_unchanged():
    programs = [[1, 1], [1, 2]]
    unigram_nll(programs)
    assert programs == [[1, 1], [1, 2]], "unigram_nll changes its input"
