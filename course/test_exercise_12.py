"""Exercise 12: what she does not read. Worked examples first, then random games."""

import random

import pytest

from exercises import accidents
from simhuman import Episode, Turn


def cheap(nll):
    """She accepts up to 2 bits."""
    return sum(nll) <= 2


def turn(nll, read):
    """A turn of Section 3 with a suggestion of these costs."""
    return Turn(list(range(len(nll))), nll, bool(nll) and (not read or cheap(nll)), [7], read)


@pytest.mark.parametrize("turns, accident", [
    pytest.param([turn([1, 3], True)], False, id="read and rejected"),
    pytest.param([turn([0.5], False)], False, id="unread, but she would have accepted it"),
    pytest.param([turn([1, 3], False)], True, id="unread, and she would have rejected it"),
    pytest.param([turn([0.5], True), turn([1, 3], False), turn([0.5], True)], True,
                 id="one of three suggestions is an accident"),
    pytest.param([turn([1, 1], False)], False, id="her rule accepts exactly 2 bits"),
    pytest.param([], False, id="a game without a turn"),
    pytest.param([turn([], True)], False, id="nothing was offered"),
])
def test_by_hand(turns, accident):
    assert [bool(one) for one in accidents([Episode(0, turns)], cheap)] == [accident]


def test_a_silent_assistant_has_no_accidents_even_if_she_would_reject_nothing_offered():
    silent = [Episode(0, [turn([], False)])]
    assert not any(accidents(silent, lambda nll: False)), "is an empty suggestion an accident?"


def test_her_rule_decides_and_not_what_was_accepted():
    games = [Episode(0, [turn([1, 3], False)])]
    assert [any(accidents(games, rule)) for rule in (cheap, lambda nll: True)] == [True, False]


def test_each_game_is_judged_by_itself_and_none_is_changed():
    rng = random.Random(0)
    games = [Episode(k, [turn([rng.random() * 2 for _ in range(rng.randint(0, 3))],
                              rng.random() < 0.7) for _ in range(rng.randint(0, 4))])
             for k in range(200)]
    before = repr(games)
    found = accidents(games, cheap)
    assert len(found) == 200 and 0 < sum(found) < 200
    assert repr(games) == before, "it changes the games"
    for game, one in zip(games, found):
        assert accidents([game], cheap) == [one]
        assert not one or any(not each.read for each in game.turns)
