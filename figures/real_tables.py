"""The tables of what was found on real code (real.py)."""

from report import averaged, pm, seeds_interval
from support.report import METRICS, table

ROWS = {"assistant": "{name}", "accept ratio": "{accept_ratio:.3f} ± {accept_ratio_se:.3f}",
        "share saved": "{share_saved:.3f} ± {share_saved_se:.3f}",
        "DPR": "{dpr:.3f} ± {dpr_se:.3f}", "read": "{tokens_read:.0f} ± {tokens_read_se:.0f}",
        "length": "{suggestion_length:.1f}", "silent": "{silent_share:.2f}"}
LENGTHS = {"assistant": "{name}", "asked": "{asked:.1f} ± {asked_sd:.1f}",
           "written": "{written:.1f} ± {written_sd:.1f}", "asked empty": "{asked_empty:.2f}",
           "written empty": "{written_empty:.2f}", "distance": "{distance:.2f}"}
CURVE = {"assistant": "{name}", "pieces": "{pieces}", "states": "{way}", "stops": "{stops}",
         "offset": "{offset:+.1f}", "loss": "{loss:.3f}", "accept ratio": "{accept_ratio:.3f}",
         "share saved": "{share_saved:.3f}", "DPR": "{dpr:.3f}", "read": "{tokens_read:.0f}",
         "written empty": "{written_empty:.2f}", "asked empty": "{asked_empty:.2f}"}
INTERVAL = "{difference:+.3f} ({low:+.3f} to {high:+.3f})"
SPREADS = {**ROWS, "accept ratio": pm("accept_ratio"), "share saved": pm("share_saved"),
           "DPR": pm("dpr"), "read": pm("tokens_read", 0)}
EMPOWER = ("Empower (0.32), greedy", "Empower (1), greedy")
FULL = ", all weights"  # in the name of a row
RATES = {"rule, learning": "{way}", "rate": "{rate}"}
SILENT = {"assistant": "{name}", "asked empty": pm("asked_empty", 2),
          "written empty": pm("written_empty", 2), "offset": pm("offset", 1), "loss": pm("loss")}


def blocks(published):
    """{heading: table} of {a command, such as "real --further": what it found}."""
    found = pooled(published)
    for which, results in published.items():
        as_tables = seeds_as_tables if len(results["seeds"]) > 1 else seed_as_tables
        found |= {f"{which}, {heading}": block for heading, block in as_tables(
            results["seeds"], results["plan"]["pieces"]).items()}
    return found


def pooled(published):
    """{heading: Empower minus the threshold, over the seeds of all plans with 256 pieces}."""
    plans = [results for results in published.values()
             if results["plan"]["pieces"] == 256 and len(results["seeds"]) > 1]
    if len(plans) < 2:
        return {}
    found = {}
    for corpus in plans[0]["plan"]["corpora"]:
        differences = {}
        for some in (corpora[corpus] for plan in plans for corpora in plan["seeds"].values()):
            for row in some["differences"]:
                if row["ours"] in EMPOWER and row["other"].startswith("Base stopped"):
                    differences.setdefault((row["ours"], row["metric"]), []).append(row)
        n = sum(len(plan["seeds"]) for plan in plans)
        found[f"{corpus}: differences on {n} seeds"] = against(
            [over_seeds(rows) for rows in differences.values()])
    return found


def sized(row, n, pieces):
    """The name of a row that has learned from n pieces, if most have learned from `pieces`."""
    return row if n == pieces else f"{row}, {n} pieces"


def seed_as_tables(seeds, pieces):
    """{heading: table} of the results of the only seed."""
    found, ((seed, corpora),) = {}, seeds.items()
    for corpus, some in corpora.items():
        curve = [row for row in some["curve"]
                 if row["name"].split(", ")[0] in ("Empower (0.32)", "Empower (1)")]
        stopping = stopping_rows(some, pieces)
        found |= {
            f"{corpus}: the game": table(some["rows"], ROWS),
            f"{corpus}: lengths asked for and written": table(stopping, LENGTHS),
            f"{corpus}: pieces to learn from": table(sorted(
                curve, key=lambda row: (row["name"], row["way"], row["pieces"])), CURVE),
            f"{corpus}: differences": against(some["differences"]),
            **rates_tried(f"{corpus}: the rate", [some["rates"]], [seed])}
    return found


