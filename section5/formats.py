"""The formats of problems: what a row of each says, as the fields of a `Problem` of problems.py.

    LiveCodeBench           question_content, public_test_cases, private_test_cases, metadata
    HumanEval               prompt, entry_point, test
    MBPP                    text, test_list, test_setup_code; sanitized: prompt, test_imports
    APPS, TACO              question, input_output
    Codeforces (open-r1)    description, official_tests, examples

A row that cannot be read raises an error of Python's own, which problems.py puts into a sentence.
"""

import ast
import base64
import contextlib
import datetime
import io
import json
import pickle
import re
import symtable
import sys
import warnings
import zlib

MB = 2**20
LARGEST = 256 * MB  # of the tests of one problem, decompressed
# What programs use without importing it, as LiveCodeBench's grader gives it: all names of these
# modules and, where a name stands for two things, the built-in or the module.
MODULES = ("string re datetime collections heapq bisect copy math random statistics itertools "
           "functools operator io sys json").split()
PREAMBLE = "".join(f"from {name} import *\n" for name in (*MODULES, "builtins", "typing")) + (
    f"import {', '.join(MODULES)}\nsys.setrecursionlimit(50000)\n")


class Unusable(ValueError):
    """A problem that the judge cannot judge; the message is the reason. It is left out."""


NO_TESTS = "no tests, which every program would pass"


def livecodebench(row):
    """Tests in JSON, some of them compressed: of standard input and output, or of a method."""
    tests = as_json(row["public_test_cases"]) + private_tests(row.get("private_test_cases"))
    found = {"id": row["question_id"], "statement": row["question_content"],
             "starter": row.get("starter_code") or ""}
    if {test["testtype"] for test in tests} == {"stdin"}:
        return found | {"tests": stdin_tests((test["input"], test["output"]) for test in tests)}
    return found | {"calls": calls(as_json(row["metadata"])["func_name"], [
        ([json.loads(line) for line in as_text(test["input"]).split("\n") if line.strip()],
         json.loads(as_text(test["output"]))) for test in tests])}


def humaneval(row):
    """The beginning of a function to complete, and a `check` that takes the function."""
    entry, tests = row["entry_point"], parsed(row["test"])
    given = [node for node in parsed(row["prompt"] + "\n    pass").body  # what checks may use,
             if getattr(node, "name", None) != entry]                    # and the program too
    return {"id": row["task_id"], "statement": row["prompt"], "starter": row["prompt"],
            "needs_packages": bool(imports(tests, standard=False)),  # HumanEval+: numpy
            "calls": json.dumps({
                "before": "\n".join(map(ast.unparse, given)), "setup": "", "names": [entry],
                "tests": [{"check": row["test"], "entry": entry}]})}


def mbpp(row):
    """A task in a sentence, and asserts about the functions of its solution."""
    asserts = [*row["test_list"], *row.get("challenge_test_list", ())]
    if not asserts:
        raise Unusable(NO_TESTS)
    code, setup = (row.get(key, "").replace("\r\n", "\n") for key in ("code", "test_setup_code"))
    # The tests may need what the solution imports.
    before = "\n".join([*imports(parsed(code), standard=True), *row.get("test_imports", ())])
    needed = parsed("\n".join([before, setup, *asserts]))
    return {"id": str(row["task_id"]), "needs_packages": bool(imports(needed, standard=False)),
            "statement": f"{row.get('text') or row['prompt']}\nFor example:\n{row['test_list'][0]}",
            "calls": json.dumps({"before": before, "setup": setup, "names": defined(code),
                                 "tests": [{"assert": text} for text in asserts]})}


def apps(row):
    """APPS and TACO: lists of inputs and outputs, of standard input or of a function."""
    tests = as_json(row["input_output"] or "{}")
    if not tests.get("inputs"):
        raise Unusable(NO_TESTS)
    name = next((row[key] for key in ("problem_id", "id", "name", "url")
                 if row.get(key) not in (None, "")), "")
    found = {"id": str(name), "statement": row["question"],
             "starter": row.get("starter_code") or "", **limits_of(row)}
    pairs = list(zip(tests["inputs"], tests["outputs"], strict=True))
    return found | ({"calls": calls(tests["fn_name"], pairs, of_apps=True)}
                    if tests.get("fn_name") else {"tests": stdin_tests(pairs)})


def codeforces(row):
    """A statement in parts, its tests and its limits on time and memory."""
    tests = row.get("official_tests") or row.get("examples")
    statement = "\n\n".join(text for text in (
        row.get("title"), row["description"], "Input\n" + (row["input_format"] or ""),
        "Output\n" + (row.get("output_format") or ""),
        *(f"Example\n{example['input']}\nAnswer\n{example['output']}"
          for example in row.get("examples") or ()),
        row.get("note") and f"Note\n{row['note']}") if text)
    if row.get("input_mode") == "file":
        raise Unusable("they read a file, not standard input")
    if row.get("generated_checker") or row.get("interaction_format"):
        raise Unusable("many answers are right, or it is interactive: the judge compares")
    if not tests:
        raise Unusable(NO_TESTS)
    return {"id": row["id"], "statement": statement, **limits_of(row),
            "tests": stdin_tests((test["input"], test["output"]) for test in tests)}


