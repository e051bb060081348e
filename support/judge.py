"""The judge: runs an unchecked program on the tests of its problem.

    python support/judge.py --self-check     tries it on a dozen kinds of program

Each test limits wall time; memory per process; the size of stdout, stderr and each file written;
and open files. It does not limit the number of processes or files, and so neither their total
memory nor the disk used within the time. When a run ends, every process it started is killed and
its folder is emptied. Handled: endless loops, waits and output, closed pipes, signals to the parent
or its group, every way to exit, children left running. macOS does not enforce the memory limit, and
there a child that calls setsid lives on until its CPU time limit. Windows is not supported. This is
NOT a security sandbox: a program can read your files, use the network, and kill your processes. If
that matters, use a container.

`exec` in this process would share its stdin, signals and memory with the program, so each run is
a separate process, with a file as stdin and pipes as stdout and stderr. Starting Python takes
longer than most of these programs run, so each worker starts one helper (bare Python, no
threads), which forks twice for each run:

    this process --channel--> helper --fork--> parent --fork--> the program
                              watches the run, takes what the program
                              cleans up after  does to its parent

On Linux the helper adopts the orphans of a run (it is a child subreaper). It has no other
children, so it may kill all it finds, and nothing looks at the children of this process.
This file imports nothing from the project.
"""

import argparse
import functools
import marshal
import os
import queue
import re
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from tqdm import tqdm

MB = 2**20
HELPER = Path(__file__).with_name("judge_helper.py")
STACK = 256 * MB  # for programs that recurse deeply, where the system allows it
GRACE = 60  # seconds past the time limit after which a silent helper is a fault


@dataclass(frozen=True)
class Verdict:
    """What became of a program: Verdict("wrong answer", 0, "line 1: expected '42', got '21'")."""
    outcome: str      # passed, wrong answer, time limit, memory limit, runtime error, output limit
    test: int | None  # index of the first failing test, None when passed
    detail: str       # one line

    @property
    def passed(self):
        return self.outcome == "passed"


@dataclass(frozen=True)
class Allowed:
    """What graders of published problems allow a program, and the contest does not.

    Besides these two fields: blank lines before the answer, numbers written differently (.50 for
    0.5), any status of exit(), any amount of stderr, integers of any length, and a large stack.
    """
    before: str = ""      # source that runs before each program, which finds its names
    packages: tuple = ()  # folders with packages that programs may import


class HelperDied(RuntimeError):
    """The process that watches a program is gone: the program may have killed it."""


def _temporary_folder():
    # Both sides remove it: the helper if this process was killed, this process otherwise.
    return tempfile.TemporaryDirectory(prefix="judge-", ignore_cleanup_errors=True)


@contextmanager
def _helper(allowed):
    """Start a helper and yield ask(program, stdin, *limits); leaves no process and no file."""
    source = HELPER.read_text(encoding="utf-8")
    keep = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME")  # some Pythons do not start without these
    env = {key: os.environ[key] for key in keep if key in os.environ}
    env |= {"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8"}  # not -I: it ignores both
    command = [sys.executable, "-s", "-S", "-B", "-c", source]
    if allowed:  # the stack has to be large before Python starts
        command = ["/bin/sh", "-c", f'ulimit -s {STACK // 1024} 2> /dev/null; exec "$0" "$@"',
                   *command, allowed.before, *allowed.packages]
        # Each thread of a library of matrices takes memory from the limit.
        env |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    ours, theirs = socket.socketpair()
    with ours, _temporary_folder() as folder:
        with theirs:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs,
                                       cwd=folder, env=env, start_new_session=True)
        replies = ours.makefile("rb")

        def ask(program, stdin, time_limit, *limits):
            ours.settimeout(time_limit + GRACE)
            try:
                ours.sendall(marshal.dumps((program, stdin, time_limit, *limits)))
                return marshal.load(replies)
            except TimeoutError as error:
                raise RuntimeError("the judge's helper process hangs") from error
            except (EOFError, OSError) as error:
                raise HelperDied("the judge's helper process died") from error
        try:
            yield ask
        finally:
            try:
                ours.shutdown(socket.SHUT_RDWR)  # the helper kills its run, if any, and exits
            except OSError:
                pass  # it is dead already
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            replies.close()


