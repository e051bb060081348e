"""What language models answer, and what we take from it: programs, verdicts, continuations.

Chat models wrap code in fences, repeat what is there, and talk. The rules here are few and strict;
what they cannot read is an unclear answer, and is counted.
"""

import re

VERDICTS = ("accept", "reject", "finish")
_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_CHATTER = re.compile(r"(?:(?:sure|certainly|of course|okay|ok|here|the next|next|continu)[^\n]*"
                      r"[:!.]\s*\n)+", re.IGNORECASE)


def verdict(answer):
    """The last of the words accept, reject, finish in an answer, in lower case; None without one.

    Example: "I would ACCEPT it, but no: **Reject**." is "reject".
    """
    found = re.findall(r"\b(accept|reject|finish)\b", answer, re.IGNORECASE)
    return found[-1].lower() if found else None


def fenced(answer):
    """The code in the first fence of an answer, also if it is not closed; None without a fence.

    Example: "Here:\\n```python\\nx = 1\\n```\\nDone." is "x = 1\\n".
    """
    found = _FENCE.search(answer)
    return found and found[1]


def program(answer):
    """The program in an answer: its first fence, or else all of it, with one \\n at its end."""
    code = fenced(answer)
    return (answer if code is None else code).strip("\n").rstrip() + "\n"


def continuation(code, answer):
    """What an answer adds to `code` at its very end; "" if nothing.

    A fence and a line of chatter before the code are dropped. If the answer repeats the code, or
    its end from the beginning of a line, only what follows counts. A line break before the closing
    fence is the fence's.
    Example: code "a = 1\\nb =", answer "```\\nb = a + 1\\n```" adds " a + 1".
    """
    text = fenced(answer)
    if text is None:
        text = _CHATTER.sub("", answer, count=1) if _CHATTER.match(answer) else answer
    else:
        text = text.removesuffix("\n")
    if not code:
        return text
    for start in (0, *(found.end() for found in re.finditer("\n", code))):
        repeated = code[start:]
        if repeated.strip() and text.startswith(repeated):
            return text[len(repeated):]
        # The end of the last line may have been repeated without the blanks after it, or indented
        # from the margin.
        if len(repeated.strip()) > 1 and text.lstrip().startswith(repeated.strip()):
            return text.lstrip()[len(repeated.strip()):].removeprefix(
                repeated[len(repeated.rstrip()):])
    return text


def is_done(answer):
    """Whether an answer says that the program is complete, and no more. Example: "DONE."."""
    return re.fullmatch(r"\W*done\W*", answer, re.IGNORECASE) is not None
