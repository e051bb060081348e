"""Writes the files that a student starts from: this repository with the exercises left to do.

    python course/stubs.py OUT_DIR

OUT_DIR gets a copy of the project in which each function of an exercise is only its docstring and
`raise NotImplementedError`. There `pytest -k exercise` fails until they are written.
"""

import argparse
import ast
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXERCISES = {  # number: (file, functions)
    1: ("empower.py", ["empower_length", "empower_lengths"]),
    2: ("support/report.py", ["left_to_human"]),
    3: ("empower.py", ["empower", "sft", "sft_rand"]),
    4: ("course/exercises.py", ["priced_length"]),
    5: ("course/exercises.py", ["unigram_nll"]),
    6: ("course/exercises.py", ["rejects_herself"]),
    7: ("course/exercises.py", ["keep_best"]),
    8: ("course/exercises.py", ["another_domain"]),
    9: ("course/exercises.py", ["another_human"]),
}
COPIED = ("*.py", "*.md", "*.txt", "LICENSE", "support", "realcode", "section5", "page", "course",
          "figures", "fixtures")


def stubbed(source, names):
    """The source with the bodies of these functions replaced and their docstrings kept.

    Example: 'def f(x):\\n    "Doubles."\\n    return 2 * x\\n' becomes
    'def f(x):\\n    "Doubles."\\n    raise NotImplementedError\\n'.
    """
    lines = source.splitlines(keepends=True)
    found = [node for node in ast.parse(source).body
             if isinstance(node, ast.FunctionDef) and node.name in names]
    assert {node.name for node in found} == set(names), names
    for node in reversed(found):  # from the last one up: line numbers before it stay right
        docstring = node.body[0]
        indent = " " * docstring.col_offset
        lines[docstring.end_lineno:node.end_lineno] = [f"{indent}raise NotImplementedError\n"]
    return "".join(lines)


def write_stubs(out):
    """The student's files, in a new folder."""
    out.mkdir(parents=True, exist_ok=True)
    for path in (path for pattern in COPIED for path in sorted(ROOT.glob(pattern))):
        if path.is_dir():
            shutil.copytree(path, out / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(path, out / path.name)
    for file, names in EXERCISES.values():
        source = (out / file).read_text(encoding="utf-8")
        (out / file).write_text(stubbed(source, names), encoding="utf-8")


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
