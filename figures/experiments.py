"""What a sweep plays: one function for each question, each from a Lab to plain data.

Every quantity that is shown twice comes from the same plays: a row that several questions share has
the same name and settings, so it is played once for each seed and kept.
"""

import dataclasses
import functools
import math

import numpy as np
import torch

import bound
import data
import empower
import simhuman
from empower import Lab, completion_rules, new_assistant, rows_of_the_table
from model import token_nll
from support import judge, miniature
from support.cli import derived_seed, numpy_generator, only
from support.optim import adamw, muon_and_adamw
from support.report import UNLIMITED, in_short, summarize


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is varied, fixed before any assistant played; everything else is empower.Config's."""

    seeds: int = 5
    attentions: tuple = (1, 0.95, 0.9, 0.8, 0.6, 0.4)        # and Config.attention_low
    cares: tuple = (0.5, 0.05, 0.01, 0.003, 0.001)
    rounds: tuple = (8, 11, 15, 19, 25)                      # and without a limit:
    no_limit: int = 101                                      # rounds, as in empower.run
    etas: tuple = (0.1, 0.32, 1, 2, 4, 8)                    # bits
    ns: tuple = (1, 2, 4, 8, 10, 20)                         # tokens; 10 and 20 are the paper's
    less_able_steps: int = 500                               # of her pre-training, and Base's
    less_able_cares: tuple = (0.05, 0.01)
    less_able_attentions: tuple = (1, 0.8)
    second_humans: int = 3                                   # seeds with a second human
    her_width: int = 160                                     # 1 M parameters; assistants have 0.7 M
    own_lengths: tuple = (1, 4, 10, 20, 60)                  # tokens
    horizons: tuple = (1, 2, 4, 8, 16)                       # tokens after the next one
    futures: int = 64                                        # drawn for each state
    # for `make.py calibrate` and `make.py tune`, on development problems
    candidates: tuple = (1, 0.9, 0.8, 0.7, 0.65, 0.6, 0.5)   # for attention_low
    calibrated: int = 2                                      # seeds
    rates: tuple = (("AdamW", 3e-4), ("AdamW", 1e-3), ("AdamW", 3e-3), ("Muon", 3e-3),
                    ("Muon", 1e-2), ("Muon", 3e-2))
    attempts: int = 5                                        # at each development problem


OBVIOUS = 0.05  # bits that a token costs Base at most, to be called obvious
OPTIMIZERS = {"AdamW": adamw, "Muon": muon_and_adamw}


def questions(plan, number):
    """{question: a function of (plan, lab)} for a seed; number 0 is the first seed."""
    return {"table": table, "attention": attention, "care": care, "less able": less_able,
            "lengths": lengths,
            **({"second human": second_human} if number < plan.second_humans else {}),
            **({"bound": tightness} if number == 0 else {})}


def answer(plan, cfg, number, question):
    """The answer to a question on the seed of cfg, played or read from finished stages."""
    return questions(plan, number)[question](plan, laboratory(cfg))


@functools.lru_cache(maxsize=2)
def laboratory(cfg):
    """The Lab of a seed."""
    return Lab(cfg)


def prepare(cfg):
    """Makes what all questions on a seed share."""
    default_rows(laboratory(cfg))


# ------------------------------------------------------------------- shared by the questions


def train(lab, rules, programs=None):
    """{name: Assistant} for {name: rule}."""
    return {name: lab.train(name, rule, programs) for name, rule in rules.items()}


def play(lab, rows, human=None):
    """Summaries of the rows {name: Assistant or None}, in the order given."""
    return [summarize(name, lab.play(name, row, human), lab.cfg) for name, row in rows.items()]


def play_on(plan, lab, name, row, human=None):
    """The episodes of a row without a round limit."""
    return lab.play(name, row, human, rounds=plan.no_limit)


def play_and_cut(plan, lab, rows, human=None):
    """`play`, from games without a round limit: with fewer rounds each would be its beginning."""
    return [summarize(name, within(lab, name, play_on(plan, lab, name, row, human),
                                   lab.cfg.rounds), lab.cfg) for name, row in rows.items()]


def within(lab, name, episodes, rounds):
    """The episodes as they would have been with at most this many rounds, judged."""
    cut = [cut_off(episode, rounds) for episode in episodes]
    passed = lab.kept(f"{name} within {rounds} rounds", verdicts, lab.contest.held_out,
                      lab.base.encoding, cut)
    return [dataclasses.replace(episode, passed=done) for episode, done in zip(cut, passed)]


