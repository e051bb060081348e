"""Runs in the judge: tries a program on tests that call it, where the program cannot cheat.

    stdin   {"before", "program", "setup", "names", "tests", "seconds", "token"} as JSON
    stdout  the token, if every test passed
    stderr  otherwise one line, as in "wrong answer, test 2: expected 5, got 4"

The judge expects the token and the program never sees it. This process forks before it reads
anything. The child runs the program, and the two talk over pipes; expected values, the code of the
tests and the token stay in the parent. So a program that prints, exits, or patches what it can
reach does not pass. (One that attacks its parent through /proc could: the judge is no sandbox.)

before: code that runs before the program, there and here. setup: code that runs after it and before
the tests, there and here. names: what the tests use of the program. seconds: for the program itself
and for each call. A test is one of
    {"call": name, "arguments": [...], "expected": value}     LiveCodeBench; JSON's values;
                                                              APPS: "apps" is true
    {"assert": "assert f(1) == 2"}                            MBPP
    {"check": "def check(candidate): ...", "entry": name}     HumanEval
"""

import builtins
import collections
import contextlib
import datetime
import decimal
import fractions
import itertools
import json
import operator
import os
import select
import sys
import types

DICT = {}  # its views have no name of their own
# {name: (type, the parts of a value, a value of these parts)}: plain data, which is copied.
PLAIN = {kind.__name__: (kind, list, lambda *parts, kind=kind: kind(parts))
         for kind in (list, tuple, set, frozenset, collections.deque)} | {
    "dict": (dict, lambda value: value.items(), lambda *pairs: dict(pairs)),
    "keys": (type(DICT.keys()), list, lambda *keys: dict.fromkeys(keys).keys()),
    "values": (type(DICT.values()), list, lambda *parts: dict(enumerate(parts)).values()),
    "items": (type(DICT.items()), list, lambda *pairs: dict(pairs).items()),
    "range": (range, lambda value: (value.start, value.stop, value.step), range),
    "bytes": ((bytes, bytearray), lambda value: [bytes(value).decode("latin-1")],
              lambda text: text.encode("latin-1")),
    "complex": (complex, lambda value: (value.real, value.imag), complex),
    "Decimal": (decimal.Decimal, lambda value: [str(value)], decimal.Decimal),
    "Fraction": (fractions.Fraction, lambda value: (value.numerator, value.denominator),
                 fractions.Fraction),
    "datetime": (datetime.datetime, lambda value: [value.isoformat()],
                 datetime.datetime.fromisoformat),
    "date": (datetime.date, lambda value: [value.isoformat()], datetime.date.fromisoformat),
    "timedelta": (datetime.timedelta, lambda value: (value.days, value.seconds,
                                                     value.microseconds), datetime.timedelta)}


class Ended(BaseException):
    """(outcome, detail): there is nothing more to ask. No `except Exception` of a test gets it."""


