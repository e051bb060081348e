"""The results of a run: its tables, the paper's numbers next to ours, and transcripts."""

import codecs
import dataclasses
import functools
import json
import time
from pathlib import Path

import numpy as np

import simhuman
from model import KVCache, sample
from support.cache import slug
from support.cli import environment, numpy_generator
from support.files import write_text

# ------------------------------------------------------------------- the paper's numbers

# The paper's (Pass@1, accept ratio, DPR) for three assistants with each of its two humans,
# Gemma-3-27B-it and Llama-3.3-70B-Instruct. It has no Base-20 in simulation.
PAPER = {
    "Gemma": {"Empower": [(.176, .670, .150), (.178, .630, .156), (.170, .659, .148)],
              "SFT-20": [(.070, .231, .057), (.086, .299, .072), (.088, .381, .077)],
              "SFT-10": [(.062, .268, .053), (.101, .367, .086), (.101, .461, .088)],
              "Base-10": [(.064, .649, .057), (.090, .582, .080), (.062, .530, .055)],
              "Base": [(.064, .383, .055), (.092, .400, .083), (.086, .312, .077)]},
    "Llama": {"Empower": [(.218, .488, .176), (.282, .317, .208), (.249, .459, .201)],
              "SFT-20": [(.167, .192, .116), (.097, .165, .066), (.145, .188, .102)],
              "SFT-10": [(.152, .299, .114), (.104, .257, .074), (.165, .292, .126)],
              "SFT-RAND": [(.156, .201, .109), (.112, .184, .075), (.145, .226, .106)],
              "Base-10": [(.198, .592, .162), (.156, .537, .127), (.174, .597, .143)],
              "Base": [(.183, .351, .143), (.170, .297, .134), (.161, .299, .127)]}}
PAPER_METRICS = ("pass@1", "accept_ratio", "dpr")


def paper_means(human, row):
    """The paper's (Pass@1, accept ratio, DPR) of a row, means over its three assistants: (3,)."""
    return np.mean(PAPER[human][row], axis=0)


def paper_gain(baseline, metric):
    """The relative gain of Empower over a baseline in the paper's table; None if it has none.

    With its first human, or with the second if only she has the row (SFT-RAND).
    """
    human = next((human for human, rows in PAPER.items() if baseline in rows), None)
    if human is None or metric not in PAPER_METRICS:
        return None
    ours, theirs = (paper_means(human, row) for row in ("Empower", baseline))
    return float((ours / theirs)[PAPER_METRICS.index(metric)] - 1)


# ------------------------------------------------------------------- rows and claims


def summarize(name, episodes, cfg):
    """One row of the table; all counts are means over problems, ratios are pooled."""
    n, turns = len(episodes), sum(len(episode.turns) for episode in episodes)
    offered = sum(episode.offered for episode in episodes)
    read = sum(episode.tokens_read for episode in episodes)
    row = {"name": name}
    row["pass@1"], row["pass@1_se"] = simhuman.pass_at_1(episodes)
    row["accept_ratio"], row["accept_ratio_se"] = simhuman.accept_ratio(episodes) \
        if offered else (None, None)
    row["share_saved"], row["share_saved_se"] = simhuman.share_saved(episodes)
    row["dpr"], row["dpr_se"] = simhuman.discounted_pass_rate(
        episodes, cfg.gamma, cfg.alpha, cfg.beta)
    row["tokens_read"] = read / n
    row["tokens_written"] = sum(episode.tokens_written for episode in episodes) / n
    row["suggestions"] = offered / n
    row["suggestion_length"] = read / offered if offered else None
    row["silent_share"] = 1 - offered / turns
    return row


def claims(cfg, episodes, values):
    """Empower minus each baseline, with a 95% interval: does the paper's claim hold here?

    values: {metric: its value for one episode}.
    """
    rng, found = numpy_generator(cfg, "bootstrap"), []
    for baseline in ("SFT-10", "SFT-20", "SFT-RAND", "Base-10", "Base-20"):
        for metric, value in values.items():
            a, b = ([value(e) for e in episodes[row]]
                    for row in (f"Empower ({cfg.eta:g})", baseline))
            difference, low, high = simhuman.paired_difference(a, b, rng)
            found.append({
                "baseline": baseline, "metric": metric, "difference": difference,
                "low": low, "high": high, "holds": bool(low > 0),
                "gain": difference / np.mean(b) if np.mean(b) else None,
                "paper_gain": paper_gain(baseline, metric)})
    return found


