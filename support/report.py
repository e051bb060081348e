"""The results of a run: its rows, its claims, its tables and transcripts."""

import codecs
import copy
import dataclasses
import json
import re
import time
from pathlib import Path

import numpy as np
import torch

import simhuman
from support.cli import environment, numpy_generator
from support.files import slug, write_text
from support.paper import paper_gain, paper_name

# ------------------------------------------------------------------- rows and claims

def saved(episode):
    """(tokens that the assistant wrote, all tokens) of one program; a wrong one saves nothing."""
    accepted = episode.tokens_accepted
    return accepted * episode.passed, accepted + episode.tokens_written


def share_saved(episodes):
    """(share of the programs' tokens that the assistant wrote, pooled; its standard error).

    Example: a program of 8 tokens, 4 of them accepted, and one of 2 tokens, all typed: 4 / 10.
    If the first is wrong, 0 / 10.
    """
    return simhuman.ratio_and_error(*zip(*map(saved, episodes)))


def paired_difference(a, b, rng, samples=10_000):
    """(difference of two ratios, low, high): the 95% interval of a paired bootstrap over problems.

    a, b: (part, whole) for each problem, in the same order; the ratio of a row is the sum of its
    parts over the sum of its wholes, and a mean if each whole is 1. rng: a numpy Generator.
    (None, None, None) if the wholes of a row sum to 0.
    """
    both = np.array([a, b], dtype=float)                                   # (2, problems, 2)
    if not both[..., 1].sum(1).all():
        return None, None, None
    n = both.shape[1]
    sums = both[:, rng.integers(0, n, (samples, n))].sum(2)                # (2, samples, 2)
    with np.errstate(invalid="ignore"):  # 0 / 0: a sample without a suggestion says nothing
        ours, theirs = sums[..., 0] / sums[..., 1]
    parts, wholes = both.sum(1).T
    low, high = np.nanquantile(ours - theirs, [0.025, 0.975])
    return float(parts[0] / wholes[0] - parts[1] / wholes[1]), float(low), float(high)


# Two rows with which Empower is not compared: with more time, and with more knowledge.
UNLIMITED, CEILING = "Human alone, no round limit", "Base, knows the goal"


def in_short(cfg):
    """The rows of the README's table, which are also played at the second attention."""
    K = cfg.turn_tokens
    return ["Human alone", "Base", f"Base-{K}", f"Base stopped at {cfg.eta:g} bits", f"SFT-{K}",
            f"SFT-{2 * K}", f"Empower ({cfg.eta:g})"]


def leniency(episodes, dear=5):
    """(suggestions she accepts, all that she reads) of those that cost her more than `dear` bits.

    How much a human lets through that she would hardly have written. Example: she accepts [3, 4]
    and rejects [6], and accepts [9] without reading it: (1, 2).
    """
    answers = [turn.accepted for episode in episodes for turn in episode.turns
               if turn.read and sum(turn.nll) > dear]
    return sum(answers), len(answers)


def counted(n, what):
    """A number of things. Example: 1, "piece" is "1 piece"; 1234, "piece" is "1,234 pieces"."""
    return f"{n:,} {what}{'s' * (n != 1)}"


def summarize(name, episodes, cfg):
    """One row of the table; all counts are means over problems, ratios are pooled."""
    n, turns = len(episodes), sum(len(episode.turns) for episode in episodes)
    offered = sum(episode.offered for episode in episodes)
    read = sum(episode.tokens_read for episode in episodes)
    row = {"name": name}
    row["pass@1"], row["pass@1_se"] = simhuman.pass_at_1(episodes)
    row["accept_ratio"], row["accept_ratio_se"] = simhuman.accept_ratio(episodes) \
        if offered else (None, None)
    row["share_saved"], row["share_saved_se"] = share_saved(episodes) \
        if any(map(len, (episode.code for episode in episodes))) else (None, None)
    row["dpr"], row["dpr_se"] = simhuman.discounted_pass_rate(
        episodes, cfg.gamma, cfg.alpha, cfg.beta)
    row["tokens_read"] = read / n
    row["tokens_written"] = sum(episode.tokens_written for episode in episodes) / n
    row["suggestions"] = offered / n
    row["suggestion_length"] = read / offered if offered else None
    row["silent_share"] = 1 - offered / turns
    # Of the assistant: one for each token and one for what ended it (none after a full cap).
    row["passes"] = (read + turns) / n if offered else None
    row["dear_accepted"], row["dear"] = leniency(episodes)
    return row


