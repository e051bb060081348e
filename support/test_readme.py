"""The README's commands and snippets run as they stand there."""

import re
import shlex
import subprocess
import sys

import pytest

from support.test_helpers import ROOT, TINY, in_process, published, small_corpus, tiny_run

README = (ROOT / "README.md").read_text()


def readme_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def readme_commands():
    """Those with a folder also with a GGUF file; figures/test_figures.py has figures/make.py's."""
    found = [line for block in readme_blocks("sh") for line in block.splitlines()
             if line.startswith("python ") and "figures/make.py" not in line]
    return found + [line.replace("--model DIR", "--model FILE.gguf") for line in found
                    if "--model DIR" in line]


REPLAY = shlex.split("--width 32 --layers 1 --vocab-size 300 --pretrain-tokens 15000 --context 64 "
                     "--pretrain-batch 4 --sft-batch 4 --max-suggestion 8 --device cpu")
FINETUNE = shlex.split("--context 64 --batch 4 --lr 0.01 --max-suggestion 8 --device cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run"))


def tiny_gguf(folder):
    pytest.importorskip("gguf", reason="GGUF files are read with it: pip install gguf")
    from realcode.test_gguf_file import large_random_gpt, written
    return written(folder / "tiny.gguf", large_random_gpt())


@pytest.mark.parametrize("command", readme_commands())
def test_readme_commands_run(command, request, tmp_path, monkeypatch):
    """As they stand there, at a tiny size, with files of the tests in place of the reader's."""
    command = re.sub(r"\$\(.*?\)", "", command.split("#")[0])  # where pip has put a file
    script, *words = shlex.split(command)[1:]
    use = request.getfixturevalue
    if words[:1] == ["replay"]:
        words += ["--out", tmp_path / "out", *REPLAY]
    elif words[:1] == ["finetune"]:
        words += FINETUNE
    elif words[:1] == ["page"]:
        words += ["--help"]  # it would serve for ever; page/test_server.py and the like run it
    elif words[:1] in (["show"], ["suggest"]):
        words += ["--out", use("finished")[0]]
    elif script == "empower.py" and "--help" not in words:
        words += ["--out", use("finished")[0], *TINY]
    program = str(ROOT / "figures" / "program.py")
    stands_for = {"OUT_DIR": lambda: tmp_path / "student",
                  "PATH": lambda: small_corpus(tmp_path),
                  "DIR": lambda: published(tmp_path / "base"), "DIR2": lambda: tmp_path / "tuned",
                  "FILE": lambda: program, "FILE:3:9": lambda: f"{program}:3:9",
                  "FILE.gguf": lambda: tiny_gguf(tmp_path),
                  "out/program.svg": lambda: tmp_path / "program.svg"}
    words = ["FILE.gguf" if str(word).endswith(".gguf") else word for word in words]
    words = [stands_for[word]() if word in stands_for else word for word in words]
    monkeypatch.chdir(ROOT)
    if script == "empower.py":
        status, _, stderr = in_process(*words)
    else:
        done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
        status, stderr = done.returncode, done.stderr
    assert status == 0, stderr


@pytest.mark.parametrize("snippet", readme_blocks("python"))
def test_readme_snippets_run(snippet):
    exec(snippet, {})
