"""Several processes for one fine-tuning, started by torchrun, each with a part of model and data.

    torchrun --nproc_per_node=8 empower.py finetune --model DIR --corpus PATH --out DIR2

PyTorch's FSDP2 keeps a part of every weight, gradient and optimizer state in each process and
gathers a layer only while it is used. All processes draw the same batches and each takes a part of
every one; rank 0 prints, and writes the files of a single process. With one process, every function
here does nothing.
"""

import contextlib
import datetime
import math
import os
import sys

import torch
import torch.distributed as dist

from support.cli import UserError, pick_device

# ------------------------------------------------------------------- the processes


def size():
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextlib.contextmanager
def processes(device):
    """Joins the other processes, if torchrun started this one; yields this process's device.

    device: as in --device. Only rank 0 prints to stdout and shows bars.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield pick_device(device)
        return
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device is {device}: with torchrun give cpu or cuda")
    if device == "cuda" or device == "auto" and gpus:
        if local >= gpus:
            raise UserError(f"torchrun started process {local + 1} on a machine with {gpus} GPUs: "
                            "give a smaller --nproc_per_node")
        torch.cuda.set_device(local)  # before anything is put on the first one
        device = f"cuda:{local}"
    else:
        device = "cpu"
    # A process that dies is noticed by torchrun; one that waits for another run may wait long.
    dist.init_process_group(
        "gloo" if device == "cpu" else "nccl", timeout=datetime.timedelta(30),
        device_id=None if device == "cpu" else torch.device(device))
    try:
        with contextlib.ExitStack() as silence:
            if rank():
                silence.enter_context(contextlib.redirect_stdout(silence.enter_context(
                    open(os.devnull, "w"))))
                silence.enter_context(contextlib.redirect_stderr(NoTerminal(sys.stderr)))
            yield device
        wait()
    except RuntimeError as error:
        if not any(word in str(error) for word in ("gloo", "NCCL", "Socket")):
            raise
        raise UserError("another process has ended, or cannot be reached "
                        f"({str(error).splitlines()[0][:150]}); if it printed nothing, torchrun "
                        "says which. The same command goes on from the last saved state") from None
    dist.destroy_process_group()


class NoTerminal:
    """A file on which tqdm shows no bars."""

    def __init__(self, file):
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def isatty(self):
        return False


def wait():
    """Waits until every process is here."""
    if size() > 1:
        dist.barrier()


def by_rank_0(work, *arguments):
    """work(*arguments), done by rank 0; every process returns its result, which is plain data."""
    result = [work(*arguments) if rank() == 0 else None]
    if size() > 1:
        dist.broadcast_object_list(result)
    return result[0]


def total(value):
    """The sum of a number over the processes."""
    if size() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    number = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(number)
    return number.item()


# ------------------------------------------------------------------- data and weights


def share(examples):
    """The largest share of a batch that one process gets, in examples."""
    return math.ceil(examples / size())


def mine(micro):
    """This process's part of the micro-batches (ids, labels, ...) of an update.

    Layers are gathered together, so all processes need equally many. One that has run out repeats a
    micro-batch without its labels.
    """
    ids, labels, *others = micro[0]
    some = micro[rank()::size()] + [(ids, torch.full_like(labels, -100), *others)]
    return some[:share(len(micro))]


def shard(model, full):
    """Spreads the weights of a GPT over the processes, in place; on CUDA it computes in bfloat16.

    full: all weights are trained, so they become float32, a layer at a time.
    """
    if size() == 1:
        return model.float() if full else model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (MixedPrecisionPolicy, fully_shard,
                                        register_fsdp_forward_method)
    mesh = init_device_mesh(model.device.type, (size(),))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) \
        if model.device.type == "cuda" else MixedPrecisionPolicy()
    for part in (model.embed_tokens, model.norm, model.lm_head, *model.layers):
        if full:
            part.float()
        if part in model.layers:
            fully_shard(part, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)  # the embedding, the norm and the head
    register_fsdp_forward_method(model, "hidden")
    return model


def whole(tensor):
    """The whole of a tensor that is spread over the processes; all of them must ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def spread_like(tensor, weight):
    """A whole tensor, the same in every process, spread over them as `weight` is."""
    if not hasattr(weight, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(tensor.to(weight.device, weight.dtype), weight.device_mesh,
                             weight.placements, src_data_rank=None)
