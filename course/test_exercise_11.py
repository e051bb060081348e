"""Exercise 11: empowerment itself."""

import numpy as np
import pytest

from exercises import empowerment


def entropy(p):
    """In bits."""
    p = np.asarray(p, dtype=float)
    return float(-(p[p > 0] * np.log2(p[p > 0])).sum())


SMALL = np.array([[0, .5, .5, 0, 0],   # s: a or b
                  [0, 0, 0, 1, 0],     # a: c
                  [0, 0, 0, .5, .5],   # b: c or d
                  [0, 0, 0, 1, 0],     # c and d stay
                  [0, 0, 0, 0, 1]])


@pytest.mark.parametrize("P, k, bits", [
    pytest.param(SMALL, 1, entropy([.75, .25]) - .5, id="the example of the docstring"),
    pytest.param(SMALL, 5, entropy([.75, .25]) - .5, id="what stays is known as well later"),
    pytest.param(np.full((4, 4), .25), 1, 0, id="what comes later does not depend on it"),
    pytest.param(np.array([[0, .5, .5], [0, 1, 0], [0, 0, 1]]), 3, 1, id="it decides everything"),
    pytest.param(np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]), 2, 0, id="there is no choice"),
])
def test_by_hand(P, k, bits):
    found = empowerment(P, 0, k)
    assert found != pytest.approx(bits * np.log(2), abs=1e-9) or not bits, "nats, not bits"
    assert found == pytest.approx(bits, abs=1e-9)


@pytest.fixture
def languages():
    rng = np.random.default_rng(0)
    return [rng.dirichlet(np.full(6, .3), 6) for _ in range(30)]


def test_it_is_at_least_0_and_at_most_the_entropy(languages):
    for P in languages:
        for state in range(6):
            assert -1e-9 <= empowerment(P, state, 1) <= entropy(P[state]) + 1e-9


def test_what_is_far_away_is_known_less(languages):
    for P in languages:
        known = [empowerment(P, 0, k) for k in (1, 2, 3, 9)]
        assert all(a >= b - 1e-9 for a, b in zip(known, known[1:])), (
            f"{known} for k = 1, 2, 3, 9: no token knows more about a later one")


def test_it_is_the_difference_of_two_entropies(languages):
    for P in languages:
        later = P @ P
        right = entropy(P[2] @ later) - sum(p * entropy(row) for p, row in zip(P[2], later))
        assert empowerment(P, 2, 2) == pytest.approx(right, abs=1e-9)


def test_the_input_is_unchanged(languages):
    before = languages[0].copy()
    empowerment(languages[0], 0, 2)
    assert (languages[0] == before).all(), "empowerment changes its input"
