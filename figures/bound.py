"""How tight is the bound of Section 4.3, which turns low cost into low empowerment?

The paper bounds the empowerment of a state by the entropy of the next token, and estimates the
entropy by the cost of the one token that was written. Both steps are measured here.
"""

import math

import torch
from torch import nn
from tqdm import tqdm

import data
import empower
from model import KVCache, extend, sample, token_nll
from support.cli import numpy_generator, torch_generator


def token_entropy(logits):
    """The entropy of the next token in bits: logits (..., V) -> (...).

    This is the mean of `token_nll` over the tokens that could come next (Section 4.3).
    Example: logits [0, 0, 0, 0] give 2 bits.
    """
    return torch.special.entr(logits.float().softmax(-1)).sum(-1) / math.log(2)


@torch.no_grad()
def future_information(model, prefix, stop, steps, samples, generator, least=1e-3):
    """Section 4.3: I(next token; the k tokens after it | prefix) in bits, k = 1..steps, and H.

    The effective empowerment of a state for a future of k tokens, without the next token itself:
    with it, the information would be its whole entropy. A Monte-Carlo estimate: `samples` futures
    are drawn from the model, Bayes' rule gives the exact posterior of the next token given each,
    and the estimate is the mean divergence of posterior from prior. Only next tokens with a
    probability of at least `least` are counted, renormalised; the others are left out of both
    information and entropy, so the two are comparable. For the tokens counted, the estimate is
    unbiased. A text that ended with the token `stop` stays ended. Returns (information (steps,),
    entropy of the tokens counted).

    Example: next is a or b, with probability 1/2 each; c follows a, and b is followed by c or d,
    with probability 1/2 each. I = H(3/4, 1/4) - 1/2 = 0.311 bits of 1, for every k.
    """
    cache = KVCache(model, 1)
    p = extend(model, cache, [prefix])[0, -1, :model.writable].float().softmax(-1)
    candidates = (p >= least).nonzero()[:, 0]                                    # (X,)
    p = p[candidates] / p[candidates].sum()
    drawn = torch.multinomial(p, samples, replacement=True, generator=generator)  # (M,)
    beginnings = [[*prefix, int(x)] for x in candidates]
    futures, stopped = sample(model, cache.select([0] * samples), [beginnings[i] for i in drawn],
                              steps, stop, generator=generator)
    futures = [future + [stop] * ended for future, ended in zip(futures, stopped)]

    # The cost of each future after each candidate, whichever candidate it was drawn after.
    logits = extend(model, cache.select([0] * (samples * len(candidates))), beginnings * samples,
                    [future for future in futures for _ in candidates])[:, :steps]
    ids = nn.utils.rnn.pad_sequence([torch.tensor(future, device=p.device) for future in futures
                                     for _ in candidates], batch_first=True, padding_value=-100)
    nll = torch.zeros(len(ids), steps, device=p.device)                          # (M * X, steps)
    nll[:, :ids.shape[1]] = token_nll(logits[:, :ids.shape[1]], ids.to(p.device))
    nll = nll.cumsum(1).view(samples, len(candidates), steps)                    # (M, X, steps)
    ended = candidates == stop  # after the stop token, and only there, the future is not text
    nll[ended[drawn][:, None] != ended] = math.inf
    joint = p.log2()[:, None] - nll                                              # (M, X, steps)
    posterior = (joint * math.log(2)).softmax(1)
    divergence = torch.xlogy(posterior, posterior / p[:, None]).sum(1) / math.log(2)
    return divergence.mean(0).cpu().numpy(), float(token_entropy(p.log()))


def entropies(model, programs, start):
    """The exact entropy of every next token, in bits: a list of arrays (N,), as in `score`."""
    return empower.score(model, programs, start, cost=lambda logits, ids: token_entropy(logits))


def measured(cfg, base, programs, horizons, futures):
    """One state from each program: a list of plain data, in bits.

    nll: the cost of the token that was written, which is the estimate from one sample; entropy: the
    exact one; information: what the token says about the tokens after it, for each horizon;
    entropy_counted: the entropy of the tokens that the information counts.
    """
    model, encoding = base.model, base.encoding
    drawn = data.draw_states(numpy_generator(cfg, "bound"), list(map(len, programs)))
    nll = empower.score(model, programs, encoding.start)
    entropy = entropies(model, programs, encoding.start)
    generator, states = torch_generator(cfg, "futures", model.device), []
    for k, n in enumerate(tqdm(drawn, "bound", unit="state", leave=False, disable=None)):
        information, counted = future_information(
            model, [encoding.start, *programs[k][:n]], encoding.stop, max(horizons), futures,
            generator)
        states.append({"token": encoding.decode([programs[k][n]]), "nll": float(nll[k][n]),
                       "entropy": float(entropy[k][n]), "entropy_counted": counted,
                       "information": [float(information[h - 1]) for h in horizons]})
    return states
