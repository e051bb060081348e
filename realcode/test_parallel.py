"""Tests of training with several processes: two on the CPU, or on GPUs where there are any."""

import functools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import empower
from empower import train
from fixtures import compare
from realcode import gpus, parallel
from realcode.finetune import whole_model
from realcode.lora import add_lora
from realcode.memory import parameter_counts, training_bytes
from realcode.test_finetune import FINETUNE
from realcode.training import Progress, gradient, recomputing, train_and_save
from support.cli import plain_errors
from support.optim import adamw
from support.test_helpers import (ROOT, contents, forked, in_process, published, small_corpus,
                                  tiny_gpt, weights)

UPDATES = 20


def examples():
    """More than 20 updates of 3 examples; the last batch has fewer than there are processes."""
    rng = random.Random(0)
    return [([rng.randrange(23) for _ in range(rng.randint(4, 30))], rng.randint(1, 3))
            for _ in range(3 * UPDATES + 1)]


class Interrupted(Progress):
    """Progress that saves the tenth update and ends the training, as after Ctrl-C."""

    def save(self, losses, *parts, last=False):
        self.interrupted = len(losses) == 10
        super().save(losses, *parts, last=last)


# (rank of LoRA or 0, tied, type of the base, recompute)
KINDS = {"all, tied": (0, True, torch.float32, True),
         "LoRA, bfloat16": (2, False, torch.bfloat16, False)}


def trained(kind, progress=None, device="cpu"):
    """(losses, {name: weight} or None) of a tiny model, in as many processes as there are."""
    lora, tied, dtype, recompute = KINDS[kind]
    model = tiny_gpt(seed=1, tie_word_embeddings=tied).to(device, dtype)
    if lora:
        add_lora(model, lora, torch.Generator().manual_seed(0))
    parallel.shard(model, full=not lora)
    work = model, examples(), 3, adamw(model, 0.01), random.Random(0)
    options = {"micro_batch": 2, "clip": 1.0}
    with recomputing(model, recompute):
        losses = train_and_save(*work, "test", progress, **options) if progress else list(
            train(*work, functools.partial(gradient, **options)))
    model = whole_model(model, lora, dtype)
    return losses, model and {name: weight.tolist() for name, weight in model.named_parameters()}


def interrupted(kind, path):
    with pytest.raises(KeyboardInterrupt):
        trained(kind, Interrupted(path, 1e9))


def in_two_processes(folder):
    """What each of two processes does: trains, resumes what one began, and begins for one."""
    with plain_errors("test"), parallel.processes("cpu"):
        found = {kind: [trained(kind), trained(kind, Progress(folder / f"one-{kind}.pt", 1e9))]
                 for kind in KINDS}
        for kind in KINDS:
            interrupted(kind, folder / f"two-{kind}.pt")
        found["bytes"] = held_bytes()
        print("said by rank 0")
        if parallel.rank() == 0:
            (folder / "found.json").write_text(json.dumps(found))


def on_gpus(folder):
    """What each of two processes does with a GPU, of its own or shared."""
    with plain_errors("test"), parallel.processes("cuda") as device:
        found = {kind: trained(kind, device=device) for kind in KINDS}
        if parallel.rank() == 0:
            (folder / "found.json").write_text(json.dumps(found))


def held_bytes():
    """What this process holds of weights, gradients and optimizer after an update, in bytes."""
    model = tiny_gpt()
    parallel.shard(model, full=True)
    [optimizer] = adamw(model, 0.01)
    for _ in range(2):
        ids = torch.zeros(1, 8, dtype=torch.long)
        model.hidden(ids).sum().backward()
        optimizer.step()
    kept = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    for weight in model.parameters():
        kept += [weight.detach()] + [weight.grad] * (weight.grad is not None)
    return sum((tensor.to_local() if hasattr(tensor, "to_local") else tensor).nbytes
               for tensor in kept)


def dies(folder):
    """The second process is killed during training, without a word."""
    class Killed(Progress):
        def save(self, losses, *parts, last=False):
            if len(losses) == 2 and parallel.rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    with plain_errors("test"), parallel.processes("cpu"):
        trained("all, tied", Killed(folder / "killed.pt", 1e9))
        print("not reached")


