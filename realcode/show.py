"""python empower.py show FILE [--model DIR] [--at LINE:COL] [--svg FILE.svg]"""

import dataclasses
import html
import os
import re
import sys
import textwrap

import numpy as np

from empower import empower_length, empower_lengths, score
from realcode.given import DTYPE, ETA, model_at_hand, offset, read_source
from support.cli import UserError, check_ranges, flag
from support.files import write_text
from support.report import left_to_human, marked, token_texts


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of `show`."""

    out: str = flag("out", "folder of the run whose small GPT is used without --model")
    device: str = flag("auto", "auto, cpu, cuda or mps")
    file: str = flag("", "the program", positional=True)
    model: str = flag("", "a checkpoint folder or GGUF file (default: the small GPT pre-trained "
                           "in --out)")
    dtype: str = flag("auto", DTYPE)
    at: str = flag("every", "the state: LINE:COL, counted from 1, or every")
    eta: float = flag(0.32, ETA, 0)
    svg: str = flag("", "a file to write the same picture to")

    def __post_init__(self):
        check_ranges(self)


def show(cfg):
    """Figure 1 on your own code: tokens shaded by cost, a bar where Algorithm 1 stops.

    Without colours, the tokens that the human types are between ‹ and ›.
    """
    text = read_source(cfg.file)
    place = None if cfg.at == "every" else offset(text, cfg.at, cfg.file)
    base = model_at_hand(cfg, lambda config: "base")
    ids, limit = base.encoding.encode_ordinary(text), base.model.config.max_position_embeddings
    if not ids:
        raise UserError(f"{cfg.file} is empty: show another file")
    if len(ids) > limit:
        raise UserError(f"{cfg.file} has {len(ids)} tokens, but the model reads at most "
                        f"{limit}: show a part of it")
    [nll] = score(base.model, [ids], base.encoding.start)
    texts = token_texts(base.encoding, ids)
    plain, marks, said = (picture_of_all(texts, nll, cfg.eta) if place is None else
                          picture_at(texts, nll, cfg.eta, place))
    said += f" (eta = {cfg.eta:g} bits)."
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print((shaded(texts, nll, marks) if coloured else plain).rstrip("\n") + f"\n\n{said}")
    if cfg.svg:
        try:
            write_text(cfg.svg, svg(texts, nll, marks, said))
        except OSError as error:
            raise UserError(f"cannot write {cfg.svg} ({error.strerror}): name another "
                            "file") from None


def picture_of_all(texts, nll, eta):
    """(plain text, marks {index: mark}, caption) of a program that both write in turns."""
    human = left_to_human(empower_lengths(nll, eta))
    return marked(texts, human), {k: "┃" for k in human}, (
        f"The assistant would have written {len(texts) - len(human)} of {len(texts)} tokens, and "
        f"the human {len(human)}, one where each suggestion stops")


def picture_at(texts, nll, eta, place):
    """The same for one state: after the last whole token before `place`, in characters."""
    n = int(np.searchsorted(np.cumsum([len(text) for text in texts]), place, side="right"))
    while n and not texts[n - 1]:
        n -= 1  # not inside a character of several tokens
    stop = n + empower_length(nll[n:], eta)
    completion, before = "".join(texts[n:stop]), "".join(texts[:n])
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    inside = ", where the token begins," * (len(before) != place)
    said = f"At {line}:{column}{inside} the assistant would have written " + (
        f"{completion!r}, {nll[n:stop].sum():.2f} bits" if completion else "nothing") + (
        f"; the next token costs {nll[stop]:.2f} bits" if stop < len(texts) else "")
    marks = {n: "▸", stop: "┃"} if stop > n else {n: "▸┃"}
    return f"{before}▸{completion}┃{''.join(texts[stop:])}", marks, said


# From this many bits on, a token has this colour: xterm's number, and the same colour in SVG.
SHADES = [(0.1, 230, "#ffffd7"), (0.5, 229, "#ffffaf"), (1, 222, "#ffd787"), (2, 215, "#ffaf5f"),
          (4, 209, "#ff875f"), (8, 203, "#ff5f5f")]


def shade(bits):
    """(xterm colour, SVG colour) of a token, None if it costs next to nothing."""
    return next((colours for least, *colours in reversed(SHADES) if bits >= least), None)


def shaded(texts, nll, marks):
    """The picture for a terminal; colours end before a newline and begin again after it."""
    marks, out = {k: f"\033[1;31m{mark}\033[0m" for k, mark in marks.items()}, []
    for k, (text, bits) in enumerate(zip(texts, nll)):
        begin = f"\033[30;48;5;{shade(bits)[0]}m" if shade(bits) else ""
        end = "\033[0m" if begin else ""
        out += [marks.get(k, ""), begin, text.replace("\n", f"{end}\n{begin}"), end]
    return "".join(out) + marks.get(len(texts), "")


NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # such as a form feed


def svg(texts, nll, marks, caption):
    """The picture as SVG: a grid of characters, 8 x 18 points each, and a key to the shades."""
    shapes, behind, row, column, widest = [], [], 0, 0, 60

    def draw(text, fill=None):
        text = NOT_XML.sub("\ufffd", text)
        x, y, size = 8 * column, 18 * row, 8 * len(text)
        if fill and text:
            behind.append(f'<rect x="{x}" y="{y}" width="{size}" height="18" fill="{fill}"/>')
        if text.strip():  # browsers drop leading spaces unless each text says that it keeps them
            shapes.append(f'<text x="{x}" y="{y + 13}" textLength="{size}" xml:space="preserve" '
                          f'style="white-space:pre">{html.escape(text, quote=False)}</text>')

    for k, (text, bits) in enumerate(zip([*texts, ""], [*nll, 0])):
        for mark in marks.get(k, ""):
            colour = {"┃": "#cc0000", "▸": "#0000cc"}[mark]
            shapes.append(f'<rect x="{8 * column - 1}" y="{18 * row}" width="2" height="18" '
                          f'fill="{colour}"/>')
        for j, part in enumerate(text.expandtabs(4).split("\n")):
            row, column = (row + 1, 0) if j else (row, column)
            draw(part, shade(bits) and shade(bits)[1])
            column += len(part)
            widest = max(widest, column)
    below, column = row + 1 + (column > 0), 0
    lines = [*textwrap.wrap(caption, widest), "", "bits of a token, from"]
    for row, line in enumerate(lines, below):
        draw(line)
    for k, (least, _, colour) in enumerate(SHADES):
        column = 23 + 6 * k
        draw(f"{least:g}".center(4), colour)
    width, height = 8 * widest + 16, 18 * row + 30
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -6 {width} {height}" '
        f'width="{width}" height="{height}" font-family="monospace" font-size="13">'
        '<rect x="-8" y="-6" width="100%" height="100%" fill="white"/>',
        *behind, *shapes, "</svg>\n"])
