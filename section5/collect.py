"""python empower.py collect --problems FILE --human URL --out FILE: programs to learn from."""

import contextlib
import dataclasses
import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from section5 import text
from section5.client import Server, TooLong
from section5.players import prompt, seed_of
from section5.problems import read_problems
from support.cli import UserError, check_ranges, flag
from support.files import locked

PROBLEMS = "file of problems: LiveCodeBench, HumanEval, MBPP, APPS, TACO or Codeforces rows"
HUMAN = "address of the server of the human's model, as in http://127.0.0.1:8000"
HUMAN_MODEL = "her model on that server (default: the first that it lists)"
SINCE = "only problems published on this day or later, as in 2024-09-01"
DIFFICULTY = "only problems of this difficulty, as in easy or easy,medium"
LIMIT = "only the first so many of these problems"
PARALLEL = "problems at a time"
TIMEOUT = "for one answer of a server, seconds"
REASONING = "more tokens for each answer, for a model that reasons before it"
# What a program depends on, besides the model and the problem.
MADE_WITH = "seed", "temperature", "max_tokens", "reasoning_tokens"


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting for collecting the human's programs."""

    out: str = flag("programs.jsonl", "file of the programs, a JSON row for each problem")
    problems: str = flag("", PROBLEMS)
    human: str = flag("", HUMAN)
    human_model: str = flag("", HUMAN_MODEL)
    since: str = flag("", SINCE)
    difficulty: str = flag("", DIFFICULTY)
    limit: int = flag(None, LIMIT, 1)
    seed: int = flag(0, "sent to the server, with the problem")
    temperature: float = flag(1.0, "of her model", 0)
    max_tokens: int = flag(2048, "of a program and the words around it", 1)
    reasoning_tokens: int = flag(0, REASONING, 0)
    parallel: int = flag(16, PARALLEL, 1)
    timeout: float = flag(120.0, TIMEOUT, 1)

    def __post_init__(self):
        check_ranges(self)


def collect(cfg):
    """Section 5.1: the human attempts each problem once, and everything is kept.

    `finetune --corpus FILE` learns from the result. Every finished program is a line on disk, so
    the same command goes on where it was interrupted.
    """
    out, (problems, server) = Path(cfg.out), asked_for(cfg)
    made_folder_of(out)
    with alone(out):
        done = begun(cfg, problems, server)
        left = [problem for problem in problems if problem.id not in done]
        print(f"{server.model} attempts {len(left)} problems of {len(problems)}: at most "
              f"{len(left)} calls and {len(left) * cfg.max_tokens:,} tokens, {cfg.parallel} at a "
              f"time. Each program is kept in {out} at once.")
        in_parallel(left, lambda problem: attempt(cfg, server, problem), out, cfg.parallel,
                    "collect", [server])
        done = begun(cfg, problems, server)
    server.check_answers()
    empty = sum(problem.id not in done for problem in problems)
    if empty:
        why = ", ".join(f"{n} {reason}" for reason, n in server.empty.items() if n)
        print(f"{empty} have no program, since the statement does not fit into her context or her "
              f"answer has none{f' ({why})' if why else ''}; the same command tries them again")
    if cut := sum(bool(row.get("cut")) for row in done.values()):
        print(f"{cut} programs were cut at --max-tokens: finetune does not take their end for one")
    print(f"{len(problems) - empty} programs of these problems are in {out}; {server.calls} calls, "
          f"{server.retries} retries, {server.tokens:,} tokens. Next: python empower.py finetune "
          f"--corpus {out} --model DIR --out DIR2")


