"""python -m section5.cost: what the paper's Section 5 takes in calls, tokens and GPU hours.

An estimate: the counts follow from the protocol, and the assumptions below are guesses. Change them
to what you measure on 20 problems.
"""

import dataclasses

from section5.play import Config
from support.report import table


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What an estimate assumes, in tokens and tokens a second."""

    statement: int = 500        # of a LiveCodeBench problem
    program: int = 400          # as long as we assume the paper's programs are
    reasons: int = 80           # that she gives before a verdict
    rounds: int = 35            # of the 50 allowed, in the mean
    prompt: int = 250           # our words around statement and code
    reading: int = 8000         # prompt tokens a second of a 27B model on one H100, many at a time
    writing: int = 1200         # tokens a second that it writes
    assistant: int = 2500       # tokens a second that an 8B model writes


PROBLEMS, ROWS, TO_LEARN = 554, 9, 4138  # the paper's


def estimate(cfg=Config(), given=Assumptions()):
    """[{what, calls, read, written, hours}] for collecting and for playing all rows."""
    code = given.program // 2  # as it grows, in the mean
    rounds = PROBLEMS * given.rounds
    read = given.prompt + given.statement + 2 * code
    write = given.prompt + given.statement + code
    parts = [("collect, 4,138 programs", TO_LEARN, given.prompt + given.statement, given.program,
              given.writing),
             (f"she writes, {ROWS} rows", ROWS * rounds, write, cfg.turn_tokens + code // 4,
              given.writing),
             (f"she reads, {ROWS - 1} rows", (ROWS - 1) * rounds, read, given.reasons,
              given.writing),
             (f"assistants, {ROWS - 1} rows", (ROWS - 1) * rounds, code, 20, given.assistant)]
    return [{"what": what, "calls": calls, "read": calls * prompt / 1e6,
             "written": calls * answer / 1e6,
             "hours": (calls * prompt / given.reading + calls * answer / speed) / 3600}
            for what, calls, prompt, answer, speed in parts]


def text():
    """The estimate as a table."""
    rows = estimate()
    rows.append({"what": "all", **{key: sum(row[key] for row in rows) for key in (
        "calls", "read", "written", "hours")}})
    return table(rows, {"what": "{what}", "calls": "{calls:,}", "million tokens read": "{read:.0f}",
                        "written": "{written:.0f}", "H100 hours": "{hours:.1f}"})


if __name__ == "__main__":
    print(text())