def verdicts(problems, encoding, episodes):
    """Whether each episode passes the tests of its problem."""
    judge.judge_episodes(episodes, problems, encoding.decode)
    return [episode.passed for episode in episodes]


def cut_off(episode, rounds):
    """What an episode would have been with at most this many rounds.

    `passed` is False: it has to be judged again. Example: 3 rounds, then finished; cut off at 2,
    it has 2 and is not finished.
    """
    return simhuman.Episode(episode.problem, episode.turns[:rounds],
                            episode.finished and len(episode.turns) <= rounds)


def default_rows(lab):
    """{name: Assistant or None} of the default experiment."""
    trained = train(lab, completion_rules(lab.cfg))
    return rows_of_the_table(lab.cfg, lab.base, trained)


def assisted(lab, names=None):
    """The default rows of assistants that do not know the goal, or those with these names."""
    return {name: row for name, row in default_rows(lab).items()
            if row and not row.knows_goal and (names is None or name in names)}


def reading(human, attention):
    """The same human with another attention."""
    return dataclasses.replace(human, attention=attention)


# ------------------------------------------------------------------- one seed


def table(plan, lab):
    """The default experiment, and what its parts are like: {part: plain data}."""
    rules, rows = completion_rules(lab.cfg), default_rows(lab)
    exact, stopping = by_exact_entropy(lab)
    alone = summarize(UNLIMITED, play_on(plan, lab, "Human alone", None), lab.cfg)
    return {
        "rows": [alone, *play_and_cut(plan, lab, rows),
                 *play(lab, exact | greedy(lab, rows))],
        "rounds": by_rounds(plan, lab),
        "stopping": [lab.stopping(name, rule, rows[name]) for name, rule in rules.items()]
        + [stopping],
        "obvious": obvious(lab, {name: rows[name] for name in rules}),
        "own text": own_text(plan, lab),
    }


def greedy(lab, rows):
    """Three rows once more, whose assistants always write the likeliest token."""
    K, eta = lab.cfg.turn_tokens, lab.cfg.eta
    return {f"{name}, greedy": dataclasses.replace(rows[name], temperature=0.0)
            for name in (f"SFT-{K}", f"Empower ({eta:g})", f"Base stopped at {eta:g} bits")}


def by_exact_entropy(lab):
    """A row whose completions were cut by exact entropies, not costs, and its stopping (4.3)."""
    texts = [ids for ids, *_ in lab.programs]
    entropies = lab.kept("entropies", entropy_lists, lab.base, texts)
    programs = [(ids, np.array(entropy), ended)
                for (ids, _, ended), entropy in zip(lab.programs, entropies)]
    name, rule = f"Empower ({lab.cfg.eta:g}), entropy", empower.empower(lab.cfg.eta)
    row = lab.train(name, rule, programs)
    return {name: row}, lab.stopping(name, rule, row, programs)


def entropy_lists(base, texts):
    """`bound.entropies` as plain data."""
    return [row.tolist() for row in bound.entropies(base.model, texts, base.encoding.start)]


def by_rounds(plan, lab):
    """Pass@1 within each limit of rounds and without one: {attention: {name: [a number each]}}."""
    alone = {"Human alone": None}
    return {str(share): {name: passes(plan, lab, name, play_on(plan, lab, name, row, reading(
                lab.human, share))) for name, row in rows.items()}
            for share, rows in ((1, alone | assisted(lab)),
                                (lab.cfg.attention_low, assisted(lab)))}


def passes(plan, lab, name, episodes):
    """Pass@1 of these episodes within each limit of rounds, then without a limit."""
    return [simhuman.pass_at_1(within(lab, name, episodes, limit))[0] for limit in plan.rounds] + [
        simhuman.pass_at_1(episodes)[0]]


def attention(plan, lab):
    """Assistants with humans who read fewer suggestions: {attention: rows}."""
    low, names = lab.cfg.attention_low, [*in_short(lab.cfg), f"Empower ({lab.cfg.eta_wide:g})"]
    found = {}
    for share in sorted({*plan.attentions, low}, reverse=True):
        human = reading(lab.human, share)
        found[str(share)] = play_and_cut(plan, lab, assisted(lab), human) if share in (1, low) \
            else play(lab, assisted(lab, names), human)
    return found


