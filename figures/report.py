"""The results of a sweep, as the tables quoted in README.md. Needs no matplotlib."""

import json
import math

import numpy as np

from empower import completion_rules
from simhuman import mean_and_error
from support.cli import UserError
from support.report import (CEILING, METRICS, PAPER, PAPER_METRICS as KEYS, STOPPING, UNLIMITED,
                            paper_gain, paper_means, paper_name, table, with_learned)

SECTIONS = ("config", "plan", "environment", "seeds")


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


def text(results, losses=None):
    """All tables, each under the name of what it shows; losses: from `make.py tune`, if any."""
    all_tables = tables(results) | ({"tuning": tuning(losses)} if losses else {})
    return "\n\n".join(f"## {name[0].upper()}{name[1:]}\n\n{block}"
                       for name, block in all_tables.items())


# ------------------------------------------------------------------- numbers from the results


def rules(cfg):
    """The names of the trained assistants."""
    return list(completion_rules(cfg))


def empowered(results):
    """The name of Empower's row."""
    return f"Empower ({results['config']['eta']:g})"


def stopped(results):
    """The name of the row of the untrained model that stops at eta."""
    return f"Base stopped at {results['config']['eta']:g} bits"


def seeds_of(results, *path):
    """The values at a path, one for each seed that has it."""
    found = []
    for seed in results["seeds"].values():
        for step in path:
            seed = seed.get(step) if isinstance(seed, dict) else None
        found += [seed] if seed is not None else []
    return found


def row_of(rows, name):
    """The row with this name."""
    return next(row for row in rows if row["name"] == name)


def values(some_rows, name, key):
    """The value of one row on each seed: (seeds,); nan where it has none."""
    found = [row_of(rows, name)[key] for rows in some_rows]
    return np.array([math.nan if value is None else value for value in found], dtype=float)


def averaged(some_rows, keys=KEYS + ("tokens_read", "tokens_written", "suggestion_length",
                                     "silent_share", "passes")):
    """Mean and spread (standard deviation) over seeds: a dict for each row.

    some_rows: the rows of each seed. None where a seed has no value.
    """
    found = []
    for row in some_rows[0]:
        new = {"name": row["name"], "point": row.get("point")}
        for key in keys:
            each = values(some_rows, row["name"], key)
            missing = np.isnan(each).any()
            new[key], new[f"{key}_spread"] = (None, None) if missing else (
                each.mean(), each.std(ddof=1) if len(each) > 1 else 0.0)
        found.append(new)
    return found


def difference(results, some_rows, name, key, humans=tuple(PAPER)):
    """Empower's row minus another, on each seed: mean, interval, gains; humans as in `paper_gain`.

    Problems are paired within each seed, and the mean of paired differences is the difference of
    means, so the rows of a seed suffice.
    """
    ours, theirs = (values(some_rows, row, key) for row in (empowered(results), name))
    mean, low, high = seeds_interval(ours - theirs)
    gain, human = paper_gain(paper_name(name, results["config"]["turn_tokens"]), key, humans)
    if name.startswith("Empower"):  # the paper compares Empower with other methods
        gain = None
    return {"name": name, "mean": mean, "low": low, "high": high,
            # A ratio to almost nothing means nothing.
            "gain": ours.mean() / theirs.mean() - 1 if theirs.mean() >= 0.05 else None,
            "paper": "-" if gain is None else f"{gain:+.0%} ({human})"}


def baselines(results):
    """The rows that the paper has too, or has with another N."""
    K = results["config"]["turn_tokens"]
    return [f"SFT-{K}", f"SFT-{2 * K}", "SFT-RAND", f"Base-{K}", f"Base-{2 * K}", "Base"]


def against_baselines(results, some_rows):
    """(intervals above zero, below zero, all) of Empower minus each baseline in three metrics."""
    found = [difference(results, some_rows, name, key) for name in baselines(results)
             for key in KEYS]
    return sum(row["low"] > 0 for row in found), sum(row["high"] < 0 for row in found), len(found)


# ------------------------------------------------------------------- care


def by_care(results):
    """{care: the rows of each seed}, from the most careful human to the least."""
    return {float(care): seeds_of(results, "care", care)
            for care in seeds_of(results, "care")[0]}