def torchrun(*command, flags=("--standalone", "--nproc_per_node=2"), **environment):
    """A finished run of torchrun: its status, output and errors."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *flags, *map(str, command)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment})


def on_two_machines(*command):
    """Two finished runs of torchrun at once, as on two machines with a GPU each.

    NCCL_HOSTID makes NCCL see two machines, so the processes may share a GPU.
    """
    def on_machine(k):
        return torchrun(*command, flags=(
            "--nnodes=2", f"--node-rank={k}", "--nproc_per_node=1", "--master-addr=127.0.0.1",
            f"--master-port={port}"), NCCL_HOSTID=f"machine {k}", NCCL_SOCKET_IFNAME="lo")

    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(on_machine, range(2)))


def as_rank(rank, port, work, arguments):
    """What torchrun does to start a process."""
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                       "TORCHELASTIC_RUN_ID": "test"})
    work(*arguments)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_two(folder, work, *arguments):
    """Work in two processes that are one run, as with torchrun: what `forked` returns."""
    port = free_port()
    return forked(folder, as_rank, [(rank, port, work, arguments) for rank in range(2)])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(what two processes found, their folder, what one process finds)"""
    folder, one = tmp_path_factory.mktemp("two"), {kind: trained(kind) for kind in KINDS}
    for kind in KINDS:
        interrupted(kind, folder / f"one-{kind}.pt")
    statuses, stdout, stderr = in_two(folder, in_two_processes, folder)
    assert statuses == [0, 0], stderr
    assert stdout.count("said by rank 0") == 1
    return json.loads((folder / "found.json").read_text()), folder, one


def close(a, b):
    """Whether two results of `trained` agree: losses within 2e-3, weights within 1e-3."""
    assert len(a[0]) == len(b[0]) > UPDATES
    assert a[0] == pytest.approx(b[0], abs=2e-3)  # sums of bfloat16 in another order
    assert a[1].keys() == b[1].keys()
    for name, weight in a[1].items():
        assert np.abs(np.subtract(weight, b[1][name])).max() < 1e-3, name
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does(two, kind):
    found, _, one = two
    assert close(found[kind][0], one[kind])
    assert np.mean(one[kind][0][-10:]) < np.mean(one[kind][0][:10]) - 0.1


@pytest.mark.parametrize("n", [1, 2])
def test_two_processes_learn_on_gpus_what_one_does(tmp_path, n):
    """FSDP computes all in bfloat16, autocast keeps sums in float32: losses differ somewhat."""
    if torch.cuda.device_count() < n:
        pytest.skip(f"needs {n} CUDA GPUs")
    command = __file__, "on_gpus", tmp_path
    for done in on_two_machines(*command) if n == 1 else [torchrun(*command)]:
        assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    for kind in KINDS:
        alone, on_cpu = (trained(kind, device=device) for device in ("cuda", "cpu"))
        assert alone[0] == pytest.approx(on_cpu[0], rel=0.05)
        assert found[kind][0] == pytest.approx(alone[0], rel=0.05)
        assert found[kind][1].keys() == alone[1].keys()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_more_processes_than_gpus_are_refused(tmp_path):
    many = torch.cuda.device_count() + 1
    done = torchrun("empower.py", "finetune", "--model", tmp_path, "--corpus", "none", "--out",
                    tmp_path / "out", flags=("--standalone", f"--nproc_per_node={many}"))
    assert done.returncode and "give a smaller --nproc_per_node" in done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_training_resumes_with_another_number_of_processes(two, kind):
    found, folder, one = two
    assert close(found[kind][1], one[kind])
    path = folder / f"two-{kind}.pt"
    assert len(torch.load(path, weights_only=True)["losses"]) == 10
    for _ in range(2):  # what was interrupted, and what had ended
        assert close(trained(kind, Progress(path, 1e9)), one[kind])
        assert len(torch.load(path, weights_only=True)["losses"]) == len(one[kind][0])


