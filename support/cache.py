"""Keeps finished work in a folder: made once, and again when its inputs or its code change.

Each stage is a folder OUT/stages/NAME-KEY. The key is a digest of the inputs and of the code that
makes the stage: the syntax trees, without comments and docstrings, of the function `make`, of what
else the caller names, and of all project code that they refer to. So editing the GPT, the game or
the trainer changes the next run, and editing a comment does not.

A stage is written under a temporary name, unique to its process, and then moved into place. If two
runs make the same stage at the same time, the first to finish wins and the other uses its result.
After `kill -9` a stage is either complete or missing.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pickle
import shutil
import signal
import time
from pathlib import Path
from typing import NamedTuple

import torch

import data
from model import GPT
from support import parallel
from support.checkpoint import tokenizer_files
from support.cli import UserError, is_out_of_memory
from support.files import remove_leftovers, temporary_name, write_text
from support.gguf_file import is_gguf, load_gguf, write_folder_files
from support.source import FUNCTIONS, code_of, fingerprint, held, is_object, unwrapped

VERSION = 3  # of the layout of --out; a folder written by another version is refused


class Cache:
    """The finished stages in the folder `out`. A UserError says why a folder cannot be used."""

    def __init__(self, out, device="cpu"):
        self.out, self.device = Path(out), device
        open_folder(self.out)
        self.stages = self.out / "stages"
        costs = self.stages.glob("costs-*")
        for folder in (self.out, self.stages, self.out / "transcripts", *costs):
            remove_leftovers(folder)

    def data(self, name, inputs, make, code=()):
        """The plain data that make() returns, kept as JSON, or what an earlier run kept.

        inputs: plain data that identifies this stage. code: the functions, classes and modules
        that make() uses without naming them.
        """
        folder = self._folder(name, inputs, make, code)
        if not folder.exists():
            begin, value = time.time(), make()
            self._keep(folder, name, inputs, begin, lambda new: write_text(
                new / "value.json", json_rows(value)))
        with reading(folder):
            return json.loads((folder / "value.json").read_text(encoding="utf-8"))

    def model(self, name, inputs, make, code=()):
        """The Checkpoint of the (model, tokenizer source) that make() returns, or a kept one.

        The source is a data.Tokenizer, or a Checkpoint whose tokenizer files are copied.
        """
        folder = self._folder(name, inputs, make, code)
        if not folder.exists():
            begin, (model, tokenizer) = time.time(), make()
            self._keep(folder, name, inputs, begin, lambda new: save_checkpoint(
                model, tokenizer, new))
        with reading(folder):
            return load_checkpoint(folder, self.device, name=folder.name)

    def _folder(self, name, inputs, make, code):
        """The folder of a stage, whether it exists or not."""
        folder = self.stages / f"{slug(name)}-{fingerprint([inputs, code_of(*code, make=make)])}"
        if folder.exists():
            print(f"  {name}: reused from {folder}")
        return folder

    def _keep(self, folder, name, inputs, begin, save):
        """Writes a stage with save(new folder), unless another run was faster."""
        new = temporary_name(folder)
        new.mkdir(parents=True)
        try:
            save(new)
            write_text(new / "inputs.json", json.dumps(inputs, indent=2) + "\n")
            if not folder.exists():
                os.rename(new, folder)
        except OSError:
            if not folder.exists():  # otherwise another run has made it in the meantime
                raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
        print(f"  {name}: {time.time() - begin:.0f} s, kept in {folder}")


def open_folder(out):
    """Creates the folder of a run; refuses one that is not empty and was not written by a run."""
    mark = out / "version"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not mark.exists():
            # Unfinished files, and folders of other runs inside this one, are ours.
            foreign = [path for path in out.iterdir()
                       if path.suffix != ".tmp" and not (path / "stages").is_dir()]
            if foreign and not mark.exists():
                raise UserError(f"--out {out} is not empty and was not written by this program (it "
                                f"holds {foreign[0].name}): choose a new or empty folder")
            write_text(mark, f"{VERSION}\n")
        found = mark.read_text().strip()
    except UnicodeError:
        found = "unknown"
    except OSError as error:
        raise UserError(f"cannot write to --out {out} ({error.strerror}): choose another folder") \
            from None
    if found != str(VERSION):
        raise UserError(f"{out} was written by version {found} of this program, but this is "
                        f"version {VERSION}: choose another --out or remove that folder")


@contextlib.contextmanager
def reading(path):
    """Turns an error in reading a finished stage into one sentence that says how to fix it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError,
            EOFError) as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        raise UserError(f"{path} cannot be read ({error}): remove it and run again; only this "
                        "stage is remade") from None


