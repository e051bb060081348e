"""The game of Section 3: a simulated human, an assistant beside her, and a judge of the program.

Each round the assistant suggests, the human accepts or rejects what she reads, then types a few
tokens of her own, or ends the episode. Problem and code are all that she goes by:

    the prefix     n = int(input())\\n a =
    suggestion      list(map(int, input().split()))\\n     0.2 bits a token for her: accepted
    she types      out = [                              and the next round begins
    suggestion     v for v in a if v > 0]\\n             2.9 bits a token: rejected, rolled back
    she types      v * v for v in

All problems are played in lockstep, on one batch and KV caches that outlive the rounds. Episodes
are plain data, the metrics of Section 5.1 pure functions of them. The finished programs are judged
in the second half of this file.

Covered by the judge: endless loops, waits and output, memory, closed pipes, signals to the parent
or the group, every way to exit, children that stay behind. A program has Python's standard library
and nothing else. macOS: memory is not limited, and a child that calls setsid lives on, up to its
limit of CPU time. Windows: not supported. It is NOT a security sandbox: a program can read your
files, use the network, and kill every process of its user. Where that matters, use a container.

`python simhuman.py --self-check` tries it on a dozen kinds of program. This file knows nothing of
training.
"""

import argparse
import dataclasses
import gc
import inspect
import marshal
import math
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from model import KVCache, extend, sample

# ------------------------------------------------------------------- the human judges


def skim(nll, tau):
    """Accepts when the MEAN cost per token is at most tau bits: one wrong token can slip through.

    Example: costs [0, 0, 3] under tau = 1.25: a mean of 1 bit, accepted.
    """
    return sum(nll) <= tau * len(nll)


def careful(nll, tau):
    """Accepts when the SUM of the costs is at most tau bits. Example: [0, 0, 3], 1.25: no."""
    return sum(nll) <= tau


def strict(nll, tau):
    """Accepts when NO token costs more than tau bits. Example: [1, 1, 1], 1.25: yes."""
    return max(nll) <= tau


JUDGING = {"skim": skim, "careful": careful, "strict": strict}


# ------------------------------------------------------------------- the game of Section 3


@dataclasses.dataclass
class Turn:
    """One round: what was suggested, what it cost the human's model (bits), what she did."""

    suggestion: list          # token ids; empty where the assistant was silent
    nll: list                 # bits of each suggested token under pi_H, given problem and code
    accepted: bool            # False where nothing was offered
    typed: list = dataclasses.field(default_factory=list)  # the token ids that she then wrote


@dataclasses.dataclass
class Episode:
    """One problem, played to its end. Plain data; the metrics below are functions of it."""

    problem: int              # index into the list of problems
    turns: list = dataclasses.field(default_factory=list)
    finished: bool = False    # she ended it herself, before the round limit
    passed: bool = False      # every test of the problem passes (the judge's word)

    @property
    def tokens_read(self):
        """Every suggested token, rejected ones too: the human had to read them."""
        return sum(len(turn.suggestion) for turn in self.turns)

    @property
    def tokens_written(self):
        return sum(len(turn.typed) for turn in self.turns)

    @property
    def offered(self):
        """How many suggestions were not empty."""
        return sum(bool(turn.suggestion) for turn in self.turns)

    @property
    def accepted(self):
        return sum(turn.accepted for turn in self.turns)

    @property
    def tokens_accepted(self):
        return sum(len(turn.suggestion) for turn in self.turns if turn.accepted)

    @property
    def code(self):
        """The program so far: accepted suggestions and typed tokens in order (token ids)."""
        return [i for turn in self.turns for i in turn.suggestion * turn.accepted + turn.typed]


