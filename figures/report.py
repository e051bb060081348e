"""The results of a sweep, as the tables quoted in README.md. Needs no matplotlib."""

import json
import math

import numpy as np

from empower import completion_rules
from intervals import holm, p_value, seeds_interval
from support.cli import UserError
from support.paper import PAPER, PAPER_METRICS as KEYS, paper_gain, paper_means, paper_name
from support.report import CEILING, METRICS, STOPPING, UNLIMITED, table, with_learned

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


def text(results, losses=None, calibrated=None):
    """All tables, each under the name of what it shows; losses: from `make.py tune`, if any;
    calibrated: from `make.py calibrate`, if any."""
    every = tables(results) | ({"tuning": tuning(losses)} if losses else {}) | (
        {"calibration": calibration(calibrated)} if calibrated else {})
    return "\n\n".join(f"## {name[0].upper()}{name[1:]}\n\n{block}"
                       for name, block in every.items())


# ------------------------------------------------------------------- numbers from the results


def rules(cfg):
    """The names of the trained assistants."""
    return list(completion_rules(cfg))


def empowered(results):
    """The name of Empower's row."""
    return f"Empower ({results['config']['eta']:g})"


def stopped(results):
    """The name of the row of the untrained model that stops at eta, the threshold."""
    return f"Base stopped at {results['config']['eta']:g} bits"


def baselines(results):
    """The rows that the paper has too, or has with another N."""
    K = results["config"]["turn_tokens"]
    return [f"SFT-{K}", f"SFT-{2 * K}", "SFT-RAND", f"Base-{K}", f"Base-{2 * K}", "Base"]


def primary(results):
    """The rows of the primary hypotheses: at attention_low, Empower's Pass@1 differs from theirs.

    Fixed before the sweep: two-sided t-tests over seeds, with Holm's correction for the four. All
    other comparisons are descriptive.
    """
    K = results["config"]["turn_tokens"]
    return [f"SFT-{K}", f"Base-{K}", stopped(results), UNLIMITED]


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
    found = [next((row[key] for row in rows if row["name"] == name), None) for rows in some_rows]
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


def by(results, question):
    """{attention or care: the rows of each seed}, with those of the human alone."""
    alone = [[row for row in rows if row["name"].startswith("Human alone")]
             for rows in seeds_of(results, "table", "rows")]
    return {float(value): [own + rows for own, rows in zip(alone, seeds_of(
        results, question, value))] for value in seeds_of(results, question)[0]}


def gain(results, some_rows, name, key="pass@1"):
    """Empower's mean over a row's, minus 1; None if the row is near zero: a ratio means nothing."""
    ours, theirs = (values(some_rows, row, key).mean() for row in (empowered(results), name))
    return ours / theirs - 1 if theirs >= 0.05 else None


def interval(differences):
    """The mean and its interval as text, or "-" where a seed has no value."""
    mean, low, high = seeds_interval(differences)
    return "-" if math.isnan(mean) else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def minus(results, some_rows, name, key):
    """Empower's row minus another as text: mean and interval."""
    return interval(values(some_rows, empowered(results), key) - values(some_rows, name, key))


# ------------------------------------------------------------------- tables


def pm(key, digits=3, error="spread"):
    """The template of a mean and its error."""
    return f"{{{key}:.{digits}f}} ± {{{key}_{error}:.{digits}f}}"


SEEDS = {"assistant": "{name}", **{METRICS[key]: pm(key) for key in KEYS},
         "read": "{tokens_read:.1f}", "written": "{tokens_written:.1f}",
         "length": "{suggestion_length:.1f}", "silent": "{silent_share:.2f}"}
LENGTHS = {"way": "{way}", "eta or N": "{point:g}", "a round": "{per_turn:.1f}",
           **{METRICS[key]: pm(key) for key in KEYS}}
HUMAN = {"assistant": "{name}", **{METRICS[key]: pm(key) for key in KEYS},
         "the paper's (Llama)": "{paper[0]:.3f}, {paper[1]:.3f}, {paper[2]:.3f}"}
CALIBRATION = {"attention": "{attention:g}", "accept ratio of Base": "{accept_ratio:.3f}",
               "Pass@1": "{pass@1:.3f}"}