def json_rows(value):
    """Plain data as JSON; a list has one element per line, for easy reading and searching."""
    if not isinstance(value, list):
        return json.dumps(value, indent=2) + "\n"
    return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]\n"


def plain_fields(player):
    """The fields of a dataclass as inputs of a stage, as in `as_inputs`."""
    return as_inputs({field.name: getattr(player, field.name)
                      for field in dataclasses.fields(player)})


def as_inputs(value, around=()):
    """A value as plain data: models and functions by name, with what the functions take along.

    around: the identities of what it is a part of; one that holds itself is not followed again.
    """
    value = unwrapped(value)
    if value is None or isinstance(value, (bool, int, float, str)) or id(value) in around:
        return value if id(value) not in around else "itself"
    inner = functools.partial(as_inputs, around=(*around, id(value)))
    if isinstance(value, dict):
        return {str(key): inner(some) for key, some in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(inner, value))
    if hasattr(value, "tolist"):  # of numpy and torch
        return value.tolist()
    name = getattr(value, "name", None) if hasattr(value, "parameters") else None  # of a model
    name = name or getattr(value, "__qualname__", None)
    rest = held(value)
    if isinstance(value, FUNCTIONS) or is_object(value):
        return [name or type(value).__qualname__, *map(inner, rest)] if rest else name
    return name or repr(value)


def slug(name):
    """A row's name as a file name. Example: "Empower (0.32)" -> "empower-0.32"."""
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in name.lower()).split())


# ------------------------------------------------------------------- checkpoints on disk


class Checkpoint(NamedTuple):
    """A language model, its tokenizer, and the folder or GGUF file that both were read from."""

    model: GPT
    encoding: data.Tokenizer
    folder: Path

    @property
    def name(self):
        """Identifies the checkpoint."""
        return self.model.name


def load_checkpoint(folder, device, dtype=None, name=None):
    """The Checkpoint in a folder, ours or of a published family, or in a GGUF file.

    dtype: None for the file's own. name: None for one derived from folder, dtype and files, and
    from the code that reads them.
    FileNotFoundError or ValueError says in one sentence what cannot be used.
    """
    folder = Path(folder)
    if is_gguf(folder):
        (model, encoding), paths = load_gguf(folder, device, dtype), [folder]
    else:
        model, encoding = GPT.from_pretrained(folder, device, dtype), data.load_tokenizer(folder)
        paths = [*folder.glob("*.safetensors"), folder / "config.json", *tokenizer_files(folder)]
    model.eval().writable = encoding.size  # a published model's head has more rows than tokens
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)]
    model.name = name or fingerprint([str(folder.resolve()), str(model.dtype), files,
                                      code_of(load_checkpoint)])
    return Checkpoint(model, encoding, folder)


def save_checkpoint(model, tokenizer, folder):
    """Writes a model and a tokenizer: a data.Tokenizer, or a Checkpoint whose files are copied."""
    model.save_pretrained(folder)
    if isinstance(tokenizer, data.Tokenizer):
        return data.save_tokenizer(tokenizer, folder)
    if is_gguf(tokenizer.folder):
        return write_folder_files(tokenizer.folder, folder)
    for path in tokenizer_files(tokenizer.folder):
        copy_to = Path(folder, path.relative_to(tokenizer.folder))
        copy_to.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy_to)


