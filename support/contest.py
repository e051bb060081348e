"""A generated programming contest: problems, their tests, and programs in several authors' styles.

A problem in the contest is a composition of four independent parts, all named in its statement:

    # Read n, then n integers on one line.                      <- shape
    # Keep the even ones, square each, and print the sum.       <- select, change, reduce

A reference program is that composition in some author's style (names, loop or comprehension,
input() or sys.stdin, script or function), so boilerplate is predictable and decisions are not:

    n = int(input())
    a = list(map(int, input().split()))
    b = [x * x for x in a if x % 2 == 0]
    print(sum(b))

This file knows nothing about tokens or models.
"""

import dataclasses
import functools
import itertools
import math
import random
from typing import Callable, NamedTuple

# ------------------------------------------------------------------- the parts of a problem


class Part(NamedTuple):
    """One choice in a composition: its wording in the statement, its code, and what it means.

    `meaning` is written independently of `code`, so the expected output of a test never comes from
    the programs it judges.
    """

    phrase: str
    code: str
    meaning: Callable


class Domain(NamedTuple):
    """What the input consists of, and the parts that apply to it."""

    noun: str
    stop: str       # the line that ends an input without a count
    select: tuple   # which elements are kept: element -> bool
    change: tuple   # what is done to each: element -> element
    reduce: tuple   # what is printed: list -> a value, or a list to print on one line
    draw: Callable  # one random element
    text: bool = False  # the elements are words, else integers


def _draw_word(rng):
    """A pronounceable word of 1 to 7 letters; one in five is mirrored into a palindrome."""
    size = rng.randint(1, 7)
    word = "".join(rng.choice("aeiou" if i % 2 else "bcmprst") for i in range(size))
    word = word[rng.randint(0, 1):] or "a"
    return word + word[-2::-1] if rng.random() < 0.2 else word


