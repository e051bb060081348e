"""The judge's helper: the process that starts programs, watches them and cleans up after them.

support/judge.py runs this source in a bare Python: a helper that imported the judge would carry
tqdm and the rest through every fork. That file shows how the processes are arranged.
"""

import builtins
import gc
import marshal
import os
import resource
import select
import signal
import sys
import time


def _serve(any_stderr):
    """Answer requests until the channel closes. Returns only in a forked process, the program's."""
    if sys.platform == "linux":
        import ctypes
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # 36 is PR_SET_CHILD_SUBREAPER
    channel = os.dup(1)  # both ways; 1 itself will be the program's stdout
    # closefd=False: in a program, the number may be another file's by the time these are freed.
    requests, replies = (open(channel, mode, closefd=False) for mode in ("rb", "wb"))
    compile("", "", "exec")  # the first compile takes 2 ms more: spend it here, not in each program
    gc.freeze()  # so that no program has to traverse these objects at its exit: 1 to 2 ms
    home, folder, stdin_file = os.getcwd(), "0", None  # see _prepared
    while True:
        try:
            program, stdin, *limits = marshal.load(requests)
        except EOFError:
            _leave(home)
        folder, stdin_file = _prepared(home, folder, stdin_file)
        os.pwrite(stdin_file, stdin, 0)  # a file: nobody has to feed it, and it can seek
        os.ftruncate(stdin_file, len(stdin))  # reusing one file saves 3 ms over a new one
        deadline = time.monotonic() + limits[0]
        started = _start(folder, limits)
        if started is None:
            return program
        parent, *pipes = started
        reply = _watch(*pipes, channel, deadline, limits[2], any_stderr)
        if _sweep(parent) == 1:
            raise RuntimeError("the judge could not start a program:\n" + reply[3].decode())
        if reply[0] == "channel closed":
            _leave(home)
        marshal.dump(reply, replies)
        replies.flush()


def _start(folder, limits):
    """Fork a parent that forks the program: (parent, out, err, status), or None in the program."""
    pipes = [os.pipe() for _ in ("out", "err", "status")]
    parent = os.fork()
    if parent:
        for _, write_end in pipes:
            os.close(write_end)
        return parent, *(read_end for read_end, _ in pipes)
    os.setsid()  # the run gets its own group, without the helper
    fds = [os.open("stdin", os.O_RDONLY), *(write_end for _, write_end in pipes)]
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
    os.closerange(len(fds), 64)  # the channel and the other ends; a helper has few files
    program = os.fork()
    if program == 0:
        os.close(3)  # the status is the parent's to report
        _confine(folder, *limits)
        return None
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        os.write(3, str(code).encode())
    finally:
        os._exit(0)  # even if the program interrupts its parent


def _confine(folder, time_limit, memory_limit, output_limit):
    """Enter the run's folder and set its limits, in the program's process, before it compiles."""
    os.chdir(folder)
    os.environ["HOME"] = os.environ["TMPDIR"] = os.getcwd()
    sys.argv[:] = ["program.py"]  # in place: there may be another name for it, see _allow
    builtins.exit = builtins.quit = sys.exit  # contest code calls them; -S leaves them out
    cpu = int(time_limit) + 2  # for what outlives the deadline: see macOS in judge.py
    for kind, limit in ((resource.RLIMIT_CPU, cpu), (resource.RLIMIT_AS, memory_limit),
                        (resource.RLIMIT_FSIZE, output_limit), (resource.RLIMIT_CORE, 0),
                        (resource.RLIMIT_NOFILE, 256)):
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):
            pass  # a stricter limit is already set, or the system (macOS) has none of this kind


