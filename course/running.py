"""How an experiment of the course is played: its rows next to the default ones, and differences.

An experiment is a function of an `empower.Lab`. It returns ({name: episodes}, pairs of names), of
which the pairs are compared; or ({}, []) if it prints its own table.
"""

import contextlib
import dataclasses
import importlib
import io
import sys
from pathlib import Path

sys.path[:0] = map(str, Path(__file__).resolve().parents[:2])

import empower
from figures.intervals import STUDENT, seeds_interval
from support import cli
from support.report import METRICS, RESULTS, metrics, paired_difference, summarize, table

# ------------------------------------------------------------------- rows


def learned(lab, rules, programs=None):
    """{name: episodes} with assistants that learn these rules, from her programs or from others."""
    trained = {name: lab.train(name, rule, programs) for name, rule in rules.items()}
    rows = empower.rows_of_the_table(lab.cfg, lab.base, trained)
    return {name: lab.play(name, rows[name]) for name in rules}


def against_empower(lab, episodes):
    """(episodes, pairs): each row is compared with Empower's, as `experiment` wants it."""
    return episodes, [(name, f"Empower ({lab.cfg.eta:g})") for name in episodes]


def default_rows(lab):
    """{name: Assistant} of three rows of the default table, Empower last."""
    rules = empower.completion_rules(lab.cfg)
    K = lab.cfg.turn_tokens
    names = f"SFT-{K}", f"Empower ({lab.cfg.eta:g})"
    rows = empower.rows_of_the_table(lab.cfg, lab.base, {
        name: lab.train(name, rules[name]) for name in names})
    return {name: rows[name] for name in (f"Base-{K}", *names)}


def with_humans(lab, humans):
    """(episodes, pairs): three default rows with each of these humans, {suffix of a row: Human}."""
    rows, episodes, pairs = default_rows(lab), {}, []
    *others, best = rows
    for suffix, human in humans.items():
        for name, assistant in rows.items():
            episodes[name + suffix] = lab.play(name + suffix, assistant, human)
        pairs += [(best + suffix, other + suffix) for other in others]
    return episodes, pairs


# ------------------------------------------------------------------- differences


def experiment(function, cfg):
    """Plays an experiment: {(a, b): {metric: (a minus b, low, high)}} of the pairs it compares.

    Prints its rows and the default ones. Intervals are over problems.
    """
    lab = empower.Lab(cfg)
    found, pairs = function(lab)
    if not found:
        return {}
    default = {name: lab.play(name, row) for name, row in default_rows(lab).items()}
    usual = f", care {cfg.care:g}" * any(", care " in name for name in found)
    rows = [summarize(name + usual * (name in default), episodes, cfg)
            for name, episodes in {**default, **found}.items()]
    print(f"\nHer care is {cfg.care:g}{' unless a row says otherwise' * bool(usual)}; seed "
          f"{cfg.seed}.\n{table(rows, RESULTS)}")
    values, episodes = metrics(cfg), {**default, **found}
    return {(a, b): {metric: paired_difference(
        [value(episode) for episode in episodes[a]], [value(episode) for episode in episodes[b]],
        cli.numpy_generator(cfg, "bootstrap")) for metric, value in values.items()}
        for a, b in pairs}


def differences(found):
    """The differences of `experiment` as a table."""
    rows = [{"name": f"{a} minus {b}", **{
        metric: "{:+.3f} ({:+.3f} to {:+.3f})".format(*interval) if interval[0] is not None else "-"
        for metric, interval in each.items()}} for (a, b), each in found.items()]
    return table(rows, {"difference (95% interval)": "{name}", **{
        METRICS[metric]: f"{{{metric}}}" for metric in next(iter(found.values()))}})


def over_seeds(each):
    """The differences over seeds: mean and Student's interval of those of each seed, in a list."""
    def interval(some):
        return (None,) * 3 if None in some else seeds_interval(some)

    return {pair: {metric: interval([found[pair][metric][0] for found in each])
                   for metric in values} for pair, values in each[0].items()}


def play(function, cfg, seeds):
    """Plays an experiment on each of these seeds and prints what it compares."""
    print(f"{function.__doc__.splitlines()[0]} A few minutes a seed on 2 CPU cores.")
    each = [experiment(function, dataclasses.replace(cfg, seed=seed)) for seed in seeds]
    if not each[0]:
        return
    if len(seeds) > 1:
        print(f"\nOver {len(seeds)} seeds, each with its own problems, models and training:\n"
              f"{differences(over_seeds(each))}")
        return
    print(f"\n{differences(each[0])}\n\nEach row was trained once: these intervals are over "
          "problems only, and too narrow to judge a\nrule by (another training can turn the sign); "
          "--seeds 0 1 2 gives intervals over seeds.")


# ------------------------------------------------------------------- the command line

QUICK = {"pretrain_steps": 200, "train_problems": 500, "dev_problems": 20, "held_out_problems": 60}


def check_function(number):
    """A UserError unless the function of an exercise passes its tests."""
    try:
        pytest = importlib.import_module("pytest")
    except ImportError:
        raise cli.UserError("the function is tested first: pip install pytest") from None
    file, printed = f"course/test_exercise_{number}.py", io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = pytest.main(["-q", "-x", "--no-header", "-p", "no:cacheprovider",
                              str(Path(__file__).parent / Path(file).name)])
    if status:
        print(printed.getvalue())
        raise cli.UserError(f"exercise {number} does not pass its tests, so its experiment would "
                            f"mean nothing: pytest {file}")


def main(experiments, argv=None, description=""):
    """The command line of a file with experiments: {number: function}, or one function."""
    own = callable(experiments)
    parser = cli.Parser(prog=f"course/{'own' if own else 'exercises'}.py", description=description)
    if not own:
        parser.add_argument("number", type=int, choices=experiments, help="the exercise")
    parser.add_argument("--out", default="out", help="--out of python empower.py (default: out)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED",
                        help="up to 10; intervals of several are over seeds (default: 0)")
    parser.add_argument("--quick", action="store_true",
                        help="in about a minute, with small and weak models")
    args = parser.parse_args(argv)
    if len(set(args.seeds)) < len(args.seeds) or len(args.seeds) > max(STUDENT):
        parser.error(f"--seeds: give different seeds, at most {max(STUDENT)}")
    with cli.plain_errors(parser.prog):
        if not own:
            check_function(args.number)
        cfg = dataclasses.replace(empower.Config(out=args.out), **QUICK if args.quick else {})
        if args.quick:
            print("--quick: these models are too weak to judge a rule by; run it again without.")
        play(experiments if own else experiments[args.number], cfg, args.seeds)