class Human:
    """pi_H: a language model that reads the problem statement, and how she behaves.

    `cost(logits, ids)` is the cost of each token in bits; `accepts(nll)` her verdict on a
    suggestion; `turn_tokens` is K_H, the most that she types in a turn (Section 5.1).
    """

    def __init__(self, model, cost, accepts, turn_tokens, temperature=1.0, top_p=1.0):
        self.model, self.cost, self.accepts = model, cost, accepts
        self.turn_tokens, self.temperature, self.top_p = turn_tokens, temperature, top_p

    def begin(self, goals):
        """Sits down to a game of one row for each goal: what she knows, as token ids."""
        self.goals, self.cache = goals, KVCache(self.model, len(goals))

    def keep(self, rows):
        """Goes on with these rows alone, numbered anew in the order given."""
        self.goals = [self.goals[row] for row in rows]
        self.cache.keep(rows)

    def has_room(self, row, code, tokens):
        """Whether so many more tokens fit into her context."""
        return len(self.goals[row]) + len(code) + tokens <= self.cache.limit

    def judge(self, codes, suggestions):
        """(bits of each token, accepted or not) for each row; silence is ([], False)."""
        if not any(suggestions):
            return [([], False) for _ in suggestions]
        texts = [goal + code for goal, code in zip(self.goals, codes)]
        logits = extend(self.model, self.cache, texts, suggestions)        # (B, M + 1, V)
        costs = [self.cost(row[:len(suggestion)], torch.tensor(suggestion, device=row.device))
                 .tolist() if suggestion else [] for row, suggestion in zip(logits, suggestions)]
        return [(nll, bool(nll) and self.accepts(nll)) for nll in costs]

    def write(self, codes, stop_tokens, generator):
        """What she types behind each code, and in which rows a stop token said that she is done.

        `sample` rolls the cache back to the code, so she forgets what she has rejected.
        """
        texts = [goal + code for goal, code in zip(self.goals, codes)]
        return sample(self.model, self.cache, texts, self.turn_tokens, stop_tokens,
                      self.temperature, self.top_p, generator=generator)


class Author:
    """A human who wants exactly the program that was written: for code that has no tests.

    Her goals are programs (token ids). She accepts a suggestion when it is what comes next, token
    for token, and then, as in every round, types the next K_H tokens.
    Example: of the program [1, 2, 3, 4] stands [1]: she accepts [2, 3], and rejects [2, 4].

    ends: how many tokens of each goal she wants; what follows is there to judge suggestions by.
    """

    def __init__(self, turn_tokens, ends):
        self.turn_tokens, self.ends = turn_tokens, ends

    def begin(self, goals):
        self.rows = list(zip(goals, self.ends, strict=True))

    def keep(self, rows):
        self.rows = [self.rows[row] for row in rows]

    def has_room(self, row, code, tokens):
        return True  # no model, no context that could fill up

    def judge(self, codes, suggestions):
        """([], accepted or not) of each row's suggestion: nothing costs her any bits."""
        return [([], bool(new) and goal[len(code):len(code) + len(new)] == new)
                for (goal, _), code, new in zip(self.rows, codes, suggestions)]

    def write(self, codes, stop_tokens, generator):
        """The next tokens of each program, and whether it is complete with them."""
        typed = [goal[len(code):min(len(code) + self.turn_tokens, end)]
                 for (goal, end), code in zip(self.rows, codes)]
        return typed, [len(code) + len(new) >= end
                       for (_, end), code, new in zip(self.rows, codes, typed)]


@dataclasses.dataclass(frozen=True)
class Assistant:
    """pi_R: a language model that reads the code so far, and how long it may write."""

    model: object
    max_tokens: int                # a cap on one suggestion; it stops by itself at a stop token
    max_cost: float = math.inf     # it also stops before its own text costs more than this (bits)
    knows_goal: bool = False       # True only for the ceiling: it reads the statement too
    temperature: float = 1.0
    top_p: float = 1.0


