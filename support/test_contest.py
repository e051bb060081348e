"""Tests of the generated contest: correct programs pass, wrong ones do not."""

import itertools
import random

import pytest

from support.contest import (DOMAINS, INTEGERS, SHAPES, Style, compositions, draw_style,
                             make_contest, swaps, write_program)
from support.test_helpers import small_contest, solves

def styles():
    """Each combination of the four habits, names drawn at random."""
    rng = random.Random(0)
    return [Style(*draw_style(rng)[:4], *habits)
            for habits in itertools.product([False, True], repeat=4)]


def test_every_reference_solution_passes_in_every_style():
    for problem in random.Random(1).sample(small_contest().learn + small_contest().held_out, 500):
        for style in styles():
            program = write_program(problem.parts, style)
            assert solves(program, problem), (problem, program)


def test_a_program_with_one_part_swapped_fails():
    rng, passed, tried = random.Random(2), [], 0
    for problem in rng.sample(small_contest().learn + small_contest().held_out, 500):
        for parts in swaps(problem.parts):
            tried += 1
            if solves(write_program(parts, draw_style(rng)), problem):
                passed.append((problem.parts, parts))
    assert tried > 10_000 and len(passed) <= 0.01 * tried, (len(passed), tried, passed[:5])


def test_no_meaning_is_in_two_splits():
    """Not even with its input in another shape: the held-out problems ask for something new."""
    def meanings(problems):
        return {(domain, *meaning) for domain, _, *meaning in (p.parts for p in problems)}

    learn, dev, held_out = splits = small_contest()
    assert [len(split) for split in splits] == [600, 100, 300]
    assert len({problem.parts for split in splits for problem in split}) == 1000
    assert len(meanings(learn)) == 150 and len(meanings(dev)) == 25
    assert len(meanings(held_out)) == 300  # as many as there are problems
    assert not meanings(learn) & meanings(dev) | meanings(held_out) & meanings(learn + dev)


def test_what_is_held_out_does_not_change_what_is_learned():
    few, many = (make_contest(random.Random(3), 60, 8, n) for n in (5, 50))
    assert few.learn == many.learn and few.dev == many.dev


def test_the_contest_is_as_large_as_it_says():
    assert len(SHAPES) >= 3 and len(compositions()) > 5000
    assert [len(part) for part in INTEGERS[2:5]] == [11, 9, 12]


def test_tests_hold_the_edge_cases():
    for problem in small_contest().held_out:
        domain, shape = DOMAINS[problem.parts[0]], list(SHAPES)[problem.parts[1]]
        lists = []
        for stdin, _ in problem.tests:
            lines = stdin.splitlines()
            lines = {"count": lines[1:], "line": lines, "until": [" ".join(lines[:-1])],
                     "cases": lines[1:]}[shape]
            lists += [line.split() for line in lines]
        if domain is INTEGERS:
            lists = [[int(x) for x in elements] for elements in lists]
            assert any(x < 0 for elements in lists for x in elements)
        keep = domain.select[problem.parts[2]].meaning
        assert any(len(elements) == 1 for elements in lists)
        assert any(not any(map(keep, elements)) for elements in lists)
        assert any(len(set(elements)) < len(elements) for elements in lists)


def test_too_many_problems_is_an_error():
    with pytest.raises(ValueError, match="too few"):
        make_contest(random.Random(0), 5000, 500, 500)