def _lines(text):
    """The part of an output that counts: lines without trailing space or blank lines at the end.

    >>> _lines("1 2 \\r\\n3\\n\\n") == _lines("1 2\\n3")
    True
    """
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n").split("\n")


def _equal(want, got):
    """Whether two lines have the same words, of which numbers may be written differently.

    >>> _equal("0.5 yes", ".50 yes"), _equal("0.5 yes", "0.51 yes")
    (True, False)
    """
    want, got = want.split(), got.split()
    try:
        return len(want) == len(got) and all(
            a == b or Decimal(a) == Decimal(b) for a, b in zip(want, got))
    except InvalidOperation:
        return False


def _outcome(reply, expected, allowed, time_limit, memory_limit, output_limit):
    """Name what happened in one run: (outcome, detail)."""
    why, code, stdout, stderr = reply
    if why == "time limit":
        return why, f"still running after {time_limit} s"
    if why == "output limit":
        return why, f"more than {output_limit} bytes"
    if code != 0:
        last = (stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1][:200]
        if last.startswith("MemoryError"):
            return "memory limit", f"MemoryError at {memory_limit // MB} MB"
        how = ("it killed its parent process" if code is None else
               f"exit status {code}" if code > 0 else f"signal {-code}")
        return "runtime error", f"{how}: {last}"
    texts = expected, stdout.decode(errors="replace")
    if allowed:  # blank lines before the answer do not count, as those after it
        texts = (re.sub(r"\A\s*\n", "", text) for text in texts)
    want, got = map(_lines, texts)
    if want == got or allowed and len(want) == len(got) and all(map(_equal, want, got)):
        return "passed", ""
    number = next((i for i, pair in enumerate(zip(want, got)) if pair[0] != pair[1]),
                  min(len(want), len(got)))
    one, other = (repr(lines[number][:80]) if number < len(lines) else "no more lines"
                  for lines in (want, got))
    return "wrong answer", f"line {number + 1}: expected {one}, got {other}"


def _judge(ask, program, tests, allowed, limits):
    """Run the tests in order, up to the first that fails."""
    for index, (stdin, expected) in enumerate(tests):
        outcome, detail = _outcome(ask(program, stdin.encode(), *limits), expected, allowed,
                                   *limits)
        if outcome != "passed":
            return Verdict(outcome, index, detail)
    return Verdict("passed", None, f"{len(tests)} tests")


def judge(program: str, tests, time_limit=2.0, memory_limit=512 * MB, output_limit=MB) -> Verdict:
    """Judge one program on (stdin, expected stdout) pairs, up to the first that fails.

    Limits: seconds of wall time per test, bytes of memory per process, bytes of stdout, of stderr
    and of any file.

    >>> judge("while True: pass", (("", ""),), time_limit=0.5)
    Verdict(outcome='time limit', test=0, detail='still running after 0.5 s')
    """
    return judge_all([(program, tests)], 1, time_limit, memory_limit, output_limit, None)[0]


def judge_all(jobs, workers=None, time_limit=2.0, memory_limit=512 * MB, output_limit=MB,
              label="judge", allowed=None) -> list[Verdict]:
    """The verdict of each (program, tests), in order; each distinct job runs once.

    >>> [v.outcome for v in judge_all([("print(1)", (("", "1"),)), ("1/0", (("", "1"),))])]
    ['passed', 'runtime error']

    workers: programs at a time, by default one per core. label: for the bar; None shows no bar.
    allowed: an Allowed, for published problems.
    A fault of the judge raises an error; it is never a verdict.
    """
    if not hasattr(os, "fork"):
        raise RuntimeError("The judge needs Linux or macOS; on Windows, run it under WSL.")
    jobs = [(program, tuple(map(tuple, tests))) for program, tests in jobs]
    if not all(tests for _, tests in jobs):
        raise ValueError("a job without tests: every program would pass it")
    distinct = list(dict.fromkeys(jobs))
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    workers = min(workers or cores, len(distinct)) or 1
    idle = queue.SimpleQueue()

    def one(job, again=True):
        ask = idle.get()
        try:
            return _judge(ask, *job, allowed, (time_limit, memory_limit, output_limit))
        except HelperDied:
            ask = stack.enter_context(_helper(allowed))
            if not again:  # with two of them it is no accident
                return Verdict("runtime error", 0, "it killed the process that watches it")
        finally:
            idle.put(ask)
        return one(job, again=False)

    with ThreadPoolExecutor(workers) as pool, ExitStack() as stack:
        for _ in range(workers):
            idle.put(stack.enter_context(_helper(allowed)))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # on Ctrl-C, do this first
        bar = tqdm(pool.map(one, distinct), total=len(distinct), desc=label, leave=False,
                   disable=None if label else True)
        verdicts = dict(zip(distinct, bar))
    return [verdicts[job] for job in jobs]


