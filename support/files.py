"""Reading and writing whole files: text, JSON, and tensors in the safetensors format.

A file is written under a temporary name and then moved into place, so a reader finds all of it or
nothing. Reading never runs code. This file imports nothing from the project.
"""

import contextlib
import json
import math
import os
import shutil
import socket
import struct
from pathlib import Path

import numpy as np
import torch

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = "I64", "I32", "I16", "I8", "U8", "BOOL"


def read_bytes(path):
    """The bytes of a file; ValueError for a Git LFS pointer."""
    content = path.read_bytes()
    if content.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is only a Git LFS pointer: fetch the file with git lfs pull")
    return content


def read_text(path):
    """The text of a UTF-8 file, without a byte-order mark; ValueError if it is not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: convert it or copy it again") from None


def read_json(path):
    """The object in a JSON file, {} if there is no file; ValueError if it is damaged."""
    text = read_text(path) if path.exists() else "{}"
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again") from None


def temporary_name(path):
    """A name next to `path` that no other process uses. Example: out/x -> out/x.laptop.4711.tmp."""
    return Path(f"{path}.{socket.gethostname()}.{os.getpid()}.tmp")


@contextlib.contextmanager
def replacing(path):
    """A name under which to write a file or folder, which becomes `path` when it is complete."""
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        remove(temporary)


def remove(path):
    """Removes a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def slug(name):
    """A row's name as a file name. Example: "Empower (0.32)" -> "empower-0.32"."""
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in name.lower()).split())


@contextlib.contextmanager
def locked(path, wait=True):
    """Holds a lock on a file or an existing folder; other processes that ask for it wait.

    The lock ends with the process, however that ends, and stays with a folder that is renamed.
    wait: False raises BlockingIOError if another process has the lock.
    """
    import fcntl  # not on Windows
    held = os.open(path, os.O_RDONLY | (0 if path.is_dir() else os.O_CREAT), 0o644)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            print(f"another run is at work in {path}: waiting for it to end")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def remove_leftovers(folder):
    """Removes unfinished files that dead processes of this machine left directly in a folder."""
    for path in folder.glob(f"*.{socket.gethostname()}.*.tmp"):
        try:
            os.kill(int(path.name.split(".")[-2]), 0)
        except ProcessLookupError:
            remove(path)
        except (OSError, ValueError):
            pass  # another user's process: it is alive


def write_text(path, text):
    """Writes a text file, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_safetensors(path, tensors):
    """{name: tensor} as safetensors: size of the header, header in JSON, little-endian data."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            file.write(raw.numpy().data)


def read_safetensors(path):
    """{name: tensor}, mapped from the file where aligned. ValueError says what is damaged.

    Writing to one of these tensors changes memory, never the file.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, 100_000_000):
            what = ("a Git-LFS pointer" if start == b"version " else
                    "an HTML page" if start.lstrip().startswith(b"<") else
                    f"truncated or not a safetensors file ({size} bytes, header of {length})")
            raise ValueError(f"{path} is {what}: fetch the file itself again")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = [(name, str(e["dtype"]), list(map(count, e["shape"])),
                    *map(count, e["data_offsets"])) for name, e in header.items()]
        sizes = [math.prod(shape) for _, _, shape, _, _ in entries]
        expected = 8 + length + max((end for *_, end in entries), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path} is damaged: its header cannot be read") from None
    if expected != size:
        raise ValueError(f"{path} is truncated or damaged: {size} bytes instead of {expected}")
    data = torch.from_numpy(np.memmap(path, np.uint8, "c"))[8 + length:]
    tensors = {}
    for (name, dtype, shape, begin, end), numbers in zip(entries, sizes):
        if dtype in INTEGERS and not name.endswith((".weight", ".bias")):
            continue  # a buffer, such as position_ids
        if dtype not in DTYPES:
            raise ValueError(f"{path}: {name} is stored as {dtype}; supported: {', '.join(DTYPES)}")
        if not 0 <= begin <= end == begin + numbers * DTYPES[dtype].itemsize:
            raise ValueError(f"{path} is damaged: {name} {shape} {dtype} has {end - begin} bytes")
        raw = data[begin:end]
        aligned = raw if raw.storage_offset() % DTYPES[dtype].itemsize == 0 else raw.clone()
        tensors[name] = aligned.view(DTYPES[dtype]).reshape(shape)
    return tensors


def count(value):
    """A size in the header of a file as it is; ValueError if it cannot be one."""
    if type(value) is not int or not 0 <= value < 2**40:
        raise ValueError(f"{value!r} is not a size")
    return value
