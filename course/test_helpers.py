"""What tests of several exercises share."""

import sys


def within(steps, hint, function, *arguments):
    """What a function returns; AssertionError(hint) once Python has taken so many steps.

    So a loop without an end is a message, on every system, and not a process to be killed. Steps
    are instructions, since Python 3.11 sees only one line in `while True: pass`.
    """
    left = steps

    def count(frame, event, argument):
        nonlocal left
        frame.f_trace_opcodes = True
        left -= 1
        assert left, hint
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        return function(*arguments)
    finally:
        sys.settrace(before)