def grid(corner, names, columns, cell):
    """A table: a row for each name, a column for each {header: what `cell` is given}.

    cell(what, name): the text of a cell.
    """
    rows = [{"name": name, **{f"at{k}": cell(what, name) for k, what in enumerate(
        columns.values())}} for name in names]
    return table(rows, {corner: "{name}", **{header: f"{{at{k}}}"
                                             for k, header in enumerate(columns)}})


def means(corner, names, columns, key):
    """A grid of means over seeds. columns: {header: the rows of each seed}."""
    def cell(some_rows, name):
        mean = values(some_rows, name, key).mean()
        return "-" if math.isnan(mean) else f"{mean:.3f}"

    return grid(corner, names, columns, cell)


def named(found):
    """{0.7: rows} as {"0.7": rows}, for the headers of a table."""
    return {f"{value:g}": rows for value, rows in found.items()}


def assistants(results, question):
    """The names of the rows of a question, the assistants in the order of the default table."""
    every = dict.fromkeys(row["name"] for seed in seeds_of(results, question)
                          for rows in seed.values() for row in rows)
    return [row["name"] for row in seeds_of(results, "table", "rows")[0] if row["name"] in every]


def dependence(results, question):
    """The tables of attention or of care: three metrics, and Empower's differences in Pass@1."""
    columns, names = named(by(results, question)), assistants(results, question)
    K = results["config"]["turn_tokens"]
    others = [f"SFT-{K}", f"SFT-{2 * K}", f"Base-{K}", stopped(results), UNLIMITED, "Human alone"]
    found = {f"{question}, {METRICS[key]}": means(
        f"{METRICS[key]} at {question}", ["Human alone"] * (key != "accept_ratio") + names, columns,
        key) for key in KEYS}
    return found | {f"{question}, differences": grid(
        "Pass@1: Empower minus", others, columns,
        lambda some, name: minus(results, some, name, "pass@1"))}


def hypotheses(results):
    """The primary hypotheses: difference, interval, p and p after Holm's correction."""
    some_rows = by(results, "attention")[results["config"]["attention_low"]]
    each = [values(some_rows, empowered(results), "pass@1") - values(some_rows, name, "pass@1")
            for name in primary(results)]
    ps = [p_value(one) for one in each]
    rows = [{"name": name, "difference": interval(one), "p": p, "holm": corrected,
             "gain": gain(results, some_rows, name)}
            for name, one, p, corrected in zip(primary(results), each, ps, holm(ps))]
    return table(rows, {"Pass@1: Empower minus": "{name}", "difference": "{difference}",
                        "relative": "{gain:+.0%}", "p": "{p:.2g}", "p, Holm": "{holm:.2g}"})


def predicted(results):
    """The relative gains in Pass@1 at attention_low, with the paper's for each of its humans."""
    some_rows = by(results, "attention")[results["config"]["attention_low"]]
    K = results["config"]["turn_tokens"]
    rows = [{"name": name, "gain": gain(results, some_rows, name), **{
        human: paper_gain(paper_name(name, K), "pass@1", [human])[0] for human in PAPER}}
        for name in (f"SFT-{K}", f"SFT-{2 * K}", f"Base-{K}", "Base")]
    return table(rows, {"Pass@1: Empower over": "{name}", "here": "{gain:+.0%}", **{
        f"the paper's ({human})": f"{{{human}:+.0%}}" for human in PAPER}})


def differences(results, some_rows, names, human):
    """Empower minus rows in three metrics, with the paper's gains: `human` is one of PAPER."""
    K, rows = results["config"]["turn_tokens"], []
    for name in names:
        gains = [paper_gain(paper_name(name, K), key, [human])[0] for key in KEYS]
        rows.append({"name": name, **{key: minus(results, some_rows, name, key) for key in KEYS},
                     "paper": "-" if None in gains or name.startswith("Empower") else
                     ", ".join(f"{value:+.0%}" for value in gains)})
    return table(rows, {"Empower minus": "{name}", **{METRICS[key]: f"{{{key}}}" for key in KEYS},
                        f"the paper's gains ({human})": "{paper}"})


