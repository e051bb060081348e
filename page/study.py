"""python page/study.py DIR: the table of the paper's user study, from logs of an editor.

    DIR/PERSON/ASSISTANT/PROBLEM.tsv     what happened, in the published editor's format
    DIR/PERSON/mapping.json              {"assistant_1": name, "assistant_2": name}, if it was blind
    DIR/PERSON/answers.json              {question: "assistant_1" or "assistant_2"}
    DIR/PERSON/tests.jsonl               each run of the tests: {"part": ..., "passed": ...}

`python empower.py page --study DIR` leaves them like this. The logs in a folder ASSISTANT that is
called "alone" are of the part without an assistant: a row of the table, in none of the tests.

A log is tab-separated, with a header: timestamp, action_type, action_info, caret_index. The caret
is that after the action; tabs and line breaks in action_info are written as \\t, \\n, \\r.

Votes are tested by an exact binomial test, one-sided, as in the paper: against a draw among all
assistants. Accept ratios are tested by a test of two proportions with separate variances, one-sided
for the higher one, which gives the paper's p from its counts; characters deleted per accepted
suggestion by a paired t-test, two-sided, since everybody has worked with both and people differ
much; it is over those who accepted something of both.
"""

import argparse
import dataclasses
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.cli import Parser, UserError, plain_errors
from support.files import read_text
from support.report import table

ALONE = "alone"  # the part of a study without an assistant
COLUMNS = ["timestamp", "action_type", "action_info", "caret_index"]

# ------------------------------------------------------------------- statistics


def votes_p(votes, people, choices=2):
    """One-sided exact binomial p: at least so many choose this one if all draw among `choices`.

    Example: 14 of 18 is 0.0154.
    """
    return sum(math.comb(people, k) * (choices - 1) ** (people - k)
               for k in range(votes, people + 1)) / choices ** people


def normal_above(z):
    """The probability that a standard normal number exceeds z."""
    return math.erfc(z / math.sqrt(2)) / 2


def proportions_p(a, n, b, m):
    """One-sided p of the test of two proportions, a of n above b of m, each with its variance."""
    if not n or not m:
        return math.nan
    variance = a / n * (1 - a / n) / n + b / m * (1 - b / m) / m
    return normal_above((a / n - b / m) / math.sqrt(variance)) if variance else math.nan


def paired_t(a, b):
    """(t, two-sided p) of the paired t-test; nan with fewer than two pairs or without variance."""
    differences = np.asarray(a, float) - np.asarray(b, float)
    n = len(differences)
    if n < 2 or differences.std(ddof=1) == 0:
        return math.nan, math.nan
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(n))
    return float(t), student_two_sided(float(t), n - 1)