def care_rows(results, key):
    """A row for each assistant: its mean over seeds at each care, and where it stops helping."""
    cares = by_care(results)
    alone = values(seeds_of(results, "table", "rows"), "Human alone", key)
    found = []
    for name in [row["name"] for row in next(iter(cares.values()))[0]]:
        each = {care: values(rows, name, key) for care, rows in cares.items()}
        row = {"name": name, **{f"at{k}": None if np.isnan(v).any() else v.mean()
                                for k, v in enumerate(each.values())}}
        if key != "accept_ratio":  # alone, she has none
            gains = {care: seeds_interval(v - alone) for care, v in each.items()}
            row["helps"] = listed(care for care, (_, low, _) in gains.items() if low > 0)
            row["harms"] = listed(care for care, (_, _, high) in gains.items() if high < 0)
        found.append(row)
    mean = alone.mean()
    return found if key == "accept_ratio" else [
        {"name": "Human alone", "helps": "-", "harms": "-",
         **{f"at{k}": mean for k in range(len(cares))}}, *found]


def listed(cares):
    """Degrees of care as a short text. Example: "0.5, 0.02", or "-" for none."""
    return ", ".join(f"{care:g}" for care in cares) or "-"


def empower_by_care(results):
    """At each care: how many intervals of Empower minus a baseline are above and below zero, and
    the difference from the strongest baseline in each metric."""
    found = []
    for care, rows in by_care(results).items():
        above, below, of = against_baselines(results, rows)
        row = {"care": f"{care:g}", "above": f"{above} of {of}", "below": f"{below} of {of}"}
        for key in KEYS:
            strongest = max(baselines(results), key=lambda name: values(rows, name, key).mean())
            row[key] = "{mean:+.3f} ({low:+.3f} to {high:+.3f}), {name}".format_map(
                difference(results, rows, strongest, key))
        found.append(row)
    return found


# ------------------------------------------------------------------- lengths


def per_turn(row):
    """The mean length of a suggestion, tokens, if silence is a suggestion of 0 tokens."""
    return (row["suggestion_length"] or 0) * (1 - row["silent_share"])


def interpolated(points, others, key):
    """Each point minus another curve at the same length, by interpolation: a list, nan if none.

    points, others: rows. A point outside the lengths of the other curve cannot be compared, nor one
    without a value (an assistant that never suggests has no accept ratio).
    """
    x, y = np.array(sorted((per_turn(row), row[key]) for row in others if row[key] is not None)).T
    return [row[key] - np.interp(per_turn(row), x, y)
            if row[key] is not None and x[0] <= per_turn(row) <= x[-1] else math.nan
            for row in points]


def compared(results, other):
    """At how many of Empower's points it is above and below another curve, and clearly so.

    A point counts if it can be compared on every seed; clearly: its interval excludes zero.
    """
    found = {"name": other}
    for key in KEYS:
        each = np.array([interpolated(seed["Empower"], seed[other], key)
                         for seed in seeds_of(results, "lengths")])        # (seeds, points)
        each = each[:, ~np.isnan(each).any(0)]
        intervals = [seeds_interval(column) for column in each.T]
        found[key] = (f"above at {sum(mean > 0 for mean, *_ in intervals)} of {len(intervals)} "
                      f"({sum(low > 0 for _, low, _ in intervals)} clearly), clearly below at "
                      f"{sum(high < 0 for *_, high in intervals)}")
    return found


def lengths(results):
    """{way: its rows, averaged over the seeds}."""
    ways = seeds_of(results, "lengths")[0]
    return {way: averaged(seeds_of(results, "lengths", way)) for way in ways}


def training(results):
    """Empower minus the untrained model stopped at the same eta: a row for each eta."""
    def of(way, eta, key):
        found = [next(row for row in seed[way] if row["point"] == eta)[key]
                 for seed in seeds_of(results, "lengths")]
        return np.array([math.nan if value is None else value for value in found], dtype=float)

    found = []
    for eta in (row["point"] for row in seeds_of(results, "lengths")[0]["Empower"]):
        row = {"name": f"{eta:g}", "ours": of("Empower", eta, "passes").mean(),
               "theirs": of("Base stopped", eta, "passes").mean()}
        for key in KEYS:
            mean, low, high = seeds_interval(of("Empower", eta, key) - of("Base stopped", eta, key))
            row[key] = "-" if math.isnan(mean) else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
        found.append(row)
    return found


# ------------------------------------------------------------------- the rest