def metrics(cfg, replayed=False):
    """{metric: function of an episode -> (part, whole)}; its value is the parts over the wholes.

    replayed: every program is right in the end, and what counts is the share of it that was saved.
    """
    first = {"share_saved": saved} if replayed else {
        "pass@1": lambda episode: (episode.passed, 1)}
    return {**first, "accept_ratio": lambda episode: (episode.accepted, episode.offered),
            "dpr": lambda episode: (simhuman.discounted(
                episode, cfg.gamma, cfg.alpha, cfg.beta), 1)}


def claims(cfg, episodes, values):
    """Empower minus each other assistant and the human alone, with a 95% interval.

    values: from `metrics`. A claim holds if its interval is above zero.
    """
    rng, found, ours = numpy_generator(cfg, "bootstrap"), [], f"Empower ({cfg.eta:g})"
    for name, row in episodes.items():
        if name in (ours, CEILING, UNLIMITED):
            continue
        for metric, value in values.items():
            a, b = ([value(episode) for episode in some] for some in (episodes[ours], row))
            difference, low, high = paired_difference(a, b, rng)
            paper, human = paper_gain(paper_name(name, cfg.turn_tokens), metric) \
                if ours == "Empower (0.32)" else (None, "")  # the paper's, in simulation
            found.append({
                "baseline": name, "metric": metric, "difference": difference, "low": low,
                "high": high, "holds": low is not None and low > 0, "paper_gain": paper,
                "paper_human": human})
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
STOPPING = {"assistant": "{name}", "asked": "{asked:.1f} ± {asked_sd:.1f}",
            "written": "{written:.1f} ± {written_sd:.1f}", "within 2": "{within_2:.2f}",
            "asked empty": "{asked_empty:.2f}", "written empty": "{written_empty:.2f}",
            "distance": "{distance:.2f}", "learned": "{learned}"}
METRICS = {"pass@1": "Pass@1", "share_saved": "share saved", "accept_ratio": "accept ratio",
           "dpr": "DPR"}


