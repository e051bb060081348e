"""Grades the submissions of a class with the tests of the exercises.

    python course/grade.py FOLDER

FOLDER/NAME/ is a submission: empower.py and exercises.py, or course/exercises.py. A table is
printed, and FOLDER/grades.csv has a row for each submission: NAME, the share of the tests of each
exercise that pass (empty: not done), and what was wrong. Each submission gets a process of its own
with limits of time and memory; but this is no sandbox: it can read and change your files.
"""

import compileall
import csv
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path[:0] = map(str, Path(__file__).resolve().parents[:2])

import stubs
from support import cli, judge
from support.report import counted, table

FILES = sorted({file for file, _ in stubs.EXERCISES.values()})
TESTS = {str(number): f"course/test_exercise_{number}.py" for number in stubs.EXERCISES}
MEMORY = 2**31  # bytes of address space, of which torch takes about 0.6 GB


def handed_in(folder):
    """{file of the project: path} of the files in a submission; they may be in course/ or not."""
    found = {}
    for file in FILES:
        for path in (folder / Path(file).name, folder / file):
            if path.is_file():
                found[file] = str(path.resolve())
    return found


def libraries():
    """Where the packages of this Python are, and nothing of the project."""
    return [path for path in map(os.path.realpath, filter(None, sys.path))
            if path not in map(str, (stubs.ROOT, stubs.ROOT / "course"))]


def graded(submissions, exercises, seconds):
    """[{NAME, exercise: share of its tests or "", notes}] of {name: files}.

    exercises: their numbers, as text. seconds: of computing, for each of them.
    """
    source = Path(__file__).with_name("graded.py").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        fresh, results = Path(temporary, "fresh"), Path(temporary, "results")
        fresh.mkdir()
        results.mkdir()
        stubs.write_stubs(fresh)
        compileall.compile_dir(fresh, quiet=1)  # once, not for each exercise of each submission
        given = {"fresh": str(fresh), "seconds": seconds, "path": libraries(),
                 "exercises": {number: TESTS[number] for number in exercises},
                 "project": os.path.join(os.path.realpath(stubs.ROOT), "")}
        jobs = [(source, ((json.dumps({**given, "files": files,
                                       "result": str(results / f"{name}.json")}), ""),))
                for name, files in submissions.items()]
        verdicts = judge.judge_all(jobs, None, 120 + len(exercises) * (6 * seconds + 5), MEMORY,
                                   label="grade")
        return [row(name, exercises, results / f"{name}.json", verdict)
                for name, verdict in zip(submissions, verdicts)]


def row(name, exercises, path, verdict):
    """One submission; verdict: of the judge about the process that ran its tests."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    cells, notes = {}, {}
    for number in exercises:
        one = {"passed": 0, "tests": 1, "notes": [], **found.get(number, {})}
        done = one["passed"] or not all("is not done: write" in note for note in one["notes"])
        cells[number] = f"{one['passed'] / max(1, one['tests']):.2f}" if done else ""
        for note in one["notes"][:done]:
            notes.setdefault(note, []).append(number)
    why = [f"{' '.join(numbers)}: {note}" for note, numbers in notes.items()]
    if not verdict.passed:
        why.insert(0, f"{verdict.outcome}: {verdict.detail}")
    return {"NAME": name, **cells, "notes": "; ".join(why)}


def main(argv=None):
    """The command line."""
    parser = cli.Parser(prog="course/grade.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="with a folder for each name")
    parser.add_argument("--exercises", nargs="+", choices=list(TESTS), default=list(TESTS),
                        metavar="N", help="only these (default: all)")
    parser.add_argument("--seconds", type=int, default=20,
                        help="of computing, for each exercise (default: 20)")
    args = parser.parse_args(argv)
    with cli.plain_errors("course/grade.py"):
        folders = [path for path in sorted(args.folder.glob("*"))
                   if path.is_dir() and path.name[0] != "."]
        if not folders:
            raise cli.UserError(f"{args.folder} has no submissions: give a folder with one folder "
                                f"for each name, which holds {' and '.join(FILES)}")
        cli.checked(judge.check_judge)
        print("No sandbox: a submission can read and change your files; if that matters, use a "
              "container.")
        rows = graded({path.name: handed_in(path) for path in folders}, args.exercises,
                      args.seconds)
        for row, path in zip(rows, folders):
            row["notes"] = row["notes"] if handed_in(path) else f"no {' and no '.join(FILES)}"
        with open(args.folder / "grades.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        print(table([{f"_{key}": value[:60] for key, value in row.items()} for row in rows],
                    {key: f"{{_{key}}}" for key in rows[0]}))
        print(f"{counted(len(rows), 'submission')}; the notes in full are in "
              f"{args.folder / 'grades.csv'}")


if __name__ == "__main__":
    sys.exit(main())
