"""Runs in the judge: tries a program on tests that call it, where the program cannot cheat.

    stdin   {"before", "program", "setup", "names", "tests", "token"} as JSON
    stdout  the token, if every test passed; otherwise what went wrong

The judge expects the token and the program never sees it. This process forks before it reads
anything. The child runs the program and answers calls over a pipe; expected values, the code of the
tests and the token stay in the parent. So a program that prints, exits, or patches what it can
reach does not pass. (One that attacks its parent through /proc could: the judge is no sandbox.)

before: code that runs before the program. setup: code that runs after it and before the tests, here
and there. names: what the tests use of the program; everything else is evaluated here. A test is
one of
    {"call": name, "arguments": [...], "expected": value}     LiveCodeBench, APPS; JSON's values;
                                                              "or": another right value
    {"assert": "assert f(1) == 2"}                            MBPP
    {"check": "def check(candidate): ...", "entry": name}     HumanEval
"""

import ast
import builtins
import json
import os
import sys
import types


def plain(value):
    """A value as JSON that remembers its type; what is not plain data becomes its repr."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    for kind in (int, float, str):  # of a subclass, the value
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", bytes(value).decode("latin-1")]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, dict):
        return ["dict", *([plain(key), plain(item)] for key, item in value.items())]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, *map(plain, value)]
    return ["object", type(value).__name__, repr(value)[:200]]


class Unknown:
    """Something that is not plain data: equal to nothing."""

    def __init__(self, kind, text):
        self.text = f"{kind} {text}"

    def __repr__(self):
        return self.text


def value_of(found):
    """The inverse of `plain`."""
    if not isinstance(found, list):
        return found
    kind, *rest = found
    if kind == "bytes":
        return rest[0].encode("latin-1")
    if kind == "complex":
        return complex(*rest)
    if kind == "dict":
        return {value_of(key): value_of(item) for key, item in rest}
    if kind == "object":
        return Unknown(*rest)
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](
        map(value_of, rest))


# ------------------------------------------------------------------- the program's process


def serve(requests, replies):
    """Runs the program, then answers each request until the parent is gone."""
    module = types.ModuleType("program")
    sys.modules["program"], space = module, vars(module)  # where dataclasses look
    space["__builtins__"] = builtins
    for line in requests:
        kind, *what = json.loads(line)
        try:
            if kind == "run":
                exec(compile(what[0], "program.py", "exec"), space)
                result = None
            elif kind == "eval":
                result = eval(what[0], space)
            else:
                name, arguments = what
                # A method of Solution may have the name of something that `before` imports.
                found = (getattr(space["Solution"](), name) if hasattr(space.get("Solution"), name)
                         else space[name])
                result = found(*map(value_of, arguments))
            answer = {"value": plain(result)}
        except BaseException as error:  # SystemExit too: an answer is wanted
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


def start():
    """Forks the program's process: a function that sends a request and returns its value."""
    (there, out), (back, answers) = os.pipe(), os.pipe()
    if os.fork() == 0:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)  # the tests
        os.dup2(2, 1)        # what it prints is no answer
        os.close(out)
        os.close(back)
        serve(open(there, encoding="utf-8"), open(answers, "w", encoding="utf-8"))
        os._exit(0)
    os.close(there)
    os.close(answers)
    requests, replies = open(out, "w", encoding="utf-8"), open(back, encoding="utf-8")

    def ask(*request):
        try:
            requests.write(json.dumps(request) + "\n")
            requests.flush()
            line = replies.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError("the program ended")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return value_of(answer["value"])

    return ask


# ------------------------------------------------------------------- the tests' process


class Remote(ast.NodeTransformer):
    """Replaces calls and parts of what the program defines by requests to evaluate them there."""

    def __init__(self, names):
        self.names = names

    def visit_Call(self, node):
        name = node
        while isinstance(name, (ast.Call, ast.Attribute, ast.Subscript)):  # Node(1).values[0]
            name = name.func if isinstance(name, ast.Call) else name.value
        if isinstance(name, ast.Name) and name.id in self.names:
            return ast.copy_location(ast.Call(ast.Name("__ask__", ast.Load()), [
                ast.Constant("eval"), ast.Constant(ast.unparse(node))], []), node)
        return self.generic_visit(node)

    visit_Attribute = visit_Subscript = visit_Call


def same(found, expected):
    """Whether they are equal, a tuple like a list."""
    if isinstance(found, (list, tuple)) and isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == expected


def try_test(ask, test, setup, names):
    """An empty text if the test passes, otherwise what is wrong."""
    def remote(name):
        return lambda *arguments: ask("call", name, list(map(plain, arguments)))

    if "call" in test:
        found = remote(test["call"])(*test["arguments"])
        right = [test[key] for key in ("expected", "or") if key in test]
        return "" if any(same(found, value) for value in right) else \
            f"expected {test['expected']!r}, got {found!r}"
    space = {"__ask__": ask, "__name__": "tests"}
    try:
        exec(setup, space)
    except NameError:
        pass  # it uses what the program defines, and so will the tests, there
    try:
        if "check" in test:
            space.update({name: remote(name) for name in names})
            exec(test["check"], space)
            space["check"](remote(test["entry"]))
        else:
            tree = Remote(names).visit(ast.parse(test["assert"]))
            exec(compile(ast.fix_missing_locations(tree), "test", "exec"), space)
    except AssertionError as error:
        return f"{test.get('assert', 'the check')} {error}".strip()
    return ""


def main():
    """Reads a job from standard input and prints the verdict (see the top of this file)."""
    """Tests the program in the job on standard input; see the docstring of this file."""
    sys.set_int_max_str_digits(0)
    ask = start()
    job = json.load(sys.stdin)
    os.truncate("../stdin", 0)  # where the program could read the tests, by any path
    try:
        for part in ("before", "program", "setup"):
            ask("run", job[part])
        for k, test in enumerate(job["tests"]):
            wrong = try_test(ask, test, job["setup"], job["names"])
            if wrong:
                return print(f"test {k + 1}: {wrong}"[:300])
    except RuntimeError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    print(job["token"])


if __name__ == "__main__":
    main()
