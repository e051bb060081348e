"""The command line: flags from a dataclass, one-sentence errors, the device, and the seeds."""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import math
import os
import platform
import random
import sys
import time
import types

import numpy as np
import torch
from tqdm import tqdm


class UserError(ValueError):
    """Bad user input; the message says how to fix it."""


def checked(work, *arguments):
    """Calls work(*arguments) on user input; an error in it becomes a UserError."""
    try:
        return work(*arguments)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(str(error)) from None


# ------------------------------------------------------------------- settings


def flag(default, help, least=None, most=None, positional=False):
    """A field of a settings dataclass, and the command-line flag that sets it.

    help: what it means, with its unit. With `most`, the range is (least, most]; without it,
    value >= least.
    """
    return dataclasses.field(default=default, metadata={
        "help": help, "least": least, "most": most, "positional": positional})


def check_ranges(cfg):
    """Raises a UserError if a number in a settings dataclass is out of range."""
    if getattr(cfg, "width", 32) % 32:
        raise UserError(f"--width is {cfg.width}: give a multiple of 32, the size of a head")
    for field in dataclasses.fields(cfg):
        value, name = getattr(cfg, field.name), spelled(field)
        least, most = field.metadata["least"], field.metadata["most"]
        if None in (value, least):
            continue
        if most is None and not least <= value < math.inf:
            raise UserError(f"{name} is {value}: give a finite number of at least {least}")
        if most is not None and not least < value <= most:
            raise UserError(f"{name} is {value}: give a number above {least} and at most {most}")


def spelled(field):
    """The flag of a field. Example: the field sft_lr becomes --sft-lr."""
    return f"--{field.name.replace('_', '-')}"


def only(cfg, *names):
    """Some of the settings: a function that is given these can depend on no others."""
    return types.SimpleNamespace(**{name: getattr(cfg, name) for name in names})


def bar(items, label, total=None):
    """The items behind a progress bar, for total of them where `items` has no length."""
    return tqdm(items, label, total, leave=False, disable=None)


# ------------------------------------------------------------------- seeds


def derived_seed(seed, purpose):
    """A seed for each purpose, so that no stage depends on what ran before it."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def torch_generator(cfg, purpose, device):
    """A torch.Generator on `device`, seeded by cfg.seed for one purpose."""
    return torch.Generator(device).manual_seed(derived_seed(cfg.seed, purpose))


def numpy_generator(cfg, purpose):
    """A numpy Generator, seeded by cfg.seed for one purpose."""
    return np.random.default_rng(derived_seed(cfg.seed, purpose))


def python_generator(cfg, purpose):
    """A random.Random, seeded by cfg.seed for one purpose."""
    return random.Random(derived_seed(cfg.seed, purpose))


# ------------------------------------------------------------------- the machine


def pick_device(name):
    """The torch device with this name; "auto" is CUDA, else MPS, else the CPU."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
               "cpu": True}
    if name == "auto":
        return next(device for device, is_there in present.items() if is_there)
    try:
        if torch.empty(1, device=name).device.type != "meta":
            return name
    except (RuntimeError, AssertionError):  # AssertionError: torch was built without CUDA
        pass
    raise UserError(f"--device {name} is not available on this machine: choose from "
                    + ", ".join(device for device, is_there in present.items() if is_there))


def device_name(device):
    """The device and, for a GPU of CUDA, its name. Example: "cuda (NVIDIA H100 80GB HBM3)"."""
    cuda = str(device).startswith("cuda")
    return f"{device} ({torch.cuda.get_device_name(device)})" if cuda else str(device)


def environment(device):
    """What a result depends on besides its settings, as plain data."""
    return {"python": platform.python_version(), "torch": torch.__version__,
            "device": device_name(device), "threads": torch.get_num_threads(),
            "platform": platform.platform()}


def describe(cfg, model, device):
    """Prints the size of the model and where it runs, before any long work."""
    print(f"A GPT of {sum(p.numel() for p in model.parameters()):,} parameters, seed {cfg.seed}, "
          f"device {device_name(device)}, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}, output in {cfg.out}")


# ------------------------------------------------------------------- commands


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, with exit status 2."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        self.exit(2, f"{self.prog.split()[0]}: {message}; see --help\n")