def leniency(results):
    """What each human lets through: of Base-K's suggestions that cost her over 5 bits, by care."""
    K = results["config"]["turn_tokens"]
    kinds = {f"care {care:g}": rows for care, rows in by(results, "care").items()}
    kinds |= {f"less able, care {name.removesuffix(', 1')}": seeds_of(results, "less able", name)
              for name in seeds_of(results, "less able")[0] if name.endswith(", 1")}
    kinds["second human"] = seeds_of(results, "second human", "rows")
    rows = []
    for name, some in kinds.items():
        dear, accepted = (values(some, f"Base-{K}", key).sum() for key in ("dear", "dear_accepted"))
        rows.append({"name": name, "dear": dear, "share": accepted / dear if dear else None})
    return table(rows, {"human": "{name}", "suggestions over 5 bits": "{dear:,.0f}",
                        "accepted": "{share:.3f}"})


def by_rounds(results, attention):
    """Pass@1 by the limit of rounds, of games at this attention."""
    each = seeds_of(results, "table", "rounds", str(attention))
    limits = [*map(str, results["plan"]["rounds"]), "no limit"]
    return grid(f"Pass@1, reads {attention:.0%}: most rounds", list(each[0]),
                dict(zip(limits, range(len(limits)))),
                lambda k, name: f"{np.mean([seed[name][k] for seed in each]):.3f}")


def less_able(results):
    """The tables of the less able human: Pass@1, and what Empower's differs by."""
    found = {f"care {name.replace(', ', ', reads ')}": seeds_of(results, "less able", name)
             for name in seeds_of(results, "less able")[0]}
    names = [row["name"] for row in next(iter(found.values()))[0]]
    return {"less able": means("Pass@1 of the less able human", names, found, "pass@1"),
            "less able, differences": grid(
                "Pass@1: Empower minus", [name for name in names if name != empowered(results)],
                found, lambda some, name: minus(results, some, name, "pass@1"))}


# ------------------------------------------------------------------- lengths and training


def per_turn(row):
    """The mean length of a suggestion, tokens, if silence is a suggestion of 0 tokens."""
    return (row["suggestion_length"] or 0) * (1 - row["silent_share"])


def lengths(results):
    """{way: its rows, averaged over the seeds}."""
    ways = seeds_of(results, "lengths")[0]
    return {way: averaged(seeds_of(results, "lengths", way)) for way in ways}


def training(results):
    """Empower minus the untrained model stopped at the same eta: by eta, care and attention."""
    ways = {way: {row["point"]: [next(one for one in rows if one["point"] == row["point"])
                                 for rows in seeds_of(results, "lengths", way)]
                  for row in seeds_of(results, "lengths", way)[0]}
            for way in ("Empower", "Base stopped")}
    pairs = {f"eta {eta:g}": (ours, ways["Base stopped"][eta])
             for eta, ours in ways["Empower"].items()}
    for question in ("care", "attention"):
        pairs |= {f"{question} {value:g}": [[row_of(rows, name) for rows in some] for name in (
            empowered(results), stopped(results))] for value, some in by(results, question).items()}

    def cell(key, name):
        ours, theirs = ([math.nan if row[key] is None else row[key] for row in some]
                        for some in pairs[name])
        return interval(np.subtract(ours, theirs))

    return grid("Empower minus stopped at", list(pairs), {METRICS[key]: key for key in KEYS}, cell)


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
            found.append({"name": name.format(care), **{
                f"at{k}": f"{np.mean([seed[k]['rejected'] for seed in each]):.3f}"
                for k, _ in enumerate(first)}})
    return found


def stopping(results):
    """The table of stopping, averaged over seeds."""
    some = seeds_of(results, "table", "stopping")
    keys = [key for key in some[0][0] if key != "name"]
    return with_learned(averaged(some, keys))


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
    last, horizons = np.array([state["information"][-1] for state in states]), bound_by_horizon(
        results)
    loosest = [states[k]["token"] for k in np.argsort(last - counted, kind="stable")[:5]]
    return [{"what": what, "value": value} for what, value in (
        ("states", len(states)),
        ("mean entropy of the next token", f"{exact.mean():.2f}"),
        ("mean cost of the token written", f"{cost.mean():.2f}"),
        ("standard deviation of the cost around the entropy", f"{np.std(cost - exact):.2f}"),
        ("states with an entropy above eta", int((exact > eta).sum())),
        ("of these, the token written costs more than eta", int(((exact > eta)
                                                                 & (cost > eta)).sum())),
        ("of the others", int(((exact <= eta) & (cost > eta)).sum())),
        ("mean entropy that the information counts", f"{counted.mean():.2f}"),
        ("of it, the next {} tokens reveal".format(", ".join(str(row["k"]) for row in horizons)),
         ", ".join(f"{row['share']:.0%}" for row in horizons)),
        (f"of those above eta, within 5% of the bound at k = {horizons[-1]['k']}",
         int(((exact > eta) & (last >= 0.95 * counted)).sum())),
        ("loosest where she wrote", ", ".join(map(repr, dict.fromkeys(loosest)))))]


