"""Writes the files that a student starts from: this project with the exercises left to do.

    python course/stubs.py OUT_DIR

OUT_DIR gets a copy in which each function of an exercise is only its docstring and an error. There
`pytest` fails until they are written. What has the answers in another form is left out: the README,
the tests of the project, its page, the figures and their text.
"""

import argparse
import ast
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXERCISES = {  # number: (file, functions)
    1: ("empower.py", ["empower_length", "empower_lengths"]),
    2: ("course/exercises.py", ["left_to_human"]),
    3: ("empower.py", ["empower", "sft", "sft_rand"]),
    4: ("course/exercises.py", ["priced_length"]),
    5: ("course/exercises.py", ["unigram_nll"]),
    6: ("course/exercises.py", ["rejects_herself"]),
    7: ("course/exercises.py", ["keep_best"]),
    8: ("course/exercises.py", ["another_domain"]),
    9: ("course/exercises.py", ["another_human"]),
    10: ("course/exercises.py", ["labels", "label_nll"]),
    11: ("course/exercises.py", ["empowerment"]),
    12: ("course/exercises.py", ["accidents"]),
}
COPIED = ("*.py", "requirements.txt", "LICENSE", "support/*.py", "realcode/*.py",
          "figures/bound.py", "figures/intervals.py", "course/*.py", "course/README.md")
LEFT_OUT = ("*/stubs.py", "*/grade.py", "*/graded.py", "*/test_course.py", "*/test_grade.py")
TESTS = ("*/course/test_*.py", "*/support/test_helpers.py")  # the only ones that are copied


def stubbed(source, bodies):
    """The source with the bodies of these functions, {name: new body}; docstrings are kept.

    Example: 'def f(x):\\n    "Doubles."\\n    return 2 * x\\n' with {"f": "pass"} becomes
    'def f(x):\\n    "Doubles."\\n    pass\\n'.
    """
    lines = source.splitlines(keepends=True)
    found = [node for node in ast.parse(source).body
             if isinstance(node, ast.FunctionDef) and node.name in bodies]
    assert {node.name for node in found} == set(bodies), bodies
    for node in reversed(found):  # from the last one up: line numbers before it stay right
        docstring = node.body[0]
        indent = " " * docstring.col_offset
        lines[docstring.end_lineno:node.end_lineno] = [
            f"{indent}{line}\n" for line in bodies[node.name].split("\n")]
    return "".join(lines)


def write_stubs(out):
    """The student's files, in a new folder."""
    for path in sorted(path for pattern in COPIED for path in ROOT.glob(pattern)):
        if not any(map(path.match, LEFT_OUT)) and (
                not path.name.startswith("test_") or any(map(path.match, TESTS))):
            copy = out / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    # Its own settings for pytest: a folder above it may have others.
    (out / "pytest.ini").write_text("[pytest]\ntestpaths = course\n", encoding="utf-8")
    for number, (file, names) in EXERCISES.items():
        rewrite(out / file, lambda text: stubbed(text, {
            name: f'raise NotImplementedError("exercise {number} is not done: write {name} in '
                  f'{file}")' for name in names}))
    # What the project itself needs of exercise 2 is the student's.
    rewrite(out / "support" / "report.py", lambda text: stubbed(text, {
        "left_to_human": "from course import exercises\nreturn exercises.left_to_human(lengths)"}))
    rewrite(out / "course" / "README.md", lambda text: re.sub(
        r"## For teachers\n.*?(?=\n## )", "", text, flags=re.DOTALL))


def rewrite(path, change):
    """Replaces the text of a file by change(text)."""
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def main(argv=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="course/stubs.py", allow_abbrev=False,
                                     description=__doc__.split("\n\n")[0])
    parser.error = lambda message: parser.exit(2, f"course/stubs.py: {message}; see --help\n")
    parser.add_argument("out", metavar="OUT_DIR", type=Path, help="a new or an empty folder")
    out = parser.parse_args(argv).out
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OSError("it is not an empty folder")
        if ROOT in out.resolve().parents:
            raise OSError("it is within the project")
        write_stubs(out)
    except OSError as error:
        print(f"course/stubs.py: cannot write to {out} ({error}): name a new folder",
              file=sys.stderr)
        return 2
    print(f"{len(EXERCISES)} exercises in {out}, described in {out / 'course' / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
