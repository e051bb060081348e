"""What language models answer, and what we take from it: programs, verdicts, continuations.

Chat models wrap code in fences, repeat what is there, and talk. The rules here are few and strict;
what they cannot read is an unclear answer, and is counted.
"""

import ast
import re
import textwrap
import warnings

_VERDICT = r"\b(accept|reject|finish)\b"
_OPEN, _CLOSE = (rf"(?:<{slash}(?:think|thinking|reasoning)>|(?-i:\[{slash}THINK\]))"
                 for slash in ("", "/"))
_THOUGHT = re.compile(rf"\A(?:(?!{_OPEN}).)*?{_CLOSE}|{_OPEN}.*?(?:{_CLOSE}|\Z)",
                      re.DOTALL | re.IGNORECASE)  # its beginning may be in the model's prompt
_FENCE = re.compile(r"(`{3,}|~{3,})[ \t]*([\w+.-]*)[^\n`]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)",
                    re.DOTALL | re.MULTILINE)
_PYTHON = re.compile(r"py(thon)?[\d.]*", re.IGNORECASE)
_INLINE = re.compile(r"\s*(`+)(?:(?:python|py)\b)?[ \t]*([^\n`]+)\1\s*")
_DONE = re.compile(r"^[ \t#*`]*DONE[ \t.!*`]*\s*\Z", re.MULTILINE)  # the last line
_CHATTER = re.compile(r"\s*(sure|certainly|of course|okay|ok|here|the next|next|continu\w*|i'll|"
                      r"i will|let's|let me)\b[^\n]*[:!.][ \t]*\n", re.IGNORECASE)


def verdict(answer):
    """The verdict in an answer, accept, reject or finish; None without one.

    The last of these words that stands on a line of its own counts, or else the last one anywhere.
    Example: "I would ACCEPT it, but no: **Reject**." is "reject".
    """
    answer = _THOUGHT.sub("", answer)
    found = re.findall(rf"^\W*(?:(?:my|final|verdict|decision|answer)\W+)*{_VERDICT}\W*$", answer,
                       re.IGNORECASE | re.MULTILINE) or re.findall(_VERDICT, answer, re.IGNORECASE)
    return found[-1].lower() if found else None


def fences(answer):
    """The code in the fences of an answer: those of Python, or else of no language, or else all.

    The last one may not be closed. The code loses the indentation of its fence.
    Example: "First:\n```sh\nls\n```\nThen:\n```python\nx = 1\n```" has ["x = 1\n"].
    """
    answer, found = _THOUGHT.sub("", answer).replace("\r\n", "\n"), {0: [], 1: [], 2: []}
    for fence in _FENCE.finditer(answer):
        before = answer[answer.rfind("\n", 0, fence.start()) + 1:fence.start()]
        code = re.sub(f"^{before}", "", fence[3], flags=re.MULTILINE) if before.isspace() \
            else fence[3]
        found[0 if _PYTHON.fullmatch(fence[2]) else 1 if not fence[2] else 2].append(code)
    return found[0] or found[1] or found[2]


def program(answer):
    """The program in an answer, with one \n at its end.

    It is the first fence of Python, or else the last one, or else all of the answer.
    """
    answer = _THOUGHT.sub("", answer)
    found = fences(answer) or [answer]
    named = any(_PYTHON.fullmatch(fence[2]) for fence in _FENCE.finditer(answer))
    return textwrap.dedent(found[0 if named else -1]).strip("\n").rstrip() + "\n"


# ------------------------------------------------------------------- continuations


def continuation(code, answer):
    """(what an answer adds to `code` at its very end, whether it says that this completes it).

    The first fence that adds something counts, or else the answer without a line of chatter before
    the code. If it repeats the code, or its end from the beginning of a line, only what follows
    counts. A line break before the closing fence is the fence's. A last line DONE completes the
    code.
    Example: code "a = 1\\nb =", answer "```\\nb = a + 1\\n```" adds " a + 1".
    """
    answer = _THOUGHT.sub("", answer).replace("\r\n", "\n")
    parts = fences(answer)
    after = bool(parts and _DONE.search(_FENCE.sub("", answer)))
    for part in parts:
        part, done = without_done(part.removesuffix("\n"))
        new = added(code, part)
        if new or done:
            return new, done or after
    if parts:
        return "", after
    part, done = without_done(without_chatter(code, answer))
    new = added(code, part)
    if done or re.match(r"\s*DONE\b", part):  # what is not code is a sentence about it
        return (new, done) if parses(code + new) else ("", True)
    return new, False


def without_done(text):
    """(the text before a last line DONE, whether there is one); "done." alone is one too."""
    found = _DONE.search(text) or re.fullmatch(r"\W*done\W*", text, re.IGNORECASE)
    return (text[:found.start()], True) if found else (text, False)


def without_chatter(code, text):
    """A text without marks around it, or a line before it, that are not code.

    A line such as "ok:" may be code: it is if it completes the line at the end of `code`.
    """
    inline, chatter = _INLINE.fullmatch(text), _CHATTER.match(text)
    if inline:
        return inline[2]
    if not chatter:
        return text
    begun = code[code.rfind("\n") + 1:]
    line = f"{begun} {chatter[0].strip()}".strip()
    return text if parses(line) or parses(f"{line} pass") else text[chatter.end():]


def parses(code):
    """Whether this is Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes such as "\\d"
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

    It begins as the code does, and has the last two lines of it as often as the code itself, but
    for white space and quotes.
    """
    def alike(line):
        return line.strip().replace('"', "'")

    known = [alike(line) for line in code.split("\n") if line.strip()]
    lines = [(k, alike(line)) for k, line in enumerate(text.split("\n")) if line.strip()]
    open_line = code[code.rfind("\n") + 1:]  # the cursor is in it
    if len(known) < 2 or not lines or lines[0][1] != known[0]:
        return text

    def is_last(before, line):
        same = line.startswith(known[-1]) if open_line.strip() else line == known[-1]
        return before == known[-2] and same

    times = sum(map(is_last, known, known[1:]))
    found = [k for (_, before), (k, line) in zip(lines, lines[1:]) if is_last(before, line)]
    if len(found) < times:
        return text
    line, *rest = text.split("\n")[found[times - 1]:]
    if not open_line.strip():
        return "\n".join(rest).removeprefix(open_line)
    new = line.strip()[len(known[-1]):].removeprefix(open_line[len(open_line.rstrip()):])
    return "\n".join([new, *rest])
