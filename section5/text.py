"""What language models answer, and what we take from it: programs, verdicts, continuations.

Chat models wrap code in fences, repeat what is there, and talk. The rules here are few and strict;
what they cannot read is an unclear answer, and is counted.
"""

import ast
import re

_VERDICT = r"\b(accept|reject|finish)\b"
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"(`{3,}|~{3,})[^\n`]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"\s*(`+)(?:(?:python|py)\b)?[ \t]*([^\n`]+)\1\s*")
_DONE = re.compile(r"^[ \t#*`]*DONE[ \t.!*`]*$", re.MULTILINE)
_CHATTER = re.compile(r"\s*(sure|certainly|of course|okay|ok|here|the next|next|continu|i'll|i will"
                      r"|let)[^\n]*[:!.][ \t]*\n", re.IGNORECASE)


def verdict(answer):
    """The verdict in an answer, accept, reject or finish; None without one.

    The last of these words that stands on a line of its own counts, or else the last one anywhere.
    Example: "I would ACCEPT it, but no: **Reject**." is "reject".
    """
    found = re.findall(rf"^\W*{_VERDICT}\W*$", answer, re.IGNORECASE | re.MULTILINE) or \
        re.findall(_VERDICT, answer, re.IGNORECASE)
    return found[-1].lower() if found else None


def fences(answer):
    """The code in each fence of an answer, the last of which may not be closed.

    Example: "Here:\\n```python\\nx = 1\\n```\\nDone." has ["x = 1\\n"].
    """
    return [found[2] for found in _FENCE.finditer(_THOUGHT.sub("", answer).replace("\r\n", "\n"))]


def program(answer):
    """The program in an answer: its first fence, or else all of it, with one \\n at its end."""
    code = (fences(answer) or [_THOUGHT.sub("", answer)])[0]
    return code.strip("\n").rstrip() + "\n"


# ------------------------------------------------------------------- continuations


def continuation(code, answer):
    """(what an answer adds to `code` at its very end, whether it says that this completes it).

    The first fence that adds something counts, or else the answer without a line of chatter before
    the code. If it repeats the code, or its end from the beginning of a line, only what follows
    counts. A line break before the closing fence is the fence's. A line DONE completes the code.
    Example: code "a = 1\\nb =", answer "```\\nb = a + 1\\n```" adds " a + 1".
    """
    answer = _THOUGHT.sub("", answer).replace("\r\n", "\n")
    parts = fences(answer)
    for part in parts:
        part, done = without_done(part.removesuffix("\n"))
        new = added(code, part)
        if new or done:
            return new, done
    if parts:
        return "", bool(_DONE.search(_FENCE.sub("", answer)))
    part, done = without_done(without_chatter(code, answer))
    new = added(code, part)
    return ("" if done and not parses(code + new) else new), done  # not code, but a sentence


def without_done(text):
    """(the text before a line DONE, whether there is one). A text that is only "done." is one."""
    found = _DONE.search(text) or re.fullmatch(r"\W*done\W*", text, re.IGNORECASE)
    return (text[:found.start()], True) if found else (text, False)


def without_chatter(code, text):
    """A text without marks around it, or a line before it, that are not code.

    A line such as "ok:" may be code: it is if it completes the line at the end of `code`.
    """
    inline, chatter = _INLINE.fullmatch(text), _CHATTER.match(text)
    if inline:
        return inline[2]
    line = code[code.rfind("\n") + 1:].strip() + " " + chatter[0].strip() if chatter else ""
    return text[chatter.end():] if chatter and not (
        parses(line) or parses(f"{line} pass")) else text


def parses(code):
    """Whether this is Python."""
    try:
        return bool(ast.parse(code))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def added(code, text):
    """What a text that may repeat code, or the end of it, adds to it."""
    if not code:
        return text
    starts = (0, *(found.end() for found in re.finditer("\n", code)))
    for start in starts:
        repeated = code[start:]
        if text.startswith(repeated) and (repeated.strip() or start == starts[-1] and repeated):
            return text[len(repeated):]
        # The end of the last line may have been repeated without the blanks after it, or indented
        # from the margin.
        if len(repeated.strip()) > 1 and text.lstrip().startswith(repeated.strip()):
            return text.lstrip()[len(repeated.strip()):].removeprefix(
                repeated[len(repeated.rstrip()):])
    if "\n" in text.strip() and code.startswith(text.strip()):
        return ""  # it was cut off while it repeated the code
    return after_last_lines(code, text)


def after_last_lines(code, text):
    """What a text that retypes the code with small differences adds to it.

    It begins as the code does, and holds the last two lines of it, but for white space and quotes.
    """
    def alike(line):
        return line.strip().replace('"', "'")

    known = [alike(line) for line in code.split("\n") if line.strip()]
    lines = text.strip("\n").split("\n")
    if len(known) < 2 or alike(lines[0]) != known[0]:
        return text
    open_line = code[code.rfind("\n") + 1:]  # the cursor is in it
    for k in range(len(lines) - 1, 0, -1):
        before = next((alike(line) for line in reversed(lines[:k]) if line.strip()), "")
        line, rest = alike(lines[k]), "\n".join(lines[k + 1:])
        if before == known[-2] and not open_line.strip() and line == known[-1]:
            return rest.removeprefix(open_line)
        if before == known[-2] and open_line.strip() and line.startswith(known[-1]):
            return lines[k].strip()[len(known[-1]):] + ("\n" + rest if rest else "")
    return text
