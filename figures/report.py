"""The results of a sweep, as the tables quoted in README.md. Needs no matplotlib."""

import json
import math

import numpy as np

from simhuman import mean_and_error
from support.cli import UserError
from support.report import (CLAIMS, PAPER, RESULTS, STOPPING, paper_gain, paper_means, table,
                            with_verdict)

BASELINES = ["SFT-10", "SFT-20", "SFT-RAND", "Base-10", "Base-20", "Base"]
SECTIONS = ("config", "environment", "rounds", "horizons", "seeds", "lengths", "budget", "judges",
            "second human", "bound", "stdlib")
METRICS = {"pass@1": "Pass@1", "accept_ratio": "accept ratio", "dpr": "DPR"}


def read(path):
    """The results of a sweep; a UserError if there are none."""
    try:
        results = json.loads(path.read_text())
        if not isinstance(results, dict):
            raise ValueError("it is not an object")
        missing = [name for name in SECTIONS if not results.get(name)]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        return results
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): run python figures/make.py sweep, "
                        "or name another file with --results") from None
    except ValueError as error:
        raise UserError(f"{path} is not the result of a sweep ({error}): run python "
                        "figures/make.py sweep") from None


def text(results):
    """All tables, each under the name of what it shows."""
    return "\n\n".join(f"## {name[0].upper()}{name[1:]}\n\n{block}"
                       for name, block in tables(results).items())


# ------------------------------------------------------------------- numbers from the results


def empowered(results):
    """The name of Empower's row."""
    return f"Empower ({results['config']['eta']:g})"


def row_of(rows, name):
    """The row with this name."""
    return next(row for row in rows if row["name"] == name)


def over_seeds(results, name, key):
    """The value of one row on each seed: an array (seeds,); nan where it has none."""
    rows = (row_of(seed["rows"], name) for seed in results["seeds"].values())
    return np.array([math.nan if row[key] is None else row[key] for row in rows])


def seeds_table(results):
    """Mean and standard deviation over seeds, a dict for each row of the default experiment."""
    found = []
    for row in next(iter(results["seeds"].values()))["rows"]:
        new = {"name": row["name"]}
        for key in (*METRICS, "tokens_read", "tokens_written", "suggestion_length", "silent_share"):
            values = over_seeds(results, row["name"], key)
            missing = np.isnan(values).any()
            new[key], new[f"{key}_sd"] = (None, None) if missing else (
                values.mean(), values.std(ddof=1))
        found.append(new)
    return found


def difference(results, baseline, key):
    """Empower minus a baseline, paired by problem within each seed: mean, interval, gains.

    The mean of paired differences is the difference of means, so the rows of a seed suffice.
    """
    ours, theirs = (over_seeds(results, name, key) for name in (empowered(results), baseline))
    mean, low, high = seeds_interval(ours - theirs)
    return {"name": baseline, "mean": mean, "low": low, "high": high,
            # A ratio to almost nothing means nothing.
            "gain": ours.mean() / theirs.mean() - 1 if theirs.mean() >= 0.05 else None,
            "paper": paper_gain(baseline, key)}


def per_turn(row):
    """The mean length of a suggestion, tokens, if silence is a suggestion of 0 tokens."""
    return (row["suggestion_length"] or 0) * (1 - row["silent_share"])


def above(points, others, key):
    """At how many points a curve lies above another: (above, comparable), by interpolation.

    points, others: rows. A point outside the lengths of the other curve cannot be compared.
    """
    x, y = np.array(sorted((per_turn(row), row[key] or 0) for row in others)).T
    comparable = [row for row in points if x[0] <= per_turn(row) <= x[-1]]
    return sum((row[key] or 0) > np.interp(per_turn(row), x, y) for row in comparable), \
        len(comparable)


def bound_by_horizon(results):
    """{"k", "information", its "share" of the entropy of the same tokens} for each horizon k."""
    states = results["bound"]
    entropy = np.mean([state["entropy_counted"] for state in states])
    information = np.mean([state["information"] for state in states], axis=0)
    return [{"k": k, "information": i, "share": i / entropy}
            for k, i in zip(results["horizons"], information)]


def compared(results, other):
    """At how many of its points Empower is above the curve of another way: "5 of 6" by metric."""
    found = {"name": other}
    for key in ("pass@1", "accept_ratio", "share_saved"):
        count, of = above(results["lengths"]["Empower"], results["lengths"][other], key)
        found[key] = f"{count} of {of}"
    return found


def size(results):
    """How large everything is: {"what", "number"}."""
    config, parameters = results["config"], results["second human"]["parameters"]
    return [{"what": what, "number": number} for what, number in (
        ("problems to learn from", config["train_problems"]),
        ("problems to play", config["held_out_problems"]),
        ("parameters of the GPT", parameters["assistants"]),
        ("parameters of the second human", parameters["human"]))]


def bound_facts(results):
    """What the states of the bound show, in bits and in numbers of states: {"what", "value"}."""
    states, eta = results["bound"], results["config"]["eta"]
    cost, exact, counted = (np.array([state[key] for state in states])
                            for key in ("nll", "entropy", "entropy_counted"))
    last = np.array([state["information"][-1] for state in states])
    loosest = [states[k]["token"] for k in np.argsort(last - counted, kind="stable")[:5]]
    return [{"what": what, "value": value} for what, value in (
        ("states", len(states)),
        ("mean entropy of the next token", f"{exact.mean():.2f}"),
        ("mean cost of the token written", f"{cost.mean():.2f}"),
        ("standard deviation of the cost around the entropy", f"{np.std(cost - exact):.2f}"),
        ("mean entropy that the information counts", f"{counted.mean():.2f}"),
        ("states with an entropy above eta", int((exact > eta).sum())),
        ("of these, the token written costs more than eta", int(((exact > eta)
                                                                 & (cost > eta)).sum())),
        ("of the others", int(((exact <= eta) & (cost > eta)).sum())),
        (f"of those above eta, within 5% of the bound at k = {results['horizons'][-1]}",
         int(((exact > eta) & (last >= 0.95 * counted)).sum())),
        ("loosest where she wrote", ", ".join(map(repr, dict.fromkeys(loosest)))))]