class Progress:
    """The state of a training in one file, saved every so many seconds, and when it ends.

    Of a model it holds the weights that are trained: with LoRA, not the frozen ones. Another number
    of processes can resume from it.
    """

    def __init__(self, path, seconds):
        self.path, self.seconds, self.saved = Path(path), seconds, time.time()
        self.interrupted = False

    @contextlib.contextmanager
    def saved_on_interrupt(self):
        """Inside, Ctrl-C ends the training after the update at hand and saves it; a second at once.

        torchrun ends its processes in its own way.
        """
        def later(*_):
            self.interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.write(2, b"\nending after this update; Ctrl-C again ends at once\n")

        alone = parallel.size() == 1 and signal.getsignal(
            signal.SIGINT) is signal.default_int_handler
        if alone:
            signal.signal(signal.SIGINT, later)
        try:
            yield
        finally:
            if alone:
                signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.interrupted:  # and no update followed
            raise KeyboardInterrupt

    def load(self, *parts):
        """Restores the state of the parts (model, optimizers, ...); returns the losses so far."""
        if not parallel.by_rank_0(self.path.exists):
            return []
        try:
            state = torch.load(self.path, mmap=True, weights_only=True, map_location="cpu"
                               if parallel.size() > 1 else parts[0].device)
            for part, values in zip(parts, state["parts"], strict=True):
                restore(part, values)
            return state["losses"]
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError,
                pickle.UnpicklingError) as error:
            if is_out_of_memory(error):
                raise
            raise UserError(f"{self.path} cannot be read ({error}): remove it to start training "
                            "from the beginning") from None

    def save(self, losses, *parts, last=False):
        """Saves the state if it is time to, or after Ctrl-C or the last update, all or nothing.

        After the last update, only the weights are needed. Raises KeyboardInterrupt after Ctrl-C.
        """
        if not parallel.by_rank_0(lambda: last or self.interrupted
                                  or time.time() - self.saved > self.seconds):
            return
        state = {"losses": losses, "parts": [
            {} if last and not isinstance(part, torch.nn.Module) else gathered(trained_state(part))
            for part in parts]}
        if parallel.rank() == 0:
            temporary = temporary_name(self.path)
            try:
                torch.save(state, temporary)
                os.replace(temporary, self.path)
            finally:
                temporary.unlink(missing_ok=True)
        self.saved = time.time()
        if self.interrupted:
            raise KeyboardInterrupt


def trained_state(part):
    """The state of an optimizer or schedule, or the weights of a model that are trained."""
    if not isinstance(part, torch.nn.Module):
        return part.state_dict()
    return {name: weight.detach() for name, weight in part.named_parameters()
            if weight.requires_grad}


def gathered(state):
    """A state with whole tensors where they are spread over processes: on the CPU, in rank 0."""
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list):
        return [gathered(value) for value in state]
    if not hasattr(state, "full_tensor"):
        return state
    tensor = parallel.whole(state)
    return tensor.cpu() if parallel.rank() == 0 else None


def restore(part, values):
    """Gives an optimizer, a schedule or a model the state that `trained_state` returned."""
    if not values:  # the training had ended
        return None
    if isinstance(part, torch.nn.Module):
        weights = trained_state(part)
        if values.keys() != weights.keys():
            raise ValueError("it holds the weights of another model")
        return part.load_state_dict({name: parallel.spread_like(value, weights[name])
                                     for name, value in values.items()}, strict=False)
    if isinstance(part, torch.optim.Optimizer):
        weights = [weight for group in part.param_groups for weight in group["params"]]
        values["state"] = {i: {
            name: parallel.spread_like(value, weights[i]) if value.shape == weights[i].shape
            else value for name, value in state.items()} for i, state in values["state"].items()}
    part.load_state_dict(values)