# ------------------------------------------------------------------- tables


def table(rows, columns):
    """An aligned table of dicts that reads well in a terminal and in a README.

    columns: {header: template of a cell}. A cell whose value is None is a dash.
    """
    def cell(template, row):
        try:
            return template.format_map(row)
        except TypeError:  # None has no digits
            return "-"

    cells = [list(columns), *([cell(t, row) for t in columns.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *(
        text.rjust(width) for text, width in zip(row[1:], widths[1:]))]) + " |" for row in cells]
    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


RESULTS = {"assistant": "{name}", "Pass@1": "{pass@1:.3f} ± {pass@1_se:.3f}",
           "accept ratio": "{accept_ratio:.3f} ± {accept_ratio_se:.3f}",
           "share saved": "{share_saved:.3f} ± {share_saved_se:.3f}",
           "DPR": "{dpr:.3f} ± {dpr_se:.3f}", "read": "{tokens_read:.1f}",
           "written": "{tokens_written:.1f}", "suggestions": "{suggestions:.1f}",
           "length": "{suggestion_length:.1f}", "silent": "{silent_share:.2f}"}
STOPPING = {"assistant": "{name}", "asked": "{target_length:.1f}",
            "written": "{suggestion_length:.1f}", "within 20%": "{close}",
            "asked empty": "{silent_targets:.2f}", "written empty": "{silent_suggestions:.2f}"}
CLAIMS = {"against": "{baseline}, {metric}", "difference": "{difference:+.3f}",
          "95% interval": "{low:+.3f} to {high:+.3f}", "holds": "{holds}",
          "our gain": "{gain:+.0%}", "paper's gain": "{paper_gain:+.0%}"}


