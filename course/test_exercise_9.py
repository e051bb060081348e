"""Exercise 9: another human. She keeps to her care, and is not the human of the project."""

from functools import partial

import numpy as np
import pytest

from exercises import another_human
from simhuman import typical, typical_limits

RUNS = (1, 4, 10)


def texts(seed):
    """Costs of 400 programs of 40 tokens, in bits: most are cheap, a few are dear."""
    rng = np.random.default_rng(seed)
    return [(rng.exponential(1.0, 40) ** 2).tolist() for _ in range(400)]


def verdicts(accepts, n):
    """Of runs of n tokens of text that her limits do not come from."""
    return [bool(accepts(nll[k:k + n])) for nll in texts(1) for k in range(41 - n)]


@pytest.mark.parametrize("care", [pytest.param(0.1, id="careful"), pytest.param(0.02, id="less")])
@pytest.mark.parametrize("n", [pytest.param(n, id=f"runs of {n}") for n in RUNS])
def test_she_keeps_to_her_care(n, care):
    share = 1 - np.mean(verdicts(another_human(texts(0), care), n))
    assert care / 3 <= share <= 2 * care, (
        f"of her own text of {n} tokens she rejects {share:.4f}; with a care of {care} that is "
        f"between {care / 3:.4f} and {2 * care:.4f}")


def test_she_is_not_the_human_of_the_project():
    accepts = another_human(texts(0), 0.1)
    typically = partial(typical, limits=typical_limits(texts(0), 0.1, 40))
    same = [n for n in RUNS[1:] if verdicts(accepts, n) == verdicts(typically, n)]
    assert len(same) < 2, f"this is typical() at n = {' and n = '.join(map(str, same))}"


def test_she_decides_about_more_tokens_than_she_ever_wrote():
    accepts = another_human(texts(0), 0.1)
    assert accepts([0.0] * 60), "60 tokens that cost nothing are rejected"
    assert not accepts([1e9] * 60), "60 tokens of a billion bits each are accepted"
