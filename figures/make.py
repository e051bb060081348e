"""The evidence: do the results of the default run hold across seeds, lengths and humans?

    python figures/make.py sweep     every experiment, into results.json next to this file
    python figures/make.py plot      results.json drawn, as PNG and SVG (needs matplotlib)
    python figures/make.py report    results.json as the tables quoted in README.md
    python figures/make.py calibrate how the human's tolerance tau was chosen

A sweep reuses the stages in --out, including those of `python empower.py`, and resumes where it
was interrupted. It plays five seeds of the default experiment, each with its own language model,
and on seed 0 other lengths, round limits, rules of acceptance, a second human, the bound of Section
4.3, and a replay of Python's own library. report.py has the tables, draw.py the pictures.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import bound
import empower
import report
import simhuman
from empower import Config, Lab
from model import GPT
from realcode import replay
from support import cli, judge
from support.cache import Cache
from support.cli import UserError, derived_seed
from support.files import write_text
from support.report import (claims, discounted_pass, paper_means, summarize, table)
from support.source import fingerprint

SEEDS = 5
ETAS = (0.05, 0.1, 0.32, 1, 2, 4, 8)                 # bits
NS = (1, 2, 3, 5, 7, 10, 20)                         # tokens
ROUNDS = (5, 8, 11, 13, 15, 17, 19, 25, 35, 101)     # the last means no limit
AT_TAU = (0.5, 1, 2)                                 # times the calibrated tau
HORIZONS = (1, 2, 4, 8, 16)                          # tokens after the next one
FUTURES = 64                                         # drawn for each state
SECOND_HUMAN = {"width": 192}                        # 1.5 M parameters; the assistants have 0.7 M

# tau in bits that `calibrate` tries: for the mean, the sum and the maximum of the costs
TAUS = {"skim": [0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0],
        "careful": [8, 12, 16, 20, 24, 32, 48, 64], "strict": [8, 10, 11, 12, 13, 14, 16]}

# Expected seconds on 2 cores, by which the bar moves.
EXPECTED = {"base model": 124, "second human": 330, "programs": 27, "assistant": 14, "row": 7,
            "budget": 55, "bound": 50, "stdlib": 700}


# ------------------------------------------------------------------- what is played


class Bar:
    """One bar over the whole sweep, in expected seconds."""

    def __init__(self, total):
        self.done = 0
        self.bar = tqdm(total=total, desc="sweep", disable=None,
                        bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed} passed, "
                                   "{remaining} to go{postfix}")

    @contextlib.contextmanager
    def step(self, label, seconds):
        """A part of the sweep; after it the bar moves on by the expected seconds."""
        self.bar.set_postfix_str(label)
        yield
        self.done += seconds
        self.bar.update(seconds)


def expected_seconds(seeds):
    """How long a sweep from scratch takes on 2 cores."""
    assistant, row = EXPECTED["assistant"], EXPECTED["row"]
    one_seed = EXPECTED["base model"] + EXPECTED["programs"] + 6 * assistant + 13 * row
    lengths = (len(ETAS) + len(NS)) * (assistant + 2 * row)
    judges = len(simhuman.ACCEPTANCE) * len(AT_TAU) * 4 * row
    second_human = EXPECTED["second human"] + EXPECTED["programs"] + 4 * assistant + 9 * row
    return (seeds * one_seed + lengths + 4 * row + EXPECTED["budget"] + judges + second_human
            + EXPECTED["bound"] + EXPECTED["stdlib"])


def laboratory(cfg, bar, **her_model):
    """The Lab of a seed, as a step of the sweep.

    her_model: settings of the human's own model, such as width=192, which is pre-trained on other
    documents; without them she is the base model.
    """
    hers = her_model and dataclasses.replace(
        cfg, seed=derived_seed(cfg.seed, "second human"), **her_model)
    with bar.step(f"seed {cfg.seed}: models and programs", EXPECTED["programs"] + EXPECTED[
            "second human" if her_model else "base model"]):
        return Lab(cfg, hers or None)


def train_each(lab, rules, bar, programs=None):
    """{name: Checkpoint}: an assistant for each {name: rule}; the bar moves on after each."""
    trained = {}
    for name, rule in rules.items():
        with bar.step(f"{name} learns", EXPECTED["assistant"]):
            trained[name] = lab.train(name, rule, programs)
    return trained


def play_each(lab, rows, bar, **options):
    """{name: episodes} of rows {name: Assistant or None}; the bar moves on after each."""
    episodes = {}
    for name, assistant in rows.items():
        with bar.step(f"{name} plays", EXPECTED["row"]):
            episodes[name] = lab.play(name, assistant, **options)
    return episodes


def summaries(lab, episodes):
    """One row of a table for each {name: episodes}."""
    return [summarize(name, row, lab.cfg) for name, row in episodes.items()]


def unlimited_rounds(cfg):
    """The option of `Lab.play` that lifts the round limit: more rounds than any program needs."""
    return {"rounds": empower.UNLIMITED_TOKENS // cfg.turn_tokens + 1}


# ------------------------------------------------------------------- the sections of the sweep


def one_seed(lab, bar):
    """The default experiment plus one row: cut points by the exact entropy (Section 4.3)."""
    cfg, base, rules = lab.cfg, lab.base, empower.completion_rules(lab.cfg)
    trained = train_each(lab, rules, bar)
    stopping = [lab.stopping(name, rule, trained[name]) for name, rule in rules.items()]
    texts = [ids for ids, *_ in lab.programs]
    with bar.step("entropies", 0):
        entropies = bound.entropies(base.model, texts, base.encoding.start)
    exact = [(ids, entropy, True) for ids, entropy in zip(texts, entropies)]
    name, rule = f"Empower ({cfg.eta:g}), entropy", empower.empower(cfg.eta)
    trained |= train_each(lab, {name: rule}, bar, exact)
    stopping.append(lab.stopping(name, rule, trained[name], exact))
    episodes = play_each(lab, {"Human alone, no round limit": None}, bar, **unlimited_rounds(cfg))
    episodes |= play_each(lab, empower.rows_of_the_table(cfg, base, trained), bar)
    return {"rows": summaries(lab, episodes), "stopping": stopping}


def lengths(lab, bar):
    """Each way to choose a length, from short to long: {way: a row for each setting}."""
    base = empower.rows_of_the_table(lab.cfg, lab.base, {})["Base"]
    trained = {"Empower": {f"Empower ({eta:g})": empower.empower(eta) for eta in ETAS},
               "SFT-N": {f"SFT-{n}": empower.sft(n) for n in NS}}
    rows = {way: beside(lab, train_each(lab, rules, bar)) for way, rules in trained.items()}
    rows["Base stopped"] = {f"Base stopped at {eta:g} bits": dataclasses.replace(
        base, max_cost=eta) for eta in ETAS}
    rows["Base-N"] = {f"Base-{n}": dataclasses.replace(base, max_tokens=n) for n in NS}
    return {way: [{"setting": setting, **row} for setting, row in zip(
                ETAS if way in ("Empower", "Base stopped") else NS,
                summaries(lab, play_each(lab, some, bar)))] for way, some in rows.items()}


def beside(lab, trained):
    """{name: Assistant} of trained checkpoints."""
    rows = empower.rows_of_the_table(lab.cfg, lab.base, trained)
    return {name: rows[name] for name in trained}


def some_rows(lab, *names):
    """The default experiment's rows with these names; assistants are trained if needed."""
    rules = {name: rule for name, rule in empower.completion_rules(lab.cfg).items()
             if name in names}
    rows = empower.rows_of_the_table(
        lab.cfg, lab.base, {name: lab.train(name, rule) for name, rule in rules.items()})
    return {name: rows[name] for name in names}


