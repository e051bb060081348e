"""Exercise 8: another domain. Its programs are run on the tests of its problems."""

import random

import pytest

import exercises
from support import contest
from support.contest import compositions, draw_style, make_problem, swaps, write_program
from support.test_helpers import solves


@pytest.fixture
def domain(monkeypatch):
    """The new domain, as the third of the contest."""
    caches = contest._bank, contest._bank_answers, contest._wrong_answers
    for cache in caches:
        cache.cache_clear()
    found, rng = exercises.another_domain(), random.Random(0)
    assert found.text or min(found.draw(rng) for _ in range(300)) < 0, "draw a negative number too"
    monkeypatch.setattr(contest, "DOMAINS", (*contest.DOMAINS, found))
    yield found
    for cache in caches:
        cache.cache_clear()


def new_problems(n):
    """n problems of the new domain."""
    found = [parts for parts in compositions() if parts[0] == 2 and not contest.ambiguous(parts)]
    assert len(found) >= 100, f"{len(found)} problems: too many parts mean the same"
    return [make_problem(parts) for parts in random.Random(0).sample(found, n)]


def test_parts_of_each_kind_are_told_apart(domain):
    for parts in (domain.select, domain.change, domain.reduce):
        assert len(parts) >= 3, "at least 3 parts of each kind"
        assert len({part.phrase for part in parts}) == len({part.code for part in parts}) \
            == len(parts), "two parts have the same phrase or code"
    assert domain.noun not in {other.noun for other in contest.DOMAINS[:2]}, "the noun is taken"


def test_what_is_drawn_can_be_read(domain):
    rng = random.Random(0)
    drawn = [domain.draw(rng) for _ in range(300)]
    if domain.text:
        assert all(len(x.split()) == 1 for x in drawn), "a word has a space, or is empty"
    else:
        assert all(type(x) is int for x in drawn) and min(drawn) < 0
    assert domain.stop not in map(str, drawn), "the stop is drawn"
    for part in domain.select:
        assert any(map(part.meaning, drawn)), f"{part.phrase}: keeps nothing that is drawn"


def test_programs_solve_their_problems_and_swapped_ones_do_not(domain):
    rng, solved, tried = random.Random(1), 0, 0
    for problem in new_problems(40):
        program = write_program(problem.parts, draw_style(rng))
        assert solves(program, problem), (
            f"a code and its meaning differ: {problem.statement}\n{program}")
        for parts in swaps(problem.parts):
            tried += 1
            solved += solves(write_program(parts, draw_style(rng)), problem)
    assert solved <= 0.01 * tried, (
        f"{solved} of {tried} programs with a part too few or another part are right all the same")
