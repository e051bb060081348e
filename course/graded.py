"""What the judge runs for course/grade.py: the tests of one submission, an exercise at a time.

Settings come as JSON on stdin, and what is found goes to a file. Importing torch takes longer than
the tests of an exercise, so it is imported once, by a process that forks for each exercise. The
child has a fresh copy of a student's files with those handed in, and limits of its own; what it
leaves running is ended by the judge. This file imports nothing from the project.
"""

import importlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from pathlib import Path

STARTS = {"os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.system", "subprocess.Popen"}
PATIENCE = 6  # seconds on the clock for each second of computing: other programs run too


class Recorder:
    """A plugin of pytest: how many tests there are and pass, and the first line of each failure."""

    def __init__(self, project, libraries):
        self.project, self.libraries = project, libraries
        self.tests, self.failures, self.refused = 0, {}, set()

    def pytest_collection_finish(self, session):
        """How many tests there are."""
        self.tests = len(session.items)

    def pytest_collectreport(self, report):
        """A file that cannot be imported: the last line of its error."""
        if report.failed:
            lines = [line for line in str(report.longrepr).splitlines() if line.startswith("E ")]
            self.failures[report.nodeid] = (lines or [str(report.longrepr)])[-1].lstrip("E ")

    def pytest_runtest_logreport(self, report):
        """A test that fails, in its function or before."""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = crash.message if crash else str(report.longrepr)
            self.failures[report.nodeid] = message.splitlines()[0].removeprefix("AssertionError: ")

    def pytest_internalerror(self, excrepr):
        """What ends pytest itself, such as output that cannot be kept."""
        self.failures["pytest"] = excrepr.reprcrash.message.splitlines()[0]

    def watch(self, event, arguments):
        """An audit hook: refuses to start processes and to read the project, and remembers it."""
        reason = "it starts processes" if event in STARTS else ""
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if path.startswith(self.project) and not path.startswith(self.libraries):
                reason = "it reads the project's own files"
        if reason:
            self.refused.add(reason)
            raise PermissionError(reason)


def tested(given, file):
    """The tests of one exercise, in a process of its own: what is found, as plain data."""
    import pytest

    for fd in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
    recorder = Recorder(given["project"], tuple(given["path"]))
    sys.addaudithook(recorder.watch)
    status = pytest.main(["-p", "no:cacheprovider", "--rootdir", ".", file], plugins=[recorder])
    notes = list(dict.fromkeys(recorder.failures.values()))
    notes = ["it prints or writes more than 1 MB" if "File too large" in note else note
             for note in notes]
    whole = status in (0, 1)  # else pytest was ended before the last test
    return {"tests": recorder.tests, "passed": whole * (recorder.tests - len(recorder.failures)),
            "notes": sorted(recorder.refused) + notes + [f"pytest ended: {status}"] * (
                not whole and not notes)}


def alone(seconds, work, *arguments):
    """What work returns in a process of its own, or {"notes": [why there is nothing]}."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
            os.write(writer, json.dumps(work(*arguments)).encode() + b"\n")
        finally:
            os._exit(0)
    os.close(writer)
    text, deadline = b"", time.monotonic() + seconds * PATIENCE
    while not text.endswith(b"\n") and (left := deadline - time.monotonic()) > 0:
        if select.select([reader], [], [], left)[0]:
            new = os.read(reader, 2**16)
            if not new:
                break
            text += new
    late = time.monotonic() > deadline
    try:
        os.killpg(child, signal.SIGKILL)
    except OSError:
        pass  # it has ended, or had not yet begun
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    if text.endswith(b"\n"):
        return json.loads(text)
    if late or os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return {"notes": [f"time limit: still running after {seconds} s"]}
    return {"notes": ["it ends the process of its tests"]}


def imported():
    """Imports the two files, which should take no time."""
    for fd in (1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
    sys.path[:0] = ["course", "."]
    try:
        importlib.import_module("empower")
        importlib.import_module("exercises")
    except BaseException:
        pass  # the tests of each exercise will say what is wrong
    return {"notes": []}


def prepared(given, folder):
    """Enters a new copy of the files of a student with those handed in; returns its tests."""
    shutil.copytree(given["fresh"], folder)
    for file, path in given["files"].items():
        shutil.copyfile(path, folder / file)
    os.chdir(folder)
    return {path: path.read_bytes() for path in folder.glob("course/test_*.py")}


def main():
    """Grades one submission; what it finds is written after each exercise."""
    given, home, found = json.load(sys.stdin), Path.cwd(), {}
    sys.path[:0] = given["path"]
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
                   "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in ("numpy", "torch", "pytest"):  # before the first fork
        importlib.import_module(name)
    prepared(given, home / "import")
    hangs = alone(given["seconds"], imported)["notes"]
    for number, file in given["exercises"].items():
        folder = home / number
        tests = prepared(given, folder)
        found[number] = {"notes": ["importing it: " + hangs[0]]} if hangs else alone(
            given["seconds"], tested, given, file)
        for path, content in tests.items():
            if not path.exists() or path.read_bytes() != content:
                found[number] = {"notes": ["it changes or deletes its tests"]}
        os.chdir(home)
        shutil.rmtree(folder, ignore_errors=True)
        Path(given["result"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
