"""The plan of a user study: plan.json and consent.txt, checked, or written to be edited."""

import dataclasses
import json
import secrets

from support.cli import UserError
from support.files import read_text, slug, write_text

CONSENT = """\
You are asked to take part in a study of coding assistants.

You will write a program in this page, in several parts of a few minutes each, and answer a few
questions at the end. What you type, when you type it, and what an assistant suggests is recorded
under a code word. Nothing else about you is recorded, in particular no name and no address.
You may stop at any time by closing this page.

(Whoever runs the study: edit this text in consent.txt, and remove this line.)
"""
EXAMPLE = {
    "assistants": ["Empower (0.32)", "Base-10"],
    "minutes": 15, "minutes_alone": 0, "delay_ms": 500, "most_people": 100, "seed": 0,
    "run_programs": False,
    "questions": ["Which assistant did you enjoy more?",
                  "Which assistant's suggestions were more relevant?",
                  "For which assistant did you have to delete more?"],
    "problems": [
        {"name": "evens", "start": "",
         "statement": "The first line of the input is a number n, the second line n numbers. "
                      "Print the sum of those that are even.",
         "tests": [["4\n1 2 3 4\n", "6\n"], ["1\n7\n", "0\n"]]},
        {"name": "largest", "start": "",
         "statement": "The first line of the input is a number n, the second line n numbers. "
                      "Print the largest of them, and how often it occurs.",
         "tests": [["4\n1 9 3 9\n", "9 2\n"], ["1\n-7\n", "-7 1\n"]]}]}


@dataclasses.dataclass(frozen=True)
class Task:
    """A problem of a study."""

    name: str
    statement: str
    tests: tuple                 # pairs of stdin and expected stdout
    start: str = ""              # the program that a person begins with


@dataclasses.dataclass(frozen=True)
class Plan:
    """What happens in a study."""

    join_code: str               # whoever knows it may take part
    assistants: tuple            # names of the page's assistants; people see assistant_1, ...
    problems: tuple              # of Task; each person gets one
    questions: tuple
    consent: str
    minutes: float = 15          # with each assistant
    minutes_alone: float = 0     # without one, before; the paper has 25
    eta: float = 0.32            # bits, for "Base stopped at eta"
    delay_ms: int = 500          # no suggestion comes sooner, so the delay does not tell who it is
    most_people: int = 100
    seed: int = 0                # of the order of assistants and problems
    run_programs: bool = False   # whether people may run their programs on the tests


def open_plan(folder):
    """The Plan in a folder. If there is none, writes an example and raises a UserError."""
    path, consent = folder / "plan.json", folder / "consent.txt"
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and has no plan.json: choose a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(consent, CONSENT)
        write_text(path, json.dumps({
            "join_code": secrets.token_hex(4), **EXAMPLE, "seed": secrets.randbelow(10**9)},
            indent=2) + "\n")
        raise UserError(f"wrote an example of a plan to {path} and a consent text to {consent}: "
                        "edit both, then run the same command again")
    try:
        return Plan(**checked_plan(json.loads(read_text(path)), read_text(consent)))
    except KeyError as error:
        raise UserError(f"{path} cannot be used (it lacks {error}): see page/README.md") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be used ({error}): see page/README.md") from None


def checked_plan(plan, consent):
    """The fields of a Plan from the JSON of plan.json; ValueError says what is wrong."""
    if not isinstance(plan, dict):
        raise ValueError("it is not an object")
    fields = {field.name: field for field in dataclasses.fields(Plan)}
    for name in plan:
        if name not in fields or name == "consent":
            raise ValueError(f"it has an unknown field {name}")
    if not all(isinstance(plan[name], list) for name in ("assistants", "questions", "problems")):
        raise ValueError("assistants, questions and problems are lists")
    for each in plan["problems"]:
        if not isinstance(each["tests"], list) or not all(
                isinstance(test, list) and len(test) == 2 for test in each["tests"]):
            raise ValueError(f"a test of {each['name']} is not a pair of stdin and stdout")
    problems = tuple(Task(each["name"], each["statement"],
                          tuple((str(given), str(wanted)) for given, wanted in each["tests"]),
                          each.get("start", "").replace("\r\n", "\n")) for each in plan["problems"])
    texts = [plan["join_code"], *plan["assistants"], *plan["questions"],
             *(text for each in problems for text in (each.name, each.statement, each.start))]
    if not all(isinstance(text, str) for text in texts) or not plan["join_code"].strip():
        raise ValueError("join_code, assistants, questions, names and statements are texts")
    if not 2 <= len(set(plan["assistants"])) == len(plan["assistants"]) <= 5:
        raise ValueError("give two to five different assistants")
    if not problems or len({slug(each.name) for each in problems} - {""}) < len(problems):
        raise ValueError("give one or more problems with different names")
    for name, least, most in (("minutes", 0.01, 600), ("minutes_alone", 0, 600),
                              ("eta", 0, 1000), ("delay_ms", 0, 60_000),
                              ("most_people", 1, 10_000)):
        value = plan.get(name, least)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (
                least <= value <= most):
            raise ValueError(f"{name} is {value}, not a number from {least} to {most}")
    if not isinstance(plan.get("run_programs", False), bool):
        raise ValueError("run_programs is not true or false")
    if plan.get("run_programs") and not all(each.tests for each in problems):
        raise ValueError("a problem has no tests to run")
    return {**plan, "assistants": tuple(plan["assistants"]), "problems": problems,
            "questions": tuple(plan["questions"]), "consent": consent}