def play(goals, human, assistant, rounds, start, stop_tokens, generator, label="play"):
    """The game of Section 3 on all problems in lockstep: one Episode for each goal.

    goals: token ids, what the human knows: for a `Human` the token `start` that begins a document
    and the statement, for an `Author` her program. Each round the assistant (None: the human is
    alone) suggests behind `start` and the code, the human accepts or rejects, and then types,
    unless she is done. All episodes share one batch and keep their KV caches.
    """
    known = goals if assistant and assistant.knows_goal else [[start]] * len(goals)
    codes = [[] for _ in goals]
    episodes = [Episode(problem) for problem in range(len(goals))]
    human.begin(goals)
    cache = assistant and KVCache(assistant.model, len(goals))
    live = list(range(len(goals)))  # the problem of each row
    # An episode whose text leaves no room for one more round ends as if the rounds were used up.
    longest_round = human.turn_tokens + (assistant.max_tokens if assistant else 0)
    with tqdm(total=len(goals), desc=label, unit="problem", leave=False, disable=None) as bar:
        for _ in range(rounds):
            suggestions = [[] for _ in live]
            if assistant:
                suggestions, _ = sample(
                    assistant.model, cache, [known[p] + codes[p] for p in live],
                    assistant.max_tokens, stop_tokens, assistant.temperature, assistant.top_p,
                    assistant.max_cost, generator)
            verdicts = human.judge([codes[p] for p in live], suggestions)
            for row, (p, new, (nll, accepted)) in enumerate(zip(live, suggestions, verdicts)):
                episodes[p].turns.append(Turn(new, nll, accepted))
                if accepted:
                    codes[p] += new
                elif new:  # rejected: the assistant forgets it
                    cache.rollback(row, len(known[p] + codes[p]))
            typed, finished = human.write([codes[p] for p in live], stop_tokens, generator)
            for p, tokens, done in zip(live, typed, finished):
                episodes[p].turns[-1].typed = tokens
                episodes[p].finished = done
                codes[p] += tokens
            bar.update(sum(finished))
            rows = [row for row, p in enumerate(live) if not episodes[p].finished
                    and human.has_room(row, codes[p], longest_round)
                    and (not cache or len(known[p] + codes[p]) + longest_round <= cache.limit)]
            if not rows:
                break
            if len(rows) < len(live):
                live = [live[row] for row in rows]
                human.keep(rows)
                if cache:
                    cache.keep(rows)
    return episodes


# ------------------------------------------------------------------- metrics (Section 5.1)


def _mean(values):
    """(mean, standard error of the mean) of one value for each problem."""
    values = np.asarray(values, dtype=float)
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def pass_at_1(episodes):
    """(share of problems whose program passes every test, its standard error over problems).

    Example: passed, failed, passed, failed -> (0.5, 0.289): the deviation .577 over sqrt(4).
    """
    return _mean([episode.passed for episode in episodes])


def _ratio(parts, wholes):
    """(sum of parts over sum of wholes, its standard error), one part and whole for each problem.

    The error is that of a ratio of two sums, from the residuals part - ratio * whole.
    """
    parts, wholes = np.asarray(parts, dtype=float), np.asarray(wholes, dtype=float)
    if wholes.sum() == 0:
        return math.nan, math.nan
    ratio, n = parts.sum() / wholes.sum(), len(parts)
    residual = parts - ratio * wholes
    return ratio, math.sqrt(n / max(n - 1, 1) * (residual ** 2).sum()) / wholes.sum()


def accept_ratio(episodes):
    """(accepted over offered suggestions, pooled; its standard error), the problem as the unit.

    Example: one problem with 1 of 1 accepted, one with 1 of 3: 2/4, not the mean of 1 and 1/3.
    The residuals are .5 and -.5, so the error is sqrt(2 / 1 * .5) / 4 = .25. Nothing offered: nan.
    """
    return _ratio([episode.accepted for episode in episodes],
                  [episode.offered for episode in episodes])


def share_saved(episodes):
    """(share of the programs' tokens that the assistant wrote, pooled; its standard error).

    Example: a program of 8 tokens, 4 of them accepted, and one of 2 tokens, all typed: 4 / 10.
    """
    return _ratio([episode.tokens_accepted for episode in episodes],
                  [episode.tokens_accepted + episode.tokens_written for episode in episodes])


def discounted(episode, gamma, alpha, beta):
    """1[correct] * gamma ** (alpha * tokens read + beta * tokens written) of one episode.

    Example: gamma = 0.5, alpha = 0.1, beta = 0.5, correct, 10 read, 2 written: 0.5 ** 2 = 0.25.
    """
    return episode.passed * gamma ** (alpha * episode.tokens_read + beta * episode.tokens_written)


def discounted_pass_rate(episodes, gamma, alpha, beta):
    """DPR, the mean of `discounted` over problems, and its standard error.

    Example: the episode of `discounted` (0.25) and a failed one: (0.125, 0.125).
    """
    return _mean([discounted(episode, gamma, alpha, beta) for episode in episodes])


def paired_difference(a, b, rng, samples=10_000):
    """(mean of a - b, and the ends of its 95% interval) from a paired bootstrap over problems.

    a, b: one value for each problem, in the same order. rng: a numpy Generator.
    """
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    n = len(difference)
    means = difference[rng.integers(0, n, (samples, n))].mean(axis=1)
    return difference.mean(), *np.quantile(means, [0.025, 0.975])