# {format: the fields by which it is known}
FORMATS = {livecodebench: {"question_content", "public_test_cases"},
           humaneval: {"prompt", "entry_point", "test"}, mbpp: {"task_id", "code", "test_list"},
           apps: {"question", "input_output"}, codeforces: {"description", "input_format"}}


# ------------------------------------------------------------------- fields that formats share


DATES = "%Y-%m-%d", "%Y%m%d", "%Y/%m/%d", "%b %d, %Y", "%B %d, %Y", "%d %b %Y", "%d %B %Y"


def published(row):
    """The day on which a problem was published, in ISO's format; "" if nothing says it.

    Example: "Sep 07, 2024" is "2024-09-07", as is 1725667200, in seconds or milliseconds.
    """
    text = str(next((row[key] for key in ("contest_start", "contest_date", "date")
                     if row.get(key)), "")).strip()
    if re.fullmatch(r"\d{9,13}(\.\d*)?", text):
        seconds = float(text) / (1000 if float(text) > 1e11 else 1)
        return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).date().isoformat()
    for form in DATES:
        with contextlib.suppress(ValueError):
            found = text[:10] if form == DATES[0] else text
            return datetime.datetime.strptime(found, form).date().isoformat()
    return ""


def difficulty_of(row):
    """The difficulty of a problem in small letters, or its rating; "" if the row does not say."""
    rating = row.get("rating")
    return f"{rating:.0f}" if isinstance(rating, (int, float)) else str(
        row.get("difficulty") or "").lower()


def as_json(value):
    """A field that some files hold as JSON text and others as data."""
    return json.loads(value) if isinstance(value, str) else value


def limits_of(row):
    """{"seconds", "memory"} of a row that says them, as in "500 ms", "2.5 seconds", 256, "1 GB"."""
    seconds = quantity(row.get("time_limit"), {"": 1, "s": 1, "ms": .001, "mil": .001, "min": 60})
    memory = quantity(row.get("memory_limit"), {"": MB, "m": MB, "k": 2**10, "g": 2**30, "b": 1})
    return ({"seconds": seconds} if seconds else {}) | ({"memory": int(memory)} if memory else {})


def quantity(text, units):
    """A number with a unit as a number; None without one. units: {beginning of a unit: factor}."""
    found = re.match(r"\s*(\d+\.?\d*)\s*([a-z]*)", str(text).lower())
    if not found:
        return None
    factors = [units[unit] for unit in units if unit and found[2].startswith(unit)]
    if found[2] and not factors:
        raise ValueError(f"a limit of {text}")
    return float(found[1]) * (factors[-1] if found[2] else units[""])


def as_text(part):
    """An input or output as text, of which a list has the lines; some files have numbers there."""
    if isinstance(part, list):
        return "\n".join(map(as_text, part))
    if not isinstance(part, (str, int, float)):
        raise ValueError(f"a test with {part!r}")
    return str(part)


def stdin_tests(pairs):
    """(stdin, expected stdout) pairs as text. Lines end with \\n, wherever they were written."""
    return tuple(tuple(as_text(part).replace("\r\n", "\n") for part in pair) for pair in pairs)


def parsed(program, read=ast.parse):
    """The syntax tree of a program, without warnings about escapes such as "\\d"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(program)


def imports(tree, standard):
    """The imports in a program, as source: of the standard library, or else of anything else."""
    found = []
    for node in ast.walk(tree):
        names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                 [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        if names and standard == all(
                name.split(".")[0] in sys.stdlib_module_names for name in names):
            found.append(ast.unparse(node))
    return found


def defined(program):
    """The names that a program defines for others, other than by importing them."""
    table = parsed(program, lambda text: symtable.symtable(text, "program", "exec"))
    return [name.get_name() for name in table.get_symbols()
            if name.is_assigned() and not name.is_imported()]


def calls(name, tests, of_apps=False):
    """Tests that call a function, as JSON for harness.py; tests: [(arguments, expected)].

    of_apps: a file of APPS, about which the harness knows more.
    """
    if not tests:
        raise Unusable(NO_TESTS)
    return json.dumps({"before": PREAMBLE, "setup": "", "names": [], "tests": [
        {"call": name, "arguments": arguments, "expected": expected, "apps": of_apps}
        for arguments, expected in tests]})


# ------------------------------------------------------------------- LiveCodeBench's hidden tests


class NothingToFind(pickle.Unpickler):
    """Loads plain data; a pickle that names any function or class is refused."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"a pickle that names {module}.{name} could run code")


def private_tests(text):
    """The hidden tests of a row: a list, JSON, or base64 of zlib of a pickle of JSON text."""
    if not text or isinstance(text, list):
        return text or []
    if text.lstrip().startswith("["):
        return json.loads(text)
    inflate = zlib.decompressobj()
    content = inflate.decompress(base64.b64decode(text, validate=True), LARGEST)
    if inflate.unconsumed_tail:
        raise ValueError(f"its tests are larger than {LARGEST // MB} MB")
    if not inflate.eof:
        raise ValueError("its tests are cut off")
    found = NothingToFind(io.BytesIO(content)).load()
    if not isinstance(found, str):
        raise ValueError(f"its tests are a {type(found).__name__}, not text")
    return json.loads(found)
