"""A digest of the code that a result depends on, computed from the text of the project's files.

It covers functions, classes and assignments at the top level of a file, but no other statements
there, such as a call that changes a table.
"""

import ast
import functools
import hashlib
import inspect
import json
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def sources(root):
    """{path: text} of the Python files in a folder and its subfolders."""
    return {path: path.read_text(encoding="utf-8", errors="replace")
            for path in [*root.glob("*.py"), *root.glob("*/*.py")]
            if path.is_file() and not path.name.startswith(".")}


# Read when the program starts: edits made while it runs do not affect this run.
SOURCES = sources(ROOT)

FUNCTIONS = functools.partial, types.FunctionType, types.MethodType


def fingerprint(plain):
    """Ten hex digits that change when anything in the plain data changes."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]


def code_of(*parts, make=None):
    """A digest of some functions, classes and modules and of all project code they refer to.

    It is computed only from the text of the files: a name in a function is looked up among the
    definitions and imports of its file, and so on. Methods are found through their class.
    make: a function inside another one, or a lambda; of what surrounds it, nothing counts.
    """
    found, pending = {}, [place_of(part) for some in parts for part in with_held(some) or [some]]
    if make:
        path = Path(make.__code__.co_filename).resolve()
        SOURCES.setdefault(path, path.read_text(encoding="utf-8"))
        pending.append((path, make.__code__.co_firstlineno))
    while pending:
        path, name = pending.pop()
        if (path, name) in found or path not in SOURCES:
            continue
        tree, refers_to = definition(path, name)
        found[path, name] = tree
        pending += refers_to
    return fingerprint(sorted(filter(None, found.values())))  # without paths: code may move


def held(value):
    """What a function takes along: the arguments of a partial, its closure, defaults and `self`.

    For example the limit in a rule of acceptance that was made for it. Of an object: its fields.
    """
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.items()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        cells = [cell for cell in value.__closure__ or () if cell != types.CellType()]  # not empty
        return [*(cell.cell_contents for cell in cells), *(value.__defaults__ or ()),
                *(value.__kwdefaults__ or {}).items()]
    return list(vars(value).items()) if is_object(value) else []


def is_object(value):
    """Whether a value has fields of its own that count: no class or module, array or model."""
    return hasattr(value, "__dict__") and not isinstance(value, (type, types.ModuleType)) \
        and not any(hasattr(value, name) for name in ("tolist", "parameters"))


def unwrapped(value):
    """The function in an lru_cache, for instance; anything else as it is."""
    return value if isinstance(value, FUNCTIONS) else inspect.unwrap(value)


def with_held(part):
    """A function and all functions and objects that it takes along, directly or through others."""
    found, pending = [], [part]
    while pending:
        part = unwrapped(pending.pop())
        if isinstance(part, (list, tuple, set, frozenset, dict)):
            pending += part.values() if isinstance(part, dict) else part
        elif (callable(part) or is_object(part)) and not any(part is other for other in found):
            found.append(part)
            pending += held(part)
    return found


def place_of(part):
    """(file, top-level name) of a function or class; (file, None) for a file or a module.

    (None, None) for what has no source in Python, such as `abs`.
    """
    if isinstance(part, Path):
        return part.resolve(), None
    while hasattr(part, "func") or hasattr(part, "__func__"):  # a partial or a bound method
        part = getattr(part, "func", None) or part.__func__
    if inspect.ismodule(part):
        return Path(part.__file__).resolve(), None
    part = unwrapped(part) if hasattr(part, "__qualname__") else type(part)
    code = getattr(part, "__code__", part)  # functools.wraps gives a wrapper another name
    try:
        path = Path(inspect.getsourcefile(code)).resolve()
    except TypeError:
        return None, None
    name = getattr(code, "co_qualname", part.__qualname__).split(".")[0]
    SOURCES.setdefault(path, path.read_text(encoding="utf-8"))  # for a script outside the project
    return path, name if name in names_in(path) else None


@functools.lru_cache(maxsize=None)
def definition(path, name):
    """(the dumped syntax tree of `name` in a file, the places that it refers to).

    name: of a definition at the top level, None for the whole file, or the number of a line, for
    the functions that begin there.
    """
    names = names_in(path)
    if name is None or isinstance(name, int):
        node = without_docstrings(ast.parse(SOURCES[path]))
        if name:
            node = ast.Module([part for part in ast.walk(node) if isinstance(
                part, (ast.FunctionDef, ast.Lambda)) and part.lineno == name], [])
    else:
        node = names.get(name)
    if not isinstance(node, ast.AST):  # an import: look there; None: not a name in this file
        return "", [node] if node else []
    refers_to = []
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in names:
            target = names[part.id]
            if isinstance(target, ast.AST) or target[1] is not None:
                refers_to.append((path, part.id))
        elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            target = names.get(part.value.id)
            if isinstance(target, tuple) and target[1] is None:  # module.name
                refers_to.append((target[0], part.attr))
    return ast.dump(node), refers_to


@functools.lru_cache(maxsize=None)
def names_in(path):
    """{name: its syntax tree, or the (file, name) it is imported from; (file, None): a module}."""
    found = {}
    for node in without_docstrings(ast.parse(SOURCES[path])).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            for target in getattr(node, "targets", None) or [node.target]:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):  # LIMITS = {} and then LIMITS["a"] = 1
                        before = getattr(found.get(part.id), "body", [])
                        found[part.id] = ast.Module([*before, node], [])
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module, file = file_of(path, f"{node.module}.{alias.name}"), file_of(
                    path, node.module)
                found[alias.asname or alias.name] = (module, None) if module else (
                    file, alias.name)
        elif isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: (file_of(path, alias.name), None)
                      for alias in node.names}
    return found


def file_of(path, module):
    """The project file of a module that the file `path` imports; None if there is none."""
    inner = Path(*module.split(".")).with_suffix(".py")
    return next((folder / inner for folder in (ROOT, path.parent) if folder / inner in SOURCES),
                None)


def without_docstrings(tree):
    """A syntax tree with the docstrings of its functions, classes and module removed."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and node.body \
                and isinstance(node.body[0], ast.Expr) \
                and isinstance(node.body[0].value, ast.Constant) \
                and isinstance(node.body[0].value.value, str):
            del node.body[0]
    return tree
