"""A digest of a call: of plain data, models, and the code of functions.

A model counts by the name of its stage, and a function by its byte code and that of all project
code it refers to by a name in its file, so an edit on its way changes the digest; imports inside a
function are not followed. Comments and the words of a docstring do not count. Another version of
Python has other byte code.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import re
import sys
import sysconfig
import types
from pathlib import Path

import numpy as np
import tiktoken
import torch

ATOMS = {type(None), bool, int, float, str}
BUILT_IN = (types.BuiltinFunctionType, np.ufunc, type(str.join))


def fingerprint(value):
    """Ten hex digits that change when a value changes, or the code of a function in it."""
    return hashlib.sha256(json.dumps(plain(value, {})).encode()).hexdigest()[:10]


def plain(value, seen):
    """A value as plain data. ValueError: it cannot be told from others of its kind.

    seen: {identity: (number, value)} of what is in the digest already; code may refer to itself.
    """
    if type(value) in ATOMS:
        return value
    if isinstance(value, (list, tuple)):
        if ATOMS.issuperset(map(type, value)):  # often a long list of token ids or costs
            return list(value)
        return [plain(part, seen) for part in value]
    if isinstance(value, dict):
        return ["dict", *([plain(key, seen), plain(part, seen)] for key, part in value.items())]
    if isinstance(value, (set, frozenset)):  # each on its own, since their order is not fixed
        return ["set", *sorted(json.dumps(plain(part, {})) for part in value)]
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return [str(value.dtype), list(value.shape), value.tolist()]
    if isinstance(value, (bytes, complex)):
        return repr(value)
    if id(value) in seen:
        return f"as before {seen[id(value)][0]}"
    seen[id(value)] = len(seen), value  # kept alive, so that no other value gets its identity
    return [type(value).__name__, plain(parts_of(value), seen)]


def parts_of(value):
    """What a model, an object, a function or a class is made of, for `plain`."""
    if isinstance(value, torch.nn.Module):
        return name_of(value), type(value)
    if isinstance(value, tiktoken.Encoding):
        return digest_of_tokenizer(value)
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, types.MethodType):
        return value.__self__, value.__func__
    if isinstance(value, types.CodeType):
        return (value.co_code.hex(), getattr(value, "co_exceptiontable", b"").hex(),
                value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount,
                value.co_flags & 0xC, value.co_varnames[:value.co_argcount], value.co_names,
                constants_of(value))
    if isinstance(value, Path):  # the judge's helper is a script, wherever the project is
        return value.read_text(encoding="utf-8") if value.suffix == ".py" else str(value)
    if isinstance(value, property):
        return value.fget
    if isinstance(value, (staticmethod, classmethod)):
        return value.__func__
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, type):
        return (value.__qualname__, value.__bases__, members_of(value)) if is_ours(value) else \
            value.__qualname__
    if isinstance(value, types.FunctionType):
        return function_parts(value) if is_ours(value) else value.__qualname__
    if hasattr(value, "__wrapped__"):  # what functools.cache makes
        return inspect.unwrap(value)
    if isinstance(value, types.SimpleNamespace):
        return vars(value)
    if dataclasses.is_dataclass(value):
        return type(value), {field.name: getattr(value, field.name)
                             for field in dataclasses.fields(value) if field.compare}
    if is_ours(type(value)):
        return type(value), vars(value)
    if isinstance(value, re.Pattern):
        return value.pattern, value.flags
    if isinstance(value, BUILT_IN):
        return value.__name__, repr(getattr(value, "__self__", None)).split(" at 0x")[0]
    if " at 0x" in repr(value):
        raise ValueError(f"{value!r} cannot be part of a kept call: it may hold anything")
    return type(value).__qualname__, repr(value)


def name_of(model):
    """The name of a model's stage. ValueError: it has none, or was changed since it was loaded."""
    if not getattr(model, "name", None) or any(weight._version for weight in model.parameters()):
        raise ValueError("a model that is in no stage, or was changed since, cannot be part of a "
                         "kept call")
    return model.name, str(model.dtype)


@functools.cache
def digest_of_tokenizer(encoding):
    """A digest of a tiktoken.Encoding."""
    ranks = sorted(encoding._mergeable_ranks.items())
    ends = {name: vars(encoding)[name] for name in ("start", "stops", "found")
            if name in vars(encoding)}
    return hashlib.sha256(repr([type(encoding).__qualname__, encoding._pat_str, ranks,
                                encoding._special_tokens, ends]).encode()).hexdigest()


def function_parts(function):
    """The code of a project function, its defaults, and what it takes along or refers to."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    wrapped = getattr(function, "__wrapped__", None)
    return (function.__code__, cells, function.__defaults__, function.__kwdefaults__,
            named_in(function), wrapped)


def members_of(cls):
    """{name: method, property or constant} of a project class."""
    return {name: part for name, part in vars(cls).items()
            if not name.startswith("__") or isinstance(part, types.FunctionType)}


def is_ours(part):
    """Whether a function, class or module is of the project or of the user's own file or prompt."""
    if getattr(part, "__module__", None) == "__main__":
        return True
    module = part if isinstance(part, types.ModuleType) else sys.modules.get(part.__module__)
    file = part.__code__.co_filename if isinstance(part, types.FunctionType) else getattr(
        module, "__file__", None) or "<built in>"
    return not (file.startswith(("<", sysconfig.get_path("stdlib")))
                or "site-packages" in file or "dist-packages" in file)


def constants_of(code):
    """The constants in a code object, without the docstring."""
    documented = (code.co_flags & 0x4000000 if sys.version_info >= (3, 13)
                  else not code.co_name.startswith("<"))
    first = code.co_consts[:1]
    return code.co_consts[1:] if documented and first and isinstance(first[0], str) \
        else code.co_consts


def named_in(function):
    """{name: value} of the globals that a function refers to, also as module.name."""
    names, pending, scope = set(), [function.__code__], function.__globals__
    while pending:
        code = pending.pop()
        names.update(code.co_names)
        pending += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    found = {name: scope[name] for name in sorted(names & scope.keys())}
    for name, value in found.items():
        if isinstance(value, types.ModuleType) and is_ours(value):
            found[name] = {part: vars(value)[part] for part in sorted(names & vars(value).keys())}
    return found
