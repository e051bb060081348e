"""The order of the house: who imports whom, how long functions are, and how far the loss is."""

import ast
import inspect
import re
import sys

import pytest
import torch.nn.functional as F

from support import miniature
from support.test_helpers import ROOT, TINY, empower

CORE = {"data", "model", "simhuman", "empower"}
# {file or folder: what it may import}; a folder may also import itself.
MAY_IMPORT = {
    "support/files.py": set(), "support/judge.py": set(), "support/digest.py": set(),
    "data": set(), "model": set(), "simhuman": {"model"},
    "support": {"data", "model", "simhuman"},
    "empower": {"data", "model", "simhuman", "support"},
    "realcode": {*CORE, "support"},
    "section5": {*CORE, "support", "realcode"},
    "page": {*CORE, "support", "realcode"},
    "figures": {*CORE, "support", "realcode"},
    "course": {*CORE, "support", "figures"},
}


def source_files():
    """The Python files without tests, relative to the root; fixtures/ is only for tests."""
    return [path.relative_to(ROOT) for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("*/*.py")])
            if not path.name.startswith("test_") and path.parent.name != "fixtures"
            and path != ROOT / "support" / "test_helpers.py"]


def imports(path):
    """The project's files that a file imports, wherever in the file the import is."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = {ROOT / folder / f"{name.replace('.', '/')}.py" for name in found
             for folder in (".", path.parent)}  # a script finds the files next to it
    return {file.resolve().relative_to(ROOT) for file in files if file.exists()}


def room(path):
    """The name of a file in MAY_IMPORT: its own, or else its folder's."""
    if str(path) in MAY_IMPORT:
        return str(path)
    return path.stem if len(path.parts) == 1 else path.parts[0]


def test_each_file_imports_only_what_lies_below_it():
    for path in source_files():
        allowed = MAY_IMPORT[room(path)] | ({room(path)} & {path.parts[0]})  # a folder: itself too
        for other in imports(path) - {path}:
            folder = {other.parts[0]} if len(other.parts) > 1 else {other.stem}
            assert ({str(other)} | folder) & allowed, f"{path} imports {other}"


def test_no_imports_go_in_a_circle():
    left = {path: imports(path) - {path} for path in source_files()}
    while left:
        free = [path for path, needs in left.items() if not needs & left.keys()]
        assert free, f"a circle among {sorted(map(str, left))}"
        for path in free:
            del left[path]


def test_the_top_level_holds_what_was_agreed():
    agreed = {"empower.py", "model.py", "data.py", "simhuman.py", "test_empower.py", "README.md",
              "requirements.txt", "LICENSE", "support", "realcode", "section5", "page", "figures",
              "course", "fixtures"}
    made = {"out", "__pycache__"}  # by running it
    assert {path.name for path in ROOT.iterdir() if path.name[0] != "."} - made == agreed


def test_no_function_is_longer_than_50_lines():
    for path in source_files():
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 50, f"{path}: {node.name}"


def test_no_line_is_longer_than_100_characters():
    long = [f"{path}:{k}" for path in source_files() for k, line in enumerate(
        (ROOT / path).read_text(encoding="utf-8").splitlines(), 1) if len(line) > 100]
    assert not long


def test_the_method_s_files_know_nothing_of_machinery():
    """Neither the cache's keys, several processes, published formats nor how to word an error."""
    for name in CORE:
        text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
        found = re.findall(r"\b(?:UserError|fingerprint|parallel|autocast|safetensors|gguf|Llama|"
                           r"Mistral|Qwen2|SmolLM\w*|plain_fields|give a|choose another)\b", text)
        assert not found, f"{name}.py: {found}"


class Reached(Exception):
    pass


def test_eight_functions_and_no_closure_lie_between_main_and_the_loss(tmp_path, monkeypatch):
    """In pre-training and in fine-tuning; those of libraries, such as tqdm's, are not counted."""
    def reached(*arguments, **options):
        frame, frames = sys._getframe(1), []
        while frame.f_code is not empower.main.__code__:
            frames += [frame.f_code] * (str(ROOT) in frame.f_code.co_filename)
            frame = frame.f_back
        if empower.train.__code__ in frames:  # else a cost is computed, not a loss
            assert len(frames) <= 8, frames
            assert not any(code.co_flags & inspect.CO_NESTED for code in frames), frames
            met.update(frames)
        if empower.fine_tune.__code__ in frames:
            raise Reached
        return cross_entropy(*arguments, **options)

    met, cross_entropy = set(), F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", reached)
    with pytest.raises(Reached):
        empower.main(["--out", str(tmp_path), *TINY])
    assert {miniature.pretrain.__code__, empower.fine_tune.__code__} <= met
