"""Exercise 1: Algorithm 1. Worked examples first, then random costs that add up exactly."""

import time

import numpy as np
import pytest

from empower import empower_length, empower_lengths

EXAMPLES = [
    pytest.param([0.25, 0.5, 2, 0], 1, 2, id="the example of the docstring"),
    pytest.param([0.25, 0.5, 0.25, 2], 1, 3, id="a sum equal to eta"),
    pytest.param([0.25, 0.5, 0.25, 0], 1, 4, id="free tokens after a sum equal to eta"),
    pytest.param([2, 0, 0], 1, 0, id="the first token is too dear"),
    pytest.param([0, 0, 0], 0, 3, id="everything is free"),
    pytest.param([0.25, 0.25], 9, 2, id="the text ends first"),
    pytest.param([], 1, 0, id="nothing is left"),
]


def check(nll, eta, length):
    """Fails unless `length` is i*, with the cause where it is known."""
    assert int(length) == length and 0 <= length <= len(nll), (
        f"{length} is no number of tokens between 0 and {len(nll)}")
    length, case = int(length), f"costs {list(map(float, nll))}, eta {eta}: you say {length}"
    if sum(nll[:length]) > eta:
        hint = ": line 4 of Algorithm 1 returns i - 1" * (sum(nll[:length - 1]) <= eta)
        raise AssertionError(f"{case}, but these cost {sum(nll[:length])} bits{hint}")
    if length < len(nll):
        more = sum(nll[:length + 1])
        assert more != eta, f"{case}, but {length + 1} cost exactly eta: equality is kept"
        assert more > eta, f"{case}, but {length + 1} cost only {more} bits"


def random_cases(seed, cases):
    rng = np.random.default_rng(seed)
    for _ in range(cases):
        yield rng.integers(0, 9, rng.integers(0, 30)) / 4, rng.integers(0, 40) / 4


@pytest.mark.parametrize("nll, eta, length", EXAMPLES)
def test_one_state(nll, eta, length):
    found = empower_length(np.array(nll, dtype=float), eta)
    check(nll, eta, found)
    assert found == length


def test_one_state_at_random():
    for nll, eta in random_cases(0, 1000):
        check(nll, eta, empower_length(nll, eta))


@pytest.mark.parametrize("nll, eta, length", EXAMPLES)
def test_every_state(nll, eta, length):
    found = empower_lengths(np.array(nll, dtype=float), eta)
    assert len(found) == len(nll), f"{len(found)} lengths for {len(nll)} states"
    for n in range(len(nll)):
        check(nll[n:], eta, found[n])


def test_every_state_at_random():
    for nll, eta in random_cases(1, 300):
        found = empower_lengths(nll, eta)
        assert len(found) == len(nll), f"{len(found)} lengths for {len(nll)} states"
        for n in range(len(nll)):
            check(nll[n:], eta, found[n])


def test_lengths_are_an_array_of_integers():
    found = empower_lengths(np.array([0.25, 0.5, 2, 0]), 1)
    assert isinstance(found, np.ndarray), f"a {type(found).__name__}, not a numpy array"
    assert found.dtype.kind == "i", f"an array of {found.dtype}: exercise 2 counts with integers"


def test_the_input_is_unchanged():
    nll = np.array([0.25, 0.5, 2, 0])
    for function in (empower_length, empower_lengths):
        function(nll, 1)
        assert nll.tolist() == [0.25, 0.5, 2, 0], f"{function.__name__} changes its input"


def test_every_state_at_once_is_faster_than_one_at_a_time():
    nll = np.random.default_rng(2).exponential(1.0, 3000)

    def seconds(work):
        times = []
        for _ in range(3):
            begin = time.process_time()
            work()
            times.append(time.process_time() - begin)
        return min(times)

    each = seconds(lambda: [empower_length(nll[n:], 1e9) for n in range(len(nll))])
    at_once = seconds(lambda: empower_lengths(nll, 1e9))
    assert at_once < each / 3, (f"3000 states take {at_once:.3f} s, and {each:.3f} s with "
                                "empower_length in a loop: one cumulative sum serves all states")
