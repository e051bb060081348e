"""What a sweep plays: one function for each question, each from a Lab to plain data.

Every quantity that is shown twice comes from the same plays: a row that several questions share has
the same name and settings, and is played once for each seed.
"""

import dataclasses
import math

import numpy as np
import torch

import bound
import data
import empower
import simhuman
from empower import Lab, completion_rules, rows_of_the_table
from model import GPT, token_nll
from realcode import replay
from support import judge
from support.cli import derived_seed, numpy_generator
from support.optim import adamw, muon_and_adamw
from support.report import summarize
from support.source import fingerprint


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is varied, fixed before any assistant played."""

    seeds: int = 5
    cares: tuple = (0.5, 0.2, 0.05, 0.02, 0.01, 0.003, 0.001)
    etas: tuple = (0.1, 0.32, 1, 2, 4, 8)                    # bits
    ns: tuple = (1, 2, 4, 8, 10, 20)                         # tokens; 10 and 20 are the paper's
    rounds: tuple = (8, 11, 15, 19, 25, 101)                 # the last means no limit
    own_lengths: tuple = (1, 4, 10, 20)                      # tokens
    horizons: tuple = (1, 2, 4, 8, 16)                       # tokens after the next one
    futures: int = 64                                        # drawn for each state
    second_humans: int = 3                                   # seeds with a second human
    her_width: int = 160                                     # 1 M parameters; assistants have 0.7 M
    rates: tuple = (("AdamW", 3e-4), ("AdamW", 1e-3), ("AdamW", 3e-3), ("Muon", 3e-3),
                    ("Muon", 1e-2), ("Muon", 3e-2))          # for `tune`
    attempts: int = 5                                        # at each development problem


OBVIOUS = 0.05  # bits that a token costs Base at most, to be called obvious
OPTIMIZERS = {"AdamW": adamw, "Muon": muon_and_adamw}
ALONE = "Human alone, no round limit"


# ------------------------------------------------------------------- shared by the questions


def train(lab, rules, programs=None):
    """{name: Assistant} for {name: rule}."""
    return {name: lab.train(name, rule, programs) for name, rule in rules.items()}


def play(lab, rows, human=None, **options):
    """Summaries of the rows {name: Assistant or None}, in the order given."""
    return [played(lab, name, row, lab.play(name, row, human, **options))
            for name, row in rows.items()]


def played(lab, name, assistant, episodes):
    """The summary of a row, with the forward passes that its suggestions took on a problem."""
    passes = assistant and np.mean([sum(
        min(len(turn.suggestion) + 1, assistant.max_tokens) for turn in episode.turns)
        for episode in episodes])  # one for each token, and one for the token that ended it
    return {**summarize(name, episodes, lab.cfg), "passes": passes}


def unlimited_rounds(cfg):
    """The option of `Lab.play` that lifts the round limit: more rounds than any program needs."""
    return {"rounds": empower.UNLIMITED_TOKENS // cfg.turn_tokens + 1}


# ------------------------------------------------------------------- one seed


def one_seed(plan, cfg, number):
    """All that is measured on one seed (number 0 is the first): {question: plain data}."""
    lab, rules = Lab(cfg), completion_rules(cfg)
    trained = train(lab, rules)
    default = rows_of_the_table(cfg, lab.base, trained)
    exact, stopping = by_exact_entropy(lab)
    found = {
        "rows": play(lab, {ALONE: None}, **unlimited_rounds(cfg)) + play(lab, default | exact),
        "stopping": [lab.stopping(name, rule, trained[name]) for name, rule in rules.items()]
        + [stopping],
        "obvious": obvious(lab, trained),
        "own text": own_text(plan, lab),
        "care": care(plan, lab, default),
        "lengths": lengths(plan, lab),
        "budget": budget(plan, lab, default),
    }
    if number < plan.second_humans:
        found["second human"] = second_human(plan, cfg)
    if number == 0:
        found["bound"] = tightness(plan, lab)
    return found


def by_exact_entropy(lab):
    """A row whose completions were cut by exact entropies, not costs, and its stopping (4.3)."""
    texts = [ids for ids, *_ in lab.programs]
    entropies = bound.entropies(lab.base.model, texts, lab.base.encoding.start)
    programs = [(ids, entropy, True) for ids, entropy in zip(texts, entropies)]
    name, rule = f"Empower ({lab.cfg.eta:g}), entropy", empower.empower(lab.cfg.eta)
    row = lab.train(name, rule, programs)
    return {name: row}, lab.stopping(name, rule, row, programs)


def care(plan, lab, rows):
    """Every assistant with a less and a more careful human: {care: rows}."""
    rows = {name: row for name, row in rows.items() if row}  # alone, her care does not matter
    return {str(care): play(lab, rows, lab.human_with(care)) for care in plan.cares}


def lengths(plan, lab):
    """Each way to choose a length, from short to long: {way: a row for each setting}."""
    cfg, base = lab.cfg, empower.assistant(lab.cfg, lab.base)
    ways = {
        "Empower": train(lab, {f"Empower ({eta:g})": empower.empower(eta) for eta in plan.etas}),
        "Base stopped": {f"Base stopped at {eta:g} bits": dataclasses.replace(base, max_cost=eta)
                         for eta in plan.etas},
        "SFT-N": train(lab, {f"SFT-{n}": empower.sft(n) for n in plan.ns}),
        "Base-N": {f"Base-{n}": dataclasses.replace(base, max_tokens=min(n, cfg.max_suggestion))
                   for n in plan.ns}}
    return {way: [{"setting": setting, **row} for setting, row in zip(
                plan.ns if way.endswith("-N") else plan.etas, play(lab, rows))]
            for way, rows in ways.items()}


def budget(plan, lab, rows):
    """Pass@1 by the round limit of a problem: {name: [one for each of plan.rounds]}.

    One game without a limit is enough: with fewer rounds it would have been its beginning.
    """
    K = lab.cfg.turn_tokens
    names = "Human alone", f"Base-{K}", f"SFT-{K}", f"Empower ({lab.cfg.eta:g})"
    return {name: within(lab, lab.play(f"{name}, no round limit", rows[name],
                                       **unlimited_rounds(lab.cfg)), plan.rounds)
            for name in names}


def within(lab, episodes, limits):
    """Pass@1 of the same episodes within each limit of rounds, judged or reused."""
    problems = lab.contest.held_out

    def make():
        cut = [[cut_off(episode, rounds) for episode in episodes] for rounds in limits]
        judge.judge_episodes([episode for row in cut for episode in row], problems,
                             lab.base.encoding.decode)
        return [simhuman.pass_at_1(row)[0] for row in cut]

    inputs = {"episodes": fingerprint([dataclasses.asdict(e) for e in episodes]), "rounds": limits,
              "problems": fingerprint(list(map(dataclasses.astuple, problems)))}
    return lab.cache.data("budget", inputs, make, code=(
        cut_off, judge.judge_episodes, judge.HELPER, simhuman.pass_at_1))


def cut_off(episode, rounds):
    """What an episode would have been with at most this many rounds.

    `passed` is False: it has to be judged again. Example: 3 rounds, then finished; cut off at 2,
    it has 2 and is not finished.
    """
    return simhuman.Episode(episode.problem, episode.turns[:rounds],
                            episode.finished and len(episode.turns) <= rounds)


# ------------------------------------------------------------------- the human, and fine-tuning


def own_text(plan, lab):
    """Does she reject her own text as often as her care says, on problems held out?

    [{"length", "runs", "rejected": the share of all runs of so many tokens}] on what she wrote
    alone for the held-out problems; her limits come from the problems to learn from.
    """
    encoding = lab.base.encoding
    episodes = lab.play(ALONE, None, **unlimited_rounds(lab.cfg))
    statements = [encoding.encode_ordinary(problem.statement) for problem in lab.contest.held_out]
    texts = [statement + episode.code for statement, episode in zip(statements, episodes)]
    costs = [nll[len(nll) - len(episode.code):] for nll, episode in zip(
        empower.score(lab.hers.model, texts, encoding.start), episodes)]
    found = []
    for n in plan.own_lengths:
        verdicts = [lab.human.accepts(nll[k:k + n].tolist()) for nll in costs
                    for k in range(len(nll) - n + 1)]
        found.append({"length": n, "runs": len(verdicts),
                      "rejected": 1 - float(np.mean(verdicts)) if verdicts else None})
    return found


def obvious(lab, trained):
    """Did fine-tuning make obvious tokens dear? [{"name", "bits"}], Base first.

    The mean cost of the tokens that cost Base less than OBVIOUS, in the fifth of her programs that
    no assistant has learned from.
    """
    programs = lab.programs[len(lab.programs) - len(lab.programs) // 5:]
    models = {"Base": lab.base.model, **{name: row.model for name, row in trained.items()}}
    inputs = {"models": [model.name for model in models.values()], "seed": lab.cfg.seed}
    return lab.cache.data("obvious tokens", inputs, lambda: [
        {"name": name, "bits": cost_of_obvious(model, programs, lab.base.encoding)}
        for name, model in models.items()], code=(cost_of_obvious, GPT))


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


def second_human(plan, cfg):
    """The paper's Table 2: another human, larger than the assistants, whose programs they learn.

    Her model is pre-trained on other documents, and her care is measured on her own text.
    """
    hers = dataclasses.replace(cfg, seed=derived_seed(cfg.seed, "second human"),
                               width=plan.her_width)
    lab = Lab(cfg, hers)
    rules = {name: rule for name, rule in completion_rules(cfg).items()
             if name != f"Empower ({cfg.eta_wide:g})"}
    rows = rows_of_the_table(cfg, lab.base, train(lab, rules))
    del rows["Base, knows the goal"]
    sizes = [sum(p.numel() for p in one.model.parameters()) for one in (lab.base, lab.hers)]
    return {"parameters": dict(zip(("assistants", "human"), sizes)), "rows": play(lab, rows),
            "own text": own_text(plan, lab)}


def tuned(plan, cfg, optimizer, rate):
    """The loss of each rule's assistant on development problems: one row of `tune`.

    {"optimizer", "rate", "losses": of each rule, bits per token of held-out completions with their
    stop, "mean" of these, "obvious": mean over the rules of the cost of obvious tokens}.
    """
    lab = Lab(dataclasses.replace(cfg, sft_lr=rate))
    lab.fine_tuning = {"optimizers": OPTIMIZERS[optimizer]}
    rules, encoding = completion_rules(cfg), lab.base.encoding
    trained = train(lab, rules)
    written = lab.cache.data(
        "development programs", {"base": lab.base.name, "attempts": plan.attempts},
        lambda: empower.write_programs(cfg, lab.base, lab.hers.model,
                                       lab.contest.dev * plan.attempts),
        code=(empower.write_programs, GPT))
    programs = [(encoding.encode_ordinary(row["program"]), np.array(row["nll"]), True)
                for row in written]
    losses = []
    for name, rule in rules.items():
        completions = empower.choose_completions(programs, rule, numpy_generator(cfg, "dev states"),
                                                 numpy_generator(cfg, "dev lengths"))
        losses.append(loss(trained[name].model, [
            empower.sft_example(encoding, *completion) for completion in completions]))
    bits = [row["bits"] for row in obvious(lab, trained)[1:]]
    return {"optimizer": optimizer, "rate": rate, "losses": losses, "mean": float(np.mean(losses)),
            "obvious": None if None in bits else float(np.mean(bits))}


@torch.no_grad()
def loss(model, examples, batch_size=64):
    """The mean cost in bits of a label, over examples of (token ids, where the loss starts)."""
    total, count = 0.0, 0
    for k in range(0, len(examples), batch_size):
        ids, labels = data.collate(examples[k:k + batch_size], model.config.max_position_embeddings)
        total += empower.sft_loss(model, ids, labels).item()
        count += int((labels[:, 1:] >= 0).sum())
    return total / count / math.log(2)


# ------------------------------------------------------------------- the bound, real code


def tightness(plan, lab):
    """`bound.measured` on what the human writes for held-out problems without a round limit."""
    base = lab.base
    episodes = lab.play(ALONE, None, **unlimited_rounds(lab.cfg))
    # The end is a choice too: a program that she ended has one more state, before its stop token.
    programs = [episode.code + [base.encoding.stop] * episode.finished for episode in episodes]
    programs = [program for program in programs if program]
    inputs = {"base": base.name, "programs": fingerprint(programs), "horizons": plan.horizons,
              "futures": plan.futures, "seed": lab.cfg.seed}
    return lab.cache.data("bound", inputs, lambda: bound.measured(
        lab.cfg, base, programs, plan.horizons, plan.futures), code=(bound.measured, GPT))


def real_code(cfg):
    """`python empower.py replay --corpus stdlib`, in full."""
    results = replay.replay(cfg)
    return {name: results[name] for name in ("rows", "stopping", "claims", "problems")}
