"""Tests of what is taken from the answers of language models."""

import pytest

from section5.text import continuation, fenced, is_done, program, verdict


@pytest.mark.parametrize("answer, found", [
    ("ACCEPT", "accept"), ("It is wrong.\nREJECT", "reject"), ("**Finish**.", "finish"),
    ("I could accept it, but no.\n\nreject!", "reject"), ("ACCEPT, not REJECT or FINISH", "finish"),
    ("", None), ("yes", None), ("acceptable", None), ("unfinished", None), ("Accept" * 2, None),
    ("x" * 10**6 + " accept", "accept")])
def test_the_last_verdict_counts(answer, found):
    assert verdict(answer) == found


@pytest.mark.parametrize("answer, code", [
    ("```python\nx = 1\n```", "x = 1\n"), ("Sure!\n```\na\n```\nthen\n```\nb\n```", "a\n"),
    ("```py\nx = 1", "x = 1"), ("no fence", None), ("```", None), ("```python\n```", ""),
    ("```python\ns = '```'\n```\n", "s = '```'\n")])
def test_the_first_fence_is_the_code(answer, code):
    assert fenced(answer) == code
    assert program(answer).count("\n") >= 1


@pytest.mark.parametrize("code, answer, added", [
    ("", "x = 1", "x = 1"), ("", "```python\nx = 1\n```", "x = 1"),
    ("a = 1\nb =", "```\nb = a + 1\n```", " a + 1"),          # the last line again
    ("a = 1\nb =", "```python\na = 1\nb = 2\n```", " 2"),      # all of it again
    ("a = 1\nb =", " 2", " 2"), ("a = 1\nb =", "Here is the rest:\n 2", " 2"),
    ("a = 1\n", "a = 1\nb = 2\n", "b = 2\n"), ("a = 1\n", "b = 2", "b = 2"),
    ("for i in x:\n    ", "print(i)", "print(i)"),
    ("for i in x:\n    pri", "    print(i)", "nt(i)"),          # the end, with its indentation
    ("for i in x:\n    pri", "print(i)", "nt(i)"),              # the end, from the margin
    ("for i in x:\n    y = ", "y = 2", "2"), ("x = ", "```\nx = 1\n```", "1"),
    ("def f(x):\n", "    return x", "    return x"),
    ("a\n", "", ""), ("a = 1\n", "a = 1\n", "")])
def test_a_continuation_begins_at_the_cursor(code, answer, added):
    assert continuation(code, answer) == added


def test_every_way_to_answer_gives_the_same_continuation():
    whole = "n = int(input())\nfor i in range(n):\n    if i % 2:\n        print(i)\n"
    for end in range(1, len(whole) - 1):
        code, rest = whole[:end], whole[end:]
        for answer in (rest, whole, f"```python\n{whole}```", f"Sure:\n```\n{whole}```\nDone."):
            found = continuation(code, answer)
            if answer != rest or len(code.splitlines()[-1].strip()) > 1:
                assert found.rstrip() == rest.rstrip() or rest.startswith(found), (code, answer)


@pytest.mark.parametrize("answer, done", [("DONE", True), ("done.", True), ("**Done**", True),
                                          ("x = done", False), ("", False), ("undone", False)])
def test_done_stands_alone(answer, done):
    assert is_done(answer) == done