class Peer:
    """One end of the pipes between the two processes: it asks, and answers what is asked.

    Plain data is sent as JSON that remembers its types. Whatever else is sent stays where it is: it
    is a number in `kept`, and the other process has a `Theirs` for it.
    allowed: {name: what the other process may ask for}.
    """

    def __init__(self, incoming, outgoing, allowed):
        self.incoming = open(incoming, encoding="utf-8")
        self.outgoing = open(outgoing, "w", encoding="utf-8")
        self.allowed, self.kept, self.seconds = allowed, [], None

    def ask(self, name, *values):
        """What the other process returns, or the exception that it meets."""
        self.send("ask", name, list(map(self.plain, values)))
        while True:
            kind, *found = self.receive()
            if kind == "answer":
                return self.value_of(*found)
            if kind == "error":
                raise self.error_of(*found)
            self.answer(*found)

    def answer(self, name, values):
        try:
            message = "answer", self.plain(self.allowed[name](*map(self.value_of, values)))
        except Ended:
            raise
        except BaseException as error:  # SystemExit too: an answer is wanted
            message = ("error", [kind.__name__ for kind in type(error).__mro__],
                       list(map(self.plain, error.args)),
                       f"{type(error).__name__}: {error}"[:300])
        self.send(*message)

    def send(self, *message):
        try:
            self.outgoing.write(json.dumps(message) + "\n")
            self.outgoing.flush()
        except BrokenPipeError:
            raise Ended("runtime error", "the program ended") from None

    def receive(self):
        if not select.select([self.incoming], [], [], self.seconds)[0]:
            raise Ended("time limit", f"still running after {self.seconds:g} s")
        line = self.incoming.readline()
        if not line:
            raise Ended("runtime error", "the program ended")
        return json.loads(line)

    def plain(self, value):
        """A value as JSON."""
        if isinstance(value, Theirs):
            return ["yours", value._number]
        if getattr(value, "shape", None) == () and hasattr(value, "item"):
            value = value.item()  # a number of numpy's
        if value is None or type(value) in (bool, int, float, str):
            return value
        for kind in (int, float, str):  # of a subclass, the value
            if isinstance(value, kind):
                return kind(value)
        for name, (kind, parts, _) in PLAIN.items():
            if isinstance(value, kind):
                return [name, *map(self.plain, parts(value))]
        name = getattr(value, "__name__", None)
        if isinstance(name, str) and getattr(builtins, name, None) is value:
            return ["built-in", name]  # for instance a type to look for
        self.kept.append(value)
        return ["mine", len(self.kept) - 1]

    def value_of(self, found):
        """The inverse of `plain`, at the other end."""
        if not isinstance(found, list):
            return found
        kind, *parts = found
        if kind == "yours":
            return self.kept[parts[0]]
        if kind == "mine":
            return Theirs(self, parts[0])
        if kind == "built-in":
            return getattr(builtins, parts[0])
        return PLAIN[kind][2](*map(self.value_of, parts))

    def error_of(self, names, arguments, text):
        """The built-in exception that comes closest; its text is said if nothing catches it."""
        for kind in (getattr(builtins, name, object) for name in names):
            if issubclass(kind, Exception):
                error = kind.__new__(kind, *map(self.value_of, arguments))
                error.text = text
                return error
        return Ended("runtime error", text)  # SystemExit and the like


class Theirs:
    """Something of the other process that is not plain data; what is done with it is done there."""

    def __init__(self, peer, number):
        vars(self).update(_peer=peer, _number=number)

    def __call__(self, *arguments, **named):
        found, changed = self._peer.ask("call", self, arguments, named)
        for old, new in zip(arguments, changed):
            if isinstance(old, (list, dict, set)) and old != new:  # changed in place
                old.clear()
                (old.extend if isinstance(old, list) else old.update)(new)
        return found

    def __getattr__(self, name):
        return self._peer.ask("getattr", self, name)

    def __setattr__(self, name, value):
        self._peer.ask("setattr", self, name, value)

    def __eq__(self, other):  # nothing of the program's can be equal to a value of the tests
        return isinstance(other, Theirs) and self._peer.ask("eq", self, other)

    __hash__ = object.__hash__

    def __iter__(self):
        iterator, size = self._peer.ask("iter", self), 1
        while part := self._peer.ask("take", iterator, size):
            yield from part
            size = min(2 * size, 1000)  # it may have no end

    def __next__(self):
        for item in self._peer.ask("take", self, 1):
            return item
        raise StopIteration


OPERATIONS = {name: getattr(operator, name, None) or getattr(builtins, name) for name in (
    "bool", "len", "str", "repr", "getitem", "setitem", "contains", "lt", "le", "gt", "ge", "add",
    "sub", "mul")}
for name in OPERATIONS:
    setattr(Theirs, f"__{name}__", lambda self, *values, name=name: self._peer.ask(
        name, self, *values))


def call(function, arguments, named):
    """(what a function returns, its arguments afterwards)."""
    return function(*arguments, **named), list(arguments)


def take(iterator, size):
    return list(itertools.islice(iterator, size))


