"""python page/study.py DIR: the table of the paper's user study.

DIR is what `python empower.py page --study DIR` leaves; the study may still go on. A person is
counted from DIR/PERSON/events.jsonl, or, without it, from the logs of the editor that was published
with the paper, page/logs.py, and answers.json, {question: folder of an assistant}, if there is one.

The part without an assistant, in the folder no_assistant or alone, is a row of the table and in
none of the tests. --logs also writes such logs from events.jsonl.

Votes are tested by an exact binomial test, one-sided, as in the paper: against a draw among all
assistants. Accept ratios are tested by a test of two proportions with separate variances, one-sided
for the higher one, which gives the paper's p from its counts; characters deleted per accepted
suggestion by a paired t-test, two-sided, since everybody has worked with both and people differ
much; it is over those who accepted something of both.
"""

import argparse
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from page.logs import (MAPPING, Figures, as_log, figures, logs_of, mapping_of, object_in,
                       read_log)
from page.person import parts_of, read_lines
from support.cli import Parser, UserError, plain_errors
from support.files import read_json, slug, write_text
from support.report import table

ALONE = "alone"  # the part of a study without an assistant
NO_ASSISTANT = "no_assistant"  # its folder in the published editor's logs

# ------------------------------------------------------------------- statistics


def votes_p(votes, people, choices=2):
    """One-sided exact binomial p: at least so many choose this one if all draw among `choices`.

    Example: 14 of 18 is 0.0154.
    """
    return sum(math.comb(people, k) * (choices - 1) ** (people - k)
               for k in range(votes, people + 1)) / choices ** people


def proportions_p(a, n, b, m):
    """One-sided p of the test of two proportions, a of n above b of m, each with its variance."""
    if not n or not m:
        return math.nan
    variance = a / n * (1 - a / n) / n + b / m * (1 - b / m) / m
    if not variance:
        return math.nan
    return math.erfc((a / n - b / m) / math.sqrt(variance) / math.sqrt(2)) / 2  # normal, above


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


# ------------------------------------------------------------------- the study


def read_study(folder):
    """{person: ({assistant: Figures}, {question: assistant}, assistants)} of all who have begun.

    The answers are None before they are given; the last are the assistants with which the person's
    program passed all tests.
    """
    people = [path for path in sorted(Path(folder).glob("*/")) if (
        path / "person.json").exists() or logs_of(path)]
    if not people and not (Path(folder) / "plan.json").exists():
        raise UserError(f"{folder} has no plan.json, and no PERSON/ASSISTANT/PROBLEM.csv: give the "
                        "folder of a study")
    blind = any((path / name).exists() for path in people
                for name in ("person.json", MAPPING, "mapping.json"))
    study = {}
    for path in people:
        try:
            study[path.name] = read_person(path, blind)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            what = error if isinstance(error, (OSError, ValueError)) else repr(error)
            raise UserError(f"{path} cannot be read ({what}): mend it") from None
    study = {name: person for name, person in study.items() if person[0]}
    if not study:
        raise UserError(f"in {folder} nobody has begun: wait, or give the folder of a study")
    return study


def read_person(folder, blind=True):
    """({assistant: Figures}, {question: assistant}, assistants) of one person, for `read_study`.

    blind: folders without a mapping are refused; else they have the names of the assistants.
    """
    who, parts = read_parts(folder, blind)
    found = {}
    for part, events in parts.items():
        found[who[part]] = found.get(who[part], Figures()) + figures(events)
    path, answers = folder / "answers.json", None
    if path.exists():
        answers = {question: assistant(who, choice, f"the answer to {question!r}")
                   for question, choice in object_in(path).items()}
    return found, answers, {assistant(who, run["part"], "a part in tests.jsonl")
                            for run in read_lines(folder / "tests.jsonl") if run["passed"]}


def assistant(who, part, what):
    """The assistant of a part; ValueError if there is no such part."""
    if not isinstance(part, str) or part not in who:
        raise ValueError(f"{what} is {part!r}: give one of {', '.join(who)}")
    return who[part]


def read_parts(folder, blind=True):
    """({part: its assistant, or "alone"}, {part: its events}) of one person."""
    if not (folder / "person.json").exists():
        logs = logs_of(folder)
        who = {NO_ASSISTANT: ALONE, ALONE: ALONE, **mapping_of(folder)}
        missing = sorted(part for part in logs if part not in who)
        if missing and blind:
            raise ValueError(f"its {MAPPING} does not say which assistant {missing[0]} is")
        who = {part: who.get(part, part) for part in {**dict.fromkeys(logs), **who}}
        return who, {part: [event for path in paths for event in read_log(path)]
                     for part, paths in logs.items()}
    alone = read_json(folder.parent / "plan.json").get("minutes_alone")
    who = parts_of(read_json(folder / "person.json")["assistants"], alone)
    parts = {}
    for event in read_lines(folder / "events.jsonl"):
        parts.setdefault(list(who)[event["part"]], []).append(event)
    return {part: name or ALONE for part, name in who.items()}, parts


def write_logs(folder, study):
    """Writes the logs of a study as DIR/PERSON/ASSISTANT/PROBLEM.csv, and who is who."""
    for person in (Path(folder) / name for name in study):
        if not (person / "person.json").exists():
            continue  # it has nothing but logs
        problem, (who, parts) = read_json(person / "person.json")["problem"], read_parts(person)
        for part, events in parts.items():
            place = person / (NO_ASSISTANT if part == ALONE else part)
            place.mkdir(exist_ok=True)
            write_text(place / f"{slug(problem)}.csv", as_log(events))
        write_text(person / MAPPING, json.dumps({
            part.replace("assistant_", "Assistant "): {"actualName": name,
                                                       "obfuscatedDirName": part}
            for part, name in who.items() if part != ALONE}, indent=2) + "\n")


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
    """The command line."""
    parser = Parser(prog="page/study.py", description=__doc__.split("\n\n")[0],
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", help="the folder of a study")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--logs", action="store_true",
                        help="also write logs in the published editor's format, into DIR")
    args = parser.parse_args(argv)
    with plain_errors("page/study.py"):
        study = read_study(args.folder)
        results = analyse(study)
        if args.json:
            args.json.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
        if args.logs:
            write_logs(args.folder, study)
        print(as_text(results))


if __name__ == "__main__":
    sys.exit(main())