def care(plan, lab):
    """Assistants with less and more careful humans: {care: rows}.

    Base, uncapped, takes as long to play as four other rows, and is played at one care only.
    """
    names = [*in_short(lab.cfg)[2:], f"Empower ({lab.cfg.eta_wide:g})"]
    return {str(value): play_and_cut(plan, lab, assisted(lab), lab.human_with(value))
            if value == lab.cfg.care else
            play(lab, assisted(lab, names), lab.human_with(value)) for value in plan.cares}


def less_able(plan, lab):
    """A human who solves fewer problems, and her assistants: {"CARE, ATTENTION": rows}.

    One language model is still human, scorer and Base; it has read fewer programs. The first two
    rows are hers alone, without a round limit and with it.
    """
    lab = Lab(dataclasses.replace(lab.cfg, pretrain_steps=plan.less_able_steps))
    alone = [summarize(UNLIMITED, play_on(plan, lab, "Human alone", None), lab.cfg),
             *play(lab, {"Human alone": None})]
    rows = assisted(lab, in_short(lab.cfg)[2:])
    return {f"{value}, {share}": alone + play(lab, rows, reading(lab.human_with(value), share))
            for value in plan.less_able_cares for share in plan.less_able_attentions}


def lengths(plan, lab):
    """Each way to choose a length, from short to long: {way: a row for each eta or N}."""
    row = functools.partial(new_assistant, lab.cfg, lab.base)
    ways = {
        "Empower": train(lab, {f"Empower ({eta:g})": empower.empower(eta) for eta in plan.etas}),
        "Base stopped": {f"Base stopped at {eta:g} bits": row(max_cost=eta) for eta in plan.etas},
        "SFT-N": train(lab, {f"SFT-{n}": empower.sft(n) for n in plan.ns}),
        "Base-N": {f"Base-{n}": row(max_tokens=n) for n in plan.ns}}
    return {way: [{"point": point, **found} for point, found in zip(
                plan.ns if way.endswith("-N") else plan.etas, play_and_cut(plan, lab, rows))]
            for way, rows in ways.items()}


def calibration(plan, cfg):
    """On development problems: how often untrained, uncapped Base is accepted at each attention.

    Returns {"rows": of Base, "human" and "less able": Pass@1 of each human alone}.
    """
    found = {}
    for name, steps in (("human", cfg.pretrain_steps), ("less able", plan.less_able_steps)):
        lab = Lab(dataclasses.replace(cfg, pretrain_steps=steps))
        problems = lab.contest.dev
        found[name] = simhuman.pass_at_1(lab.play("Human alone", None, problems=problems))[0]
        if name == "human":
            found["rows"] = [{"attention": share, **summarize("Base", lab.play(
                "Base", new_assistant(cfg, lab.base), reading(lab.human, share), problems), cfg)}
                for share in plan.candidates]
    return found


# ------------------------------------------------------------------- the human, and fine-tuning


def own_text(plan, lab):
    """Does she reject her own text as often as her care says, on problems held out?

    {care: [{"length", "rejected": the share of all runs of so many tokens, "programs": on how many
    programs her limit rests, those with a run above it}]}. The text is what she wrote alone for the
    held-out problems; her limits come from what she wrote for the problems to learn from.
    """
    encoding, hers = lab.base.encoding, [np.array(row["her_nll"]) for row in lab.written]
    episodes = play_on(plan, lab, "Human alone", None)
    knows = miniature.goals(encoding, lab.contest.held_out)
    costs = [nll[len(nll) - len(episode.code):] for nll, episode in zip(empower.score(
        lab.hers.model, [goal[1:] + episode.code for goal, episode in zip(knows, episodes)],
        encoding.start), episodes)]
    found = {}
    for value in plan.cares:
        limits = lab.human_with(value).accepts.keywords["limits"]
        found[str(value)] = [{"length": n, "rejected": float(np.mean(np.concatenate(
            [sums(nll, n) > limits[min(n, len(limits)) - 1] for nll in costs]))),
            "programs": sum(bool((sums(nll, n) > limits[min(n, len(limits)) - 1]).any())
                            for nll in hers)} for n in plan.own_lengths]
    return found


def sums(nll, n):
    """The cost of every run of n consecutive tokens: (N,) -> (N - n + 1,), empty if n > N."""
    cum = np.concatenate([[0.0], np.cumsum(nll)])
    return cum[n:] - cum[:-n]


