"""Tests of what is taken from the answers of language models."""

import pytest

from section5.text import continuation, fences, program, verdict


@pytest.mark.parametrize("answer, found", [
    ("ACCEPT", "accept"), ("It is wrong.\nREJECT", "reject"), ("**Finish**.", "finish"),
    ("I could accept it, but no.\n\nreject!", "reject"), ("ACCEPT, not REJECT or FINISH", "finish"),
    ("REJECT\n\nIt does not finish the code.", "reject"),
    ("**Verdict:** ACCEPT\n\nIt would finish the loop.", "accept"),
    ("<think>\nREJECT\n</think>\nI think ACCEPT is right.", "accept"),
    ("<think>I might REJECT", None),
    ("Maybe REJECT.</think>accept", "accept"), ("", None), ("yes", None),
    ("acceptable", None), ("unfinished", None), ("Accept" * 2, None),
    ("x" * 10**6 + " accept", "accept")])
def test_the_last_verdict_counts(answer, found):
    assert verdict(answer) == found


@pytest.mark.parametrize("answer, code", [
    ("```python\nx = 1\n```", ["x = 1\n"]),
    ("Sure!\n```\na\n```\nthen\n```\nb\n```", ["a\n", "b\n"]),
    ("```py\nx = 1", ["x = 1"]), ("no fence", []), ("```", []), ("```python\n```", [""]),
    ("Sure: ```python\nb = 2\n```\nThat is all.", ["b = 2\n"]), ("~~~\na\n~~~", ["a\n"]),
    ("````\n```\n````", ["```\n"]),
    ("<think>```\nno\n```</think>\n```\nyes\n```", ["yes\n"]),
    ("```python\r\na\r\n```", ["a\n"]), ("```python\ns = '```'\n```\n", ["s = '```'\n"])])
def test_code_stands_in_fences(answer, code):
    assert fences(answer) == code
    assert program(answer) == ((code or [answer])[-1]).strip() + "\n"


@pytest.mark.parametrize("answer, code", [
    ("Input:\n```\n3\n```\nSolution:\n```python\nx = 1\n```", "x = 1\n"),
    ("Input: ```3``` Solution: ```python\nx = 1\n```", "x = 1\n"),
    ("```bash\npip install x\n```\n```\nx = 1\n```\n```text\n3\n```", "x = 1\n"),
    ("```\ninput\n```\nand\n```\nx = 1\n```", "x = 1\n"),
    ("```Python3\nx = 1\n```\nFor example:\n```python\nf(1)\n```", "x = 1\n"),
    ("1. So:\n   ```python\n   if x:\n       y\n   ```", "if x:\n    y\n"),
    ("* ```python\n  if x:\n      y\n  ```", "if x:\n    y\n"),
    ("```sql\nselect\n```", "select\n"),
    ("[THINK]```python\nno\n```[/THINK]\nx = [think]", "x = [think]\n"),
    ("<reasoning>so</reasoning>x", "x\n"), ("perhaps</Thinking>x", "x\n"),
    ("[THINK] it was cut", "\n")])
def test_the_program_of_an_answer_is_its_first_python_or_its_last_fence(answer, code):
    assert program(answer) == code


LOOP = "n = 1\nfor i in x:\n    y = 'a'\n    print(y)\n"


@pytest.mark.parametrize("code, answer, adds", [
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
    ("def f(x):\n   ", "```\n    a = 1\n    return a\n```", " a = 1\n    return a"),  # blanks again
    ("a\n", "", ""), ("a = 1\n", "a = 1\n", ""),
    ("a = 1\n", "So far:\n```\na = 1\n```\nNext:\n```\nb = 2\n```", "b = 2"),
    ("a = 1\n", "```sh\nls\n```\n```py\nb = 2\n```", "b = 2"),
    ("if a:\n", "So:\n  ```\n      b = 2\n  ```", "    b = 2"),
    ("a = 1\n", "[THINK]no[/THINK]b = 2", "b = 2"), ("a = 1\n", "`b = 2`", "b = 2"),
    ("a = 1\n", "```python b = 2```", "b = 2"),
    ("a = 1\n", "I'll continue the code:\nb = 2", "b = 2"),
    ("if ", "next_pos in seen:\n    continue", "next_pos in seen:\n    continue"),
    ("while ", "ok:\n    f()", "ok:\n    f()"),
    ("a = 1\nb = 2\nc = 3\n", "a = 1\nb = 2\nc", ""),        # cut off in what is repeated
    ("n = 1\n", "    letters = sorted(x)  # in order.\n    return letters",
     "    letters = sorted(x)  # in order.\n    return letters"),
    ("n = 1\n", "next_n = n + 1  # the next one.\nm", "next_n = n + 1  # the next one.\nm"),
    ("a = 1\nt = 'x'\ns = 'big ", 'a = 1\nt = "x"\ns = \'big dog\'', "dog'"),
    (LOOP, LOOP.replace("'", '"') + LOOP + "z", LOOP + "z"),
    (LOOP, LOOP.replace("'", '"') + "z", "z"), (LOOP, LOOP.replace("1\n", "1 \n\n") + "z", "z"),
    (LOOP + "    z =", LOOP.replace("'", '"') + "    z = 1\nw", " 1\nw")])
def test_a_continuation_begins_at_the_cursor(code, answer, adds):
    assert continuation(code, answer) == (adds, False)


def test_every_way_to_answer_gives_the_same_continuation():
    whole = "n = int(input())\nfor i in range(n):\n    if i % 2:\n        print(i)\n"
    for end in range(1, len(whole) - 1):
        code, rest = whole[:end], whole[end:]
        asked_for = code[code.rfind("\n") + 1:] + rest  # the last line, and what follows
        for answer in (rest, whole, f"```python\n{whole}```", f"Sure:\n```\n{whole}```\nDone.",
                       f"```python\n{asked_for}```"):
            found, done = continuation(code, answer)
            assert not done
            if answer != rest or len(code.splitlines()[-1].strip()) > 1:
                assert found.rstrip() == rest.rstrip() or found and rest.startswith(found), (
                    code, answer)
            if answer.endswith(f"{asked_for}```"):
                assert found.rstrip() == rest.rstrip(), (code, answer)


@pytest.mark.parametrize("answer, adds, done", [
    ("DONE", "", True), ("done.", "", True), ("**Done**", "", True),
    ("```python\nDONE\n```", "", True), ("print(x)\n# DONE", "print(x)\n", True),
    ("```python\nprint(x)\nDONE\n```", "print(x)\n", True),
    ("The program is complete.\n\nDONE", "", True), ("DONE\n\nThe code reads n.", "", True),
    ("```\nx = 1\n```\nDONE", "", True), ("```\nx = 1\ny = 2\n```\n\nDONE", "y = 2", True),
    ("```python\n    # DONE\n    return x\n```", "    # DONE\n    return x", False),
    ("y = [\n    LATE,\n    DONE\n]", "y = [\n    LATE,\n    DONE\n]", False),
    ("# DONE\ny = x", "# DONE\ny = x", False), ("y = done", "y = done", False), ("", "", False),
    ("undone", "undone", False),
    ("ABANDONED", "ABANDONED", False), ("DONE = 1", "DONE = 1", False)])
def test_done_completes_the_program(answer, adds, done):
    assert continuation("x = 1\n", answer) == (adds, done)