# ------------------------------------------------------------------- intervals over seeds


def seeds_interval(differences):
    """(mean, and the ends of its 95% interval) of one paired difference for each of 2..10 seeds.

    Each seed has its own model and problems, so the spread of the seeds' differences reflects
    chance in both: Student's interval with one degree of freedom fewer than seeds. (A bootstrap,
    which resamples so few seeds, gives intervals that are too short.)
    Example: 0.1, 0.2, 0.3: the mean 0.2, and 4.303 * 0.1 / sqrt(3) = 0.248 on either side.
    """
    mean, error = mean_and_error(differences)
    return mean, mean - STUDENT[len(differences)] * error, mean + STUDENT[len(differences)] * error


STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306,
           10: 2.262}  # the 0.975 quantile of Student's t for this many values


# ------------------------------------------------------------------- tables


def pm(key, digits=3, error="sd"):
    return f"{{{key}:.{digits}f}} ± {{{key}_{error}:.{digits}f}}"


SEEDS = {"assistant": "{name}", **{header: pm(key) for key, header in METRICS.items()},
         "read": "{tokens_read:.1f}", "written": "{tokens_written:.1f}",
         "length": "{suggestion_length:.1f}", "silent": "{silent_share:.2f}"}
DIFFERENCES = {"Empower minus": "{name}", "difference": "{mean:+.3f}",
               "95% interval": "{low:+.3f} to {high:+.3f}", "relative": "{gain:+.0%}",
               "the paper's": "{paper:+.0%}"}
LENGTHS = {"way": "{way}", "setting": "{setting:g}", "a turn": "{per_turn:.1f}",
           "length": "{suggestion_length:.1f}",
           **{header: pm(key, error="se") for key, header in (
               ("pass@1", "Pass@1"), ("accept_ratio", "accept ratio"),
               ("share_saved", "share saved"))}}
HUMAN = {"assistant": "{name}", **{header: pm(key, error="se") for key, header in METRICS.items()},
         "the paper's": "{paper[0]:.3f}, {paper[1]:.3f}, {paper[2]:.3f}"}
HORIZONS = {"k": "{k}", "information, bits": "{information:.2f}", "of the entropy": "{share:.0%}"}


def paper_row(human, name):
    """The paper's means of a row, None if it has no such row."""
    name = name.split(" (")[0]
    return paper_means(human, name) if name in PAPER[human] else None


def tables(results):
    """{what it shows: an aligned table}."""
    names = [row["name"] for row in seeds_table(results)]
    others = [name for name in names if name.startswith(("Base stopped", "Human alone"))
              or name.endswith("entropy")]
    budget = [{"name": name, **{f"at{k}": share for k, share in zip(results["rounds"], row)}}
              for name, row in results["budget"].items()]
    judges = [{"name": f"{judge['judging']}, {judge['tau']:g} bits",
               **{f"row{k}": row["pass@1"] for k, row in enumerate(judge["rows"])}}
              for judge in results["judges"]]
    return {
        "size": table(size(results), {"what": "{what}", "number": "{number:,}"}),
        "seeds": table(seeds_table(results), SEEDS),
        **{f"differences, {metric}": table(
            [difference(results, name, key) for name in BASELINES + others
             if not (name.startswith("Human alone") and key == "accept_ratio")],
            {f"{metric}: Empower minus" if k == 0 else header: template
             for k, (header, template) in enumerate(DIFFERENCES.items())})
           for key, metric in METRICS.items()},
        "lengths": table([{"way": way, "per_turn": per_turn(row), **row}
                          for way, rows in results["lengths"].items() for row in rows], LENGTHS),
        "lengths, Empower's points above a curve": table(
            [compared(results, other) for other in ("SFT-N", "Base-N", "Base stopped")], {
                "curve": "{name}", "Pass@1": "{pass@1}", "accept ratio": "{accept_ratio}",
                "share saved": "{share_saved}"}),
        "budget": table(budget, {"most rounds": "{name}", **{
            str(k): f"{{at{k}:.2f}}" for k in results["rounds"]}}),
        "judges": table(judges, {"she accepts by": "{name}", **{
            row["name"]: f"{{row{k}:.2f}}"
            for k, row in enumerate(results["judges"][0]["rows"])}}),
        "second human": table([{**row, "paper": paper_row("Llama", row["name"])}
                               for row in results["second human"]["rows"]], HUMAN),
        "second human, differences": table(results["second human"]["claims"], {
            header: CLAIMS[header] for header in ("against", "difference",
                                                          "95% interval")}),
        "bound": table(bound_by_horizon(results), HORIZONS),
        "bound, states": table(bound_facts(results), {"what": "{what}", "value": "{value}"}),
        "stdlib": table(results["stdlib"]["rows"], {
            header: template for header, template in RESULTS.items()
            if header != "Pass@1"}),
        "stdlib, differences": table(
            [{**claim, "holds": "yes" if claim["holds"] else "NO"}
             for claim in results["stdlib"]["claims"]],
            {header: CLAIMS[header] for header in ("against", "difference", "95% interval",
                                                   "holds")}),
        "stdlib, stopping": table(with_verdict(results["stdlib"]["stopping"]), STOPPING),
    }