def check_stopping(name, assistant, encoding, completions, seed):
    """The lengths that a rule asks for on held-out completions, and those the assistant writes.

    distance: the largest difference between the two cumulative distributions of lengths, 0 to 1
    (Kolmogorov and Smirnov's).
    """
    generator = torch.Generator(assistant.model.device).manual_seed(seed)
    # A completion that was cut off at the end of a piece says nothing about where to stop.
    completions = [found for found in completions if found[2]] or completions
    assistant, model, written = copy.copy(assistant), assistant.model, []
    longest = max(len(prefix) for prefix, *_ in completions) + assistant.max_tokens
    shape, size = model.config, sum(weight.numel() for weight in model.parameters())
    position = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
    # Numbers in the cache: 0.4 GB of float32, for large models more, but never 2 GB.
    rows = max(1, min(max(3 * 2**25, size // 4), 2**29) // (longest * position))
    for k in range(0, len(completions), rows):
        prefixes = [prefix for prefix, *_ in completions[k:k + rows]]
        assistant.begin([[encoding.start]] * len(prefixes))
        written += map(len, assistant.suggest(prefixes, encoding.stops, generator))
    asked = np.array([len(completion) for _, completion, _ in completions])
    asked, written = np.minimum(asked, assistant.max_tokens), np.array(written)
    counts = [np.bincount(some, minlength=assistant.max_tokens + 1) for some in (asked, written)]
    return {"name": name, "asked": asked.mean(), "asked_sd": asked.std(), "written": written.mean(),
            "written_sd": written.std(), "within_2": (abs(asked - written) <= 2).mean(),
            "asked_empty": (asked == 0).mean(), "written_empty": (written == 0).mean(),
            "distance": abs(np.cumsum(counts[0] - counts[1])).max() / len(asked)}


def with_learned(stopping):
    """The rows, plus whether the lengths written are distributed like those asked for."""
    return [{**row, "learned": "yes" if row["distance"] <= 0.1 else "NO"} for row in stopping]


def claims_table(found):
    """The claims as a table: a row for each baseline, a column for each metric."""
    names = list(dict.fromkeys(claim["metric"] for claim in found))
    rows = {}
    for claim in found:
        row = rows.setdefault(claim["baseline"], {"name": claim["baseline"], "gains": []})
        if claim["low"] is not None:
            row[claim["metric"]] = "{difference:+.3f} ({low:+.3f} to {high:+.3f})".format_map(claim)
        if claim["paper_gain"] is not None:
            row["gains"].append(f"{claim['paper_gain']:+.0%}")
            row["human"] = claim["paper_human"]
    for row in rows.values():
        row["paper"] = f"{', '.join(row['gains'])} ({row['human']})" if row["gains"] else "-"
    columns = {METRICS[name]: f"{{{name}}}" for name in names}
    if any(row["gains"] for row in rows.values()):
        columns["the paper's gains"] = "{paper}"
    return table([{**dict.fromkeys(names, "-"), **row} for row in rows.values()],
                 {"Empower minus": "{name}", **columns})


def claims_sentence(found):
    """One sentence: how many claims against the paper's baselines hold, and which do not."""
    paper = [claim for claim in found if claim["low"] is not None
             and re.fullmatch(r"Base|(Base|SFT)-(\d+|RAND)", claim["baseline"])]
    failed = [f"{METRICS[claim['metric']]} against {claim['baseline']}" for claim in paper
              if not claim["holds"]]
    return (f"Against the paper's baselines, {len(paper) - len(failed)} of {len(paper)} intervals "
            f"are above zero{', but not: ' + '; '.join(failed) if failed else ''}.")


def less_attentive(results):
    """The rows of a human who does not read every suggestion, and how lenient she is, as text."""
    cfg, found = results["config"], results["less attentive"]
    K, all_rows = cfg["turn_tokens"], {row["name"]: row for row in results["rows"]}
    rows = [{**row, "all": all_rows[row["name"]]["pass@1"]} for row in found["rows"]]
    base = all_rows[f"Base-{K}"]
    first, second = (f"Pass@1, reads {some['attention']:.0%}" for some in (cfg, found))
    columns = {"assistant": "{name}", first: "{all:.3f}", second: RESULTS["Pass@1"],
               **{name: RESULTS[name] for name in ("accept ratio", "DPR")}}
    return (f"If she reads {found['attention']:.0%} of the suggestions and accepts the others as "
            f"they are:\n\n{table(rows, columns)}\n\nHer leniency: of {base['dear']} suggestions "
            f"of Base-{K} that she\nread and that cost her over 5 bits (care {cfg['care']:g}), "
            f"she accepted {base['dear_accepted']}.")


def as_text(results):
    """The tables of a run as one text."""
    rows = results["rows"]
    first = ("Pass@1: share of the problems that are solved" if "pass@1" in rows[0] else
             "Share saved: the share of the program's tokens that the assistant wrote;\nevery "
             "program is right in the end, so DPR is only the discount")
    columns = {header: template for header, template in RESULTS.items()
               if header != ("share saved" if "pass@1" in rows[0] else "Pass@1")}
    goals = "problems" if "pass@1" in rows[0] else "programs"
    unseen = "programs held out of fine-tuning" if "pass@1" in rows[0] else (
        "pieces held out of fine-tuning, often of programs learned from")
    return "\n\n".join([
        f"The game on {results['problems']} held-out {goals}. {first};\naccept ratio: accepted "
        "over offered suggestions; DPR: discounted pass rate; ± one\nstandard error over "
        "problems. The other columns: tokens read, tokens written and\nsuggestions per problem; "
        "tokens per suggestion; share of silent rounds.",
        table(rows, columns),
        *([less_attentive(results)] if "less attentive" in results else []),
        "Did the assistants learn to stop? Lengths that the rule asks for and lengths written "
        f"without a\ncap, mean ± standard deviation in tokens, on {unseen}; "
        "the share of states\nwhere they differ by at most 2; the share of each that is empty; the "
        "distance between the two\ndistributions (Kolmogorov-Smirnov). Learned: at most 0.1.",
        table(with_learned(results["stopping"]), STOPPING),
        f"Empower (eta = {results['config']['eta']:g}) minus each row, with a 95% interval "
        "(paired bootstrap over problems). The\npaper's gains are relative, means over its three "
        "assistants, with the human in brackets.",
        claims_table(results["claims"]), claims_sentence(results["claims"])])


def show_program(encoding, ids, lengths):
    """Prints her first program; lengths: of the suggestion in each state, as in `left_to_human`."""
    print("\nThe human's first program; in ‹angles›, what is not obvious without the problem "
          f"statement:\n\n{marked(token_texts(encoding, ids), left_to_human(lengths))}")


def conclude(lab, begin, trained, stopping, episodes, unread=None, replayed=False):
    """Writes results.json and transcripts/, prints the tables, and returns the results.

    begin: when the run began (time.time()). trained: {name: Assistant}; episodes: {name: a row of
    the table}; unread: some of them at the second attention, if any; replayed: as in `metrics`.
    """
    cfg = lab.cfg
    rows = [summarize(name, row, cfg) for name, row in episodes.items()]
    if replayed:
        rows = [{key: value for key, value in row.items() if "pass@1" not in key} for row in rows]
    models = {"base": lab.base.name, **{name: row.model.name for name, row in trained.items()}}
    results = {"config": dataclasses.asdict(cfg), "environment": environment(lab.device),
               "problems": len(episodes["Base"]), "rows": rows,
               **({"less attentive": {"attention": cfg.attention_low, "rows": [
                   summarize(name, row, cfg) for name, row in unread.items()]}} if unread else {}),
               "stopping": stopping,
               "models": {name: stage for name, stage in models.items()
                          if (lab.kept.stages / stage).exists()},
               "stages": lab.kept.folders,
               "caps": {name: row.max_tokens for name, row in trained.items()},
               "claims": claims(cfg, episodes, metrics(cfg, replayed)),
               "seconds": round(time.time() - begin)}
    statement = "" if replayed else lab.contest.held_out[0].statement
    write_transcripts(Path(cfg.out, "transcripts"), episodes, statement, lab.base.encoding.decode)
    write_text(Path(cfg.out, "results.json"), json.dumps(results, indent=2, allow_nan=False) + "\n")
    print(f"\n{as_text(results)}\n\nresults.json, transcripts/ and every stage are in {cfg.out}")
    return results


# ------------------------------------------------------------------- programs and transcripts


def token_texts(encoding, ids):
    """The text of each token; a character split over several tokens goes to the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(encoding.decode_single_token_bytes(i)) for i in ids]


def left_to_human(lengths):
    """Positions (a list of int) of the tokens of a whole program that are left to the human.

    The assistant writes lengths[n] tokens from state n on, as `empower.empower_lengths` gives them,
    she types the next token, and so on in turns until one of them reaches the end.
    Example: costs [3, 0, 0.2, 0.2, 2] with eta = 0.32 give lengths [0, 2, 1, 1, 0]: [0, 3, 4].
    """
    typed, n = [], 0
    while n < len(lengths) and n + lengths[n] < len(lengths):
        typed.append(int(n + lengths[n]))
        n = typed[-1] + 1
    return typed


def marked(texts, positions):
    """A program in plain text, with the tokens at these positions in ‹angles›."""
    positions = set(positions)
    return "".join(f"‹{text}›" if k in positions else text for k, text in enumerate(texts))


def transcript(episode, statement, decode):
    """An episode for people to read: who wrote what, and what it cost the human's model."""
    lines = [statement]
    for k, turn in enumerate(episode.turns, 1):
        if turn.suggestion:
            cost = f"{sum(turn.nll):.1f} bits for {len(turn.nll)} tokens: " if turn.nll else ""
            lines.append(f"{k:3}  assistant  {decode(turn.suggestion)!r}  {cost}"
                         f"{'accepted' if turn.accepted else 'rejected'}"
                         + " without reading it" * (not turn.read))
        lines.append(f"{k:3}  human      {decode(turn.typed)!r}")
    lines.append("finished by the human" if episode.finished else "cut off")
    lines.append(f"\n{decode(episode.code)}\n{'passed' if episode.passed else 'failed'}: "
                 f"{episode.tokens_read} tokens read, {episode.tokens_written} written\n")
    return "\n".join(lines)


def write_transcripts(folder, episodes, statement, decode):
    """The first problem's episode of each row, for people to read."""
    folder.mkdir(exist_ok=True)
    for name, row in episodes.items():
        write_text(folder / f"{slug(name)}.txt", transcript(row[0], statement, decode))
