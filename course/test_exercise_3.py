"""Exercise 3: the rules of Empower and of its baselines."""

import numpy as np
import pytest

from empower import empower, sft, sft_rand

NLL = np.array([0.25, 0.0625, 0.5, 8.0])


@pytest.mark.parametrize("eta, length", [
    pytest.param(0.32, 2, id="0.32 bits"), pytest.param(4, 3, id="4 bits"),
    pytest.param(9, 4, id="9 bits")])
def test_empower_by_hand(eta, length):
    assert empower(eta)(NLL, np.random.default_rng(0)) == length


@pytest.mark.parametrize("n", [pytest.param(1, id="1 token"), pytest.param(10, id="10 tokens")])
def test_sft_is_a_fixed_number(n):
    found = sft(n)(NLL, np.random.default_rng(0))
    assert found == n, f"{found} for {n}: do not truncate it to the costs that are left"


def test_sft_rand_is_uniform():
    rng = np.random.default_rng(0)
    drawn = [sft_rand(6)(NLL, rng) for _ in range(6000)]
    counts = {n: drawn.count(n) for n in range(min(drawn + [0]), max(drawn) + 1)}
    assert counts[0] == 0, "it is 0 at times: a length is at least 1"
    assert max(drawn) == 6, f"at most {max(drawn)} for 6: rng.integers leaves out its upper end"
    assert all(850 < counts[n] < 1150 for n in range(1, 7)), (
        f"not uniform: in 6000 draws from 1 to 6, {counts}")


def test_sft_rand_draws_from_the_generator_that_it_is_given():
    rule = sft_rand(9)
    first, second = ([rule(NLL, rng) for _ in range(20)]
                     for rng in (np.random.default_rng(1), np.random.default_rng(1)))
    assert first == second, "the same generator gives other lengths: use rng and no other"
    assert len(set(first)) > 1, "always the same length"


def test_lengths_are_integers():
    for rule in (empower(1), sft(3), sft_rand(4)):
        found = rule(NLL, np.random.default_rng(0))
        assert isinstance(found, (int, np.integer)), f"{found!r} cannot be a number of tokens"
