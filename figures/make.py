"""The evidence: does what the default run shows hold across seeds, lengths, judges and humans?

    python figures/make.py sweep     every experiment, into results.json beside this file
    python figures/make.py plot      results.json drawn, as PNG and SVG (needs matplotlib)
    python figures/make.py report    results.json as the tables and sentences that README.md quotes

A sweep reuses the stages in --out, those of `python empower.py` among them, and goes on where it
was interrupted. What it plays: five seeds of the default experiment, each with a language model of
its own, and on seed 0 other lengths, budgets of rounds, judges, a second human, the bound of
Section 4.3, and Python's own library replayed. report.py has the tables, draw.py the pictures.
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import data
import empower
import realcode
import simhuman
from checkpoint import write_text
from empower import Config, UserError, completion_rule, summarize

SEEDS = 5
ETAS = (0.05, 0.1, 0.32, 1, 2, 4, 8)                 # bits
NS = (1, 2, 3, 5, 7, 10, 20)                         # tokens
ROUNDS = (5, 8, 11, 13, 15, 17, 19, 25, 35, 101)     # the last is no limit
AT_TAU = (0.5, 1, 2)                                 # times what --calibrate chose
HORIZONS = (1, 2, 4, 8, 16)                          # tokens behind the next one
FUTURES = 64                                         # drawn for each state
SECOND_HUMAN = {"width": 192}                        # 1.4 M parameters, the assistants have 0.7 M

# Seconds on 2 cores, by which the bar moves.
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
        """A part of the sweep; the bar moves on by the seconds that it was expected to take."""
        self.bar.set_postfix_str(label)
        yield
        self.done += seconds
        self.bar.update(seconds)


def expected_seconds(seeds):
    """What a sweep from nothing takes on 2 cores."""
    assistant, row = EXPECTED["assistant"], EXPECTED["row"]
    one_seed = EXPECTED["base model"] + EXPECTED["programs"] + 6 * assistant + 13 * row
    lengths = (len(ETAS) + len(NS)) * (assistant + 2 * row)
    judges = len(empower.TAU) * len(AT_TAU) * 4 * row
    second_human = EXPECTED["second human"] + EXPECTED["programs"] + 4 * assistant + 9 * row
    return (seeds * one_seed + lengths + 4 * row + EXPECTED["budget"] + judges + second_human
            + EXPECTED["bound"] + EXPECTED["stdlib"])


def laboratory(cfg, bar, **her_model):
    """`empower.laboratory`, as a step of the sweep."""
    with bar.step(f"seed {cfg.seed}: models and programs", EXPECTED["programs"] + EXPECTED[
            "second human" if her_model else "base model"]):
        return empower.laboratory(cfg, empower.pick_device(cfg.device), **her_model)


def train_each(lab, rules, bar, programs=None):
    """{name: folder} of an assistant for each {name: rule}; the bar moves on with each."""
    assistants = {}
    for name, rule in rules.items():
        with bar.step(f"{name} learns", EXPECTED["assistant"]):
            assistants |= lab.train({name: rule}, programs)
    return assistants


def play_each(lab, rows, bar):
    """{name: episodes} of {name: (folder, options)}; the bar moves on with each."""
    episodes = {}
    for name, row in rows.items():
        with bar.step(f"{name} plays", EXPECTED["row"]):
            episodes |= lab.play({name: row})
    return episodes


def summaries(lab, episodes):
    """One row of a table for each {name: episodes}."""
    return [summarize(name, row, lab.cfg) for name, row in episodes.items()]


# ------------------------------------------------------------------- the sections of the sweep


def one_seed(lab, bar):
    """The default experiment, and one row more: cut points by the exact entropy (Section 4.3)."""
    cfg, base = lab.cfg, lab.base
    assistants = train_each(lab, empower.completion_rules(cfg), bar)
    texts = [ids for ids, _ in lab.programs]
    with bar.step("entropies", 0):
        entropies = empower.score(base.model, texts, base.encoding.start,
                                  cost=empower.token_entropy)
    exact = {f"Empower ({cfg.eta:g}), entropy": completion_rule("empower", cfg.eta)}
    assistants |= train_each(lab, exact, bar, list(zip(texts, entropies)))
    rows = empower.all_rows(cfg, base, assistants)
    return {"rows": summaries(lab, play_each(lab, rows, bar)),
            "stopping": [empower.load_stopping(folder) for folder in assistants.values()]}


def lengths(lab, bar):
    """Each way to choose a length, from short to long: {way: a row for each setting}."""
    trained = {"Empower": {f"Empower ({eta:g})": completion_rule("empower", eta) for eta in ETAS},
               "SFT-N": {f"SFT-{n}": completion_rule(f"sft-{n}", None) for n in NS}}
    untrained = {"Base stopped": {f"Base stopped at {eta:g} bits": {"max_cost": eta}
                                  for eta in ETAS},
                 "Base-N": {f"Base-{n}": {"max_tokens": n} for n in NS}}
    rows = {way: {name: (folder, {}) for name, folder in train_each(lab, rules, bar).items()}
            for way, rules in trained.items()}
    rows |= {way: {name: (lab.base.folder, options) for name, options in changes.items()}
             for way, changes in untrained.items()}
    return {way: [{"setting": setting, **row} for setting, row in zip(
                ETAS if way in ("Empower", "Base stopped") else NS,
                summaries(lab, play_each(lab, some, bar)))] for way, some in rows.items()}


def budget(lab, bar):
    """Pass@1 by the rounds that a problem may take: {name: [one for each of ROUNDS]}.

    One game without a limit holds them all: with fewer rounds it would have been its beginning.
    """
    no_limit = {"rounds": empower.unlimited_rounds(lab.cfg)}
    assistants = lab.train(some_rules(lab.cfg, "SFT-10", f"Empower ({lab.cfg.eta:g})"))
    rows = {"Human alone": (None, no_limit),
            "Base-10": (lab.base.folder, {"max_tokens": 10, **no_limit}),
            **{name: (folder, no_limit) for name, folder in assistants.items()}}
    episodes = play_each(lab, {f"{name}, no round limit": row for name, row in rows.items()}, bar)
    with bar.step("judge the budgets", EXPECTED["budget"]):
        return dict(zip(rows, (judged(lab, row) for row in episodes.values())))


def judged(lab, episodes):
    """Pass@1 of the same episodes within each of ROUNDS, judged or reused."""
    def make(folder):
        cut = [[simhuman.cut_off(episode, rounds) for episode in episodes] for rounds in ROUNDS]
        lab.game.judge([episode for row in cut for episode in row])
        shares = [simhuman.pass_at_1(row)[0] for row in cut]
        write_text(folder / "passed.json", json.dumps(shares) + "\n")

    inputs = {"episodes": empower.fingerprint([dataclasses.asdict(e) for e in episodes]),
              "rounds": ROUNDS, **lab.game.inputs}
    return json.loads((empower.stage(lab.cfg, "budget", inputs, make) / "passed.json").read_text())


def some_rules(cfg, *names):
    """These rules of the default experiment."""
    return {name: rule for name, rule in empower.completion_rules(cfg).items() if name in names}


def judges(lab, bar):
    """Four rows under each way to judge a suggestion, stricter and milder than calibrated."""
    found, empowered = [], f"Empower ({lab.cfg.eta:g})"
    assistants = lab.train(some_rules(lab.cfg, "SFT-10", empowered))
    rows = empower.rows_of_the_table(lab.cfg, lab.base, assistants)
    rows = {name: rows[name] for name in ("Base-10", f"Base stopped at {lab.cfg.eta:g} bits",
                                          *assistants)}
    for judging, tau in empower.TAU.items():
        for times in AT_TAU:
            cfg = dataclasses.replace(lab.cfg, judging=judging, tau=tau * times)
            game = empower.contest_game(cfg, lab.human, lab.contest.held_out)
            other = lab._replace(cfg=cfg, game=game)
            found.append({"judging": judging, "tau": cfg.tau, "times": times,
                          "rows": summaries(other, play_each(other, rows, bar))})
    return found


def second_human(lab, bar):
    """The paper's Table 2: another human, larger than the assistants, whose programs they learn."""
    empowered = f"Empower ({lab.cfg.eta:g})"
    rules = some_rules(lab.cfg, "SFT-10", "SFT-20", "SFT-RAND", empowered)
    assistants = train_each(lab, rules, bar)
    episodes = play_each(lab, empower.rows_of_the_table(lab.cfg, lab.base, assistants), bar)
    parameters = [sum(p.numel() for p in checkpoint.model.parameters())
                  for checkpoint in (lab.base, lab.human)]
    return {"parameters": dict(zip(("assistants", "human"), parameters)),
            "rows": summaries(lab, episodes),
            "claims": empower.claims(lab.cfg, episodes, {
                "pass@1": lambda episode: float(episode.passed),
                "dpr": empower.dpr_of(lab.cfg)})}