def _watch(out, err, status, channel, deadline, output_limit, any_stderr):
    """Read until the program ends or goes too far: (why, exit code, stdout, end of stderr)."""
    texts = {out: bytearray(), err: bytearray()}
    poll = select.poll()
    for fd in (out, err, status, channel):
        poll.register(fd, select.POLLIN)
    why, code = "time limit", b""
    while why == "time limit" and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            if fd == channel:  # nothing is sent during a run, so the other side is gone
                why = "channel closed"
            elif why == "channel closed":
                break
            elif fd == status:
                why, code = "exit", os.read(fd, 16)  # b"": the program killed its parent
            elif not _read(fd, texts[fd]):
                poll.unregister(fd)  # closed by a program that may go on
            elif len(texts[fd]) > output_limit:
                if fd == err and any_stderr:
                    del texts[err][:-4096]
                else:
                    why = "output limit"
    if why == "exit":  # take what the pipes hold, no more: a child left behind keeps them open
        for fd, text in texts.items():
            os.set_blocking(fd, False)
            while len(text) <= output_limit and _read(fd, text):
                pass
            if len(text) > output_limit and not (fd == err and any_stderr):
                why = "output limit"
    for fd in (out, err, status):
        os.close(fd)
    return why, int(code) if code else None, bytes(texts[out]), bytes(texts[err][-4096:])


def _read(fd, text):
    """Append up to 64 KB from a pipe to text; False at its end, or if reading would block."""
    try:
        data = os.read(fd, 2**16)
    except BlockingIOError:
        return False
    text += data
    return bool(data)


def _sweep(parent):
    """Kill the run's group, then its orphans until none is left; return the parent's exit code."""
    for kill in (os.kill, os.killpg):  # the parent is not reaped yet: its pid is still its own
        try:
            kill(parent, signal.SIGKILL)
        except OSError:
            pass  # it has no group yet, or (macOS) only dead members
    code = os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1])
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                for child in _children():
                    os.kill(child, signal.SIGKILL)
                time.sleep(0.001)
        except ChildProcessError:
            return code


def _children():
    """The process ids of the helper's children, from /proc."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                ppid = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:
            continue  # it has ended in the meantime
        if ppid == os.getpid():
            yield int(pid)


def _prepared(home, folder, stdin_file):
    """An empty folder and a stdin file for the next run, whatever the last one did to them."""
    try:
        os.chdir(home)
        if (os.stat(folder).st_mode == 0o40700 and not os.listdir(folder)
                and os.path.samestat(os.stat("stdin"), os.fstat(stdin_file))):
            return folder, stdin_file  # as they were: saves 5 ms
    except (OSError, TypeError):
        pass  # the first run, or the program deleted or locked what was there
    if stdin_file is not None:
        import shutil  # slow to import, seldom needed
        os.close(stdin_file)
        os.makedirs(home, 0o700, exist_ok=True)
        os.chmod(home, 0o700)
        os.chdir(home)
        for name in os.listdir():
            if os.path.isdir(name):
                shutil.rmtree(name, ignore_errors=True)  # the rest goes when the helper does
            else:
                os.remove(name)
    folder = str(int(folder) + 1)
    os.mkdir(folder, 0o700)
    return folder, os.open("stdin", os.O_WRONLY | os.O_CREAT, 0o600)


def _leave(home):
    """End the helper; its folder goes too, since the process that made it may be dead."""
    import shutil
    os.chdir("/")
    shutil.rmtree(home, ignore_errors=True)
    os._exit(0)


def _allow(before, *packages):
    """What support/judge.py's Allowed allows; returns the names that each program finds."""
    import _thread
    _thread.stack_size(2**23)  # else each thread takes as much of the memory limit as the stack may
    sys.path += packages
    sys.set_int_max_str_digits(0)
    names = {}
    exec(before, names)
    return names


def _become(program, names):
    """Run a program as __main__, like `python program.py`; names: those of _allow, or None."""
    main = sys.modules["__main__"] = type(sys)("__main__")
    main.__dict__.update(names or {})
    try:
        exec(compile(program, "program.py", "exec"), main.__dict__)
    except SystemExit:
        if names is None:
            raise  # the status counts


if __name__ == "__main__":
    names = _allow(*sys.argv[1:]) if sys.argv[1:] else None
    _become(_serve(names is not None), names)
