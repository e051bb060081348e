"""The tables of what was found on real code (real.py)."""

import math

import numpy as np

from report import seeds_interval
from support.report import METRICS, table

SHOWN = {"share_saved": "share saved", "accept_ratio": "accept ratio", "tokens_read": "read",
         "silent_share": "silent"}
METRIC = {**METRICS, "per_round": "tokens a round", "silent_share": "share of silent rounds"}


def blocks(found):
    """{heading: table} of what `make.py real` found."""
    plan, corpora = found["plan"], found["plan"]["corpora"]
    columns = {f"{corpus}: {title}": f"{{{corpus} {key}}}" for corpus in corpora
               for key, title in SHOWN.items()}
    minus = {"row": "{ours}", "minus": "{other}", "seeds": "{seeds}"}
    six = {f"{corpus}: {METRICS[key]}": f"{{{corpus} {key}}}" for corpus in corpora
           for key in ("share_saved", "accept_ratio")}
    return {
        "real code": table([game(found, row) for row in rows(plan)],
                           {"assistant": "{ours}", "seeds": "{seeds}", **columns}),
        "real code, differences": table(
            [difference(found, *pair, ("share_saved", "accept_ratio"))
             for pair in differences(plan)], {**minus, **six}),
        "real code, in detail": table(
            [{**row, "in": METRIC[key], **{c: row[f"{c} {key}"] for c in corpora}}
             for ours, other, key in details(plan) if (row := difference(
                 found, ours, other, (key,)))["seeds"]],
            {**minus, "in": "{in}", **{c: f"{{{c}}}" for c in corpora}})}


def rows(plan):
    """The rows of the table: those that have learned from the plan's number of pieces."""
    n, etas = plan["pieces"], plan["etas"]
    trained = ("Empower ({:g})", "Empower ({:g}), with the offset",
               "Adapted, stopped at {:g} bits", "Adapted, then Empower ({:g})")
    return ["Human alone", f"Base-{plan['n']}", f"SFT-{plan['n']}, {n} pieces",
            *(f"Base stopped at {eta:g} bits" for eta in plan["thresholds"]),
            *(f"{name.format(eta)}, {n} pieces" for name in trained for eta in etas)]


def differences(plan):
    """[(a row, another)]: six differences at each eta."""
    n, found = plan["pieces"], []
    for eta in plan["etas"]:
        ours, threshold = f"Empower ({eta:g}), {n} pieces", f"Base stopped at {eta:g} bits"
        adapted = f"Adapted, stopped at {eta:g} bits"
        found += [(ours, threshold), (f"Empower ({eta:g}), with the offset, {n} pieces", threshold),
                  (f"{adapted}, {n} pieces", threshold),
                  (f"Adapted, then Empower ({eta:g}), {n} pieces", f"{adapted}, {n // 2} pieces"),
                  (ours, f"SFT-{plan['n']}, {n} pieces"), (ours, f"Base-{plan['n']}")]
    return found