def seeds_interval(differences):
    """(mean, and the ends of its 95% interval) of one paired difference for each of 2..10 seeds.

    Each seed has a model and problems of its own, so the spread of the seeds' differences holds
    the chance in both: Student's interval with a degree of freedom less than there are seeds. (To
    draw from so few seeds again, as a bootstrap does, finds intervals that are too short.)
    Example: 0.1, 0.2, 0.3: the mean 0.2 and 4.303 * 0.1 / sqrt(3) = 0.248 to either side.
    """
    mean, error = _mean(differences)
    return mean, mean - STUDENT[len(differences)] * error, mean + STUDENT[len(differences)] * error


STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306,
           10: 2.262}  # the 0.975 quantile of Student's t for so many values


def cut_off(episode, rounds):
    """What an episode would have been with at most so many rounds: one game shows every budget.

    `passed` is False: it has to be judged anew. Example: 3 rounds, then finished; cut off at 2, it
    has 2 and is not finished.
    """
    return Episode(episode.problem, episode.turns[:rounds],
                   episode.finished and len(episode.turns) <= rounds)


def transcript(episode, statement, decode):
    """An episode as a person reads it: who wrote what, and what it cost the human's model."""
    lines = [statement]
    for k, turn in enumerate(episode.turns, 1):
        if turn.suggestion:
            cost = f"{np.mean(turn.nll):.2f} bits a token: " if turn.nll else ""
            lines.append(f"{k:3}  assistant  {decode(turn.suggestion)!r}  {cost}"
                         f"{'accepted' if turn.accepted else 'rejected'}")
        lines.append(f"{k:3}  human      {decode(turn.typed)!r}")
    lines.append("finished by the human" if episode.finished else "cut off")
    lines.append(f"\n{decode(episode.code)}\n{'passed' if episode.passed else 'failed'}: "
                 f"{episode.tokens_read} tokens read, {episode.tokens_written} written\n")
    return "\n".join(lines)


# ------------------------------------------------------------------- the judge
#
# `exec` in this process would share its stdin, signals and memory with the program, so each run is
# a process of its own, with a file as stdin and pipes as stdout and stderr. Starting a Python takes
# longer than most of these programs run, so each worker starts one helper (bare Python, no
# threads), which forks twice for each run:
#
#     this process --channel--> helper --fork--> parent --fork--> the program
#                               watches the run, takes what the program
#                               cleans up after  does to its parent
#
# On Linux the helper adopts the orphans of a run (it is a child subreaper). It has no other
# children, so it may kill all that it finds, and nothing looks at the children of this process.

MB = 2**20
GRACE = 60  # seconds past the time limit after which a helper that says nothing is a fault


@dataclass(frozen=True)
class Verdict:
    """What became of a program: Verdict("wrong answer", 0, "line 1: expected '42', got '21'")."""
    outcome: str      # passed, wrong answer, time limit, memory limit, runtime error, output limit
    test: int | None  # index of the first failing test, None when passed
    detail: str       # one line

    @property
    def passed(self):
        return self.outcome == "passed"


# The helper. The source of these functions is its whole program (see _helper): a helper that
# imported this file would carry tqdm and the rest through every fork.

def _serve():
    """Answer requests until the channel closes. Returns only in a forked process: the program."""
    if sys.platform == "linux":
        import ctypes
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # 36 is PR_SET_CHILD_SUBREAPER
    channel = os.dup(1)  # both ways; 1 itself will be the program's stdout
    # closefd=False: in a program the number may be another file's when these two are freed.
    requests, replies = (open(channel, mode, closefd=False) for mode in ("rb", "wb"))
    compile("", "", "exec")  # the first call of compile takes 2 ms more: not in each program
    gc.freeze()  # nor does each visit at its exit what was made so far: 1 to 2 ms
    home, folder, stdin_file = os.getcwd(), "0", None  # see _prepared
    while True:
        try:
            program, stdin, *limits = marshal.load(requests)
        except EOFError:
            _leave(home)
        folder, stdin_file = _prepared(home, folder, stdin_file)
        os.pwrite(stdin_file, stdin, 0)  # a file: nobody has to feed it, and it can seek
        os.ftruncate(stdin_file, len(stdin))  # to write one file anew saves 3 ms over a new one
        deadline = time.monotonic() + limits[0]
        started = _start(folder, limits)
        if started is None:
            return program
        parent, *pipes = started
        reply = _watch(*pipes, channel, deadline, limits[2])
        if _sweep(parent) == 1:
            raise RuntimeError("the judge could not start a program:\n" + reply[3].decode())
        if reply[0] == "channel closed":
            _leave(home)
        marshal.dump(reply, replies)
        replies.flush()


