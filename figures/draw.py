"""What a sweep found, drawn with matplotlib: one function for each picture."""

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

import real_tables
import report

# Okabe and Ito's colours, which colour-blind people can tell apart. Two of them are alike in grey,
# but every curve has its own marker and dash, and bars have names.
BLUE, SKY, ORANGE, GREY, BLACK = "#0072B2", "#56B4E9", "#E69F00", "#999999", "#000000"
GREEN, RED = "#009E73", "#D55E00"
# {curve: (colour, marker, dash)}; a row's curve is found by `curve_of`.
CURVES = {"Empower": (BLUE, "o", "-"), "Empower, wide": (BLUE, "D", ":"),
          "Base stopped": (SKY, "s", "--"),
          "SFT-N": (ORANGE, "^", "-"), "SFT-2N": (ORANGE, "v", "--"),
          "SFT-RAND": (ORANGE, "<", ":"),
          "Base-N": (GREY, "x", "-"), "Base-2N": (GREY, "+", "--"), "Base": (GREY, ".", ":"),
          "Human alone": (BLACK, "d", "-."), "Empower, with the offset": (BLUE, "D", ":"),
          "Adapted, stopped": (GREEN, "P", "--"),
          "Adapted, then Empower": (RED, "X", "-")}
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False,
         "axes.axisbelow": True, "axes.grid": True, "grid.color": "#dddddd",
         "svg.fonttype": "none", "svg.hashsalt": "empower", "figure.dpi": 110,
         "legend.frameon": False, "legend.fontsize": 10, "savefig.bbox": "tight"}
# Small files, without a date: the same results make the same file.
SAVED = {"metadata": {"Date": None}}


def all_figures(results, published, folder):
    """Draws every picture into the folder; yields the paths.

    published: what was found on real code, as for `real_tables.blocks`, or None.
    """
    found = [(draw, [results]) for draw in (attention, care, rounds, lengths)]
    found += [(real_code, [published])] if published else []
    for draw, some in found:
        with plt.rc_context(STYLE):
            figure, path = draw(*some), folder / f"{draw.__name__.replace('_', '-')}.svg"
            figure.savefig(path, **SAVED)
            plt.close(figure)
            yield path


def panels(n, height=3.4):
    """A figure as wide as a README with n panels side by side."""
    return plt.subplots(1, n, figsize=(10.5, height), layout="constrained")


def curve_of(results, name):
    """The curve in CURVES of a row. Example: with K_H = 4, SFT-8 is SFT-2N."""
    K = results["config"]["turn_tokens"]
    if name == f"Empower ({results['config']['eta_wide']:g})":
        return "Empower, wide"
    name = name.split(" (")[0]
    if name.startswith("Base stopped"):
        return "Base stopped"
    return name.replace(f"-{2 * K}", "-2N").replace(f"-{K}", "-N")


def curve(ax, kind, x, y, label=None, **options):
    """One curve in its colour, marker and dash."""
    colour, marker, dash = CURVES[kind]
    ax.errorbar(x, y, color=colour, marker=marker, linestyle=dash, markersize=5, linewidth=1.6,
                elinewidth=0.8, label=label or kind, **options)


TITLES = {"pass@1": "Pass@1, share of problems", "accept_ratio": "Accept ratio",
          "dpr": "Discounted pass rate"}


def attention(results):
    """The headline: each assistant with humans who read all suggestions, or fewer."""
    figure, axes = by(results, "attention")
    axes[1].set_xlabel("her attention: the share of the suggestions that she reads; the others she "
                       "accepts as they are")
    return figure


def care(results):
    """Each assistant with humans of more and less care."""
    figure, axes = by(results, "care")
    cares = list(report.by(results, "care"))
    for ax in axes:
        ax.set_xscale("log")
        ax.set_xlim(max(cares) * 1.2, min(cares) / 1.2)
        ax.set_xticks(cares, [f"{value:g}" for value in cares], rotation=45)
        ax.minorticks_off()
    axes[1].set_xlabel("her care: the share of her own text that she would reject (careless to the "
                       "right)")
    return figure