@functools.cache
def _passed():
    """{(program, tests): whether it passed}: many games end with the same program."""
    return {}


def judge_episodes(episodes, problems, decode):
    """Sets `passed` of each episode by running its program on its problem's tests."""
    jobs = [(decode(episode.code), problems[episode.problem].tests) for episode in episodes]
    if new := [job for job in dict.fromkeys(jobs) if job not in _passed()]:
        _passed().update(zip(new, (verdict.passed for verdict in judge_all(new))))
    for episode, job in zip(episodes, jobs):
        episode.passed = _passed()[job]


def check_judge():
    """Raise unless a correct program passes and a wrong one fails: call before trusting Pass@1."""
    tests = (("2 3\n", "5\n"),)
    right, wrong = (judge(f"a, b = map(int, input().split())\nprint(a {sign} b)", tests)
                    for sign in "+-")
    if not right.passed or wrong.outcome != "wrong answer":
        raise RuntimeError("Pass@1 would mean nothing: the judge calls a correct program "
                           f"'{right.outcome}' and a wrong one '{wrong.outcome}'.")


KINDS = [  # (kind, program, stdin, expected stdout, the right outcome): tried by self_check
    ("a correct answer", "print(sum(map(int, input().split())))", "2 3\n", "5\n", "passed"),
    ("a wrong answer", "print(6)", "2 3\n", "5\n", "wrong answer"),
    ("an endless loop", "while True: pass", "", "", "time limit"),
    ("a loop that catches everything", "while True:\n try:\n  while True: pass\n"
     " except BaseException: pass", "", "", "time limit"),
    ("a big list", "a = [0] * 10**9", "", "", "memory limit"),
    ("endless output", "while True: print('x' * 999)", "", "", "output limit"),
    ("missing input", "input()\ninput()", "1\n", "", "runtime error"),
    ("a syntax error", "def f(:", "", "", "runtime error"),
    ("exit before the end", "print(1)\nexit()\nprint(2)", "", "1\n", "passed"),
    ("its parent killed", "import os\nos.kill(os.getppid(), 9)\nprint(1)", "", "1",
     "runtime error"),
    ("a child that holds the pipes", "import os, time\nif os.fork() == 0: time.sleep(60)\n"
     "print(1)", "", "1\n", "passed"),
    ("a child in its own session", "import os, time\nif os.fork() == 0:\n os.setsid()\n"
     " if os.fork() == 0: time.sleep(60)\n os._exit(0)\nos.wait()\nprint(1)", "", "1\n", "passed"),
]


def self_check(time_limit=1.0):
    """Try each kind of program, print its verdict and time; return the number of wrong verdicts."""
    wrong = 0
    for kind, program, stdin, expected, right in KINDS:
        start = time.monotonic()
        got = judge(program, ((stdin, expected),), time_limit).outcome
        known = right == "memory limit" and sys.platform == "darwin"  # not enforced there
        note = "ok" if got == right else "not enforced here" if known else f"WRONG: not {right}"
        wrong += note.startswith("WRONG")
        print(f"{kind:32} {got:14} {time.monotonic() - start:5.2f} s  {note}")
    print(f"{len(KINDS) - wrong} of {len(KINDS)} verdicts are correct.")
    return wrong


def main():
    """The command line of the judge; --self-check exits with status 1 after a wrong verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--self-check", action="store_true",
                        help="try the judge on a dozen kinds of program; run it on a new machine")
    args = parser.parse_args()
    if not hasattr(os, "fork"):
        parser.exit(2, "The judge needs Linux or macOS; on Windows, run it under WSL.\n")
    if args.self_check:
        sys.exit(1 if self_check() else 0)
    parser.print_help()


if __name__ == "__main__":
    main()