def _start(folder, limits):
    """Fork a parent that forks the program: (parent, out, err, status), or None in the program."""
    pipes = [os.pipe() for _ in ("out", "err", "status")]
    parent = os.fork()
    if parent:
        for _, write_end in pipes:
            os.close(write_end)
        return parent, *(read_end for read_end, _ in pipes)
    os.setsid()  # the run is a group of its own, without the helper
    fds = [os.open("stdin", os.O_RDONLY), *(write_end for _, write_end in pipes)]
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
    os.closerange(len(fds), 64)  # the channel and the other ends; a helper has few files
    program = os.fork()
    if program == 0:
        os.close(3)  # the status is the parent's to report
        _confine(folder, *limits)
        return None
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        os.write(3, str(code).encode())
    finally:
        os._exit(0)  # also when the program interrupts its parent


def _confine(folder, time_limit, memory_limit, output_limit):
    """Enter the run's folder and set its limits, in the program's process, before it compiles."""
    os.chdir(folder)
    os.environ["HOME"] = os.environ["TMPDIR"] = os.getcwd()
    sys.argv = ["program.py"]
    builtins.exit = builtins.quit = sys.exit  # contest code calls them; -S leaves them out
    cpu = int(time_limit) + 2  # for what outlives the deadline: see macOS above
    for kind, limit in ((resource.RLIMIT_CPU, cpu), (resource.RLIMIT_AS, memory_limit),
                        (resource.RLIMIT_FSIZE, output_limit), (resource.RLIMIT_CORE, 0),
                        (resource.RLIMIT_NOFILE, 256)):
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):
            pass  # a stricter limit holds already, or the system (macOS) has none of this kind


def _watch(out, err, status, channel, deadline, output_limit):
    """Read until the program ends or goes too far: (why, exit code, stdout, end of stderr)."""
    texts = {out: bytearray(), err: bytearray()}
    poll = select.poll()
    for fd in (out, err, status, channel):
        poll.register(fd, select.POLLIN)
    why, code = "time limit", b""
    while why == "time limit" and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            if fd == channel:  # nothing is sent during a run, so the other side has gone
                why = "channel closed"
            elif why == "channel closed":
                break
            elif fd == status:
                why, code = "exit", os.read(fd, 16)  # b"": the program killed its parent
            elif not _read(fd, texts[fd]):
                poll.unregister(fd)  # closed by a program that may go on
            elif len(texts[fd]) > output_limit:
                why = "output limit"
    if why == "exit":  # take what the pipes hold, not more: a child left behind keeps them open
        for fd, text in texts.items():
            os.set_blocking(fd, False)
            while len(text) <= output_limit and _read(fd, text):
                pass
            if len(text) > output_limit:
                why = "output limit"
    for fd in (out, err, status):
        os.close(fd)
    return why, int(code) if code else None, bytes(texts[out]), bytes(texts[err][-4096:])


def _read(fd, text):
    """Append up to 64 KB from a pipe to text; False at its end, or when it does not block."""
    try:
        data = os.read(fd, 2**16)
    except BlockingIOError:
        return False
    text += data
    return bool(data)


def _sweep(parent):
    """Kill the run's group, then its orphans, until no child is left; the parent's exit code."""
    for kill in (os.kill, os.killpg):  # the parent is not reaped yet: the number is still its own
        try:
            kill(parent, signal.SIGKILL)
        except OSError:
            pass  # it has no group yet, or (macOS) only dead members
    code = os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1])
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                for child in _children():
                    os.kill(child, signal.SIGKILL)
                time.sleep(0.001)
        except ChildProcessError:
            return code