def student_two_sided(t, freedom):
    """The probability that Student's t with so many degrees of freedom exceeds |t| in size."""
    return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def incomplete_beta(a, b, x):
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz)."""
    if x in (0, 1):
        return float(x)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x)
                     + b * math.log1p(-x)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, 1000):
        for numerator in (m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
                          -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))):
            d = 1 / (1 + numerator * d)
            c = 1 + numerator / c
            result *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * result


# ------------------------------------------------------------------- logs


@dataclasses.dataclass
class Figures:
    """What one log, or several added up, come to; characters, not tokens."""

    proposed: int = 0           # suggestions shown
    accepted: int = 0
    suggested: int = 0          # characters of accepted suggestions
    deleted: int = 0            # of these, deleted later
    typed: int = 0
    shown: int = 0              # characters of all suggestions shown

    def __add__(self, other):
        return Figures(*(a + b for a, b in zip(dataclasses.astuple(self),
                                               dataclasses.astuple(other))))


def read_log(path):
    """[(action_type, action_info, caret)] of a log; a UserError names the line that is damaged."""
    try:
        lines = read_text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
        if not lines or lines[0].split("\t") != COLUMNS:
            raise ValueError(f"its first line is not {' '.join(COLUMNS)}")
        actions = []
        for number, line in enumerate(lines[1:], 2):
            fields = line.split("\t")
            if len(fields) != 4 or not fields[3].lstrip("-").isdigit():
                if number == len(lines):
                    break  # cut off by a crash
                raise ValueError(f"line {number} is not {' '.join(COLUMNS)}")
            actions.append((fields[1], unescaped(fields[2]), int(fields[3])))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): give logs of the editor") from None
    return actions


def unescaped(text):
    """Text with its tabs and line breaks, which a log writes as \\t, \\n and \\r."""
    return text.replace("\\t", "\t").replace("\\n", "\n").replace("\\r", "\r")


def figures(actions):
    """The Figures of a log: every character of the editor is marked by who wrote it.

    Example: "ab" is suggested and accepted, then one character is deleted: accepted 1, suggested
    2, deleted 1.
    """
    found, marks, caret = Figures(), [], 0
    for kind, info, after in actions:
        moved = after - caret
        if kind == "current_code":
            marks = ["unknown"] * len(info)
        elif kind == "proposed_suggestion":
            found.proposed += 1
            found.shown += len(info)
        elif kind in ("accepted_suggestion", "character_typed"):
            who = "suggested" if kind == "accepted_suggestion" else "typed"
            marks[caret:caret] = [who] * max(moved, 0)
            found.accepted += who == "suggested"
            setattr(found, who, getattr(found, who) + max(moved, 0))
        elif kind == "deletion":
            n = int(info) if info.isdigit() else max(-moved, 0)
            found.deleted += marks[after:after + n].count("suggested")
            del marks[after:after + n]
        caret = max(after, 0)
        marks += ["unknown"] * (caret - len(marks))  # text that the log does not explain
    return found


# ------------------------------------------------------------------- the study


def read_study(folder):
    """{person: ({assistant: Figures}, {question: assistant}, assistants)} of a folder.

    The answers are None before they are given; the last are the assistants with which the person's
    program passed all tests.
    """
    study = {}
    for person in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
        names = as_json(person / "mapping.json")
        found = {}
        for assistant in sorted(path for path in person.iterdir() if path.is_dir()):
            logs = sorted(assistant.glob("*.tsv"))
            if logs:
                found[names.get(assistant.name, assistant.name)] = sum(
                    (figures(read_log(log)) for log in logs), Figures())
        if found:
            path = person / "answers.json"
            answers = {question: names.get(choice, choice)
                       for question, choice in as_json(path).items()} if path.exists() else None
            study[person.name] = found, answers, {
                names.get(part, part) for part in passed_parts(person / "tests.jsonl")}
    if not study:
        raise UserError(f"{folder} has no logs: give a folder with PERSON/ASSISTANT/PROBLEM.tsv")
    return study


def passed_parts(path):
    """The parts of a study in which a program passed all tests; none if none was run."""
    try:
        runs = [json.loads(line) for line in read_text(path).splitlines()] if path.exists() else []
        return {run["part"] for run in runs if run["passed"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}): mend or remove it") from None


def as_json(path):
    """The object in a JSON file, {} if there is none."""
    if not path.exists():
        return {}
    try:
        found = json.loads(read_text(path))
        if not isinstance(found, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): mend or remove it") from None
    return found


def analyse(study):
    """The paper's figures as plain data, the assistants in the order of their names."""
    names = sorted({name for found, *_ in study.values() for name in found})
    rows = []
    for name in names:
        each = [found[name] for found, *_ in study.values() if name in found]
        whole, people = sum(each, Figures()), len(each)
        ratios = [one.deleted / one.accepted for one in each if one.accepted]
        rows.append({
            "name": name, "people": people, "suggestions": whole.proposed / people,
            "characters": whole.shown / whole.proposed if whole.proposed else None,
            "solved": sum(name in solved for *_, solved in study.values()),
            "typed": whole.typed / people, "accepted": whole.accepted, "proposed": whole.proposed,
            "accept_ratio": whole.accepted / whole.proposed if whole.proposed else None,
            "deleted_per_accepted": float(np.mean(ratios)) if ratios else None,
            "deleted_se": float(np.std(ratios, ddof=1) / math.sqrt(len(ratios)))
            if len(ratios) > 1 else None})
        rows[-1]["deleted"] = None if not ratios else "{deleted_per_accepted:.2f}".format_map(
            rows[-1]) + (" ± {deleted_se:.2f}".format_map(rows[-1]) if len(ratios) > 1 else "")
    names = [name for name in names if name != ALONE]
    pairs = itertools.combinations([row for row in rows if row["name"] != ALONE], 2)
    return {"people": len(study),
            "finished": sum(answers is not None for _, answers, _ in study.values()),
            "rows": rows, "votes": votes(study, names),
            "tests": [test for pair in pairs for test in tests(study, pair)]}