def begun(cfg, problems, server):
    """{id: row} of the problems that are done; a UserError for those of another run."""
    statements, found = {problem.id: problem.statement for problem in problems}, {}
    out = Path(cfg.out)
    for row in read_lines(out, ("id", "statement", "code", "model")):
        for name in MADE_WITH:
            if row.get(name, getattr(cfg, name)) != getattr(cfg, name):
                raise UserError(f"{out} holds programs made with --{name.replace('_', '-')} "
                                f"{row[name]}: give that, or name another --out")
        if row["model"] != server.model:
            raise UserError(f"{out} holds programs of {row['model']}: name another --out, or that "
                            "model with --human-model")
        if statements.get(row["id"], row["statement"]) != row["statement"]:
            raise UserError(f"{out} holds a program of another problem {row['id']}: name another "
                            "--out")
        if row["code"].strip():
            found[row["id"]] = row
    return found


def asked_for(cfg):
    """(the problems, the human's server) that the settings name."""
    for name, what in (("problems", "a " + PROBLEMS), ("human", HUMAN)):
        if not getattr(cfg, name):
            raise UserError(f"--{name} is missing: give {what}")
    problems = read_problems(cfg.problems, cfg.since, cfg.difficulty, cfg.limit,
                             getattr(cfg, "packages", True))  # to collect, no test is run
    if len({problem.id for problem in problems}) < len(problems):
        raise UserError(f"two problems of {cfg.problems} have the same id: remove one")
    return problems, Server(cfg.human, cfg.human_model, cfg.timeout, cfg.reasoning_tokens)


def attempt(cfg, server, problem):
    """Her program for a problem, as a row; None if the problem is too long for her, or her answer
    has none. It is `cut` if it ended at --max-tokens."""
    try:
        answer = server.chat([{"role": "user", "content": prompt(
            "human_attempt", statement=problem.statement, how=problem.task)}],
            cfg.max_tokens, cfg.temperature, seed_of(cfg.seed, "attempt", problem.id))
    except TooLong:
        return None
    code = text.program(answer)
    return {"id": problem.id, "statement": problem.statement, "code": code, "model": server.model,
            "cut": answer.cut, **{name: getattr(cfg, name) for name in MADE_WITH}
            } if code.strip() else None


# ------------------------------------------------------------------- lines on disk


@contextlib.contextmanager
def alone(path):
    """Within it, no other run writes to this file or folder; a UserError if one does already."""
    try:
        with locked(path, wait=False):
            yield
    except BlockingIOError:
        raise UserError(f"another run writes to {path}: wait for it, or name another --out") \
            from None


def in_parallel(items, work, path, threads, label, servers):
    """Appends work(item), a JSON row or None, to the file as soon as it is there, in any order.

    After Ctrl-C or an error, no others are begun, and those at work are lost: the calls of the
    servers are ended. The bar counts the tokens of the first server.
    """
    with open(path, "a", encoding="utf-8") as file, ThreadPoolExecutor(threads) as pool, tqdm(
            total=len(items), desc=label, unit="problem", disable=None) as bar:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                if row := future.result():
                    file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
                bar.set_postfix_str(f"{servers[0].tokens / max(bar.format_dict['elapsed'], 1):.0f} "
                                    "tokens/s", refresh=False)
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for server in servers:
                server.end()
            raise


def made_folder_of(path):
    """Makes the folder of a file; a UserError if the file cannot be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, "no permission")
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): name another file") from None


def read_lines(path, fields):
    """The rows of a file that `in_parallel` wrote; a line that a kill cut off is removed.

    A UserError if the file holds anything else.
    """
    if not path.exists():
        made_folder_of(path)
        return []
    try:
        content = path.read_bytes()
        whole, _, rest = content.rpartition(b"\n")
        if rest and not rest.startswith(b'{"id"'[:len(rest)]):
            raise ValueError("its last line is not a row of ours")
        rows = [json.loads(line) for line in whole.splitlines()]
        if not all(isinstance(row, dict) and set(fields) <= row.keys() for row in rows):
            raise ValueError(f"a row without {', '.join(fields)}")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds something else ({error}): name another file") from None
    kept = len(whole) + 1 if rows else 0
    if kept < len(content):
        os.truncate(path, kept)
    return rows