def size(results):
    """How large everything is: {"what", "number"}."""
    cfg, parameters = results["config"], seeds_of(results, "second human", "parameters")[0]
    return [{"what": what, "number": number} for what, number in (
        ("problems to learn from", cfg["train_problems"]),
        ("problems to play", cfg["held_out_problems"]),
        ("parameters of the GPT", parameters["assistants"]),
        ("parameters of the second human", parameters["human"]))]


def own_text(results):
    """How often she rejects her own held-out text: a row for each care, then the second human's."""
    found = []
    for name, path in (("{}", ("table", "own text")), ("{}, second human", ("second human",
                                                                            "own text"))):
        for care, first in seeds_of(results, *path)[0].items():
            each = seeds_of(results, *path, care)
            row = {"name": name.format(care)}
            for k, _ in enumerate(first):
                shares = [seed[k]["rejected"] for seed in each]
                row[f"at{k}"] = f"{np.mean(shares):.3f} ± {np.std(shares, ddof=1):.3f}"
                row[f"programs{k}"] = round(np.mean([seed[k]["programs"] for seed in each]))
            found.append(row)
    return found


def stopping(results):
    """The table of stopping, averaged over seeds."""
    some = seeds_of(results, "table", "stopping")
    keys = [key for key in some[0][0] if key != "name"]
    return with_learned(averaged(some, keys))


def obvious(results):
    """The cost of obvious tokens, before and after: {"name", "bits"} averaged over the seeds."""
    return averaged(seeds_of(results, "table", "obvious"), ("bits",))


def budget(results):
    """Pass@1 by the round limit, averaged over the seeds."""
    some = seeds_of(results, "budget")
    return [{"name": name, **{f"at{k}": np.mean([seed[name][k] for seed in some])
                              for k in range(len(some[0][name]))}} for name in some[0]]


def bound_by_horizon(results):
    """{"k", "information", its "share" of the entropy of the same tokens} for each horizon k."""
    [states] = seeds_of(results, "bound")
    entropy = np.mean([state["entropy_counted"] for state in states])
    information = np.mean([state["information"] for state in states], axis=0)
    return [{"k": k, "information": i, "share": i / entropy}
            for k, i in zip(results["plan"]["horizons"], information)]