def votes(study, names):
    """Who was chosen how often for each question, with the p of the one with most votes."""
    given = [answers for _, answers, _ in study.values() if answers]
    questions = {question: [] for answers in given for question in answers}
    for answers in given:
        for question, choice in answers.items():
            questions[question].append(choice)
    found = []
    for question, choices in questions.items():
        counted = [choice for choice in choices if choice in names]
        most = max(map(counted.count, names), default=0)
        best = [name for name in names if counted.count(name) == most]
        found.append({
            "question": question, "votes": most, "people": len(counted),
            "most": best[0] if len(best) == 1 else f"a tie: {', '.join(best)}",
            "p": votes_p(most, len(counted), len(names)) if len(best) == 1 else None})
    return found


def tests(study, rows):
    """The two tests between two assistants; the first is the one with the higher accept ratio."""
    first, second = sorted(rows, key=lambda row: -(row["accept_ratio"] or 0))
    both = [[found[row["name"]] for row in (first, second) if row["name"] in found]
            for found, *_ in study.values()]
    pairs = [pair for pair in both if len(pair) == 2 and all(one.accepted for one in pair)]
    ratios = [[one.deleted / one.accepted for one in some] for some in zip(*pairs)] or [[], []]
    p = paired_t(*ratios)[1]
    ratios_p = proportions_p(first["accepted"], first["proposed"], second["accepted"],
                             second["proposed"])
    return [{"test": "accept ratio, two proportions, one-sided", "first": first["name"],
             "second": second["name"],
             "statistic": first["accept_ratio"], "other": second["accept_ratio"],
             "p": None if math.isnan(ratios_p) else ratios_p},
            {"test": f"deleted per accepted, paired t over {len(pairs)} people, two-sided",
             "first": first["name"], "second": second["name"],
             "statistic": float(np.mean(ratios[0])) if pairs else None,
             "other": float(np.mean(ratios[1])) if pairs else None,
             "p": None if math.isnan(p) else p}]


def as_text(results):
    """The tables of a study."""
    parts = [f"{results['people']} people, {results['finished']} of whom have answered the "
             "questions. Suggestions and characters typed\nper person, characters per suggestion, "
             "characters deleted per accepted suggestion (mean over people ±\nstandard error); "
             "solved: people whose program passed all tests in this part.",
             table(results["rows"], {
                 "assistant": "{name}", "people": "{people}", "suggestions": "{suggestions:.1f}",
                 "characters": "{characters:.1f}", "typed": "{typed:.1f}",
                 "accept ratio": "{accept_ratio:.2%}",
                 "deleted": "{deleted:s}", "solved": "{solved}"})]
    if results["votes"]:
        parts.append(table(results["votes"], {
            "question": "{question}", "most votes": "{most}", "votes": "{votes}",
            "of": "{people}", "p, one-sided": "{p:.5f}"}))
    if results["tests"]:
        parts.append(table(results["tests"], {
            "test": "{test}", "first": "{first}", "second": "{second}",
            "the first's": "{statistic:.4f}", "the second's": "{other:.4f}", "p": "{p:.5f}"}))
    if results["votes"] or results["tests"]:
        parts.append("A one-sided p is for whoever comes first, as in the paper: double it if you "
                     "did not expect that one.\nThe test of accept ratios takes all suggestions as "
                     "independent, which those of one person are not.")
    return "\n\n".join(parts)


def main(argv=None):
    """The command line; --json FILE writes the figures too."""
    parser = Parser(prog="page/study.py", description=__doc__.split("\n\n")[0],
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", help="the folder of a study")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    with plain_errors("page/study.py"):
        if not Path(args.folder).is_dir():
            raise UserError(f"there is no folder {args.folder}: give that of a study")
        results = analyse(read_study(args.folder))
        if args.json:
            args.json.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
        print(as_text(results))


if __name__ == "__main__":
    sys.exit(main())