def seeds_as_tables(seeds, pieces):
    """{heading: table} of several seeds: means ± standard deviations, and intervals over seeds."""
    found = {}
    for corpus in next(iter(seeds.values())):
        some = [corpora[corpus] for corpora in seeds.values()]
        stopping = [stopping_rows(one, pieces) for one in some]
        found |= {
            f"{corpus}: the game": table(averaged(
                [one["rows"] for one in some], ("accept_ratio", "share_saved", "dpr", "tokens_read",
                                                "suggestion_length", "silent_share")), SPREADS),
            f"{corpus}: how often they are silent": table(averaged(
                stopping, ("asked_empty", "written_empty", "offset", "loss")), SILENT),
            f"{corpus}: each seed": each_seed([one["differences"] for one in some], list(seeds)),
            **rates_tried(f"{corpus}: the rate", [one["rates"] for one in some], list(seeds)),
            f"{corpus}: differences": against([
                over_seeds(rows) for rows in zip(*(one["differences"] for one in some))])}
    return found


def stopping_rows(some, pieces):
    """The rows of the plan's number of pieces, and those adapted first, with how they stop."""
    return [{**row, "name": sized(f"{row['name']}, {row['stops']}", row["pieces"], pieces)}
            for row in some["curve"] if row["way"] == "adapted first"
            or row["pieces"] == pieces and row["way"] != "one state"]


def each_seed(differences, seeds):
    """Trained rows minus the threshold on each seed, with 95% intervals over programs.

    Also all weights minus low-rank updates.
    """
    columns = {f"seed {seed}": f"{{seed {seed}}}" for seed in seeds}
    return table([{"name": rows[0]["ours"], "other": rows[0]["other"],
                   "metric": METRICS[rows[0]["metric"]],
                   **{column: INTERVAL.format_map(row) if row["low"] is not None else "-"
                      for column, row in zip(columns, rows)}}
                  for rows in zip(*differences)
                  if (rows[0]["other"].startswith("Base stopped") or FULL in rows[0]["ours"])
                  and rows[0]["metric"] in ("share_saved", "accept_ratio")],
                 {"row": "{name}", "minus": "{other}", "in": "{metric}", **columns})


def rates_tried(heading, rates, seeds):
    """{heading: the loss of each rate on each seed, the smallest marked}, if any was chosen."""
    rows = [{"way": way, "rate": rate, **{f"seed {seed}": f"{some[way][rate]:.3f}" + " *" * (
                some[way][rate] == min(some[way].values())) for seed, some in zip(seeds, rates)}}
            for way in rates[0] for rate in rates[0][way]]
    return {heading: table(rows, {**RATES, **{f"seed {seed}": f"{{seed {seed}}}"
                                              for seed in seeds}})} if rows else {}


def over_seeds(rows):
    """A difference on each seed: its mean and interval; low is None if a seed has no difference."""
    none = any(row["low"] is None for row in rows)
    mean, low, high = (None,) * 3 if none else seeds_interval([row["difference"] for row in rows])
    return {**rows[0], "difference": mean, "low": low, "high": high}


def against(differences):
    """The table of differences, with 95% intervals."""
    rows = {}
    for found in differences:
        if found["low"] is not None:
            row = rows.setdefault((found["ours"], found["other"]), {
                "name": found["ours"], "other": found["other"]})
            row[found["metric"]] = INTERVAL.format_map(found)
    keys = ("share_saved", "accept_ratio", "dpr")
    return table([{**dict.fromkeys(keys, "-"), **row} for row in rows.values()], {
        "row": "{name}", "minus": "{other}", **{METRICS[key]: f"{{{key}}}" for key in keys}})


def text(published):
    """All tables, with their headings."""
    return "\n\n".join(f"{heading}\n\n{block}" for heading, block in blocks(published).items())
