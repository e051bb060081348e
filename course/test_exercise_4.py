"""Exercise 4: a price on reading."""

import numpy as np
import pytest

from exercises import priced_length


@pytest.mark.parametrize("nll, price, length", [
    pytest.param([0, 1, 0], 0.2, 3, id="saves 0.8, 0.6, 0.9 tokens"),
    pytest.param([0, 1, 0], 0.4, 1, id="saves 0.6, 0.2, 0.3 tokens"),
    pytest.param([], 0.2, 0, id="nothing is left"),
    pytest.param([0, 0, 0], 0, 3, id="free to read, and certain"),
    pytest.param([0, 0, 0], 1, 0, id="of equals the shortest"),
    pytest.param([3, 0], 0.2, 0, id="most likely read in vain"),
])
def test_by_hand(nll, price, length):
    assert priced_length(np.array(nll, dtype=float), price) == length


def test_it_saves_most_in_expectation():
    rng = np.random.default_rng(0)
    for _ in range(200):
        nll, price = rng.exponential(0.5, rng.integers(1, 30)), rng.uniform(0, 1)
        saved = [i * 2 ** -nll[:i].sum() - price * i for i in range(len(nll) + 1)]
        length = priced_length(nll, price)
        assert saved[length] == pytest.approx(max(saved)), (
            f"{length} tokens save {saved[length]:.3f}, but {int(np.argmax(saved))} save "
            f"{max(saved):.3f}")


def test_the_input_is_unchanged():
    nll = np.array([0.0, 1, 0])
    priced_length(nll, 0.2)
    assert nll.tolist() == [0, 1, 0], (
        "priced_length changes its input, which the rules of other rows get too: copy it first")