def test_each_process_holds_its_part(two):
    """Weights, gradients and AdamW: 16 bytes a parameter, divided; the estimate counts the same."""
    whole, cfg = held_bytes(), tiny_gpt().config
    assert whole == 16 * sum(weight.numel() for weight in tiny_gpt().parameters())
    assert two[0]["bytes"] == pytest.approx(whole / 2, rel=0.05)  # rows that do not divide evenly
    assert two[0]["bytes"] == pytest.approx(16 * parameter_counts(cfg, 0)[0] / 2, rel=0.05)
    many = [training_bytes(cfg, micro_batch=1, context=16, processes=n) for n in (2, 4, 8)]
    assert many[0] - many[1] == pytest.approx(2 * (many[1] - many[2]))
    assert many[0] - many[1] == pytest.approx(two[0]["bytes"] / 2, rel=0.05)


def test_a_process_that_dies_ends_all(tmp_path):
    done = torchrun(__file__, "dies", tmp_path)
    assert done.returncode and "not reached" not in done.stdout
    assert "SIGKILL" in done.stderr  # torchrun's report
    said = [line for line in done.stderr.splitlines() if line.startswith("test: ")]
    assert len(said) <= 1 and all("another process has ended" in line for line in said)


def test_finetune_makes_the_same_files_on_two_machines(tmp_path):
    (tmp_path / "corpus").mkdir()
    base, corpus = published(tmp_path / "base"), small_corpus(tmp_path / "corpus")
    flags = ["finetune", "--model", base, "--corpus", corpus, *FINETUNE, "--out"]
    status, _, stderr = in_process(*flags, tmp_path / "one")
    assert status == 0, stderr
    first, second = on_two_machines("empower.py", *flags, tmp_path / "two")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "in each process" in first.stdout and "has no room" not in first.stdout
    for text in ("Did it learn to stop?", "The checkpoint is in", " updates; loss from"):
        assert first.stdout.count(text) == 1, text
    assert second.stdout == ""
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    assert {name for name in one if one[name] != two[name]} <= {"model.safetensors", "check.txt"}
    # AdamW can make a whole step of the last bit of a gradient near 0.
    assert (weights(tmp_path / "one") - weights(tmp_path / "two")).abs().max() < 3e-3
    status, again, _ = in_process(*flags, tmp_path / "two")  # the inputs are the same too
    assert status == 0 and "is finished" in again


def test_a_wrong_flag_is_reported_once(tmp_path):
    statuses, _, stderr = in_two(tmp_path, empower.main, [
        "finetune", "--model", str(tmp_path), "--corpus", "none", "--device", "cpu",
        "--out", str(tmp_path / "out")])
    assert all(statuses) and stderr.count("there is no none") == 1


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
    for cfg, least in zip(gpus.MODELS.values(), (19, 35)):  # the whole model, and a fifth more
        assert round(1.2 * 2 * parameter_counts(cfg, 0)[0] / 1e9) == least
        assert round(gpus.gigabytes(cfg, 16, 8)) == least


def test_what_is_announced_is_near_to_what_was_measured_on_gpus():
    """The table of fixtures/README.md: today's estimate, a little above what tensors took."""
    rows = re.findall(r"^\| ([^|]+\d[BM]) +\| +(\d) \| +([^|]+) \| +(\d) \| +(yes|no) "
                      r"\| +([\d.]+) GB \| +([\d.]+) GB \| +([\d.]+) GB \|", (
                          ROOT / "fixtures" / "README.md").read_text(), re.MULTILINE)
    cases = compare.CASES
    assert len(rows) == len(cases) + 3
    for name, processes, trained, examples, recompute, announced, taken, reserved in rows:
        case = name, int(trained.partition("rank ")[2] or 0), int(examples), recompute == "yes"
        assert case in cases
        estimate = training_bytes(compare.SHAPES[name], case[1], 2, case[2],
                                  compare.TOKENS, case[3], 2, int(processes)) / 1e9
        assert f"{estimate:.1f}" == announced
        assert 1 <= estimate / float(taken) < 1.15 and float(reserved) / estimate < 1.3, name


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
