"""What a sweep found, as the tables and sentences that README.md quotes. Needs no matplotlib."""

import json
import math

import numpy as np

import empower
import simhuman
from empower import UserError, table

BASELINES = ["SFT-10", "SFT-20", "SFT-RAND", "Base-10", "Base-20", "Base"]
SECTIONS = ("config", "environment", "rounds", "horizons", "seeds", "lengths", "budget", "judges",
            "second human", "bound", "stdlib")
METRICS = {"pass@1": "Pass@1", "accept_ratio": "accept ratio", "dpr": "DPR"}


def read(path):
    """The results of a sweep; a UserError where there are none."""
    try:
        results = json.loads(path.read_text())
        if not isinstance(results, dict):
            raise ValueError("it is no object")
        missing = [name for name in SECTIONS if not results.get(name)]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        return results
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): run python figures/make.py sweep, "
                        "or name another file with --results") from None
    except ValueError as error:
        raise UserError(f"{path} is not what a sweep leaves ({error}): run python figures/make.py "
                        "sweep") from None


def text(results):
    """All tables, each below what it shows, and all sentences: figures/tables.md."""
    seeds = list(results["seeds"])
    notes = {
        "seeds": f"Means ± standard deviations over seeds {seeds[0]} to {seeds[-1]}.",
        "lengths": f"Seed {seeds[0]}, ± one standard error over problems. Setting: eta in bits or "
                   "N in tokens; a turn: the mean length where silence counts as 0 tokens; length: "
                   "that of suggestions.",
        "budget": f"Pass@1 on seed {seeds[0]} within so many rounds; the last is no limit. These "
                  "are games of their own, sampled apart from those above.",
        "judges": f"Pass@1 on seed {seeds[0]} beside humans who judge otherwise.",
        "second human": "A human with a model of her own, ± one standard error over problems. Last "
                        "the paper's Pass@1, accept ratio and DPR beside its second human.",
        "second human, differences": "Empower minus each row, paired by problem.",
        "bound": "The information that the next token carries about the k tokens behind it.",
        "stdlib": "`python empower.py replay --corpus stdlib`, ± one standard error over programs."}
    blocks = ["What `python figures/make.py report` prints: results.json as tables and sentences."]
    for name, block in tables(results).items():
        blocks += [f"## {name[0].upper()}{name[1:]}", *filter(None, [notes.get(name)]), block]
    return "\n\n".join([*blocks, "## Sentences", *sentences(results).values()])


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


def difference(results, baseline, key):
    """Empower minus a baseline, paired by problem within each seed: mean, interval, gains.

    The mean of paired differences is the difference of means, so the rows of a seed suffice.
    """
    ours, theirs = (over_seeds(results, name, key) for name in (empowered(results), baseline))
    mean, low, high = simhuman.seeds_interval(ours - theirs)
    return {"name": baseline, "mean": mean, "low": low, "high": high,
            # A ratio to next to nothing says nothing.
            "gain": ours.mean() / theirs.mean() - 1 if theirs.mean() >= 0.05 else None,
            "paper": empower.paper_gain(baseline, key)}


def per_turn(row):
    """The mean length of a suggestion, tokens, if silence is a suggestion of 0 tokens."""
    return (row["suggestion_length"] or 0) * (1 - row["silent_share"])


def above(points, others, key):
    """At how many points a curve lies above another: (above, comparable), by interpolation.

    points, others: rows. A point beyond the lengths of the other curve cannot be compared.
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
    """The paper's means of a row, None where it has no such."""
    name = name.split(" (")[0]
    return empower.paper_means(human, name) if name in empower.PAPER[human] else None


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
        "seeds": table(seeds_table(results), SEEDS),
        **{f"differences, {metric}": table(
            [difference(results, name, key) for name in BASELINES + others
             if not (name.startswith("Human alone") and key == "accept_ratio")],
            {f"{metric}: Empower minus" if k == 0 else header: template
             for k, (header, template) in enumerate(DIFFERENCES.items())})
           for key, metric in METRICS.items()},
        "lengths": table([{"way": way, "per_turn": per_turn(row), **row}
                          for way, rows in results["lengths"].items() for row in rows], LENGTHS),
        "budget": table(budget, {"most rounds": "{name}", **{
            str(k): f"{{at{k}:.2f}}" for k in results["rounds"]}}),
        "judges": table(judges, {"the human judges": "{name}", **{
            row["name"]: f"{{row{k}:.2f}}"
            for k, row in enumerate(results["judges"][0]["rows"])}}),
        "second human": table([{**row, "paper": paper_row("Llama", row["name"])}
                               for row in results["second human"]["rows"]], HUMAN),
        "second human, differences": table(results["second human"]["claims"], {
            header: empower.CLAIMS[header] for header in ("against", "difference",
                                                          "95% interval")}),
        "bound": table(bound_by_horizon(results), HORIZONS),
        "stdlib": table(results["stdlib"]["rows"], {
            header: template for header, template in empower.RESULTS.items()
            if header != "Pass@1"}),
    }


