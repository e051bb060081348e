"""Variations on the paper: for each exercise from the fourth on, a function and its experiment.

    python course/exercises.py 4      the experiment of exercise 4, a table

README.md in this folder says what to write and what to hand in. What you see here is the teacher's
answer; `python course/stubs.py OUT_DIR` writes the files that a student starts from. Experiments
reuse what `python empower.py` has left in out/, so run that first.
"""

import dataclasses
import functools
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import empower
import simhuman
from support import cli, contest
from support.contest import Domain, Part
from support.report import RESULTS, paired_difference, summarize, table

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
    return learned(lab, {f"Price {price:g}": lambda nll, rng, price=price: priced_length(nll, price)
                         for price in (0.05, 0.2, 0.8)})


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
    return learned(lab, {f"Unigram ({eta:g})": empower.empower(eta) for eta in (4, 16)}, programs)


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
    rows, episodes = default_rows(lab), {}
    written = lab.write("programs for development", lab.contest.dev)  # her limits know others
    costs = [row["her_nll"] for row in written]
    for care in (0.5, 0.01, 0.001):
        human = lab.human_with(care)
        shares = [rejects_herself(human.accepts, costs, n) for n in (1, 4, 16)]
        print(f"care {care:g}: of her own text she rejects "
              + ", ".join(f"{share:.4f}" for share in shares) + " at 1, 4 and 16 tokens")
        for name, assistant in rows.items():
            row = f"{name}, care {care:g}"
            episodes[row] = lab.play(row, assistant, human)
    return episodes


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
    return found


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
    return {}


# ------------------------------------------------------------------- 9: another human


def another_human(costs, care):
    """A rule of acceptance of your own, accepts(nll) -> bool, that keeps to the same care.

    costs: one list (N,) for each program that she wrote: bits per token for her. nll: the bits of
    each suggested token for her, at least one. Of her own text of 1, 4 or 10 tokens it rejects a
    share between a third of `care` and twice that, and it is not `simhuman.typical`.
    Example: she minds only the most expensive token. With costs [0, 1, 0, 3] and care 0.25 she
    accepts one token of up to 1 bit; in the pairs the largest costs are 1, 1 and 3, so up to 3.
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
    rows, episodes = default_rows(lab), {}
    costs = [row["her_nll"] for row in lab.written]
    for care in (0.05, 0.01, 0.001):
        human = dataclasses.replace(lab.human, accepts=another_human(costs, care))
        for name, assistant in rows.items():
            row = f"{name}, another human, care {care:g}"
            episodes[row] = lab.play(row, assistant, human)
    return episodes


# ------------------------------------------------------------------- the experiments


def learned(lab, rules, programs=None):
    """{name: episodes} with assistants that learn these rules, from her programs or from others."""
    trained = {name: lab.train(name, rule, programs) for name, rule in rules.items()}
    rows = empower.rows_of_the_table(lab.cfg, lab.base, trained)
    return {name: lab.play(name, rows[name]) for name in rules}


def default_rows(lab):
    """{name: Assistant} of three rows of the default table."""
    rules = empower.completion_rules(lab.cfg)
    K = lab.cfg.turn_tokens
    names = f"SFT-{K}", f"Empower ({lab.cfg.eta:g})"
    rows = empower.rows_of_the_table(lab.cfg, lab.base, {
        name: lab.train(name, rules[name]) for name in names})
    return {name: rows[name] for name in (f"Base-{K}", *names)}


def experiment(number, cfg):
    """Plays the experiment of an exercise; prints and returns its rows and the default ones."""
    print(f"{EXPERIMENTS[number].__doc__} A few minutes on 2 CPU cores.")
    lab = empower.Lab(cfg)
    found = EXPERIMENTS[number](lab)
    if not found:  # it has printed its own table
        return []
    default = {name: lab.play(name, row) for name, row in default_rows(lab).items()}
    summaries = [summarize(name, row, cfg) for name, row in {**default, **found}.items()]
    print("\n" + table(summaries, RESULTS))
    for name, row in found.items():  # paired by problem, as in figures/README.md
        first = next(other for other in found if other.partition(",")[2] == name.partition(",")[2])
        if name == first:  # it is the first of its kind: with the same human
            continue
        mean, low, high = paired_difference(
            [(e.passed, 1) for e in found[first]], [(e.passed, 1) for e in row],
            cli.numpy_generator(cfg, "bootstrap"))
        print(f"Pass@1 of {first} minus {name}: {mean:+.3f} ({low:+.3f} to {high:+.3f})")
    return summaries


EXPERIMENTS = {4: experiment_4, 5: experiment_5, 6: experiment_6, 7: experiment_7, 8: experiment_8,
               9: experiment_9}


def main(argv=None):
    """The command line."""
    parser = cli.Parser(prog="course/exercises.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("number", type=int, choices=EXPERIMENTS, help="the exercise")
    parser.add_argument("--out", default="out", help="--out of python empower.py (default: out)")
    args = parser.parse_args(argv)
    with cli.plain_errors("course/exercises.py"):
        try:
            experiment(args.number, empower.Config(out=args.out))
        except NotImplementedError:
            raise cli.UserError(f"exercise {args.number}, or one of 1 to 3, is not written yet: "
                                "pytest -k exercise says which") from None


if __name__ == "__main__":
    sys.exit(main())
