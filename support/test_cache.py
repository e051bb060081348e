"""The cache never lies: edits in place, simultaneous runs, and kill -9."""

import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import data
from empower import Config, Lab, empower_length, sft, train
from realcode import checkpoints, pretrained
from realcode.training import Progress, gradient
from simhuman import Episode, Turn, typical
from support import cli, miniature
from support.cache import Cache
from support.cli import UserError, only
from support.digest import fingerprint
from support.files import temporary_name, write_safetensors
from support.optim import adamw, muon_and_adamw
from support.test_helpers import (ROOT, TINY, contents, made, random_texts, stable, tiny_base, tiny_gpt,
                             tokenizer)

GAMES = ["row Human alone", "row Human alone", "row Base", "row Base-4",
         "row Base-8", "row Base stopped at 0.32 bits", "row SFT-4", "row SFT-8",
         "row SFT-RAND", "row Empower (0.32)", "row Empower (4)", "row Base, knows the goal",
         "row Base, reads 0.65", "row Base-4, reads 0.65",
         "row Base stopped at 0.32 bits, reads 0.65", "row SFT-4, reads 0.65",
         "row SFT-8, reads 0.65", "row Empower (0.32), reads 0.65"]
TRAINED = [*GAMES[6:11], *GAMES[15:]]
RULES = ["SFT-4", "SFT-8", "SFT-RAND", "Empower (0.32)", "Empower (4)"]
STOPPING = [f"stopping of {name}" for name in RULES]
LIMITS = "limits of care 0.05"