# ------------------------------------------------------------------- sentences


def sentences(results):
    """{what it is about: a sentence or two with its figures}; README.md says what follows."""
    return {name: " ".join(write(results).split()) for name, write in (
        ("size", size), ("claims", claims), ("alone", alone), ("lengths", lengths),
        ("best", best), ("training", training), ("entropy", entropy), ("bound", bound),
        ("budget", budget), ("judges", judges), ("second human", second_human),
        ("stdlib", stdlib))}


def shown(value, form=".2f"):
    """A number as text, a dash where there is none."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def means(results, key, *names):
    """The means over seeds of these rows, as text. Example: ".92, .39"."""
    return ", ".join(shown(over_seeds(results, name, key).mean()) for name in names)


def size(results):
    setting = results["config"]
    return f"""There are {setting["train_problems"]:,} problems to learn from and
        {setting["held_out_problems"]} to play; the GPT has
        {results["second human"]["parameters"]["assistants"]:,} parameters."""


def claims(results):
    rows = [difference(results, name, key) for name in BASELINES for key in METRICS]
    return f"""Of the {len(rows)} intervals of {", ".join(METRICS.values())} against SFT and Base,
        {sum(row["low"] > 0 for row in rows)} lie above zero."""


def alone(results):
    rows = "Human alone", empowered(results), "Base-10", "SFT-10"
    return f"""Alone, with Empower, with Base-10 and with SFT-10 she solves
        {means(results, "pass@1", *rows)} of the problems; DPR is {means(results, "dpr", *rows)}.
        Empower minus alone is {interval(results, "Human alone", "pass@1")} in Pass@1 and
        {interval(results, "Human alone", "dpr")} in DPR."""


def interval(results, baseline, key):
    """Empower minus a baseline. Example: "+0.034 (-0.020 to +0.088)"."""
    row = difference(results, baseline, key)
    return f"{row['mean']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"


def lengths(results):
    def compared(other):
        counts = [above(results["lengths"]["Empower"], results["lengths"][other], key)
                  for key in ("pass@1", "accept_ratio", "share_saved")]
        return ", ".join(f"{count} of {of}" for count, of in counts)

    return f"""In Pass@1, accept ratio and share saved, {compared("SFT-N")} of Empower's points lie
        above SFT-N's curve, and {compared("Base-N")} above Base-N's."""


def best(results):
    found = [max(rows, key=lambda row: row["pass@1"]) for rows in results["lengths"].values()]
    return "The best Pass@1 of each way, and its share saved: " + "; ".join(
        f"{row['name']} {row['pass@1']:.2f}, {row['share_saved']:.2f}" for row in found) + "."


def training(results):
    stopped = f"Base stopped at {results['config']['eta']:g} bits"
    pairs = list(zip(results["lengths"]["Empower"], results["lengths"]["Base stopped"]))
    better = sum(ours["pass@1"] > theirs["pass@1"] for ours, theirs in pairs)
    return f"""Empower minus the untrained model stopped at the same eta is
        {interval(results, stopped, "pass@1")} in Pass@1 and
        {interval(results, stopped, "dpr")} in DPR; over the
        etas of the sweep training is ahead in Pass@1 at {better} of {len(pairs)}."""


def entropy(results):
    name = f"{empowered(results)}, entropy"
    return f"""With cut points by the exact entropy Pass@1 is {means(results, "pass@1", name)} and
        the accept ratio {means(results, "accept_ratio", name)}, with one sample
        {means(results, "pass@1", empowered(results))} and
        {means(results, "accept_ratio", empowered(results))}: a difference of
        {interval(results, name, "pass@1")} and {interval(results, name, "accept_ratio")}."""


def bound(results):
    states, eta = results["bound"], results["config"]["eta"]
    horizons = bound_by_horizon(results)
    cost, exact = (np.array([state[key] for state in states]) for key in ("nll", "entropy"))
    counted = np.array([state["entropy_counted"] for state in states])
    same, cheap = np.sum((exact > eta) & (cost > eta)), np.sum((exact <= eta) & (cost > eta))
    dear = [state for state in states if state["entropy"] > eta]
    tight = sum(state["information"][-1] >= 0.95 * state["entropy_counted"] for state in dear)
    gaps = sorted(states, key=lambda state: state["information"][-1] - state["entropy_counted"])
    loosest = list(dict.fromkeys(state["token"] for state in gaps[:5]))
    return f"""Over {len(states)} states the entropy of the next token is {exact.mean():.2f} bits,
        and what the one token written costs {cost.mean():.2f} (with a standard deviation of
        {np.std(cost - exact):.2f} around the entropy). {len(dear)} states have more than eta bits,
        and in {same} of these the token costs more than eta too; so do {cheap} of the others. Of
        the {counted.mean():.2f} bits that are of tokens with a probability of a thousandth or more,
        the {", ".join(str(row["k"]) for row in horizons)} tokens behind the next one reveal
        {", ".join(f"{row['share']:.0%}" for row in horizons)}. Of the {len(dear)} states {tight}
        come within 5% of the bound at k = {horizons[-1]["k"]}; it is loosest where she wrote
        {", ".join(map(repr, loosest))}."""


def budget(results):
    rounds, rows = results["rounds"], results["budget"]
    default = rounds.index(results["config"]["rounds"])
    few = "; ".join(f"""within {rounds[k]} rounds {rows[empowered(results)][k]:.2f} and
        {rows["Human alone"][k]:.2f}""" for k in (1, 2, default))
    return f"""Pass@1 with Empower and alone, on one seed: {few}; without a limit
        {rows[empowered(results)][-1]:.2f} and {rows["Human alone"][-1]:.2f}. Over the seeds Empower
        minus alone without a limit is {interval(results, "Human alone, no round limit", "pass@1")}
        in Pass@1, {interval(results, "Human alone, no round limit", "dpr")} in DPR."""


def judges(results):
    skims = [judge for judge in results["judges"] if judge["judging"] == "skim"]
    return "Beside one who skims, Pass@1 of Empower and of Base-10 is " + "; ".join(
        f"""{row_of(judge["rows"], empowered(results))["pass@1"]:.2f} and
        {row_of(judge["rows"], "Base-10")["pass@1"]:.2f} at tau = {judge["tau"]:g} bits"""
        for judge in skims) + "."


def second_human(results):
    found = results["second human"]
    rows = {row["name"]: row for row in found["rows"]}
    return f"""She has {found["parameters"]["human"]:,} parameters, and the assistants learn from
        her programs: Pass@1 is """ + ", ".join(
        f"{name} {rows[name]['pass@1']:.2f}" for name in (
            empowered(results), "SFT-10", "Base-10", "Human alone")) + "."


def stdlib(results):
    rows = {row["name"]: row for row in results["stdlib"]["rows"]}
    claim = next(claim for claim in results["stdlib"]["claims"] if (
        claim["baseline"], claim["metric"]) == ("SFT-10", "share saved"))
    stopping = empower.with_verdict(results["stdlib"]["stopping"])
    missed = [row["name"] for row in stopping if row["close"] == "NO"]
    ours, theirs = (rows[name]["accept_ratio"] for name in (empowered(results), "SFT-10"))
    return f"""Empower's share saved minus SFT-10's is {claim["difference"]:+.3f}
        ({claim["low"]:+.3f} to {claim["high"]:+.3f}, over {results["stdlib"]["problems"]} programs);
        its accept ratio is {shown(ours, ".3f")}, SFT-10's {shown(theirs, ".3f")}; its DPR
        {rows[empowered(results)]["dpr"]:.3f}, that of the author alone
        {rows["Human alone"]["dpr"]:.3f}. {", ".join(missed) or "None"} did not learn to stop within
        20% of what the rule asks for."""
