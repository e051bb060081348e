"""Tests of the judge: hostile programs get the right verdict in time and leave nothing behind."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import support.judge
from support.judge import KINDS, Verdict, check_judge, judge, judge_all, self_check
from support.test_helpers import ROOT

MB = 2**20

LINUX = sys.platform == "linux"

SPIN = "while True: pass\n"

PASSED, WRONG, TIME = "passed", "wrong answer", "time limit"

MEMORY, ERROR, OUTPUT = "memory limit", "runtime error", "output limit"


def row(kind, program, outcome, expected="1\n", stdin=""):
    return kind, program, stdin, expected, outcome


HOSTILE = [*KINDS,  # the kinds of self_check, and then others like them
    # time
    row("sleep", "import time; time.sleep(60)", TIME),
    row("signals ignored", "from signal import *\nfor s in (SIGTERM, SIGXCPU, SIGINT):"
        " signal(s, SIG_IGN)\n" + SPIN, TIME),
    row("regex", "import re; re.match('(a+)+$', 'a' * 40 + 'b')", TIME),
    row("atexit spin", "import atexit\n@atexit.register\ndef f():\n " + SPIN, TIME),
    row("__del__ spin", "class A:\n def __del__(self):\n  while True: pass\na = A()", TIME),
    row("thread", "import threading\ndef f():\n " + SPIN + "threading.Thread(target=f).start()",
        TIME),
    row("daemon thread", "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), "
        "daemon=True).start()\nprint(1)", PASSED),
    row("stdout closed, spin", "import os\nos.close(1)\n" + SPIN, TIME),
    row("parent stopped", "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\nprint(1)",
        TIME),
    # memory and output
    row("MemoryError caught", "try: [0] * 10**9\nexcept MemoryError: print(1)", PASSED),
    row("huge power", "print(len(str(7 ** 10**8)))", TIME),
    row("endless stderr", "import sys\nwhile True: sys.stderr.write('x' * 999)", OUTPUT),
    row("10 MB file", "open('f', 'wb').write(b'x' * 10**7)", ERROR),
    row("recursion", "def f(): f()\nf()", ERROR),
    row("deep recursion", "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
        (MEMORY, ERROR, TIME)),
    # exits
    row("sys.exit(0)", "print(1, flush=True)\nimport sys\nsys.exit(0)\nprint(2)", PASSED),
    row("_exit, no flush", "import os\nprint(1)\nos._exit(0)", WRONG),
    row("exit message", "import sys\nprint(1)\nsys.exit('message')", ERROR),
    row("quit", "print(1)\nquit()", PASSED),
    row("SIGTERM to parent", "import os, time\nos.kill(os.getppid(), 15)\ntime.sleep(60)", ERROR),
    row("group killed", "import os\nos.killpg(0, 9)", ERROR),
    row("stdout closed, exit", "import os\nprint(1, flush=True)\nos.close(1)", PASSED),
    row("segfault", "import ctypes; ctypes.string_at(0)", ERROR),
    row("abort", "import os; os.abort()", ERROR),
    # files
    row("files deleted", "import os, shutil\nshutil.rmtree(os.getcwd())\nprint(1)", PASSED),
    row("stdin file deleted", "import os\nos.remove('../stdin')\nprint(1)", PASSED),
    row("judge's folder deleted", "import os, shutil\nshutil.rmtree(os.path.dirname(os.getcwd()))"
        "\nprint(1)", PASSED),
    row("chdir /", "import os\nopen('f', 'w').close()\nos.chdir('/')\nprint(1)", PASSED),
    # children
    row("fork and sleep", "import os, time\nif os.fork() == 0: time.sleep(60)\nos.wait()", TIME),
    row("40 forks", "import os, time\nfor _ in range(40):\n if os.fork() == 0:\n  time.sleep(60)\n"
        "print(1)", PASSED),
    # text
    row("spaces, CRLF, blank lines", "print('1  \\r\\n2\\n\\n')", PASSED, "1\n2\n"),
    row("leading space counts", "print(' 1')", WRONG),
    row("lone surrogate printed", "print('\\ud800')", ERROR),
    row("lone surrogate in the source", "print('\ud800')", ERROR),
    row("bytes that are not UTF-8", "import os; os.write(1, b'\\xff')", WRONG),
    row("NUL in the source", "print(1)\0", ERROR),
    row("tabs and spaces", "if 1:\n\tprint(1)\n        print(2)", ERROR),
    row("numpy", "import numpy", ERROR),
    row("prompt", "input('n? ')", PASSED, "n?", "3\n"),
]


def left_behind():
    """Processes of a run that still exist, found by their parent or by a folder of the judge."""
    found = []
    for entry in Path("/proc").glob("[0-9]*") if LINUX else []:
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            here = os.readlink(entry / "cwd") if stat[0] != "Z" else ""
        except OSError:
            continue
        if int(stat[1]) == os.getpid() or here.startswith(f"{tempfile.gettempdir()}/judge-"):
            found.append(entry.name)
    return found


@pytest.fixture(autouse=True)
def nothing_left(tmp_path_factory, monkeypatch):
    """After each test: no process, file of the judge or thread that was not there before."""
    folder = tmp_path_factory.mktemp("judge")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = set(left_behind()), threading.active_count()
    yield
    support.judge.tqdm.monitor and support.judge.tqdm.monitor.exit()
    assert set(left_behind()) <= before[0] and threading.active_count() <= before[1]
    assert not list(folder.glob("judge-*"))


@pytest.mark.parametrize("kind, program, stdin, expected, right", HOSTILE,
                         ids=[row[0] for row in HOSTILE])
def test_hostile_program(kind, program, stdin, expected, right):
    start = time.monotonic()
    verdict = judge(program, ((stdin, expected),), time_limit=0.5)
    right = right if isinstance(right, tuple) else (right,)
    assert verdict.outcome in right, verdict
    assert time.monotonic() - start < 0.5 + 0.5, kind
    assert verdict.detail.count("\n") == 0 and (verdict.test is None) == verdict.passed


@pytest.mark.parametrize("read", [
    "a = input(); b = input()", "import sys; a, b = sys.stdin.read().split()",
    "import sys; a, b = sys.stdin", "import sys; a = input(); b = next(sys.stdin)",
    "import sys; a = sys.stdin.buffer.readline(); b = sys.stdin.buffer.readline()",
    "a, b = open(0)", "import sys; a, b = map(bytes.decode, sys.stdin.buffer)",
    "import os; a, b = os.read(0, 99).split()",
    "import sys; sys.stdin.read(); sys.stdin.seek(0); a, b = sys.stdin"])
def test_stdin_is_a_file(read):
    assert judge(f"{read}\nprint(int(a) - int(b))", (("7\n5\n", "2"),)).passed


def test_stdin_of_each_run_is_its_own():
    tests = (("a long first line\n", "a long first line"), ("x\n", "x"), ("", ""))
    assert judge("import sys; print(sys.stdin.read())", tests).passed
    assert judge("print(1)", (("x" * MB, "1"),)).passed  # stdin that nobody reads


def test_each_run_has_an_empty_folder():
    program = "import os\nprint(os.listdir(), os.getcwd() == os.environ['HOME'])\nopen('f', 'w')"
    assert judge(program, (("", "[] True"),) * 3).passed
    program = "import os\nprint(os.stat('.').st_mode % 512 == 0o700)\nos.chmod('.', 0)"
    assert judge(program, (("", "True"),) * 3).passed


def test_a_run_that_breaks_the_judge_s_folder_leaves_the_next_one_well():
    for harm in ("os.remove('../stdin')", "shutil.rmtree(os.path.dirname(os.getcwd()))",
                 "os.remove('../stdin'); os.mkdir('../stdin')"):
        program = f"import os, shutil\nx = input()\n{harm}\nprint(x, os.listdir(os.path.curdir) " \
            "if os.path.exists('.') else [])"
        assert judge(program, (("a\n", "a []"), ("b\n", "b []"), ("c\n", "c []"))).passed, harm


def test_first_failing_test_and_detail():
    tests = (("2\n", "4\n"), ("3\n", "9\n"), ("4\n", "16\n"))
    assert judge("print(int(input()) * 2)", tests) == Verdict(
        "wrong answer", 1, "line 1: expected '9', got '6'")
    assert judge("1 / 0", tests).detail == "exit status 1: ZeroDivisionError: division by zero"


def test_judge_all_equals_one_at_a_time():
    jobs = [(f"print({i % 5})" if i % 3 else "1/0", (("", f"{i % 4}"),)) for i in range(24)]
    assert judge_all(jobs, 3, label=None) == [judge(*job) for job in jobs]
    assert judge_all([], label=None) == []


def test_each_distinct_job_runs_once(tmp_path):
    log = tmp_path / "log"
    judge_all([(f"open({str(log)!r}, 'a').write('x')", (("", ""),))] * 9, 2, label=None)
    assert log.read_text() == "x"


def test_verdicts_do_not_depend_on_hashes():
    jobs = [(f"print(list({{'a{i}', 'b{i}', 'c'}})[0][0], hash('{i}') % 2)", (("", "a 0"),))
            for i in range(200)]
    first = judge_all(jobs, 2, label=None)
    assert first == judge_all(jobs, 2, label=None)
    assert {v.outcome for v in first} == {PASSED, WRONG}


def test_other_children_of_this_process_live():
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        judge_all([(kind[1], ((kind[2], kind[3]),)) for kind in KINDS[-3:]])
        assert other.poll() is None
        other.kill()


def test_a_program_that_kills_the_judge_s_helper_is_one_verdict():
    grandparent = "import os\nwith open(f'/proc/{os.getppid()}/stat') as f: " \
        "os.kill(int(f.read().rpartition(')')[2].split()[1]), 9)"
    if LINUX:
        first, second = judge_all([(grandparent, (("", ""),)), ("print(1)", (("", "1"),))], 1)
        assert first == Verdict(ERROR, 0, "it killed the process that watches it")
        assert second.passed
        time.sleep(0.5)  # without its helper, nothing kills the program: let it end


def test_faults_of_the_judge_raise(monkeypatch):
    with pytest.raises(ValueError, match="without tests"):
        judge("print(1)", ())
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(FileNotFoundError):
        judge("print(1)", (("", "1"),))


def test_ctrl_c_ends_everything():
    code = "from support.judge import judge_all\nprint('on', flush=True)\n" \
        "judge_all([(f'{i}\\nwhile True: pass', (('', ''),)) for i in range(9)], 2, 60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, cwd=ROOT,
                          env={**os.environ, "TMPDIR": tempfile.gettempdir()}) as host:
        host.stdout.readline()
        time.sleep(0.7)
        assert not LINUX or len(left_behind()) > 2  # the runs are going: this test sees them
        host.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in host.communicate(timeout=5)[1]


def test_check_judge_notices_a_judge_that_passes_everything(monkeypatch):
    check_judge()
    for outcome in (PASSED, ERROR):
        monkeypatch.setattr(support.judge, "judge", lambda *args: Verdict(outcome, None, ""))
        with pytest.raises(RuntimeError, match="Pass@1 would mean nothing"):
            check_judge()


def test_self_check_counts_wrong_verdicts(monkeypatch, capsys):
    monkeypatch.setattr(support.judge, "KINDS", [KINDS[0], (*KINDS[1][:4], PASSED)])
    assert self_check() == 1
    assert "WRONG: not passed" in capsys.readouterr().out


def test_windows_gets_one_sentence(monkeypatch, capsys):
    monkeypatch.delattr(os, "fork")
    monkeypatch.setattr(sys, "argv", ["judge.py", "--self-check"])
    with pytest.raises(SystemExit) as end:
        support.judge.main()
    assert end.value.code == 2 and "WSL" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="WSL"):
        judge("print(1)", (("", "1"),))