# Importing torch takes longer than a tiny run: done once, in a process that forks for each run.
FORKS = """
import json, os, runpy, signal, sys
import torch, torch._dynamo
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
for line in sys.stdin:
    project, arguments, log = json.loads(line)
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 1), os.dup2(1, 2)
    sys.argv, sys.path[0] = [f"{project}/empower.py", *arguments], project
    status = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    print(f"status {status}", flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def forks():
    with subprocess.Popen([sys.executable, "-c", FORKS], text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}) \
            as process:
        yield process
        process.stdin.close()


def fork(forks, project, *arguments):
    """Starts a run: (its process id, the file with what it prints)."""
    log = project / f"log-{len(list(project.glob('log-*')))}"
    log.touch()
    arguments = ["--out", str(project / "out"), *TINY, *arguments]
    print(json.dumps([str(project), arguments, str(log)]), file=forks.stdin, flush=True)
    return int(forks.stdout.readline()), log


def wait_for(log, pattern):
    """What a run has printed once it matches."""
    while not re.search(pattern, log.read_text(encoding="utf-8")):
        time.sleep(0.01)
    return log.read_text(encoding="utf-8")


def run(forks, project, *arguments):
    """What a run prints; it must succeed."""
    _, log = fork(forks, project, *arguments)
    printed = wait_for(log, r"status \d+\n|Traceback")
    assert printed.endswith("status 0\n"), printed
    return printed


def edit(project, file, old, new):
    path = project / file
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{file} has changed: give this test another line to edit"
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="module")
def pristine(forks, tmp_path_factory):
    """A copy of the project with a finished tiny run in out/."""
    project = tmp_path_factory.mktemp("pristine")
    for name in ("empower.py", "model.py", "data.py", "simhuman.py", "support", "realcode"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, project / name)
    # A model that has not learned to stop writes this much for each problem, which takes long.
    edit(project, "empower.py", "UNLIMITED_TOKENS = 400", "UNLIMITED_TOKENS = 40")
    assert len(made(run(forks, project))) == 3 + len(RULES + STOPPING + GAMES)
    return project


@pytest.fixture
def project(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "project")


# ------------------------------------------------------------------- edits in place


@pytest.mark.parametrize("file, old, new, remade", [
    ("simhuman.py", "return sum(nll) <= limits", "return sum(nll) > limits", GAMES[2:]),
    ("simhuman.py", "1 - care, method", "1 - care / 2, method", [LIMITS, *GAMES[2:]]),
    ("simhuman.py", "for k in range(rounds):", "for k in range(rounds - 1):", GAMES),
    ("empower.py", "lambda nll, rng: n\n", "lambda nll, rng: n + 1\n",
     ["SFT-4", "SFT-8", "stopping of SFT-4", "stopping of SFT-8", "row SFT-4", "row SFT-8",
      "row SFT-4, reads 0.65", "row SFT-8, reads 0.65"]),
    ("empower.py", "return loss.item()", "return 2 * loss.item()",
     ["base", "programs", *RULES, *STOPPING, *GAMES]),
    ("empower.py", "self.base, examples, name", "self.base, examples[1:], name",
     [*RULES, *STOPPING, *TRAINED]),
    ("empower.py", "assistant, rounds or self.cfg.rounds", "assistant, rounds or 1", GAMES[1:]),
    ("model.py", "F.silu(", "F.gelu(", ["base", "programs", LIMITS, *RULES, *STOPPING, *GAMES]),
    ("support/contest.py", "Read one line of", "Read a line of",
     ["base", "programs", LIMITS, *RULES, *STOPPING, *GAMES]),
], ids=["typical", "limits", "play", "sft", "train", "Lab.train", "Lab.play", "gpt", "contest"])
def test_an_edit_in_place_changes_the_next_run(forks, project, file, old, new, remade):
    before = stable(project / "out")
    edit(project, file, old, new)
    assert sorted(made(run(forks, project))) == sorted(remade)
    if file != "empower.py":  # the rows of a tiny assistant may stay the same
        assert stable(project / "out")["rows"] != before["rows"]


def test_an_edit_that_changes_no_result_remakes_nothing(forks, project):
    edit(project, "simhuman.py", "# The paper's human is asked", "# The paper's human was asked")
    edit(project, "simhuman.py", '"""Accepts what she might', '"""A docstring. Accepts what')
    edit(project, "model.py", '    """The network; ', '    """A docstring; ')
    edit(project, "empower.py", "    # Section 5.2: the tables", '    print("run")\n    # ')
    edit(project, "empower.py", '            f"Empower ({cfg.eta_wide:g})": empower',
         '            "Mine": sft(3), f"Empower ({cfg.eta_wide:g})": empower')
    edit(project, "empower.py", '"Base": row(),', '"Base": row(), "Base-3": row(max_tokens=3),')
    assert sorted(made(run(forks, project))) == ["Mine", "row Base-3", "row Mine", "stopping of Mine"]


def varied(accepts, rate):
    return lambda nll: accepts(nll) and rate


def by_default(nll, limit=1):
    return sum(nll) <= limit


class Accepting:
    def __init__(self, limit):
        self.limit = limit

    def accepts(self, nll):
        return by_default(nll, self.limit)


def with_default(n):
    def accepts(nll, limit=n):
        return by_default(nll, limit)

    return accepts


def first_tokens(rule, n):
    @functools.wraps(rule)
    def accepts(nll):
        return rule(nll[:n])

    return accepts


def in_turns(n):
    def one(nll):
        return other(nll) or n

    def other(nll):
        return one(nll[1:])

    return one


LIMITED = {"partial": lambda n: functools.partial(by_default, limit=n),
           "positional": lambda n: functools.partial(typical, [n]),
           "closure": lambda n: varied(by_default, n), "default": with_default,
           "method": lambda n: Accepting(n).accepts, "array": lambda n: varied(all, np.full(2, n)),
           "nested": lambda n: varied(varied(by_default, n), 1),
           "cached": lambda n: functools.lru_cache(varied(by_default, n)),
           "wraps": lambda n: first_tokens(by_default, n), "recursive": in_turns,
           "path": lambda n: varied(all, Path(f"/{n}/x")),
           "in a list": lambda n: varied(all, [functools.partial(by_default, limit=n)])}


@pytest.mark.parametrize("made", LIMITED.values(), ids=LIMITED)
def test_what_a_function_takes_along_is_part_of_the_key(made):
    keys = [fingerprint(made(limit)) for limit in (0.25, 0.75, 0.25)]
    assert keys[0] == keys[2] != keys[1]


def test_a_function_is_followed_into_what_it_takes_along():
    """As in a rule of acceptance that varies another one."""
    rules = functools.partial(typical, limits=[1]), functools.partial(empower_length, eta=1)
    for wrapped in (lambda rule: varied(rule, 1), lambda rule: functools.partial(varied, rule),
                    lambda rule: varied(varied([rule], 1), 1), lambda rule: first_tokens(rule, 1),
                    lambda rule: Accepting(rule).accepts):
        assert fingerprint(wrapped(rules[0])) != fingerprint(wrapped(rules[1]))
    assert fingerprint(first_tokens(rules[0], 1)) != fingerprint(rules[0])
    assert fingerprint(varied(Accepting(1), 1)) != fingerprint(varied(1, 1))
    assert fingerprint(varied(abs, 1)) != fingerprint(varied(np.add, 1))


def test_arguments_are_told_apart(tmp_path):
    """Each of these is another call: what a stage is known by must not be the same for two."""
    base, other = (tiny_base(tmp_path / str(seed), seed) for seed in (0, 1))
    encoding = data.train_tokenizer(["abc abc ab"], 259)
    values = [None, 0, 1, True, 1.5, "1", [1, 2], [1, [2]], {"a": 1}, {"a": 2}, {1: "a"}, {1, 2},
              np.zeros(2), np.zeros(2, int), np.zeros(3), torch.zeros(2), only(Config(), "seed"),
              only(Config(seed=1), "seed"), base.model, other.model, base, encoding,
              data.train_tokenizer(["xyz xyz xy"], 259), Turn([1], [0.5], True),
              Turn([1], [0.5], False), functools.partial(typical, limits=[1]), typical, sft(1),
              sft(2), {"1"}, lambda x: x, lambda *x: x, ",".join, ";".join, re.compile("a" * 300),
              re.compile("a" * 301), np.zeros((0, 3)), np.zeros((0, 2)), b"a", Episode, Turn, torch.nn.functional.silu, torch.nn.functional.gelu]
    keys = [fingerprint([value]) for value in values]
    assert len(set(keys)) == len(values) and keys == [fingerprint([value]) for value in values]
    with torch.no_grad():
        base.model.norm.weight += 1  # it is no longer the model of its stage
    for value in (tiny_gpt(), base.model, np.random.default_rng(0), torch.Generator(), object()):
        with pytest.raises(ValueError, match="cannot be part of a kept call"):
            fingerprint([value])


def test_another_folder_or_device_is_the_same_call(tmp_path):
    kept = [Cache(tmp_path / name) for name in "ab"]
    first, second = (some("base", miniature.pretrain, train, only(
        Config(width=32, layers=1), "seed", "width", "layers", "pretrain_batch", "pretrain_lr"),
        tokenizer(), random_texts([9] * 16), device="cpu") for some in kept)
    assert first.name == second.name and first.folder != second.folder
    assert fingerprint(first) == fingerprint(second)


def test_options_of_fine_tuning_are_part_of_the_key(tmp_path, monkeypatch):
    """Another optimizer, or another setting of it, makes another stage."""
    keys = []

    def key(self, name, *call, **how):
        keys.append((name, fingerprint(call)))
        raise KeyboardInterrupt

    lab = object.__new__(Lab)
    lab.cfg, lab.kept, lab.base = Config(), Cache(tmp_path), tiny_base(tmp_path / "base")
    lab.programs = [([1, 2, 3], np.zeros(3), True)] * 10
    monkeypatch.setattr(Cache, "__call__", key)
    for options in ((), (muon_and_adamw,), (adamw, functools.partial(gradient, clip=1.0)),
                    (adamw, functools.partial(gradient, clip=2.0))):
        lab.fine_tuning = options
        with pytest.raises(KeyboardInterrupt):
            lab.train("SFT-2", sft(2))
    assert len(set(keys)) == 4


def definitions(text, folder):
    """{name: what it is} in a new file with this text."""
    path = folder / f"defined_{len(list(folder.glob('*.py')))}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("defined", path)
    sys.modules["defined"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["defined"])
    return vars(sys.modules["defined"])


def test_of_a_function_inside_another_only_its_own_code_counts(tmp_path):
    def digest(text):
        return fingerprint(definitions(text, tmp_path)["outer"]())

    text = ("def other():\n    return 3\n"
            "def outer():\n    start = 1\n    return lambda: (start,\n        other())\n")
    first = digest(text)
    assert digest("# moved\n\n" + text) == first
    assert digest(text.replace("def outer():", "def outer():\n    print()")) == first
    assert digest(text.replace("start = 1", "start = 2")) != first  # it takes this along
    assert digest(text.replace("other())", "-other())")) != first
    assert digest(text.replace("return 3", "return 4")) != first


def test_a_given_checkpoint_is_another_one_once_the_code_that_reads_it_changes(
        tmp_path, monkeypatch):
    first = tiny_base(tmp_path / "base").folder
    names = [checkpoints.load_checkpoint(first, "cpu").name for _ in range(2)]
    monkeypatch.setattr(pretrained, "scaled_frequencies", lambda cfg: torch.zeros(4))
    assert names[0] == names[1] != checkpoints.load_checkpoint(first, "cpu").name


def test_code_is_followed_through_names_classes_and_constants(tmp_path):
    def digest(text):
        return fingerprint(definitions(text, tmp_path)["work"])

    text = ("class A:\n    B = 5\n    def f(self):\n        return LIMIT + len(TABLE)\n"
            "LIMIT = 1\nTABLE = {}\nTABLE['a'] = 1\nTABLE['b'] = 2\n"
            "def other():\n    return 3\n"
            "def work(x=1):\n    '''What it does.'''\n    return A().f()\n")
    first = digest(text)
    assert digest(text.replace("'''What it does.'''", "'''Does it.'''  # so")) == first
    assert digest(text.replace("return 3", "return 4")) == first
    for old, new in (("LIMIT = 1", "LIMIT = 2"), ("['a'] = 1", "['a'] = 2"), ("B = 5", "B = 6"),
                     ("x=1", "x=2"), ("A().f()", "A().f() + 1"), ("return LIMIT", "return -LIMIT")):
        assert digest(text.replace(old, new)) != first, new


# ------------------------------------------------------------------- two runs, and kill -9


def test_two_runs_in_one_folder_at_once_both_end_well(forks, project, pristine):
    shutil.rmtree(project / "out")
    for _, log in [fork(forks, project), fork(forks, project)]:
        assert wait_for(log, r"status \d+\n|Traceback").endswith("status 0\n")
    assert stable(project / "out") == stable(pristine / "out")
    assert not list((project / "out").rglob("*.tmp"))


def test_after_kill_9_the_same_command_gives_the_same_results(forks, project, pristine):
    shutil.rmtree(project / "out")
    for lines, delay in ((4, 0.05), (10, 0.2), (19, 0)):
        process, log = fork(forks, project)
        wait_for(log, rf"(.*\n){{{lines}}}")
        time.sleep(delay)
        os.kill(process, signal.SIGKILL)
        while Path(f"/proc/{process}").exists():
            time.sleep(0.01)
    assert made(run(forks, project))
    assert stable(project / "out") == stable(pristine / "out")
    assert not list((project / "out").rglob("*.tmp"))


# ------------------------------------------------------------------- folders


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "results.json").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="not empty and was not written by this program"):
        Cache(tmp_path)
    assert contents(tmp_path) == before


def test_a_save_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(state, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        Progress(tmp_path / "progress.pt", -1).save([1.0])
    with pytest.raises(IsADirectoryError):
        (tmp_path / "folder").mkdir()
        write_safetensors(tmp_path / "folder", {"a": torch.ones(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY"])
def test_a_damaged_file_of_a_stage_is_one_sentence(tmp_path, content):
    (tmp_path / "nll-0.npy").write_bytes(content)
    with pytest.raises(UserError, match="^[^ ]*/costs cannot be read .* remove it") as error:
        with cli.reading(tmp_path), cli.reading(tmp_path / "costs"):
            np.load(tmp_path / "nll-0.npy")
    assert str(error.value).count("cannot be read") == 1


def test_too_little_memory_is_no_damage(tmp_path):
    with pytest.raises(torch.OutOfMemoryError):
        with cli.reading(tmp_path):
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("state", [[1.0], {"losses": [], "parts": [3]}])
def test_a_damaged_state_of_a_training_is_one_sentence(tmp_path, state):
    torch.save(state, tmp_path / "progress.pt")
    with pytest.raises(UserError, match="remove it to start training from the beginning"):
        Progress(tmp_path / "progress.pt", -1).load(torch.nn.Linear(1, 1))


def test_unfinished_files_are_removed_once_their_process_is_gone(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    Cache(tmp_path)
    mine, host = temporary_name(tmp_path / "stages" / "row"), socket.gethostname()
    gone = [tmp_path / f"results.json.{host}.{process.pid}.tmp",
            tmp_path / "stages" / f"row.{host}.{process.pid}.tmp"]
    other = tmp_path / f"results.json.another-host.{process.pid}.tmp"
    for path in (mine, other, *gone):
        path.mkdir(parents=True)
    Cache(tmp_path)
    assert mine.exists() and other.exists() and not any(path.exists() for path in gone)