HERE = {"call": call, "iter": iter, "take": take}  # what a program may do with what it is given


# ------------------------------------------------------------------- the program's process


def serve(incoming, outgoing):
    """Runs the program, then does what the tests ask for until their process is gone."""
    module = types.ModuleType("program")
    sys.modules["program"], space = module, vars(module)  # where dataclasses look
    space["__builtins__"] = builtins

    def run(source):
        exec(compile(source, "program.py", "exec"), space)

    def method(name, *arguments):
        # A method of Solution may have the name of something that `before` imports.
        return (getattr(space["Solution"](), name) if hasattr(space.get("Solution"), name)
                else space[name])(*arguments)

    peer = Peer(incoming, outgoing, HERE | OPERATIONS | {
        "run": run, "method": method, "name": space.get, "getattr": getattr, "setattr": setattr,
        "eq": operator.eq})
    with contextlib.suppress(Ended):
        while True:
            peer.answer(*peer.receive()[1:])
    os._exit(0)


def start():
    """Forks the program's process; returns the tests' end of the pipes to it."""
    (there, out), (back, answers) = os.pipe(), os.pipe()
    if os.fork() == 0:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):  # not the tests, and what it prints is no answer
            os.dup2(nothing, descriptor)
        os.close(out)
        os.close(back)
        serve(there, answers)
    os.close(there)
    os.close(answers)
    return Peer(back, out, HERE)


# ------------------------------------------------------------------- the tests' process


def same(found, expected):
    """Whether they are equal, a tuple like a list."""
    if isinstance(found, (list, tuple)) and isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == expected


def with_integers(value):
    """A dictionary with the integers for keys of which JSON made text; others as they are."""
    with contextlib.suppress(ValueError):
        return {int(key): part for key, part in value.items()} if isinstance(value, dict) else value
    return value


def try_test(peer, test, space):
    """An empty text if the test passes, otherwise what is wrong."""
    if "call" in test:
        arguments, right = test["arguments"], [test["expected"]]
        if test["apps"]:  # its evaluator does the same
            arguments = map(with_integers, arguments)
            if isinstance(right[0], list) and len(right[0]) == 1:
                [value] = map(with_integers, right[0])
                right = [value], value  # the file does not say which of the two is meant
            right = list(map(with_integers, right))
        found = peer.ask("method", test["call"], *arguments)
        return "" if any(same(found, value) for value in right) else \
            f"expected {test['expected']!r}, got {found!r}"
    try:
        exec(test.get("assert") or test["check"], space)
        if "check" in test:
            space["check"](peer.ask("name", test["entry"]))
    except AssertionError as error:
        return f"{test.get('assert', 'the check')} {error}".strip()
    return ""


def main():
    """Tests the program in the job on standard input; see the docstring of this file."""
    sys.path[:] = filter(None, sys.path)  # not the folder in which the program may write modules
    sys.set_int_max_str_digits(0)
    peer = start()
    job, number = json.load(sys.stdin), 0
    os.truncate("../stdin", 0)  # where the program could read the tests, by any path
    peer.seconds = job["seconds"]
    try:
        for part in ("before", "program", "setup"):
            peer.ask("run", job[part])
        space = {"__name__": "tests"}
        if "call" not in job["tests"][0]:
            exec(job["before"], space)
            found = {name: peer.ask("name", name) for name in job["names"]}
            space |= {name: value for name, value in found.items() if value is not None}
            exec(job["setup"], space)
        for number, test in enumerate(job["tests"]):
            if wrong := try_test(peer, test, space):
                raise Ended("wrong answer", wrong)
    except MemoryError:
        ended = "memory limit", "MemoryError"
    except Ended as error:
        ended = error.args
    except Exception as error:
        ended = "runtime error", getattr(error, "text", f"{type(error).__name__}: {error}")
    else:
        return print(job["token"])
    print(f"{ended[0]}, test {number}: {' '.join(ended[1].split())[:150]}", file=sys.stderr)
    os._exit(1)


if __name__ == "__main__":
    main()
