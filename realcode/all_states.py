"""Learning from every state of a program in one forward pass, in place of one state (Section 4.1).

A completion continues the very program that its prefix begins, and the stop token after it is never
read. So the examples of all states of a program are targets on one text. At each place, between two
tokens, some of the states that began earlier go on with the program's next token and the others
stop, and both are targets, weighted by how many states want them:

    program                     a     =     1     \\n
    cost in bits                4     .1    2     .1          a threshold of 1 bit
    completion of state 0       (stop)
    completion of state 1             =  (stop)
    completions of 2 and 3                  (stop) \\n (stop)
    go on at each place         0     1     0     1     0
    stop at each place          1     0     2     0     1

Within a program the loss is in proportion to the sum of `empower.sft_loss` over all states, which
is what the paper's loss is on average, where one state is drawn; the noise of the draw is gone, for
the cost of one example. A program counts by its length, however long its completions are.
"""

import numpy as np
import torch
import torch.nn.functional as F

import data


def lengths_in_every_state(rule, nll, rng=None):
    """The length of the completion that a rule asks for in each state: costs (N,) -> N ints."""
    return [min(rule(nll[n:], rng), len(nll) - n) for n in range(len(nll))]


def places(lengths, ends=True):
    """(states that go on, states that stop) at each place 0..N of a program: float array (N+1, 2).

    lengths: of the completion of each state 0..N-1. ends: whether the program ends with these
    tokens; if it was cut off there, no completion learns to stop at its end.
    Example: lengths [0, 1, 0, 1]: [[0, 1], [1, 0], [0, 2], [1, 0], [0, 1]].
    """
    N = len(lengths)
    until = np.minimum(np.arange(N) + lengths, N)
    stop = np.bincount(until, minlength=N + 1)
    go_on = np.cumsum(np.append(np.ones(N, int), 0)) - np.cumsum(stop)
    if not ends:
        stop[N] = 0
    return np.stack([go_on, stop], 1).astype(float)


def all_states_example(encoding, program, lengths, ends=True):
    """(token ids, 1, weights (N+1, 2)) of a program with a completion of each state.

    The weights of an example have the mean 1 over its places, so a long completion does not make
    a program count more.
    """
    weights = places(lengths, ends)
    ids = [encoding.start, *program, encoding.stop]
    return ids, 1, weights * len(weights) / weights.sum()


def collate(batch):
    """(ids (B, T), labels (B, T), weights (B, T, 2)): the stop token is the last label of a row."""
    ids, labels = data.collate([(ids, start) for ids, start, _ in batch])
    weights = torch.zeros(*ids.shape, 2)
    for row, (tokens, _, some) in zip(weights, batch):
        row[1:len(tokens)] = torch.from_numpy(some)
    return ids, labels, weights


def all_states_loss(model, ids, labels, weights, stop):
    """The weighted sum of -log p, in nats, of the next token and of `stop` at every place.

    ids, labels (B, T), weights (B, T, 2), from `collate`.
    """
    there = labels[:, 1:] >= 0                                             # (B, T-1)
    ids, targets = ids[:, :-1].to(model.device), labels[:, 1:][there].to(model.device)
    weights = weights[:, 1:][there].to(model.device)                       # (places, 2)
    logits = model.lm_head(model.hidden(ids)[there.to(ids.device)])        # (places, V)
    log_p = F.log_softmax(logits.float(), -1)
    both = torch.stack([log_p.gather(1, targets[:, None])[:, 0], log_p[:, stop]], 1)
    return -(weights * both).sum()
