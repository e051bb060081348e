"""Exercise 2: where is it silent? Worked examples first, then random lengths."""

import numpy as np
import pytest
from test_helpers import within

from exercises import left_to_human


def positions(lengths):
    """What the function returns for a numpy array of these lengths."""
    found = within(200_000, "it does not end: did you forget the human's token? A state is "
                   "followed by the one after what the assistant writes and after her own token",
                   left_to_human, np.array(lengths, dtype=int))
    assert isinstance(found, list), f"a {type(found).__name__}, not a list"
    return found


@pytest.mark.parametrize("lengths, typed", [
    pytest.param([0, 2, 1, 1, 0], [0, 3, 4], id="the example of the docstring"),
    pytest.param([], [], id="an empty program"),
    pytest.param([3, 2, 1], [], id="the assistant writes all"),
    pytest.param([0, 0, 0], [0, 1, 2], id="the human writes all"),
    pytest.param([1, 0, 0], [1, 2], id="she writes the end"),
    pytest.param([0, 2, 1], [0], id="the assistant writes the end"),
    pytest.param([2, 9, 0, 1], [2], id="states within a suggestion do not matter"),
])
def test_by_hand(lengths, typed):
    assert positions(lengths) == typed


def test_a_suggestion_lies_between_two_of_her_tokens():
    rng = np.random.default_rng(0)
    for _ in range(300):
        lengths = [int(rng.integers(0, min(5, N) + 1)) for N in range(int(rng.integers(40)), 0, -1)]
        typed = positions(lengths)
        assert typed == sorted(set(typed)) and set(typed) <= set(range(len(lengths)))
        begins = [0, *(position + 1 for position in typed)]
        ends = [*typed, len(lengths)]
        for begin, end in zip(begins, ends):
            assert end == begin + (lengths[begin] if begin < len(lengths) else 0), (
                f"lengths {lengths}: from state {begin} on, it writes up to {end}")


def test_positions_are_integers_of_python():
    assert all(type(position) is int for position in positions([0, 2, 1, 1, 0])), (
        "numpy's integers cannot be written as JSON: use int()")
