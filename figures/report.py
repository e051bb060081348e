"""What a sweep found, as the tables and sentences that README.md quotes. Needs no matplotlib."""

import json
import math

import numpy as np

import empower
import simhuman
from empower import UserError, table

METRICS = {"pass@1": "Pass@1", "accept_ratio": "accept ratio", "dpr": "DPR"}


def read(path):
    """The results of a sweep; a UserError where there are none."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): run python figures/make.py sweep, "
                        "or name another file with --results") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): run python figures/make.py sweep") from None


def text(results):
    """All tables and sentences, in the order of README.md."""
    return "\n\n".join([*tables(results).values(), *sentences(results).values()])


# ------------------------------------------------------------------- numbers from the results


def empowered(results):
    """The name of Empower's row."""
    return f"Empower ({results['config']['eta']:g})"


def row_of(rows, name):
    """The row with this name."""
    return next(row for row in rows if row["name"] == name)


def over_seeds(results, name, key):
    """What one row has on each seed: an array (seeds,); nan where it has none."""
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


def differences(results, baseline):
    """Empower minus a baseline, paired by problem within each seed: means, intervals, gains.

    The mean of paired differences is the difference of means, so the rows of a seed suffice.
    """
    row = {"name": baseline}
    for key in ("pass@1", "dpr"):
        ours, theirs = (over_seeds(results, name, key) for name in (empowered(results), baseline))
        mean, low, high = simhuman.seeds_interval(ours - theirs)
        row |= {key: mean, f"{key}_low": low, f"{key}_high": high,
                f"{key}_gain": ours.mean() / theirs.mean() - 1 if theirs.mean() else None,
                f"{key}_paper": empower.paper_gain(baseline, key)}
    return row


def above(points, others, key):
    """At how many points a curve lies above another: (above, comparable), by interpolation.

    points, others: rows with a suggestion_length. A point beyond the other curve's lengths cannot
    be compared.
    """
    line = sorted((row["suggestion_length"], row[key]) for row in others)
    x, y = np.array(line).T
    comparable = [row for row in points if x[0] <= row["suggestion_length"] <= x[-1]]
    return sum(row[key] > np.interp(row["suggestion_length"], x, y) for row in comparable), \
        len(comparable)


def bound_by_horizon(results):
    """(k, mean of I, its share of the mean entropy) for each horizon k, and the mean entropy."""
    states = results["bound"]
    entropy = np.mean([state["entropy"] for state in states])
    information = np.mean([state["information"] for state in states], axis=0)
    return [{"k": k, "information": i, "share": i / entropy}
            for k, i in zip(results["horizons"], information)], entropy


# ------------------------------------------------------------------- tables


def pm(key, digits=3, error="sd"):
    return f"{{{key}:.{digits}f}} ± {{{key}_{error}:.{digits}f}}"


SEEDS = {"assistant": "{name}", **{header: pm(key) for key, header in METRICS.items()},
         "read": "{tokens_read:.1f}", "written": "{tokens_written:.1f}",
         "length": "{suggestion_length:.1f}", "silent": "{silent_share:.2f}"}
DIFFERENCES = {"Empower minus": "{name}", **{column: template for key, metric in (
    ("pass@1", "Pass@1"), ("dpr", "DPR")) for column, template in (
        (metric, f"{{{key}:+.3f}} ({{{key}_low:+.3f}} to {{{key}_high:+.3f}})"),
        (f"{metric}, relative", f"{{{key}_gain:+.0%}}"),
        (f"{metric}, paper's", f"{{{key}_paper:+.0%}}"))}}
LENGTHS = {"way": "{way}", "setting": "{setting:g}", "length": "{suggestion_length:.1f}",
           **{header: pm(key, error="se") for key, header in (
               ("pass@1", "Pass@1"), ("accept_ratio", "accept ratio"),
               ("share_saved", "share saved"))}}
HUMAN = {"assistant": "{name}", **{header: pm(key, error="se") for key, header in METRICS.items()}}
HORIZONS = {"k": "{k}", "information, bits": "{information:.2f}", "of the entropy": "{share:.0%}"}


def tables(results):
    """{what it shows: an aligned table}."""
    names = [row["name"] for row in seeds_table(results)]
    baselines = ["SFT-10", "SFT-20", "SFT-RAND", "Base-10", "Base-20", "Base"]
    others = [name for name in names if name.startswith("Base stopped") or name == "Human alone"
              or name.endswith("entropy")]
    budget = [{"name": name, **{f"at{k}": share for k, share in zip(results["rounds"], row)}}
              for name, row in results["budget"].items()]
    judges = [{"name": f"{judge['judging']}, {judge['tau']:g} bits",
               **{f"row{k}": row["pass@1"] for k, row in enumerate(judge["rows"])}}
              for judge in results["judges"]]
    return {
        "seeds": table(seeds_table(results), SEEDS),
        "differences": table([differences(results, name) for name in baselines + others],
                             DIFFERENCES),
        "lengths": table([{"way": way, **row} for way, rows in results["lengths"].items()
                          for row in rows], LENGTHS),
        "budget": table(budget, {"most rounds": "{name}", **{
            str(k): f"{{at{k}:.2f}}" for k in results["rounds"]}}),
        "judges": table(judges, {"the human judges": "{name}", **{
            row["name"]: f"{{row{k}:.2f}}"
            for k, row in enumerate(results["judges"][0]["rows"])}}),
        "second human": table(results["second human"]["rows"], HUMAN),
        "bound": table(bound_by_horizon(results)[0], HORIZONS),
        "stdlib": table(results["stdlib"]["rows"], {
            header: template for header, template in empower.RESULTS.items()
            if header != "Pass@1"}),
    }


def sentences(results):
    """{what it is about: a sentence or two with its figures}."""
    return {}
