"""Exercise 7: DPR as a filter."""

import pytest

from exercises import keep_best
from simhuman import Episode, Turn


def written(passed, tokens, read=0):
    """An episode in which she typed so many tokens and read others, which she rejected."""
    return Episode(0, [Turn([1] * read, [], False, [1] * tokens)], passed=passed)


EPISODES = [written(False, 1), written(True, 1), written(True, 9), written(True, 1)]
FIVE = [*EPISODES, written(True, 0, read=3)]  # 3 read at 0.1 each are less than 1 written at 0.5


@pytest.mark.parametrize("episodes, share, kept", [
    pytest.param(EPISODES, 0.5, [1, 3], id="right and short ones"),
    pytest.param(EPISODES, 0.25, [1], id="of equals the earlier"),
    pytest.param(EPISODES, 0.75, [1, 2, 3], id="wrong ones last"),
    pytest.param(EPISODES, 0.01, [1], id="at least one"),
    pytest.param(EPISODES, 1, [0, 1, 2, 3], id="all"),
    pytest.param(FIVE, 0.5, [1, 4], id="2 of 5"),
    pytest.param(FIVE, 0.79, [1, 3, 4], id="3.95 is 3, not 4"),
])
def test_by_hand(episodes, share, kept):
    found = list(keep_best(episodes, share, 0.9, 0.1, 0.5))
    assert len(found) == len(kept), f"{len(found)} of {len(episodes)} for a share of {share}"
    assert found == kept


@pytest.mark.parametrize("alpha, beta, kept", [
    pytest.param(0.1, 0.5, [1], id="reading is cheap"),
    pytest.param(0.5, 0.1, [0], id="reading is dear")])
def test_alpha_and_beta_are_those_that_are_given(alpha, beta, kept):
    assert keep_best([written(True, 1), written(True, 0, read=3)], 0.5, 0.9, alpha, beta) == kept


def test_gamma_is_the_one_that_is_given():
    assert keep_best([written(True, 9), written(True, 1)], 0.5, 1.0, 0.1, 0.5) == [0], (
        "with gamma = 1 nothing is discounted, and of equals the earlier is kept")
