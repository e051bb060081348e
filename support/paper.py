"""The paper's results in simulation, to stand next to ours."""

import numpy as np

# The paper's (Pass@1, accept ratio, DPR) for three assistants with each of its two humans,
# Gemma-3-27B-it and Llama-3.3-70B-Instruct. It has no Base-20 in simulation.
PAPER = {
    "Gemma": {"Empower": [(.176, .670, .150), (.178, .630, .156), (.170, .659, .148)],
              "SFT-20": [(.070, .231, .057), (.086, .299, .072), (.088, .381, .077)],
              "SFT-10": [(.062, .268, .053), (.101, .367, .086), (.101, .461, .088)],
              "Base-10": [(.064, .649, .057), (.090, .582, .080), (.062, .530, .055)],
              "Base": [(.064, .383, .055), (.092, .400, .083), (.086, .312, .077)]},
    "Llama": {"Empower": [(.218, .488, .176), (.282, .317, .208), (.249, .459, .201)],
              "SFT-20": [(.167, .192, .116), (.097, .165, .066), (.145, .188, .102)],
              "SFT-10": [(.152, .299, .114), (.104, .257, .074), (.165, .292, .126)],
              "SFT-RAND": [(.156, .201, .109), (.112, .184, .075), (.145, .226, .106)],
              "Base-10": [(.198, .592, .162), (.156, .537, .127), (.174, .597, .143)],
              "Base": [(.183, .351, .143), (.170, .297, .134), (.161, .299, .127)]}}
PAPER_METRICS = ("pass@1", "accept_ratio", "dpr")


def paper_means(human, row):
    """The paper's (Pass@1, accept ratio, DPR) of a row, means over its three assistants: (3,)."""
    return np.mean(PAPER[human][row], axis=0)


def paper_name(name, turn_tokens):
    """The paper's name of a row: its N is K_H or 2 K_H as ours is, but its K_H is 10 tokens.

    Example: with K_H = 4, SFT-8 is the paper's SFT-20. Its Empower, in simulation, has eta = 0.32.
    """
    if name == "Empower (0.32)":
        return "Empower"
    way, _, n = name.rpartition("-")
    return f"{way}-{10 * int(n) / turn_tokens:g}" if n.isdigit() else name


def paper_gain(name, metric, humans=tuple(PAPER)):
    """(relative gain of Empower over a row of the paper's table, with which human).

    With the first of the humans who has the row (only Llama has SFT-RAND). (None, "") if the paper
    has no such row or metric, or the row is Empower's.
    """
    human = next((human for human in humans if name in PAPER[human]), "")
    if not human or name == "Empower" or metric not in PAPER_METRICS:
        return None, ""
    ours, theirs = (paper_means(human, row) for row in ("Empower", name))
    return float((ours / theirs)[PAPER_METRICS.index(metric)] - 1), human
