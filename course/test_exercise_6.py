"""Exercise 6: how careful is she?"""

import math
from functools import partial

import numpy as np
import pytest

from exercises import rejects_herself
from simhuman import typical, typical_limits


@pytest.mark.parametrize("costs, n, share", [
    pytest.param([[0, 1, 0, 3]], 2, 1 / 3, id="the example of the docstring"),
    pytest.param([[0, 1, 0, 3]], 1, 1 / 4, id="runs of one token"),
    pytest.param([[0, 1, 0, 3]], 4, 1, id="one run, the whole program"),
    pytest.param([[0, 3], [1]], 1, 1 / 3, id="programs of different lengths"),
    pytest.param([[0, 3], [1, 3]], 2, 1, id="no run goes over from one program to the next"),
    pytest.param([[1, 1], [1]], 2, 0, id="a program shorter than the run"),
])
def test_by_hand(costs, n, share):
    found = rejects_herself(lambda nll: sum(nll) <= 2, costs, n)
    assert found == pytest.approx(share), "the share that she accepts" * (found == 1 - share)


def test_nan_if_no_program_has_so_many_tokens():
    assert math.isnan(rejects_herself(lambda nll: True, [[1], []], 2))


def test_it_measures_her_care():
    rng = np.random.default_rng(0)
    costs = [rng.exponential(1.0, 40).tolist() for _ in range(300)]
    for care in (0.5, 0.1, 0.02):
        accepts = partial(typical, limits=typical_limits(costs, care, 8))
        for n in (1, 3, 8):
            share = rejects_herself(accepts, costs, n)
            assert share == pytest.approx(care, abs=1e-3)  # a sum may be rounded either way