def by(results, question):
    """(figure, its three panels): each row by attention or care, with a band over seeds."""
    figure, axes = panels(3, 4.0)
    found = report.by(results, question)
    names, at = report.assistants(results, question), list(found)
    point = results["config"]["attention_low" if question == "attention" else "care"]
    for ax, (key, title) in zip(axes, TITLES.items()):
        for name in names:
            each = np.array([report.values(rows, name, key) for rows in found.values()])
            shown = ~np.isnan(each).any(1)  # Base is not played everywhere
            mean, error = each[shown].mean(1), each[shown].std(1, ddof=1) / each.shape[1] ** 0.5
            colour, marker, dash = CURVES[curve_of(results, name)]
            some = np.array(at)[shown]
            ax.plot(some, mean, color=colour, marker=marker, markersize=5, linewidth=1.5,
                    linestyle=dash if shown.all() else "", label=name.replace(" bits", ""))
            if shown.all():
                ax.fill_between(some, mean - error, mean + error, color=colour, alpha=0.15,
                                linewidth=0)
        for name, dash in (("Human alone", "-."), (report.UNLIMITED, ":")):
            if key != "accept_ratio":
                alone = report.values(found[at[0]], name, key).mean()
                ax.axhline(alone, color=BLACK, linestyle=dash, linewidth=1.2, label=name)
        ax.axvline(point, color=GREY, linewidth=0.8)
        ax.set_xlim(max(at) + 0.02, min(at) - 0.02)
        ax.set_ylim(0, 1.04)
        ax.set_title(title, fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure, axes


def lengths(results):
    """Pass@1, accept ratio and DPR by the mean length of a suggestion."""
    figure, axes = panels(3)
    for ax, (key, title) in zip(axes, TITLES.items()):
        for way, rows in report.lengths(results).items():
            rows = [row for row in rows if row[key] is not None]  # in the order of the settings
            seeds = len(results["seeds"])
            curve(ax, way, list(map(report.per_turn, rows)), [row[key] for row in rows],
                  yerr=[row[f"{key}_spread"] / seeds ** 0.5 for row in rows])
        if key != "accept_ratio":
            rows = report.seeds_of(results, "table", "rows")
            alone = report.values(rows, "Human alone", key).mean()
            ax.axhline(alone, color=BLACK, linestyle="-.", linewidth=1, label="Human alone")
        ax.set_xscale("log")
        ax.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
        ax.minorticks_off()
        ax.set_ylim(0, 1.04)
        ax.set_title(title, fontsize=11)
    axes[1].set_xlabel("mean length of a suggestion, tokens, silent rounds as 0 (log scale)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def rounds(results):
    """Pass@1 by the limit of rounds, if she reads all suggestions and if she does not."""
    figure, axes = panels(2, 3.8)
    limits, default = [*results["plan"]["rounds"], "no limit"], results["config"]["rounds"]
    for ax, share in zip(axes, (1, results["config"]["attention_low"])):
        each = report.seeds_of(results, "table", "rounds", str(share))
        for name in each[0]:
            shares = np.array([seed[name] for seed in each])               # (seeds, limits)
            curve(ax, curve_of(results, name), range(len(limits)), shares.mean(0), name,
                  yerr=shares.std(0, ddof=1) / len(shares) ** 0.5)
        if default in limits:
            ax.axvline(limits.index(default), color=GREY, linewidth=1)
        ax.set_xticks(range(len(limits)), list(map(str, limits)))
        ax.set_xlabel("most rounds of a game (not to scale)")
        ax.set_ylim(0, 1.04)
        ax.set_title(f"Pass@1, she reads {share:.0%} of the suggestions", fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def real_code(found):
    """Real code: the share saved against the tokens read, a curve over eta for each method."""
    plan, corpora = found["plan"], found["plan"]["corpora"]
    figure, axes = plt.subplots(1, len(corpora), figsize=(10.5, 3.8), layout="constrained",
                                squeeze=False)
    for ax, corpus in zip(axes[0], corpora):
        for kind, name in (("Base-N", real_tables.BASE), ("SFT-N", real_tables.SFT),
                           ("Base stopped", real_tables.STOPPED), ("Empower", real_tables.EMPOWER),
                           ("Empower, with the offset", real_tables.OFFSET),
                           ("Adapted, stopped", real_tables.ADAPTED),
                           ("Adapted, then Empower", real_tables.BOTH)):
            some = [real_tables.played(found, corpus, names).values()
                    for names in real_tables.named(plan, [[name]], [plan["pieces"]])]
            points = [np.mean([(row["tokens_read"], row["share_saved"]) for [row] in seeds], 0)
                      for seeds in some if seeds]  # for each eta, the mean over seeds
            if points:
                curve(ax, kind, *zip(*points), kind.replace("-N", f"-{plan['n']}"))
        ax.set_title(f"{corpus}: share of the tokens saved", fontsize=11)
        ax.set_xlabel("tokens read for a piece")
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