def check_stopping(name, assistant, completions, max_suggestion, temperature=0.0, top_p=1.0,
                   generator=None):
    """The lengths that a rule asks for on held-out completions, and those the assistant writes."""
    (model, encoding, _), written = assistant, []
    longest = max(len(prefix) for prefix, *_ in completions) + max_suggestion
    rows = max(1, 2**25 // (longest * model.config.hidden_size))  # as many as fit in memory
    for k in range(0, len(completions), rows):
        prefixes = [[encoding.start, *prefix] for prefix, *_ in completions[k:k + rows]]
        new, _ = sample(model, KVCache(model, len(prefixes)), prefixes, max_suggestion,
                        encoding.stops, temperature, top_p, generator=generator)
        written += map(len, new)
    asked = np.array([len(completion) for _, completion, _ in completions])
    written = np.array(written)
    return {"name": name, "target_length": asked.mean(), "suggestion_length": written.mean(),
            "silent_targets": (asked == 0).mean(), "silent_suggestions": (written == 0).mean()}


def with_verdict(stopping):
    """The rows, plus whether each assistant writes about as much as its rule asks for."""
    return [{**row, "close": "yes" if abs(row["suggestion_length"] - row["target_length"])
             <= 0.2 * row["target_length"] else "NO"} for row in stopping]


def report(results):
    """The tables of a run as one text."""
    rows = results["rows"]
    first = ("Pass@1: share of the problems that are solved" if "pass@1" in rows[0] else
             "Share saved: the share of the program's tokens that the assistant wrote;\nevery "
             "program is right in the end, so DPR is only the discount")
    columns = {header: template for header, template in RESULTS.items()
               if header != ("share saved" if "pass@1" in rows[0] else "Pass@1")}
    return "\n\n".join([
        f"The game on {results['problems']} held-out problems. {first};\naccept ratio: accepted "
        "over offered suggestions; DPR: discounted pass rate; ± one\nstandard error over "
        "problems. Then means over problems of tokens read, tokens written\nand suggestions; "
        "tokens per suggestion; share of silent turns.",
        table(rows, columns),
        "Did the assistants learn to stop? Tokens that the rule asks for, tokens written, and the "
        "share\nof each that is empty, on programs held out of fine-tuning.",
        table(with_verdict(results["stopping"]), STOPPING),
        f"Empower (eta = {results['config']['eta']:g}) minus each baseline, with a 95% interval "
        "(paired bootstrap over\nproblems). A claim holds if its interval is above zero. Gains are "
        "relative; the paper's, if it has\nany, are means over its three assistants.",
        table([{**claim, "holds": "yes" if claim["holds"] else "NO"}
               for claim in results["claims"]],
              {header: template for header, template in CLAIMS.items() if "pass@1" in rows[0]
               or header != "paper's gain"})])


def conclude(lab, begin, trained, stopping, episodes, values=None):
    """Writes results.json and transcripts/, prints the tables, and returns the results.

    begin: when the run began (time.time()). trained: {name: Checkpoint}; episodes: {name: a row of
    the table}; values: as in `claims`, by default Pass@1 and DPR.
    """
    cfg, dpr = lab.cfg, discounted_pass(lab.cfg)
    values = values or {"pass@1": lambda episode: float(episode.passed), "dpr": dpr}
    rows = [summarize(name, row, cfg) for name, row in episodes.items()]
    if "pass@1" not in values:
        rows = [{key: value for key, value in row.items() if "pass@1" not in key} for row in rows]
    models = {"base": lab.base, **trained}
    results = {"config": dataclasses.asdict(cfg), "environment": environment(lab.device),
               "problems": len(episodes["Base"]), "rows": rows, "stopping": stopping,
               "models": {name: checkpoint.folder.name for name, checkpoint in models.items()
                          if checkpoint.folder.parent == lab.cache.stages},
               "claims": claims(cfg, episodes, values), "seconds": round(time.time() - begin)}
    write_transcripts(lab, episodes)
    write_text(Path(cfg.out, "results.json"), json.dumps(results, indent=2, allow_nan=False) + "\n")
    print(f"\n{report(results)}\n\nresults.json, transcripts/ and every stage are in {cfg.out}")
    return results


def discounted_pass(cfg):
    """A function that gives the discounted pass of one episode under cfg (Section 5.1)."""
    return functools.partial(simhuman.discounted, gamma=cfg.gamma, alpha=cfg.alpha, beta=cfg.beta)


# ------------------------------------------------------------------- programs and transcripts


def token_texts(encoding, ids):
    """The text of each token; a character split over several tokens goes to the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(encoding.decode_single_token_bytes(i)) for i in ids]


def marked(texts, positions):
    """A program in plain text, with the tokens at these positions in ‹angles›."""
    positions = set(positions)
    return "".join(f"‹{text}›" if k in positions else text for k, text in enumerate(texts))


def transcript(episode, statement, decode):
    """An episode for people to read: who wrote what, and what it cost the human's model."""
    lines = [statement]
    for k, turn in enumerate(episode.turns, 1):
        if turn.suggestion:
            cost = f"{np.mean(turn.nll):.2f} bits a token: " if turn.nll else ""
            lines.append(f"{k:3}  assistant  {decode(turn.suggestion)!r}  {cost}"
                         f"{'accepted' if turn.accepted else 'rejected'}")
        lines.append(f"{k:3}  human      {decode(turn.typed)!r}")
    lines.append("finished by the human" if episode.finished else "cut off")
    lines.append(f"\n{decode(episode.code)}\n{'passed' if episode.passed else 'failed'}: "
                 f"{episode.tokens_read} tokens read, {episode.tokens_written} written\n")
    return "\n".join(lines)


def write_transcripts(lab, episodes):
    """The first problem's episode of each row, for people to read, in transcripts/."""
    folder = Path(lab.cfg.out, "transcripts")
    folder.mkdir(exist_ok=True)
    for name, row in episodes.items():
        write_text(folder / f"{slug(name)}.txt",
                   transcript(row[0], lab.first_statement, lab.base.encoding.decode))
