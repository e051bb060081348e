"""Exercises 2 and 4 to 12: for each a function, and from the fourth on its experiment.

    python course/exercises.py 4                  tests the function, then plays its experiment
    python course/exercises.py 4 --quick          in about a minute, with weak models
    python course/exercises.py 4 --seeds 0 1 2    on three seeds, with intervals over seeds

README.md in this folder says what to write and hand in; exercises 1 and 3 are in empower.py.
Experiments reuse what `python empower.py` has left in out/, so run that first.
"""

import dataclasses
import functools
import math
import sys
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = map(str, Path(__file__).resolve().parents[:2])

import data
import empower
import simhuman
from running import against_empower, learned, main, with_humans
from support import cli, contest
from support.contest import Domain, Part
from support.optim import adamw
from support.report import table

# ------------------------------------------------------------------- 2: where is it silent?


def left_to_human(lengths):
    """Positions (a list of int) of the tokens of a whole program that are left to the human.

    The assistant writes lengths[n] tokens from state n on, as `empower.empower_lengths` gives them,
    she types the next token, and so on in turns until one of them reaches the end.
    Example: costs [3, 0, 0.2, 0.2, 2] with eta = 0.32 give lengths [0, 2, 1, 1, 0]: [0, 3, 4].
    """
    typed, n = [], 0
    while n < len(lengths):
        n += int(lengths[n])
        typed += [n] * (n < len(lengths))
        n += 1
    return typed


# ------------------------------------------------------------------- 4: a length penalty


def priced_length(nll, price):
    """The length that saves most in expectation, if reading a token costs `price` of typing one.

    nll (N - n,): the cost in bits of each token that follows the prefix. A suggestion of i tokens
    is right with probability 2 ** -(sum of the first i costs), and then saves i tokens of typing;
    right or wrong, i tokens have to be read. Of equally good lengths the shortest; 0 if none saves.
    Example: costs [0, 1, 0] with price 0.2 save 0.8, 0.6 and 0.9 tokens: 3. With price 0.4: 1.
    """
    tokens = np.arange(len(nll) + 1)
    right = 2 ** -np.concatenate([[0.0], np.cumsum(nll, dtype=float)])
    return int(np.argmax(tokens * right - price * tokens))


def experiment_4(lab):
    """Assistants that learn `priced_length`; DPR's own price is alpha / beta = 0.2."""
    return against_empower(lab, learned(lab, {
        f"Price {price:g}": lambda nll, rng, price=price: priced_length(nll, price)
        for price in (0.05, 0.2, 0.8)}))


# ------------------------------------------------------------------- 5: a scorer without context


def unigram_nll(programs):
    """Cost in bits of every token under a scorer that reads no context: a list of arrays (N,).

    programs: lists of token ids. A token's probability is its share of all tokens of all programs.
    Example: [[1, 1], [1, 2]]: three quarters are token 1, so the costs are [0.415, 0.415] and
    [0.415, 2].
    """
    ids, counts = np.unique(np.concatenate(programs), return_counts=True)
    bits = dict(zip(ids.tolist(), np.log2(counts.sum() / counts)))
    return [np.array([bits[i] for i in program]) for program in programs]


def experiment_5(lab):
    """Empower with completions that the unigram scorer has chosen, at two thresholds."""
    texts = [ids for ids, *_ in lab.programs]
    programs = [(ids, nll, ended)
                for (ids, _, ended), nll in zip(lab.programs, unigram_nll(texts))]
    return against_empower(lab, learned(
        lab, {f"Unigram ({eta:g})": empower.empower(eta) for eta in (4, 16)}, programs))


# ------------------------------------------------------------------- 6: how careful is she?


def rejects_herself(accepts, costs, n):
    """The share of all runs of n consecutive tokens of her own text that she rejects.

    accepts(nll) is her verdict on a run, a list of costs in bits; costs: one list for each program
    that she wrote. Example: costs [[0, 1, 0, 3]], n = 2, and she accepts up to 2 bits: the runs
    cost 1, 1 and 3 bits, so 1/3. nan if no program has n tokens.
    """
    verdicts = [accepts(nll[k:k + n]) for nll in costs for k in range(len(nll) - n + 1)]
    return 1 - float(np.mean(verdicts)) if verdicts else math.nan