def obvious(lab, trained):
    """Did fine-tuning make obvious tokens expensive? [{"name", "bits"}], Base first.

    The mean cost of the tokens that cost Base less than OBVIOUS, in the fifth of her programs that
    no assistant has learned from.
    """
    programs = lab.programs[len(lab.programs) - len(lab.programs) // 5:]
    models = {"Base": lab.base.model, **{name: row.model for name, row in trained.items()}}
    return lab.kept("obvious tokens", costs_of_obvious, models, programs, lab.base.encoding)


def costs_of_obvious(models, programs, encoding):
    """[{"name", "bits"}] of `cost_of_obvious` for each model {name: GPT}."""
    return [{"name": name, "bits": cost_of_obvious(model, programs, encoding)}
            for name, model in models.items()]


def cost_of_obvious(model, programs, encoding):
    """The mean bits of the obvious tokens of programs, (token ids, costs for Base, ...) each.

    It is the cost if the assistant writes on: without the probability of the stop token, which an
    assistant is meant to learn. None if no token is obvious.
    """
    def cost(logits, ids):
        stop = torch.tensor([encoding.stop], device=ids.device)
        return token_nll(logits.index_fill(-1, stop, -math.inf), ids)

    cheap = np.concatenate([np.asarray(nll) < OBVIOUS for _, nll, *_ in programs])
    costs = empower.score(model, [ids for ids, *_ in programs], encoding.start, cost=cost)
    return float(np.concatenate(costs)[cheap].mean()) if cheap.any() else None


def second_human(plan, lab):
    """The paper's Table 2: another human, larger than the assistants, whose programs they learn.

    Her model is pre-trained on other documents, and her care is measured on her own text.
    """
    cfg = lab.cfg
    lab = Lab(cfg, dataclasses.replace(cfg, seed=derived_seed(cfg.seed, "second human"),
                                       width=plan.her_width))
    rows = default_rows(lab)
    sizes = [sum(p.numel() for p in one.model.parameters()) for one in (lab.base, lab.hers)]
    return {"parameters": dict(zip(("assistants", "human"), sizes)), "rows": play(lab, rows),
            "own text": own_text(dataclasses.replace(plan, cares=(cfg.care,)), lab)}


def tuned(plan, cfg, optimizer, rate):
    """The loss of each rule's assistant on development problems: one row of `make.py tune`.

    {"optimizer", "rate", "losses": {rule: bits per token of held-out completions with their stop},
    "mean" of these, "obvious": mean over the rules of the cost of obvious tokens}.
    """
    lab = Lab(dataclasses.replace(cfg, sft_lr=rate))
    lab.fine_tuning = OPTIMIZERS[optimizer],
    rules, encoding = completion_rules(cfg), lab.base.encoding
    trained, losses = train(lab, rules), {}
    programs = [(encoding.encode_ordinary(row["program"]), np.array(row["nll"]), row["ended"])
                for row in lab.write("development programs", lab.contest.dev * plan.attempts)]
    for name, rule in rules.items():
        completions = empower.choose_completions(programs, rule, numpy_generator(cfg, "dev states"),
                                                 numpy_generator(cfg, "dev lengths"))
        losses[name] = loss(trained[name].model, [
            empower.sft_example(encoding, *completion) for completion in completions])
    bits = [row["bits"] for row in obvious(lab, trained)[1:]]
    return {"optimizer": optimizer, "rate": rate, "losses": losses,
            "mean": float(np.mean(list(losses.values()))),
            "obvious": None if None in bits else float(np.mean(bits))}


@torch.no_grad()
def loss(model, examples, batch_size=64):
    """The mean cost in bits of a label, over examples of (token ids, where the loss starts)."""
    total, count = 0.0, 0
    for k in range(0, len(examples), batch_size):
        ids, labels = data.collate(examples[k:k + batch_size])
        total += empower.sft_loss(model, ids, labels).item()
        count += int((labels[:, 1:] >= 0).sum())
    return total / count / math.log(2)


# ------------------------------------------------------------------- the bound


def tightness(plan, lab):
    """`bound.measured` on what the human writes for held-out problems without a round limit."""
    base = lab.base
    episodes = play_on(plan, lab, "Human alone", None)
    # The end is a choice too: a program that she ended has one more state, before its stop token.
    programs = [episode.code + [base.encoding.stop] * episode.finished for episode in episodes]
    programs = [program for program in programs if program]
    return lab.kept("bound", bound.measured, only(lab.cfg, "seed"), base, programs, plan.horizons,
                    plan.futures)