# {x} stands for one element, {b} for the list of elements that were kept and changed.
INTEGERS = Domain(
    "integers", "0",
    select=(
        Part("even ones", "{x} % 2 == 0", lambda x: x % 2 == 0),
        Part("odd ones", "{x} % 2 == 1", lambda x: x % 2 == 1),
        Part("positive ones", "{x} > 0", lambda x: x > 0),
        Part("negative ones", "{x} < 0", lambda x: x < 0),
        Part("ones below 5", "{x} < 5", lambda x: x < 5),
        Part("ones above 10", "{x} > 10", lambda x: x > 10),
        Part("ones from -3 up", "{x} >= -3", lambda x: x >= -3),
        Part("ones from -9 to 9", "-9 <= {x} <= 9", lambda x: abs(x) < 10),
        Part("multiples of 3", "{x} % 3 == 0", lambda x: x % 3 == 0),
        Part("ones not divisible by 4", "{x} % 4 != 0", lambda x: x % 4 != 0),
        Part("ones other than 7", "{x} != 7", lambda x: x != 7),
    ),
    change=(
        Part("leave each as it is", "{x}", lambda x: x),
        Part("square each", "{x} * {x}", lambda x: x ** 2),
        Part("double each", "2 * {x}", lambda x: x + x),
        Part("negate each", "-{x}", lambda x: -x),
        Part("take each absolute value", "abs({x})", lambda x: max(x, -x)),
        Part("add 1 to each", "{x} + 1", lambda x: x + 1),
        Part("subtract 3 from each", "{x} - 3", lambda x: x - 3),
        Part("halve each rounding down", "{x} // 2", lambda x: (x - x % 2) // 2),
        Part("take each modulo 7", "{x} % 7", lambda x: x % 7),
    ),
    reduce=(
        Part("the sum", "sum({b})", sum),
        Part("the sum modulo 10", "sum({b}) % 10", lambda b: sum(b) % 10),
        Part("the sum of every second one", "sum({b}[::2])", lambda b: sum(b[0::2])),
        Part("the sum of the first three", "sum({b}[:3])", lambda b: sum(b[:3])),
        Part("the largest or 0", "max({b}, default=0)", lambda b: sorted(b)[-1] if b else 0),
        Part("the smallest or 0", "min({b}, default=0)", lambda b: sorted(b)[0] if b else 0),
        Part("the first or 0", "{b}[0] if {b} else 0", lambda b: (b + [0])[0]),
        Part("the last or 0", "{b}[-1] if {b} else 0", lambda b: ([0] + b)[-1]),
        Part("all in order", "*{b}", lambda b: b),
        Part("all in reverse", "*{b}[::-1]", lambda b: list(reversed(b))),
        Part("all in increasing order", "*sorted({b})", sorted),
        Part("the distinct values in increasing order", "*sorted(set({b}))",
             lambda b: [v for v, _ in itertools.groupby(sorted(b))]),
    ),
    draw=lambda rng: rng.choice((rng.randint(-30, 30), rng.randint(-9, 12), 7)) or 8,
)

WORDS = Domain(
    "words", "end",
    select=(
        Part("ones longer than 4", "len({x}) > 4", lambda x: len(x) > 4),
        Part("ones of even length", "len({x}) % 2 == 0", lambda x: len(x) % 2 == 0),
        Part("ones starting with a vowel", "{x}[0] in 'aeiou'", lambda x: x[0] in "aeiou"),
        Part("ones ending with a vowel", "{x}[-1] in 'aeiou'", lambda x: x[-1] in "aeiou"),
        Part("ones containing an a", "'a' in {x}", lambda x: "a" in x),
        Part("ones without an e", "'e' not in {x}", lambda x: x.count("e") == 0),
        Part("palindromes", "{x} == {x}[::-1]",
             lambda x: all(x[i] == x[-1 - i] for i in range(len(x)))),
    ),
    change=(
        Part("leave each as it is", "{x}", lambda x: x),
        Part("write each in capitals", "{x}.upper()", lambda x: x.upper()),
        Part("reverse each", "{x}[::-1]", lambda x: "".join(reversed(x))),
        Part("double each", "2 * {x}", lambda x: x + x),
        Part("take each first letter", "{x}[0]", lambda x: x[:1]),
        Part("drop each first letter", "{x}[1:]", lambda x: x[1:]),
    ),
    reduce=(
        Part("all in order", "*{b}", lambda b: b),
        Part("all in reverse", "*{b}[::-1]", lambda b: list(reversed(b))),
        Part("all in increasing order", "*sorted({b})", sorted),
        Part("all joined by dashes", "'-'.join({b})", "-".join),
        Part("the first or none", "{b}[0] if {b} else 'none'", lambda b: (b + ["none"])[0]),
        Part("the last or none", "{b}[-1] if {b} else 'none'", lambda b: (["none"] + b)[-1]),
        Part("the longest or none", "max({b}, key=len, default='none')",
             lambda b: next((w for w in b if len(w) == max(map(len, b))), "none")),
    ),
    draw=_draw_word,
    text=True,
)

DOMAINS = (INTEGERS, WORDS)

SHAPES = {  # how the input comes: the statement's first line
    "count": "Read n, then n {noun} on one line.",
    "line": "Read one line of {noun}.",
    "until": "Read {noun} one per line until {stop}.",
    "cases": "Read t, then t lines of {noun}, and answer each.",
}


# ------------------------------------------------------------------- problems and their tests


@dataclasses.dataclass(frozen=True)
class Problem:
    """A composition, its statement (comments), and its tests ((stdin, expected stdout), ...)."""

    parts: tuple  # (domain, shape, select, change, reduce): indices into the tables above
    statement: str
    tests: tuple


def compositions():
    """Every composition as indices (domain, shape, select, change, reduce)."""
    return [(d, *choice) for d, domain in enumerate(DOMAINS)
            for choice in itertools.product(range(len(SHAPES)), range(len(domain.select)),
                                            range(len(domain.change)), range(len(domain.reduce)))]


def swaps(parts):
    """Every composition that differs from `parts` in exactly one part (of the same domain)."""
    domain = DOMAINS[parts[0]]
    sizes = (1, len(SHAPES), len(domain.select), len(domain.change), len(domain.reduce))
    return [parts[:k] + (j,) + parts[k + 1:] for k in range(1, 5)
            for j in range(sizes[k]) if j != parts[k]]


def answer(parts, elements):
    """The line that a correct program prints for one list: the parts' meanings, applied in turn.

    Example: keep the even ones, square each, print the sum: [3, 2, -4] -> "20".
    """
    d, _, select, change, reduce = parts
    kept = [e for e in elements if DOMAINS[d].select[select].meaning(e)]
    result = DOMAINS[d].reduce[reduce].meaning([DOMAINS[d].change[change].meaning(e) for e in kept])
    return " ".join(map(str, result)) if isinstance(result, list) else str(result)


@functools.lru_cache(maxsize=None)
def _bank(d):
    """The lists that tests are chosen from: the same 60 of 5 to 9 elements in every contest.

    Each repeats some of its elements, and has a negative one if they are numbers.
    """
    rng, lists = random.Random(d), []
    while len(lists) < 60:
        elements = [DOMAINS[d].draw(rng) for _ in range(rng.randint(4, 6))]
        if DOMAINS[d].text or min(elements) < 0:
            lists.append(elements + rng.choices(elements, k=rng.randint(1, 3)))
    return lists


@functools.lru_cache(maxsize=None)
def _bank_answers(meaning):
    """What a composition without its shape (d, select, change, reduce) answers on the bank."""
    d, *rest = meaning
    return tuple(answer((d, 0, *rest), elements) for elements in _bank(d))


@functools.lru_cache(maxsize=None)
def _wrong_answers(meaning):
    """What each swap of one part of the meaning answers on the bank."""
    parts = (meaning[0], 0, *meaning[1:])
    return [_bank_answers(other[:1] + other[2:]) for other in swaps(parts) if other[1] == 0]


def ambiguous(parts):
    """True if another wording means the same: negating negative ones gives their absolute values.

    These compositions are left out of the contest, so every wrong part makes a wrong program.
    """
    meaning = parts[:1] + parts[2:]
    return _bank_answers(meaning) in _wrong_answers(meaning)


def _telling_lists(parts):
    """Lists that expose every swap of a part, most telling first (greedy cover)."""
    assert not ambiguous(parts), parts
    meaning = parts[:1] + parts[2:]
    mine, others = _bank_answers(meaning), _wrong_answers(meaning)
    chosen = []
    while others:
        best = max(range(len(mine)), key=lambda k: sum(other[k] != mine[k] for other in others))
        others = [other for other in others if other[best] == mine[best]]
        chosen.append(_bank(parts[0])[best])
    return chosen


def _stdin(parts, lists):
    """One input in the problem's shape; only the shape "cases" holds more than one list."""
    shape, stop = list(SHAPES)[parts[1]], DOMAINS[parts[0]].stop
    lines = [" ".join(map(str, elements)) for elements in lists]
    if shape == "count":
        return f"{len(lists[0])}\n{lines[0]}\n"
    if shape == "line":
        return f"{lines[0]}\n"
    if shape == "until":
        return "".join(f"{e}\n" for e in [*lists[0], stop])
    return "\n".join([str(len(lists)), *lines]) + "\n"


def make_problem(parts):
    """The problem of a composition: the same statement and the same tests every time.

    The tests: lists that expose every swap of one part (negative numbers and repeats among them),
    a list of a single element, and a list from which nothing is kept.
    """
    domain = DOMAINS[parts[0]]
    _, shape, select, change, reduce = parts
    keep = domain.select[select].meaning
    pool = [e for elements in _bank(parts[0]) for e in elements]
    lists = _telling_lists(parts)
    lists += [[next(e for e in pool if keep(e))], [e for e in pool if not keep(e)][:3]]
    groups = [lists] if list(SHAPES)[shape] == "cases" else [[elements] for elements in lists]
    tests = tuple((_stdin(parts, group), "".join(answer(parts, e) + "\n" for e in group))
                  for group in groups)
    reading = list(SHAPES.values())[shape].format(noun=domain.noun, stop=domain.stop)
    statement = (f"# {reading}\n# Keep the {domain.select[select].phrase}, "
                 f"{domain.change[change].phrase}, and print {domain.reduce[reduce].phrase}.\n")
    return Problem(parts, statement, tests)


class Contest(NamedTuple):
    """Three lists of problems. No two of them share a meaning (select, change, reduce)."""

    learn: list     # the language model and every assistant learn from these
    dev: list       # constants are chosen on these
    held_out: list  # results are measured on these


def make_contest(rng, n_train, n_dev, n_held_out):
    """A contest of unambiguous problems, split by meaning at random (rng: a random.Random).

    No held-out problem has the meaning of a problem to learn from, whatever the shape of its input.
    The problems to learn from use each of their meanings with every shape; those held out use as
    many meanings as are left.
    """
    meanings = [parts for parts in compositions() if parts[1] == 0 and not ambiguous(parts)]
    needed = [math.ceil(n / len(SHAPES)) for n in (n_train, n_dev, n_held_out)]
    if sum(needed) > len(meanings):
        raise ValueError(f"the contest has {len(meanings)} different meanings with {len(SHAPES)} "
                         f"problems each, too few to split {n_train} + {n_dev} + {n_held_out} "
                         "problems by meaning: lower --train-problems, --dev-problems or "
                         "--held-out-problems")
    rng.shuffle(meanings)
    cuts = [meanings[:needed[0]], meanings[needed[0]:sum(needed[:2])], meanings[sum(needed[:2]):]]
    return Contest(*(_with_shapes(rng, split, n)
                     for split, n in zip(cuts, (n_train, n_dev, n_held_out))))


def _with_shapes(rng, meanings, n):
    """n problems with these meanings: one shape of each, then a second one, and so on."""
    orders = [rng.sample(range(len(SHAPES)), len(SHAPES)) for _ in meanings]
    chosen = [(parts[0], order[k], *parts[2:]) for k in range(len(SHAPES))
              for parts, order in zip(meanings, orders)][:n]
    rng.shuffle(chosen)
    return list(map(make_problem, chosen))


# ------------------------------------------------------------------- programs in an author's style


class Style(NamedTuple):
    """How an author writes: her names and her four habits."""

    a: str           # the list that is read
    x: str           # one element of it
    b: str           # the list that is kept
    main: str        # her function
    loop: bool       # b is built in a loop, else by a comprehension
    use_map: bool    # list(map(int, ...)), else [int(s) for s in ...]
    use_sys: bool    # sys.stdin.readline(), else input()
    function: bool   # the program is a function and a call to it, else a script


# The names that an author gives to the list, an element, the result and her function.
AUTHORS = (("a", "x", "b", "main"), ("nums", "v", "res", "solve"), ("arr", "e", "out", "run"),
           ("data", "k", "kept", "work"), ("items", "i", "found", "go"),
           ("values", "y", "result", "process"))


def draw_style(rng):
    """A random author in a random mood (rng: a random.Random)."""
    return Style(*rng.choice(AUTHORS), *(rng.random() < 0.5 for _ in range(4)))


def write_program(parts, style):
    """The reference solution of a composition in one author's style, as source text."""
    d, shape, select, change, reduce = parts
    domain, shape = DOMAINS[d], list(SHAPES)[shape]
    a, x, b = style.a, style.x, style.b
    line = "sys.stdin.readline()" if style.use_sys else "input()"
    if domain.text:
        row, element = f"{line}.split()", line + ".strip()" * style.use_sys
        stop = repr(domain.stop)
    else:
        row = (f"list(map(int, {line}.split()))" if style.use_map else
               f"[int(s) for s in {line}.split()]")
        element, stop = f"int({line})", domain.stop

    if shape == "until":
        body = [f"{a} = []", f"{x} = {element}", f"while {x} != {stop}:",
                f"    {a}.append({x})", f"    {x} = {element}"]
    else:
        body = [f"n = int({line})"] * (shape == "count") + [f"{a} = {row}"]

    condition = domain.select[select].code.format(x=x)
    value = domain.change[change].code.format(x=x)
    if style.loop:
        body += [f"{b} = []", f"for {x} in {a}:", f"    if {condition}:",
                 f"        {b}.append({value})"]
    else:
        body += [f"{b} = [{value} for {x} in {a} if {condition}]"]
    body += [f"print({domain.reduce[reduce].code.format(b=b)})"]

    repeat = [f"for _ in range(int({line})):"] if shape == "cases" else []
    if style.function:
        call = [f"{style.main}()"]
        lines = [f"def {style.main}():", *_indent(body),
                 *repeat, *(_indent(call) if repeat else call)]
    else:
        lines = [*repeat, *_indent(body)] if repeat else body
    return "\n".join(["import sys"] * style.use_sys + lines) + "\n"


def _indent(lines):
    return ["    " + line for line in lines]