def experiment_6(lab):
    """Base-N, SFT-N and Empower with three humans, from very careful to careless."""
    written = lab.write("programs for development", lab.contest.dev)  # her limits know others
    costs = [row["her_nll"] for row in written]
    humans = {f", care {care:g}": lab.human_with(care) for care in (0.5, 0.01, 0.001)}
    for suffix, human in humans.items():
        shares = [rejects_herself(human.accepts, costs, n) for n in (1, 4, 16)]
        print(f"{suffix[2:]}: of her own text she rejects "
              + ", ".join(f"{share:.4f}" for share in shares) + " at 1, 4 and 16 tokens")
    return with_humans(lab, humans)


# ------------------------------------------------------------------- 7: DPR as a filter


def keep_best(episodes, share, gamma, alpha, beta):
    """Indices, in order, of the `share` of the episodes with the highest discounted pass rate.

    Keep int(share * number of episodes), at least one; of equals the earlier. Example: the best
    half of the values 0, 0.9, 0.5, 0.9 is [1, 3].
    """
    values = np.array([simhuman.discounted(episode, gamma, alpha, beta) for episode in episodes])
    best = np.argsort(-values, kind="stable")[:max(1, int(share * len(values)))]
    return sorted(best.tolist())


def experiment_7(lab):
    """Empower on the better half of what she wrote with an assistant, and on the first half."""
    cfg, episodes = lab.cfg, []
    stopped = empower.rows_of_the_table(cfg, lab.base, {})[f"Base stopped at {cfg.eta:g} bits"]
    for k in range(0, len(lab.contest.learn), 1000):
        episodes += lab.play(f"training problems from {k} on", stopped,
                             problems=lab.contest.learn[k:k + 1000])
    halves = {"Best half": keep_best(episodes, 0.5, cfg.gamma, cfg.alpha, cfg.beta),
              "First half": range(len(episodes) // 2)}
    found = {}
    for name, kept in halves.items():
        written = [episodes[k] for k in kept if episodes[k].code]
        costs = empower.score(lab.base.model, [episode.code for episode in written],
                              lab.base.encoding.start)
        found |= learned(lab, {name: empower.empower(cfg.eta)},
                         [(episode.code, nll, episode.finished)
                          for episode, nll in zip(written, costs)])
    return found, [tuple(halves)]


# ------------------------------------------------------------------- 8: another domain


def another_domain():
    """A `contest.Domain` of your own, next to integers and words: at least 3 parts of each kind.

    Each part says the same thing three times: as a phrase of the statement, as code, and as a
    meaning that does not share the code. Together they make new problems, with their own tests; at
    least 100 of them have to differ in meaning from all others. `draw` returns a word without
    spaces (then text=True) or an int, sometimes negative; never `stop`. Each part of `select` keeps
    some of what is drawn. The noun is new, and no two phrases or codes of a kind are the same;
    `code` is a format string, so double your own braces.
    Example: of times as HH:MM keep the ones before noon, take each hour, print all in order.
    """
    return Domain(
        "times", "end", text=True,
        select=(Part("ones before noon", "{x} < '12:00'", lambda x: int(x[:2]) < 12),
                Part("ones on the hour", "{x}[3:] == '00'", lambda x: x.endswith(":00")),
                Part("ones in an even hour", "int({x}[:2]) % 2 == 0", lambda x: x[1] in "02468"),
                Part("ones past the half hour", "{x}[3:] > '30'", lambda x: int(x[-2:]) > 30)),
        change=(Part("leave each as it is", "{x}", lambda x: x),
                Part("take each hour", "{x}[:2]", lambda x: x.split(":")[0]),
                Part("take the minutes of each", "{x}[3:]", lambda x: x.split(":")[1]),
                Part("write each with a dot", "{x}.replace(':', '.')",
                     lambda x: ".".join(x.split(":")))),
        reduce=(Part("all in order", "*{b}", lambda b: b),
                Part("all in reverse", "*{b}[::-1]", lambda b: list(reversed(b))),
                Part("the earliest or none", "min({b}, default='none')",
                     lambda b: sorted(b)[0] if b else "none"),
                Part("the last or none", "{b}[-1] if {b} else 'none'",
                     lambda b: (["none"] + b)[-1])),
        draw=lambda rng: f"{rng.randint(0, 23):02}:{rng.choice((0, 15, 30, 45, 50)):02}")


def experiment_8(lab):
    """The whole experiment on a contest that includes the new domain, in its own folder."""
    contest.DOMAINS += another_domain(),
    empower.run(dataclasses.replace(lab.cfg, out=f"{lab.cfg.out}/another-domain"))
    return {}, []


# ------------------------------------------------------------------- 9: another human


def another_human(costs, care):
    """A rule of acceptance of your own, accepts(nll) -> bool, that keeps to the same care.

    costs: one list (N,) for each program that she wrote: bits per token for her. nll: the bits of
    each suggested token for her, at least one. Of her own text of 1, 4 or 10 tokens it rejects a
    share between a third of `care` and twice that. It is not `simhuman.typical`: of 4 or of 10
    tokens it rejects others. Of more tokens than she ever wrote it rejects what is dear enough.
    Example: accepts = another_human(costs, 0.05); accepts([0.1, 2.5]) says whether she takes two
    tokens of 0.1 and 2.5 bits.
    """
    most = int(np.median(list(map(len, costs))))

    @functools.lru_cache(maxsize=None)
    def limit(n):
        dearest = [np.lib.stride_tricks.sliding_window_view(nll, n).max(1)
                   for nll in costs if len(nll) >= n]
        return float(np.quantile(np.concatenate(dearest), 1 - care, method="inverted_cdf"))

    return lambda nll: max(nll) <= limit(min(len(nll), most))


def experiment_9(lab):
    """The same three assistants with another human, at three degrees of care."""
    costs = [row["her_nll"] for row in lab.written]
    return with_humans(lab, {
        f", another human, care {care:g}": dataclasses.replace(
            lab.human, accepts=another_human(costs, care)) for care in (0.05, 0.01, 0.001)})


# ------------------------------------------------------------------- 10: what is learned?


def labels(prefix, completion, start, stop):
    """(ids, labels), two tensors (T,) of integers: what an assistant reads, and what it learns.

    ids: the token `start`, the prefix, the completion, the token `stop`. A label is the id in the
    same place where it is learned, which is the completion and the stop, and -100 elsewhere.
    Example: prefix [7, 8], completion [9], start 0, stop 1: ids [0, 7, 8, 9, 1] and labels
    [-100, -100, -100, 9, 1].
    """
    ids = torch.tensor([start, *prefix, *completion, stop])
    learned_from = 1 + len(prefix)
    return ids, torch.cat([torch.full((learned_from,), -100), ids[learned_from:]])


def label_nll(logits, labels):
    """The cost in bits of each label but the first: logits (..., T, V), labels (..., T) ->
    (..., T - 1).

    logits[t] are about the token in place t + 1, and so about labels[t + 1]; they may be float16,
    but costs are computed in float32. A label of -100 costs 0. It is `model.token_nll` for labels.
    Example: T = 3, V = 2, logits all 0 and labels [-100, -100, 1] cost [0, 1].
    """
    logits, targets = logits[..., :-1, :].float(), labels[..., 1:]
    nll = -logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0] / math.log(2)
    return nll.where(targets >= 0, 0)


def label_gradient(model, batch):
    """`empower.sft_gradient` with `label_nll` as the loss."""
    ids, targets = (tensor.to(model.device) for tensor in data.collate(batch))
    bits = label_nll(model(ids), targets).sum()
    loss = bits * math.log(2) / (targets[:, 1:] >= 0).sum()  # nats per label, as there
    loss.backward()
    return loss.item()


def experiment_10(lab):
    """Empower's completions with your labels, with a prefix that is learned too, without a stop."""
    encoding, cfg, examples, episodes = lab.base.encoding, lab.cfg, [], {}
    completions, _ = lab.completions(empower.empower(cfg.eta))
    for prefix, text, stops in completions:
        if stops:  # else her text was cut off there, not stopped
            ids, targets = labels(prefix, text, encoding.start, encoding.stop)
            examples.append((ids.tolist(), int((targets >= 0).nonzero()[0])))
    for name, given in {
            "Your labels": examples, "Prefix learned too": [(ids, 1) for ids, _ in examples],
            "No stop": [(ids[:-1], n) for ids, n in examples if n < len(ids) - 1]}.items():
        checkpoint = lab.kept(name, empower.fine_tune, cli.only(cfg, "seed", "sft_batch", "sft_lr"),
                              lab.base, given, name, adamw, label_gradient)
        most = max(len(text) for _, text, _ in completions)
        episodes[name] = lab.play(name, empower.new_assistant(cfg, checkpoint, most))
    return against_empower(lab, episodes)


# ------------------------------------------------------------------- 11: empowerment itself


def empowerment(P, state, k):
    """I(next token; the token k places after it | state) in bits, in a Markov language.

    P (V, V): P[i, j] is the probability that token j follows token i; each row sums to 1. state: a
    token, the last that was written. k is at least 1; at k = 1 it is the information that the next
    token has about the whole future (Section 4.3).
    Example: tokens s, a, b, c, d. s is followed by a or b, a by c, b by c or d, c and d by
    themselves, each choice with probability 1/2: after s, I = H(3/4, 1/4) - 1/2 = 0.311.
    """
    P = np.asarray(P, dtype=float)
    follow = P[state] > 0
    prior, later = P[state][follow], np.linalg.matrix_power(P, k)[follow]  # (X,), (X, V)
    ratio = np.divide(later, prior @ later, out=np.ones_like(later), where=later > 0)
    return float(prior @ (later * np.log2(ratio)).sum(1))


def experiment_11(lab):
    """Entropy, empowerment and single costs in the Markov language closest to her programs."""
    encoding = lab.base.encoding
    counts = np.zeros((encoding.n_vocab,) * 2)
    for ids, *_ in lab.programs:
        np.add.at(counts, ([encoding.start, *ids], [*ids, encoding.stop]), 1)
    counts[encoding.stop, encoding.stop] += encoding.stop != encoding.start  # the end stays the end
    used = np.flatnonzero(counts.sum(1))
    counts = counts[np.ix_(used, used)]
    P = counts / counts.sum(1, keepdims=True)
    cost = -np.log2(P, out=np.zeros_like(P), where=P > 0)                  # (V, V)
    rows = []
    for state in np.argsort(-counts.sum(1), kind="stable")[:15]:           # the most frequent
        known = [empowerment(P, state, k) for k in (1, 2, 4, 8)]
        rows.append({"after": repr(encoding.decode([used[state]])), "I": known,
                     "entropy": P[state] @ cost[state],
                     "below": P[state] @ (cost[state] < known[0])})
    print("After each of her 15 most frequent tokens, in bits: the entropy of the next token, its\n"
          "information about the token k places later (k = 1: about the whole future), and how\n"
          "often the cost of the one token that came is below the information at k = 1.\n")
    print(table(rows, {"after": "{after}", "entropy": "{entropy:.3f}",
                       **{f"k = {k}": f"{{I[{i}]:.3f}}" for i, k in enumerate((1, 2, 4, 8))},
                       "cost below": "{below:.0%}"}))
    return {}, []


# ------------------------------------------------------------------- 12: what she does not read


def accidents(episodes, accepts):
    """For each episode, whether she took unread what she would have rejected: a list of bool.

    episodes: a list of simhuman.Episode. Of a turn, `suggestion` has the ids (none: nothing was
    offered), `nll` their bits for her, and `read` says whether she read it; what she does not read
    she accepts. accepts: her rule, accepts(nll) -> bool.
    Example: she accepts up to 2 bits. A suggestion of [1, 3] bits, read and rejected, is no
    accident, nor is one of [0.5] bits that she took unread; one of [1, 3] that she took unread is.
    """
    return [any(turn.suggestion and not turn.read and not accepts(turn.nll)
                for turn in episode.turns) for episode in episodes]


def experiment_12(lab):
    """Three assistants with a human who reads fewer and fewer of their suggestions."""
    episodes, pairs = with_humans(lab, {
        f", reads {share:g}": dataclasses.replace(lab.human, attention=share)
        for share in (0.95, 0.8, 0.65, 0.4)})
    rows = []
    for name, some in episodes.items():
        bad = accidents(some, lab.human.accepts)
        passed = {kind: [episode.passed for episode, one in zip(some, bad) if one == kind]
                  for kind in (False, True)}
        rows.append({"name": name, "share": np.mean(bad), **{
            str(kind): np.mean(each) if each else None for kind, each in passed.items()}})
    print("\nAccidents: the share of games with one, and Pass@1 of the games without and with one.")
    print(table(rows, {"assistant": "{name}", "accidents": "{share:.2f}",
                       "Pass@1 without": "{False:.3f}", "with": "{True:.3f}"}))
    return episodes, pairs


EXPERIMENTS = {4: experiment_4, 5: experiment_5, 6: experiment_6, 7: experiment_7, 8: experiment_8,
               9: experiment_9, 10: experiment_10, 11: experiment_11, 12: experiment_12}

if __name__ == "__main__":
    sys.exit(main(EXPERIMENTS, description=__doc__.split("\n\n")[0]))