def bound_facts(results):
    """What the states of the bound show, in bits and in numbers of states: {"what", "value"}."""
    [states], eta = seeds_of(results, "bound"), results["config"]["eta"]
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
        (f"of those above eta, within 5% of the bound at k = {results['plan']['horizons'][-1]}",
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


def pm(key, digits=3, error="spread"):
    """The template of a mean and its error."""
    return f"{{{key}:.{digits}f}} ± {{{key}_{error}:.{digits}f}}"


SEEDS = {"assistant": "{name}", **{METRICS[key]: pm(key) for key in KEYS},
         "read": "{tokens_read:.1f}", "written": "{tokens_written:.1f}",
         "length": "{suggestion_length:.1f}", "silent": "{silent_share:.2f}"}
DIFFERENCES = {"Empower minus": "{name}", "difference": "{mean:+.3f}",
               "95% interval": "{low:+.3f} to {high:+.3f}", "relative": "{gain:+.0%}",
               "the paper's": "{paper}"}
LENGTHS = {"way": "{way}", "eta or N": "{point:g}", "a round": "{per_turn:.1f}",
           "length": "{suggestion_length:.1f}", **{METRICS[key]: pm(key) for key in KEYS}}
HUMAN = {"assistant": "{name}", **{METRICS[key]: pm(key) for key in KEYS},
         "the paper's (Llama)": "{paper[0]:.3f}, {paper[1]:.3f}, {paper[2]:.3f}"}
CALIBRATION = {"attention": "{attention:g}", "accept ratio of Base": "{accept_ratio:.3f}",
               "Pass@1": "{pass@1:.3f}"}
HORIZONS = {"k": "{k}", "information, bits": "{information:.2f}", "of the entropy": "{share:.0%}"}


def differences(results, some_rows, names, key, humans=tuple(PAPER)):
    """The table of Empower minus each of these rows in one metric; humans as in `paper_gain`."""
    columns = {f"{METRICS[key]}: Empower minus" if k == 0 else header: template
               for k, (header, template) in enumerate(DIFFERENCES.items())}
    return table([difference(results, some_rows, name, key, humans) for name in names
                  if not (name.startswith("Human alone") and key == "accept_ratio")], columns)


def in_short(results, rows):
    """The rows of the README: alone, two of the paper's baselines, stopped and Empower."""
    K = results["config"]["turn_tokens"]
    names = ("Human alone", f"Base-{K}", stopped(results), f"SFT-{K}", "SFT-RAND",
             empowered(results))
    return [row for row in rows if row["name"] in names]


def tables(results):
    """{what it shows: an aligned table}."""
    rows, second = seeds_of(results, "table", "rows"), seeds_of(results, "second human", "rows")
    others = [UNLIMITED, "Human alone", stopped(results),
              f"Empower ({results['config']['eta_wide']:g})", f"{empowered(results)}, entropy",
              CEILING]
    cares = [f"{care:g}" for care in by_care(results)]
    own = list(enumerate(results["plan"]["own_lengths"]))
    return {
        "size": table(size(results), {"what": "{what}", "number": "{number:,}"}),
        **{f"care, {METRICS[key]}": table(care_rows(results, key), {
            f"{METRICS[key]} at care": "{name}",
            **{care: f"{{at{k}:.3f}}" for k, care in enumerate(cares)},
            **({} if key == "accept_ratio" else {"above alone at": "{helps}",
                                                 "below alone at": "{harms}"})}) for key in KEYS},
        "care, Empower against the baselines": table(empower_by_care(results), {
            "care": "{care}", "above zero": "{above}", "below zero": "{below}",
            **{f"{METRICS[key]}: minus the best": f"{{{key}}}" for key in KEYS}}),
        "own text": table(own_text(results), {
            "care": "{name}", **{f"{n} tokens": f"{{at{k}}}" for k, n in own},
            **{f"programs, {n}": f"{{programs{k}}}" for k, n in own if n in (4, 20)}}),
        "seeds": table(averaged(rows), SEEDS),
        "in short": table(in_short(results, averaged(rows)), {
            header: SEEDS[header] for header in SEEDS if header not in ("length", "silent")}),
        **{f"differences, {METRICS[key]}": differences(
            results, rows, baselines(results) + others, key) for key in KEYS},
        "lengths": table([{"way": way, "per_turn": per_turn(row), **row}
                          for way, some in lengths(results).items() for row in some], LENGTHS),
        "lengths, Empower's points above a curve": table(
            [compared(results, other) for other in ("SFT-N", "Base-N", "Base stopped")], {
                "curve": "{name}", **{METRICS[key]: f"{{{key}}}" for key in KEYS}}),
        "training": table(training(results), {
            "eta": "{name}", **{METRICS[key]: f"{{{key}}}" for key in KEYS},
            "passes, Empower": "{ours:.1f}", "stopped": "{theirs:.1f}"}),
        "stopping": table(stopping(results), STOPPING),
        "obvious": table(obvious(results), {"assistant": "{name}",
                                            "bits of an obvious token": pm("bits", 4)}),
        "budget": table(budget(results), {"most rounds": "{name}", **{
            str(limit): f"{{at{k}:.3f}}"
            for k, limit in enumerate([*results["plan"]["rounds"], "no limit"])}}),
        "second human": table([{**row, "paper": paper_row(results, "Llama", row["name"])}
                               for row in averaged(second)], HUMAN),
        **{f"second human, {METRICS[key]}": differences(
            results, second, [*baselines(results), "Human alone", stopped(results)], key, ["Llama"])
           for key in KEYS},
        "bound": table(bound_by_horizon(results), HORIZONS),
        "bound, states": table(bound_facts(results), {"what": "{what}", "value": "{value}"}),
    }


def tuning(rows):
    """The table of `make.py tune`: the loss of each rule for each optimizer and rate."""
    names = list(rows[0]["losses"])
    rows = [{**row, **{f"rule{k}": row["losses"][name] for k, name in enumerate(names)}}
            for row in rows]
    return table(rows, {"optimizer": "{optimizer}", "rate": "{rate:g}", **{
        name: f"{{rule{k}:.3f}}" for k, name in enumerate(names)},
        "mean": "{mean:.3f}", "obvious": "{obvious:.3f}"})


def paper_row(results, human, name):
    """The paper's means of a row, None if it has no such row."""
    name = paper_name(name, results["config"]["turn_tokens"])
    return paper_means(human, name) if name in PAPER[human] else None