def bound(lab, bar):
    """Section 4.3 in a state of each program that the human writes for a held-out problem.

    For each: the cost of the token she wrote, which is the one-sample estimate; the exact entropy
    of the next token; and the information that it carries about the HORIZONS that follow, in bits.
    """
    cfg, (model, encoding, *_) = lab.cfg, lab.base
    alone = {"Human alone, no round limit": (None, {"rounds": empower.unlimited_rounds(cfg)})}
    [episodes] = lab.play(alone).values()
    # The end is a choice too: a program that she ended has a state more, before its stop token.
    programs = [episode.code + [encoding.stop] * episode.finished for episode in episodes]
    programs = [program for program in programs if program]

    def make(folder):
        drawn = data.draw_states(empower.numpy_generator(cfg, "bound"), list(map(len, programs)))
        nll, entropy = (empower.score(model, programs, encoding.start, cost=cost)
                        for cost in (empower.token_nll, empower.token_entropy))
        generator, states = empower.torch_generator(cfg, "futures", model.device), []
        for k, n in enumerate(tqdm(drawn, "bound", unit="state", leave=False, disable=None)):
            information, counted = empower.future_information(
                model, [encoding.start, *programs[k][:n]], encoding.stop, max(HORIZONS), FUTURES,
                generator)
            states.append({"token": encoding.decode([programs[k][n]]), "nll": float(nll[k][n]),
                           "entropy": float(entropy[k][n]), "entropy_counted": counted,
                           "information": [float(information[h - 1]) for h in HORIZONS]})
        write_text(folder / "states.json", json.dumps(states) + "\n")

    inputs = {"base": lab.base.name, "programs": empower.fingerprint(programs),
              "horizons": HORIZONS, "futures": FUTURES, "seed": cfg.seed}
    with bar.step("how tight is the bound", EXPECTED["bound"]):
        folder = empower.stage(cfg, "bound", inputs, make)
        return json.loads((folder / "states.json").read_text())