def budget(lab, bar):
    """Pass@1 by the round limit of a problem: {name: [one for each of ROUNDS]}.

    One game without a limit is enough: with fewer rounds it would have been its beginning.
    """
    rows = some_rows(lab, "Human alone", "Base-10", "SFT-10", f"Empower ({lab.cfg.eta:g})")
    episodes = play_each(lab, {f"{name}, no round limit": row for name, row in rows.items()}, bar,
                         **unlimited_rounds(lab.cfg))
    with bar.step("judge the budgets", EXPECTED["budget"]):
        return dict(zip(rows, (judged(lab, row) for row in episodes.values())))


def judged(lab, episodes):
    """Pass@1 of the same episodes within each of ROUNDS, judged or reused."""
    problems = lab.contest.held_out

    def make():
        cut = [[cut_off(episode, rounds) for episode in episodes] for rounds in ROUNDS]
        judge.judge_episodes([episode for row in cut for episode in row], problems,
                             lab.base.encoding.decode)
        return [simhuman.pass_at_1(row)[0] for row in cut]

    inputs = {"episodes": fingerprint([dataclasses.asdict(e) for e in episodes]), "rounds": ROUNDS,
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


def judges(lab, bar):
    """Four rows with each rule of acceptance, stricter and more lenient than calibrated."""
    cfg, found = lab.cfg, []
    rows = some_rows(lab, "Base-10", f"Base stopped at {cfg.eta:g} bits", "SFT-10",
                     f"Empower ({cfg.eta:g})")
    for name, (rule, tau) in simhuman.ACCEPTANCE.items():
        for times in AT_TAU:
            human = dataclasses.replace(lab.human, accepts=functools.partial(rule, tau=tau * times))
            found.append({"judging": name, "tau": tau * times, "times": times,
                          "rows": summaries(lab, play_each(lab, rows, bar, human=human))})
    return found


def second_human(lab, bar):
    """The paper's Table 2: another human, larger than the assistants, whose programs they learn."""
    rules = {name: rule for name, rule in empower.completion_rules(lab.cfg).items()
             if name != f"Empower ({lab.cfg.eta_wide:g})"}
    rows = empower.rows_of_the_table(lab.cfg, lab.base, train_each(lab, rules, bar))
    del rows["Base, knows the goal"]
    episodes = play_each(lab, rows, bar)
    parameters = [sum(p.numel() for p in model.parameters())
                  for model in (lab.base.model, lab.human.model)]
    return {"parameters": dict(zip(("assistants", "human"), parameters)),
            "rows": summaries(lab, episodes),
            "claims": claims(lab.cfg, episodes, {
                "pass@1": lambda episode: float(episode.passed),
                "dpr": discounted_pass(lab.cfg)})}


def tightness(lab, bar):
    """`bound.measured` on what the human writes for held-out problems without a round limit."""
    name, base = "Human alone, no round limit", lab.base
    episodes = lab.play(name, None, **unlimited_rounds(lab.cfg))
    # The end is a choice too: a program that she ended has one more state, before its stop token.
    programs = [episode.code + [base.encoding.stop] * episode.finished for episode in episodes]
    programs = [program for program in programs if program]
    inputs = {"base": base.name, "programs": fingerprint(programs), "horizons": HORIZONS,
              "futures": FUTURES, "seed": lab.cfg.seed}
    with bar.step("how tight is the bound", EXPECTED["bound"]):
        return lab.cache.data("bound", inputs, lambda: bound.measured(
            lab.cfg, base, programs, HORIZONS, FUTURES), code=(bound.measured, GPT))


def stdlib(cfg, bar):
    """`python empower.py replay --corpus stdlib`, in full."""
    with bar.step("an author is replayed", EXPECTED["stdlib"]):
        results = replay.replay(cfg)
    return {name: results[name] for name in ("rows", "stopping", "claims", "problems")}


def rounded(plain, digits=4):
    """Plain data with its floats rounded: committed results should be readable, diffs clear."""
    if isinstance(plain, float):
        return round(plain, digits)
    if isinstance(plain, dict):
        return {key: rounded(value, digits) for key, value in plain.items()}
    return [rounded(value, digits) for value in plain] if isinstance(plain, list) else plain


# ------------------------------------------------------------------- the sweep


def sweep(cfg, replay_cfg, seeds, results):
    """Runs every section, or reads it from finished stages; writes and returns the results."""
    begin, device, expected = time.time(), cli.pick_device(cfg.device), expected_seconds(seeds)
    cli.checked(judge.check_judge)
    Cache(cfg.out)  # says why a folder cannot be used
    if results.is_dir() or not os.access(results if results.exists() else results.parent, os.W_OK):
        raise UserError(f"cannot write --results {results}: name a file in a folder that exists")
    print(f"{seeds} seeds of the default experiment, then on seed {cfg.seed}: other lengths, round "
          "limits, rules of acceptance,\na second human, the bound, and Python's own library. "
          f"About {expected / 60:.0f} minutes on 2 CPU cores, less if stages are "
          f"reused.\nDevice {device}, stages in {cfg.out}, log in {cfg.out}/sweep.log, results "
          f"in {results}")
    bar, found = Bar(expected), {}
    with open(Path(cfg.out, "sweep.log"), "a", buffering=1, encoding="utf-8") as log, \
            contextlib.redirect_stdout(log):

        try:
            found["seeds"] = {str(seed): one_seed(
                laboratory(dataclasses.replace(cfg, seed=seed), bar), bar)
                for seed in range(cfg.seed, cfg.seed + seeds)}
            first = Lab(cfg)
            found["lengths"] = lengths(first, bar)
            found["budget"] = budget(first, bar)
            found["judges"] = judges(first, bar)
            found["second human"] = second_human(laboratory(cfg, bar, **SECOND_HUMAN), bar)
            found["bound"] = tightness(first, bar)
            found["stdlib"] = stdlib(replay_cfg, bar)
        finally:
            bar.bar.close()
    found = {"config": dataclasses.asdict(cfg), "environment": cli.environment(device),
             "rounds": list(ROUNDS), "horizons": list(HORIZONS), "futures": FUTURES,
             **rounded(found)}
    del found["config"]["out"]
    write_text(results, json.dumps(found, indent=1, allow_nan=False) + "\n")
    print(f"{(time.time() - begin) / 60:.0f} minutes; next: python figures/make.py plot")
    return found


# ------------------------------------------------------------------- her tolerance


def calibrate(cfg):
    """Chooses tau on development problems, from two untrained rows only; returns it.

    The accept ratios of Base and Base-10 should come as close as possible (least squares) to the
    paper's, since the paper does not say how strict its human is.
    """
    lab, tried = Lab(cfg), []
    rule, _ = simhuman.ACCEPTANCE[cfg.accepts]
    paper = {name: paper_means("Gemma", name)[1] for name in ("Base", "Base-10")}
    rows = some_rows(lab, *paper)
    for tau in TAUS[cfg.accepts]:
        human = dataclasses.replace(lab.human, accepts=functools.partial(rule, tau=tau))
        ratios = {name: simhuman.accept_ratio(lab.play(name, row, human, lab.contest.dev))[0]
                  for name, row in rows.items()}
        tried.append({"tau": tau, **ratios, "distance": math.dist(
            ratios.values(), paper.values())})
    best = min(tried, key=lambda row: row["distance"])["tau"]
    print(table(tried, {"tau": "{tau:g}", **{name: f"{{{name}:.3f}}" for name in paper},
                        "distance": "{distance:.3f}"}))
    print(f"--accepts {cfg.accepts} --tau {best:g} is closest to the paper's "
          f"{' and '.join(f'{ratio:.3f}' for ratio in paper.values())}")
    return best


# ------------------------------------------------------------------- the command line


def main(argv=None):
    """Runs one command of the command line."""
    parser = cli.Parser(prog="figures/make.py", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sweeping = commands.add_parser("sweep", help="every experiment, into results.json")
    sweeping.add_argument("--seeds", type=int, default=SEEDS, help="2 to 10 (default: 5)")
    calibrating = commands.add_parser("calibrate", help="choose her tolerance tau")
    calibrating.add_argument("--accepts", default="skim", help="skim, careful or strict")
    for command in (sweeping, calibrating):
        command.add_argument("--out", default="out", help="folder of the stages (default: out)")
    plotting = commands.add_parser("plot", help="results.json drawn, as PNG and SVG")
    reporting = commands.add_parser("report", help="results.json as tables")
    for command in (sweeping, plotting, reporting):
        command.add_argument("--results", type=Path, default=HERE / "results.json",
                             help="the file of results (default: results.json next to "
                                  "this script); pictures go next to it")
    args = parser.parse_args(argv)
    with cli.plain_errors("figures/make.py"):
        obey(args)


def obey(args):
    """Runs the command that the command line asks for."""
    if args.command == "calibrate":
        return calibrate(Config(out=args.out, accepts=args.accepts))
    if args.command == "sweep":
        if not 2 <= args.seeds <= max(report.STUDENT):
            raise UserError(f"--seeds is {args.seeds}: give 2 to {max(report.STUDENT)}")
        replay_cfg = replay.Config(out=f"{args.out}/replay", corpus="stdlib")
        return sweep(Config(out=args.out), replay_cfg, args.seeds, args.results)
    results = report.read(args.results)
    try:
        if args.command == "report":
            return print(report.text(results))
        import draw
        for path in draw.all_figures(results, args.results.parent):
            print(path)
    except ModuleNotFoundError:
        raise UserError("matplotlib is missing: pip install -r figures/requirements.txt") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{args.results} is not the result of a sweep ({error!r}): run python "
                        "figures/make.py sweep") from None


if __name__ == "__main__":
    sys.exit(main())
