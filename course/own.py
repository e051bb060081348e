"""Your own experiment: a rule of yours, in a table next to Base, SFT and Empower.

    python course/own.py                   a few minutes; --quick for about one, with weak models
    python course/own.py --seeds 0 1 2     with intervals over three seeds, before you believe it
"""

from running import against_empower, learned, main


def mine(nll, rng):
    """How many tokens to write, from their costs in bits: all that cost at most half a bit each."""
    return next((n for n, bits in enumerate(nll) if bits > 0.5), len(nll))


def experiment(lab):
    """A rule of your own against Empower."""
    return against_empower(lab, learned(lab, {"Mine": mine}))


if __name__ == "__main__":
    main(experiment)