def stdlib(cfg, bar):
    """`python empower.py replay --corpus stdlib`, whole."""
    with bar.step("an author is replayed", EXPECTED["stdlib"]):
        results = realcode.replay(cfg)
    return {name: results[name] for name in ("rows", "stopping", "claims", "problems")}


def rounded(plain, digits=4):
    """Plain data with its floats rounded: what is committed shall be read, and differ visibly."""
    if isinstance(plain, float):
        return round(plain, digits)
    if isinstance(plain, dict):
        return {key: rounded(value, digits) for key, value in plain.items()}
    return [rounded(value, digits) for value in plain] if isinstance(plain, list) else plain


# ------------------------------------------------------------------- the sweep


def sweep(cfg, replay_cfg, seeds, results):
    """Runs every section, or reads it from finished stages; writes and returns what was found."""
    begin, device, expected = time.time(), empower.prepare(cfg), expected_seconds(seeds)
    if results.is_dir() or not os.access(results if results.exists() else results.parent, os.W_OK):
        raise UserError(f"cannot write --results {results}: name a file in a folder that is there")
    print(f"{seeds} seeds of the default experiment, then on seed {cfg.seed}: other lengths, "
          f"budgets, judges, a second human,\nthe bound, and Python's own library. About "
          f"{expected / 60:.0f} minutes on 2 CPU cores, less where stages are "
          f"reused.\nDevice {device}, stages in {cfg.out}, log in {cfg.out}/sweep.log, results "
          f"in {results}")
    bar, found = Bar(expected), {}
    with open(Path(cfg.out, "sweep.log"), "a", buffering=1, encoding="utf-8") as log, \
            contextlib.redirect_stdout(log):

        try:
            found["seeds"] = {str(seed): one_seed(
                laboratory(dataclasses.replace(cfg, seed=seed), bar), bar)
                for seed in range(cfg.seed, cfg.seed + seeds)}
            first = empower.laboratory(cfg, device)
            found["lengths"] = lengths(first, bar)
            found["budget"] = budget(first, bar)
            found["judges"] = judges(first, bar)
            found["second human"] = second_human(laboratory(cfg, bar, **SECOND_HUMAN), bar)
            found["bound"] = bound(first, bar)
            found["stdlib"] = stdlib(replay_cfg, bar)
        finally:
            bar.bar.close()
    found = {"config": dataclasses.asdict(cfg), "environment": empower.environment(device),
             "rounds": list(ROUNDS), "horizons": list(HORIZONS), "futures": FUTURES,
             **rounded(found)}
    del found["config"]["out"]
    write_text(results, json.dumps(found, indent=1, allow_nan=False) + "\n")
    print(f"{(time.time() - begin) / 60:.0f} minutes; next: python figures/make.py plot")
    return found


def main(argv=None):
    """The command line; returns the exit status."""
    parser = empower.Parser(prog="figures/make.py", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sweeping = commands.add_parser("sweep", help="every experiment, into results.json")
    sweeping.add_argument("--out", default="out", help="folder of the stages (default: out)")
    sweeping.add_argument("--seeds", type=int, default=SEEDS, help="2 to 10 (default: 5)")
    plotting = commands.add_parser("plot", help="results.json drawn, as PNG and SVG")
    reporting = commands.add_parser("report", help="the tables and sentences of README.md")
    for command in (sweeping, plotting, reporting):
        command.add_argument("--results", type=Path, default=HERE / "results.json",
                             help="the file of what was found (default: results.json beside "
                                  "this); pictures are drawn beside it")
    args = parser.parse_args(argv)
    return empower.carry_out(lambda: obey(args), "figures/make.py")


def obey(args):
    """Does what was asked for on the command line."""
    if args.command == "sweep":
        if not 2 <= args.seeds <= max(simhuman.STUDENT):
            raise UserError(f"--seeds is {args.seeds}: give 2 to {max(simhuman.STUDENT)}")
        replay_cfg = realcode.ReplayConfig(out=f"{args.out}/replay", corpus="stdlib")
        return sweep(Config(out=args.out), replay_cfg, args.seeds, args.results)
    import report
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
        raise UserError(f"{args.results} is not what a sweep leaves ({error!r}): run python "
                        "figures/make.py sweep") from None


if __name__ == "__main__":
    sys.exit(main())
