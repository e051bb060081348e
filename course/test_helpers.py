"""What tests of several exercises share."""

import sys


def within(lines, hint, function, *arguments):
    """What a function returns; AssertionError(hint) once it has run so many lines of Python.

    So a loop without an end is a message, on every system, and not a process to be killed.
    """
    left = lines

    def count(frame, event, argument):
        nonlocal left
        left -= 1
        assert left, hint
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        return function(*arguments)
    finally:
        sys.settrace(before)
