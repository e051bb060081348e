"""Tests of training with several processes: two on the CPU, started by torchrun."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from empower import train
from realcode import gpus
from realcode.finetune import whole_model
from realcode.test_finetune import FINETUNE
from support import parallel
from support.cache import Progress
from support.cli import plain_errors
from support.lora import add_lora
from support.memory import parameter_counts, training_bytes
from support.optim import adamw
from support.testing import (ROOT, contents, in_process, published, small_corpus, tiny_gpt,
                             weights)

UPDATES = 20


def examples():
    """More than 20 updates of 3 examples; the last batch has fewer than there are processes."""
    rng = random.Random(0)
    return [([rng.randrange(23) for _ in range(rng.randint(4, 30))], rng.randint(1, 3))
            for _ in range(3 * UPDATES + 1)]


class Stopped(Exception):
    """Training has been interrupted after some updates."""


class Interrupted(Progress):
    """Progress that saves at every update and ends the training at the tenth."""

    def __init__(self, path):
        super().__init__(path, -1)

    def save(self, losses, *parts):
        super().save(losses, *parts)
        if len(losses) == 10:
            raise Stopped


def trained(lora, progress=None):
    """(losses, {name: weight} or None) of a tiny model, in as many processes as there are."""
    model = tiny_gpt(seed=1, tie_word_embeddings=bool(lora))
    if lora:
        add_lora(model, lora, torch.Generator().manual_seed(0))
    parallel.shard(model, full=not lora)
    losses = train(model, examples(), 3, adamw(model, 0.01), random.Random(0), "test", 2, 1.0,
                   progress)
    model = whole_model(model, lora)
    return losses, model and {name: weight.tolist() for name, weight in model.named_parameters()}


def interrupted(lora, path):
    try:
        trained(lora, Interrupted(path))
    except Stopped:
        return
    raise AssertionError("it was not interrupted")


def in_two_processes(folder):
    """What each of two processes does: trains, resumes what one began, and begins for one."""
    with plain_errors("test"), parallel.processes("cpu"):
        found = {str(lora): [trained(lora), trained(lora, Progress(folder / f"one-{lora}.pt", 1e9))]
                 for lora in (0, 2)}
        for lora in (0, 2):
            interrupted(lora, folder / f"two-{lora}.pt")
        print("said by rank 0")
        if parallel.rank() == 0:
            (folder / "found.json").write_text(json.dumps(found))


def dies(folder):
    """Rank 1 is killed during training, without a word."""
    class Killed(Progress):
        def save(self, losses, *parts):
            if parallel.rank() == 1 and len(losses) == 2:
                os._exit(9)

    with plain_errors("test"), parallel.processes("cpu"):
        trained(0, Killed(folder / "killed.pt", 1e9))
        print("not reached")


def torchrun(*command, processes=2):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc_per_node={processes}", *map(str, command)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(what two processes found, their folder, what one process finds)"""
    folder, one = tmp_path_factory.mktemp("two"), {lora: trained(lora) for lora in (0, 2)}
    for lora in (0, 2):
        interrupted(lora, folder / f"one-{lora}.pt")
    done = torchrun(__file__, "in_two_processes", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("said by rank 0") == 1
    return json.loads((folder / "found.json").read_text()), folder, one


def close(a, b):
    """Whether two results of `trained` agree: losses within 1e-4, weights within 1e-3."""
    assert len(a[0]) == len(b[0]) > UPDATES
    assert a[0] == pytest.approx(b[0], abs=1e-4)
    assert a[1].keys() == b[1].keys()
    for name, weight in a[1].items():
        assert np.abs(np.subtract(weight, b[1][name])).max() < 1e-3, name
    return True


@pytest.mark.parametrize("lora", [0, 2])
def test_two_processes_learn_what_one_does(two, lora):
    found, _, one = two
    assert close(found[str(lora)][0], one[lora])
    assert one[lora][0][-1] < one[lora][0][0] - 0.3


@pytest.mark.parametrize("lora", [0, 2])
def test_training_resumes_with_another_number_of_processes(two, lora):
    found, folder, one = two
    assert close(found[str(lora)][1], one[lora])
    assert close(trained(lora, Progress(folder / f"two-{lora}.pt", 1e9)), one[lora])
    [begun] = [torch.load(folder / f"two-{lora}.pt", weights_only=True)["losses"]]
    assert len(begun) == 10


def test_a_process_that_dies_ends_all_with_one_sentence(tmp_path):
    done = torchrun(__file__, "dies", tmp_path)
    assert done.returncode and "not reached" not in done.stdout
    said = [line for line in done.stderr.splitlines() if line.startswith("test: ")]
    assert len(said) == 1 and "another process has ended" in said[0]


def test_finetune_makes_the_same_files_with_two_processes(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    small_corpus(corpus)
    base = published(tmp_path / "base")
    flags = ["finetune", "--model", base, "--corpus", corpus, *FINETUNE, "--out"]
    status, alone, stderr = in_process(*flags, tmp_path / "one")
    assert status == 0, stderr
    done = torchrun("empower.py", *flags, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert "in each process" in done.stdout
    assert done.stdout.count("Did it learn to stop?") == 1
    assert contents(tmp_path / "one").keys() == contents(tmp_path / "two").keys()
    difference = (weights(tmp_path / "one") - weights(tmp_path / "two")).abs().max()
    assert 0 < difference < 1e-3
    again = torchrun("empower.py", *flags, tmp_path / "two")
    assert again.returncode == 0 and again.stdout.count("is finished") == 1


def test_a_wrong_flag_is_reported_once(tmp_path):
    done = torchrun("empower.py", "finetune", "--model", tmp_path, "--corpus", "none", "--out",
                    tmp_path / "out")
    assert done.returncode and done.stderr.count("there is no none") == 1


def test_every_process_gets_equally_many_micro_batches(monkeypatch):
    micro = [(torch.full((1, 3), k), torch.full((1, 3), k)) for k in range(5)]
    assert parallel.mine(micro) == micro
    monkeypatch.setattr(parallel, "size", lambda: 2)
    found = []
    for rank in range(2):
        monkeypatch.setattr(parallel, "rank", lambda: rank)
        found.append(parallel.mine(micro))
    assert [int(ids[0, 0]) for ids, _ in found[0]] == [0, 2, 4]
    assert [int(ids[0, 0]) for ids, _ in found[1]] == [1, 3, 0]
    assert (found[1][2][1] == -100).all() and (micro[0][1] == 0).all()


def test_the_page_has_the_table_of_memory():
    page = (ROOT / "realcode" / "README.md").read_text()
    assert gpus.text() in page
    small, large = (2 * parameter_counts(cfg, 0)[0] / 1e9 for cfg in gpus.MODELS.values())
    assert f"{small:.0f} GB for the 8B and {large:.0f} GB for the 14B" in page


def test_processes_share_the_memory_of_weights():
    cfg = tiny_gpt().config
    one, many = (training_bytes(cfg, micro_batch=1, context=16, processes=n) for n in (1, 10_000))
    model = sum(weight.numel() for weight in tiny_gpt().parameters())
    assert one - many < 16 * model
    assert training_bytes(cfg, processes=4) < training_bytes(cfg, processes=2)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