def in_short(results):
    """The rows of the README, at both attentions."""
    cfg, rows = results["config"], averaged(seeds_of(results, "table", "rows"))
    low = by(results, "attention")[cfg["attention_low"]]
    K = cfg["turn_tokens"]
    names = ("Human alone", "Base", f"Base-{K}", stopped(results), f"SFT-{K}", f"SFT-{2 * K}",
             empowered(results))
    rows = [{**row_of(rows, name), "low": f"{values(low, name, 'pass@1').mean():.3f} ± "
             f"{values(low, name, 'pass@1').std(ddof=1):.3f}"} for name in names]
    return table(rows, {"assistant": "{name}", "Pass@1, she reads all": pm("pass@1"),
                        f"Pass@1, she reads {cfg['attention_low']:.0%}": "{low}",
                        "accept ratio": pm("accept_ratio"), "DPR": pm("dpr")})


def tables(results):
    """{what it shows: an aligned table}."""
    cfg, rows = results["config"], seeds_of(results, "table", "rows")
    second, K = seeds_of(results, "second human", "rows"), results["config"]["turn_tokens"]
    first = (UNLIMITED, "Human alone", "Base", f"Base-{K}", stopped(results), f"SFT-{K}",
             f"SFT-{2 * K}", empowered(results), CEILING)
    default, own = averaged(rows), results["plan"]["own_lengths"]
    return {
        "in short": in_short(results),
        "size": table(size(results), {"what": "{what}", "number": "{number:,}"}),
        "own text": table(own_text(results), {
            "care": "{name}", **{f"{n} tokens": f"{{at{k}}}" for k, n in enumerate(own)}}),
        "leniency": leniency(results),
        "primary hypotheses": hypotheses(results), "predicted gains": predicted(results),
        **dependence(results, "attention"), **dependence(results, "care"),
        **{f"rounds, reads {share:.0%}": by_rounds(results, share)
           for share in (1, cfg["attention_low"])},
        **less_able(results),
        "seeds": table([row_of(default, name) for name in first], SEEDS),
        "other rows": table([row for row in default if row["name"] not in first], SEEDS),
        "differences": differences(results, rows, [*baselines(results), UNLIMITED,
                                                   stopped(results)], "Gemma"),
        "lengths": table([{"way": way, "per_turn": per_turn(row), **row}
                          for way, some in lengths(results).items() for row in some], LENGTHS),
        "training": training(results),
        "stopping": table(stopping(results), STOPPING),
        "obvious": table(averaged(seeds_of(results, "table", "obvious"), ("bits",)), {
            "assistant": "{name}", "bits of an obvious token": pm("bits", 4)}),
        "second human": table([{**row, "paper": paper_row(results, "Llama", row["name"])}
                               for row in averaged(second) if row["name"] in first], HUMAN),
        "second human, differences": differences(
            results, second, [*baselines(results), stopped(results)], "Llama"),
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


def calibration(found):
    """What `make.py calibrate` found: a table, and the numbers that decide as a sentence."""
    return (f"{table(found['rows'], CALIBRATION)}\n\nThe paper's humans accept "
            f"{found['paper']:.3f} of Base's suggestions: --attention-low {found['chosen']:g}\n"
            f"comes closest. Alone, the human solves {found['human']:.3f} of these problems, the "
            f"less able one {found['less able']:.3f}.")


def paper_row(results, human, name):
    """The paper's means of a row, None if it has no such row."""
    name = paper_name(name, results["config"]["turn_tokens"])
    return paper_means(human, name) if name in PAPER[human] else None