def _children():
    """The process ids of the helper's children, from /proc."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                ppid = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
        if ppid == os.getpid():
            yield int(pid)


def _prepared(home, folder, stdin_file):
    """An empty folder and a stdin file for the next run, whatever the last one did to them."""
    try:
        os.chdir(home)
        if (os.stat(folder).st_mode == 0o40700 and not os.listdir(folder)
                and os.path.samestat(os.stat("stdin"), os.fstat(stdin_file))):
            return folder, stdin_file  # as they were: saves 5 ms
    except (OSError, TypeError):
        pass  # the first run, or the program deleted or locked what was there
    if stdin_file is not None:
        import shutil  # slow to import, seldom needed
        os.close(stdin_file)
        os.makedirs(home, 0o700, exist_ok=True)
        os.chmod(home, 0o700)
        os.chdir(home)
        for name in os.listdir():
            if os.path.isdir(name):
                shutil.rmtree(name, ignore_errors=True)  # what resists goes when the helper does
            else:
                os.remove(name)
    folder = str(int(folder) + 1)
    os.mkdir(folder, 0o700)
    return folder, os.open("stdin", os.O_WRONLY | os.O_CREAT, 0o600)


def _leave(home):
    """End the helper; its folder goes too, since the process that made it may be dead."""
    import shutil
    os.chdir("/")
    shutil.rmtree(home, ignore_errors=True)
    os._exit(0)


def _become(program):
    """Run a program as __main__, like `python program.py`."""
    main = sys.modules["__main__"] = type(sys)("__main__")
    exec(compile(program, "program.py", "exec"), main.__dict__)


HELPER = [_serve, _start, _confine, _watch, _read, _sweep, _children, _prepared, _leave, _become]


# What follows runs in this process.

def _temporary_folder():
    # Both sides remove it: the helper when this process was killed, this one otherwise.
    return tempfile.TemporaryDirectory(prefix="judge-", ignore_cleanup_errors=True)


@contextmanager
def _helper():
    """Start a helper and yield ask(program, stdin, *limits); leaves no process and no file."""
    source = "import builtins, gc, marshal, os, resource, select, signal, sys, time\n"
    source += "\n".join(map(inspect.getsource, HELPER)) + "\n_become(_serve())"
    keep = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME")  # some Pythons do not start without these
    env = {key: os.environ[key] for key in keep if key in os.environ}
    env |= {"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8"}  # not -I: it ignores both
    ours, theirs = socket.socketpair()
    with ours, _temporary_folder() as folder:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-B", "-c", source], stdin=subprocess.DEVNULL,
                stdout=theirs, cwd=folder, env=env, start_new_session=True)
        replies = ours.makefile("rb")

        def ask(program, stdin, time_limit, *limits):
            ours.settimeout(time_limit + GRACE)
            try:
                ours.sendall(marshal.dumps((program, stdin, time_limit, *limits)))
                return marshal.load(replies)
            except (EOFError, OSError) as error:
                raise RuntimeError("the judge's helper process died or hangs") from error
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
    """What counts of an output: its lines without trailing space, without blank lines at the end.

    >>> _lines("1 2 \\r\\n3\\n\\n") == _lines("1 2\\n3")
    True
    """
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n").split("\n")


def _outcome(reply, expected, time_limit, memory_limit, output_limit):
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
    want, got = _lines(expected), _lines(stdout.decode(errors="replace"))
    if want == got:
        return "passed", ""
    number = next((i for i, pair in enumerate(zip(want, got)) if pair[0] != pair[1]),
                  min(len(want), len(got)))
    one, other = (repr(lines[number][:80]) if number < len(lines) else "no more lines"
                  for lines in (want, got))
    return "wrong answer", f"line {number + 1}: expected {one}, got {other}"


def _judge(ask, program, tests, limits):
    """Run the tests in order, up to the first that fails."""
    for index, (stdin, expected) in enumerate(tests):
        outcome, detail = _outcome(ask(program, stdin.encode(), *limits), expected, *limits)
        if outcome != "passed":
            return Verdict(outcome, index, detail)
    return Verdict("passed", None, f"{len(tests)} tests")


def judge(program: str, tests, time_limit=2.0, memory_limit=512 * MB, output_limit=MB) -> Verdict:
    """Judge one program on (stdin, expected stdout) pairs, up to the first that fails.

    Limits: seconds of wall time a test, bytes of memory a process, bytes of stdout, of stderr and
    of any file.

    >>> judge("while True: pass", (("", ""),), time_limit=0.5)
    Verdict(outcome='time limit', test=0, detail='still running after 0.5 s')
    """
    return judge_all([(program, tests)], 1, time_limit, memory_limit, output_limit, None)[0]


def judge_all(jobs, workers=None, time_limit=2.0, memory_limit=512 * MB, output_limit=MB,
              label="judge") -> list[Verdict]:
    """The verdict of each (program, tests), in order; each distinct job runs once.

    >>> [v.outcome for v in judge_all([("print(1)", (("", "1"),)), ("1/0", (("", "1"),))])]
    ['passed', 'runtime error']

    workers: programs at a time, by default one per core. label: of the bar; None shows no bar.
    A fault of the judge raises; it is never a verdict.
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

    def one(job):
        ask = idle.get()
        try:
            return _judge(ask, *job, (time_limit, memory_limit, output_limit))
        finally:
            idle.put(ask)

    with ThreadPoolExecutor(workers) as pool, ExitStack() as stack:
        for _ in range(workers):
            idle.put(stack.enter_context(_helper()))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # on Ctrl-C: first this
        bar = tqdm(pool.map(one, distinct), total=len(distinct), desc=label, leave=False,
                   disable=None if label else True)
        verdicts = dict(zip(distinct, bar))
    return [verdicts[job] for job in jobs]