# Other commands than the experiment. A module has a `Config` and a function with the command's
# name, and is imported when it is asked for.
COMMANDS = {"show": "realcode.show", "suggest": "realcode.suggest", "replay": "realcode.replay",
            "finetune": "realcode.finetune", "convert": "realcode.convert",
            "collect": "section5.collect", "play": "section5.play", "page": "page.server"}


def parse(argv, config, command):
    """(function, its settings) for a command line; config, command: if it names no other."""
    argv, name = list(sys.argv[1:] if argv is None else argv), ""
    description, epilog = command.__doc__, ("Other commands, each with its own --help: "
                                            f"{', '.join(COMMANDS)}.")
    if argv and argv[0] in COMMANDS:
        name, epilog = argv.pop(0), None
        try:
            module = importlib.import_module(COMMANDS[name])
        except ModuleNotFoundError as error:
            if not COMMANDS[name].startswith(str(error.name)):
                raise
            raise UserError(f"this copy has no {error.name}/: {name} is in the whole project") \
                from None
        config, command = module.Config, getattr(module, name)
        description = command.__doc__
    elif argv and not argv[0].startswith("-"):
        raise UserError(f"there is no command {argv[0]!r}: choose from {', '.join(COMMANDS)}, or "
                        "give none")
    parser = Parser(prog=f"empower.py {name}".strip(), description=description, epilog=epilog)
    for field in dataclasses.fields(config):
        add_flag(parser, field)
    given = vars(parser.parse_args(argv))
    if not name and "turn_tokens" in given and "rounds" not in given:
        print(f"empower.py: --turn-tokens {given['turn_tokens']} without --rounds changes how much "
              f"she can type in all: with --rounds "
              f"{round(config.turn_tokens * config.rounds / max(1, given['turn_tokens']))} it "
              "stays the same", file=sys.stderr)
    return command, config(**given)


def add_flag(parser, field):
    """Adds the flag of one field to a parser; if it is not given, the field keeps its default."""
    text = field.metadata["help"]
    if field.default not in (None, "", ()) and field.default is not False:
        text += f" (default: {field.default})"
    options = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
    options |= ({"action": "store_true"} if field.type is bool else
                {"nargs": "+", "action": "extend"} if field.type is tuple else {"type": field.type})
    if field.metadata["positional"]:
        parser.add_argument(field.name, metavar=field.name.upper(), **options)
    else:
        parser.add_argument(spelled(field), dest=field.name, **options)


def is_out_of_memory(error):
    """Whether this is what Python, CUDA, MPS or the CPU say when there is too little memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in str(error)
        for words in ("out of memory", "allocate memory", "Invalid buffer size"))


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


def remedy(error):
    """What to do about a fact that the training or the scoring of a model has found."""
    return "give a smaller learning rate" if "loss" in str(error) else (
        "give --dtype float32, or another model if its weights have that type: it may be damaged "
        "or was trained at too large a rate")


@contextlib.contextmanager
def plain_errors(program):
    """Ends the process without a traceback: status 2 after a user error, 130 after Ctrl-C."""
    def stop(status, sentence):
        if os.environ.get("RANK", "0") != "0":
            # What ends all processes is said by the first, after which torchrun ends this one.
            time.sleep(3 if status == 2 else 40)
        print(f"{program}: {sentence}", file=sys.stderr)
        sys.exit(status)

    if hasattr(sys.stdout, "reconfigure"):
        # A terminal that lacks ┃ shows ? instead, and a log grows line by line.
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    try:
        yield
    except UserError as error:
        stop(2, error)
    except ArithmeticError as error:
        if type(error) is not ArithmeticError:  # a division by zero is a fault of ours
            raise
        stop(2, f"{error}: {remedy(error)}")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, NotImplementedError) and str(error).startswith("exercise "):
            stop(2, error)  # in a copy that course/stubs.py has made
        if not is_out_of_memory(error):
            raise
        stop(2, f"out of memory ({(str(error) or 'MemoryError').splitlines()[0]}): choose smaller "
                "sizes, or use --context, --micro-batch and --recompute if the command has them")
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        stop(2, f"{error}; finished stages are kept, run again once this is fixed")
    except KeyboardInterrupt:
        print(file=sys.stderr)
        stop(130, "interrupted; finished stages are kept, run again to go on")
