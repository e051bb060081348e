"""The tables of what was found on real code (real.py)."""

import math

import numpy as np

from intervals import seeds_interval
from support.report import table

# Rows: N tokens, a threshold of e bits, n pieces to learn from, or half of them, or fewer.
ALONE, BASE, SFT = "Human alone", "Base-{N}", "SFT-{N}, {n} pieces"
STOPPED, ADAPTED = "Base stopped at {e} bits", "Adapted, stopped at {e} bits, {n} pieces"
EMPOWER, OFFSET, ONE, FULL = (f"Empower ({{e}}){how}, {{n}} pieces" for how in (
    "", ", with the offset", ", one state", ", all weights"))
BOTH, HALF = f"Adapted, then {EMPOWER}", ADAPTED.replace("{n}", "{half}")
ROWS = ALONE, BASE, SFT, STOPPED, EMPOWER, OFFSET, ADAPTED, BOTH
SIX = ((EMPOWER, STOPPED), (OFFSET, STOPPED), (ADAPTED, STOPPED), (BOTH, HALF), (EMPOWER, SFT),
       (EMPOWER, BASE))
MORE = ((SFT, BASE), (STOPPED, ALONE), (STOPPED, BASE), (EMPOWER, STOPPED), (EMPOWER, ONE),
        (EMPOWER, EMPOWER.replace("{n}", "{fewer}")), (FULL, EMPOWER), (FULL, STOPPED),
        (ADAPTED, STOPPED), (BOTH, STOPPED), (BOTH, HALF), (BOTH, ADAPTED))
SHOWN = {"share saved": ("share_saved", 3), "accept ratio": ("accept_ratio", 3),  # key, digits
         "read": ("tokens_read", 0), "silent": ("silent_share", 2), "DPR": ("dpr", 3)}


def blocks(found):
    """{heading: table} of what `make.py real` found: the rows, six differences, and others."""
    plan, (*shown, _), pair = found["plan"], SHOWN, ("row", "minus")
    one, sizes = [plan["pieces"]], {plan["pieces"], *plan["others"], *plan["halved"]}
    rows = [row for name in ROWS for row in named(plan, [[name]], one)]
    six, more = named(plan, SIX, one), named(plan, MORE, sorted(sizes))
    return {"real code": grid(found, rows, ["assistant"], shown, mean),
            "real code, differences": grid(found, six, pair, shown[:2], difference),
            "real code, in detail": grid(found, more, pair, SHOWN, difference)}


def named(plan, rows, sizes):
    """Tuples of names of rows, for each eta and each number of pieces."""
    return list(dict.fromkeys(
        tuple(name.format(N=plan["n"], e=f"{eta:g}", n=n, half=n // 2, fewer=fewer) for name in row)
        for eta in sorted({*plan["etas"], *plan["thresholds"]})
        for n, fewer in zip(sizes, [0, *sizes]) for row in rows))


def grid(found, rows, names, titles, cell):
    """A table of the rows that were played: names, seeds, and a cell for each corpus and title."""
    lines = []
    for row in rows:
        each = {corpus: played(found, corpus, row) for corpus in found["plan"]["corpora"]}
        if seeds := sorted(set().union(*each.values()), key=int):
            lines.append({**dict(zip(names, row)), "seeds": " to ".join(dict.fromkeys(
                [seeds[0], seeds[-1]])), **{f"{corpus}, {title}": cell(
                    list(some.values()), *SHOWN[title])
                    for corpus, some in each.items() for title in titles}})
    return table(lines, {title: f"{{{title}}}" for title in lines[0]})


def played(found, corpus, names):
    """{seed: the numbers of these rows}; a seed on which a rate was chosen only if no others."""
    some = {seed: [corpora[corpus][name] for name in names]
            for seed, corpora in found["seeds"].items() if {*names} <= {*corpora.get(corpus, ())}}
    return {seed: rows for seed, rows in some.items() if seed not in found["chosen_on"]} or some


def mean(some, key, digits):
    """The mean over seeds as text; with three digits also the standard deviation."""
    each = np.array([row[key] for [row] in some], dtype=float)
    spread = f" ± {each.std(ddof=1):.3f}" if digits == 3 and len(each) > 1 else ""
    return f"{each.mean():.{digits}f}{spread}" if len(each) and not np.isnan(each).any() else "-"


def difference(some, key, _):
    """A row minus another as text: mean and 95% interval over seeds; of one seed, over programs."""
    if not some or any(row[key] is None for pair in some for row in pair):
        return "-"
    each = [ours[key] - other[key] for ours, other in some]
    # One seed: the rows are taken for independent, though they share programs, so it is too wide.
    half = 1.96 * math.hypot(*(row.get(f"{key}_se", math.nan) for row in some[0]))
    ends = seeds_interval(each) if len(each) > 1 else (each[0], each[0] - half, each[0] + half)
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(*ends).replace(" (+nan to +nan)", "")