def judge_episodes(episodes, problems, decode):
    """Sets `passed` of each episode by running its program on its problem's tests."""
    programs = [decode(episode.code) for episode in episodes]
    jobs = [(program, problems[episode.problem].tests)
            for program, episode in zip(programs, episodes)]
    for episode, verdict in zip(episodes, judge_all(jobs)):
        episode.passed = verdict.passed


def check_judge():
    """Raise unless a right program passes and a wrong one fails: call before trusting Pass@1."""
    tests = (("2 3\n", "5\n"),)
    right, wrong = (judge(f"a, b = map(int, input().split())\nprint(a {sign} b)", tests)
                    for sign in "+-")
    if not right.passed or wrong.outcome != "wrong answer":
        raise RuntimeError("Pass@1 would mean nothing: the judge calls a right program "
                           f"'{right.outcome}' and a wrong one '{wrong.outcome}'.")


KINDS = [  # (kind, program, stdin, expected stdout, the right outcomes): tried by self_check
    ("a right answer", "print(sum(map(int, input().split())))", "2 3\n", "5\n", "passed"),
    ("a wrong answer", "print(6)", "2 3\n", "5\n", "wrong answer"),
    ("a loop without end", "while True: pass", "", "", "time limit"),
    ("a loop that catches everything", "while True:\n try:\n  while True: pass\n"
     " except BaseException: pass", "", "", "time limit"),
    ("a big list", "a = [0] * 10**9", "", "", "memory limit"),
    ("output without end", "while True: print('x' * 999)", "", "", "output limit"),
    ("input that is not there", "input()\ninput()", "1\n", "", "runtime error"),
    ("a syntax error", "def f(:", "", "", "runtime error"),
    ("exit before the end", "print(1)\nexit()\nprint(2)", "", "1\n", "passed"),
    ("its parent killed", "import os\nos.kill(os.getppid(), 9)\nprint(1)", "", "1",
     "runtime error"),
    ("a child that holds the pipes", "import os, time\nif os.fork() == 0: time.sleep(60)\n"
     "print(1)", "", "1\n", "passed"),
    ("a child in a session of its own", "import os, time\nif os.fork() == 0:\n os.setsid()\n"
     " if os.fork() == 0: time.sleep(60)\n os._exit(0)\nos.wait()\nprint(1)", "", "1\n", "passed"),
]


def self_check(time_limit=1.0):
    """Try each kind of program; print its verdict and time; the number of wrong verdicts."""
    wrong = 0
    for kind, program, stdin, expected, right in KINDS:
        start = time.monotonic()
        got = judge(program, ((stdin, expected),), time_limit).outcome
        known = right == "memory limit" and sys.platform == "darwin"  # not enforced there
        note = "ok" if got == right else "not enforced here" if known else f"WRONG: not {right}"
        wrong += note.startswith("WRONG")
        print(f"{kind:32} {got:14} {time.monotonic() - start:5.2f} s  {note}")
    print(f"{len(KINDS) - wrong} of {len(KINDS)} verdicts are as they should be.")
    return wrong


def main():
    """The command line of the judge: --self-check, exit status 1 after a wrong verdict."""
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
