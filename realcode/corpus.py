"""Your own programs: read, tables left out, split by near-duplicates, cut into pieces and scored.

A corpus is a folder of .py files, one file, a JSONL file, or the word stdlib, the standard library
of the Python that runs this.
"""

import codecs
import collections
import functools
import gzip
import io
import json
import os
import platform
import re
import sysconfig
import tokenize
import zlib
from pathlib import Path

import numpy as np

from empower import score
from realcode import parallel
from support.cli import UserError, checked, python_generator, reading
from support.files import read_bytes, read_json, replacing
from support.report import counted

CORPUS = "a folder of .py files, one file, a JSONL file, or the word stdlib"
FIELD = "the JSONL field that holds the code (default: found automatically)"
STATEMENTS_FLAG = ("put the statement of a JSONL row (its field prompt, statement, problem, "
                   "description, question or text) before its program, as comments; the scorer "
                   "then reads it, unlike in Section 4.1")

# ------------------------------------------------------------------- reading

FIELDS = ("code", "program", "content", "solution", "canonical_solution", "completion", "text")
STATEMENTS = ("prompt", "statement", "problem", "description", "question", "text")
JSON = (".jsonl", ".json", ".ndjson")
SOURCES = (".py", ".pyw", ".ipynb")
LONGEST = 400_000  # characters in a program; tiktoken fails on a million of white space
_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "node_modules"}


def read_corpus(source, field=None, statements=False):
    """The distinct programs of a corpus, and one line that describes them.

    source: a folder of .py files, a .py file, a file of JSON rows with programs in `field` (or in
    the first of FIELDS that it has), or "stdlib", the library of this Python. statements: put the
    statement of a JSON row before its program, as comments. ValueError says what is wrong.

    Example report: "1,634 programs of 1,918 in kattis.jsonl (field code): 284 duplicates".
    """
    path, where, bad = Path(source), str(source), []
    if (field or statements) and not is_json(path) and (
            path.exists() or source == "stdlib"):
        raise ValueError(f"{path} has no fields: leave out --field and --statements")
    if source == "stdlib":
        where = f"the standard library of Python {platform.python_version()}"
        texts, bad = _read_folder(Path(sysconfig.get_path("stdlib")),
                                  _SKIPPED | {"test", "tests"})
    elif path.is_dir():
        texts, bad = _read_folder(path, _SKIPPED)
    elif not path.exists():
        raise ValueError(f"there is no {path}: name a folder, a .py or .jsonl file, or stdlib")
    elif path.suffix.lower() in SOURCES:
        texts = [lines_of(path)]
    elif is_json(path):
        texts, field = _read_rows(path, field, statements)
        where += f" (field {field})"
    else:
        raise ValueError(f"{path} is not a corpus: name a folder of .py files, a .py or .jsonl one")
    readable = [text for text in map(_tidy, texts) if text]
    short = [text for text in readable if len(text) <= LONGEST]
    distinct = list(dict.fromkeys(short))
    programs = [text for text in distinct if not is_table(text)]
    repeated, tables = len(short) - len(distinct), len(distinct) - len(programs)
    empty = sum(isinstance(text, str) and not text.strip() for text in texts)
    left_out = {f"duplicate{'s' * (repeated > 1)}": repeated, "empty": empty,
                "unreadable": len(texts) - len(readable) - empty,
                f"longer than {LONGEST:,} characters": len(readable) - len(short),
                f"table{'s' * (tables > 1)}": tables}
    report = f"{len(programs):,} program{'s' * (len(programs) != 1)} of {len(texts):,} in {where}"
    if any(left_out.values()):
        report += ": " + ", ".join(f"{n:,} {what}" for what, n in left_out.items() if n)
    if bad:
        report += f" (unreadable: {', '.join(map(str, bad[:3]))}{', ...' * (len(bad) > 3)})"
    if not programs:
        raise ValueError(f"no usable program: {report}; name another corpus")
    return programs, report


def _read_folder(folder, skipped):
    """(the text of each source file under `folder`, sorted by path; the paths of those without).

    The text of a file that cannot be read is None.
    Links to files are read, links to folders are not followed.
    """
    paths = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in skipped and name[0] != "."]
        paths += [Path(root, name) for name in names]
    found = sorted(path for path in paths if path.suffix.lower() in SOURCES and path.is_file())
    if not found:
        kinds = sorted({path.suffix or path.name for path in paths})
        raise ValueError(f"no .py file under {folder} (found {len(paths)} files"
                         f"{': ' * bool(kinds)}{', '.join(kinds[:5])}; links to folders are not "
                         "followed): name another folder")
    texts = []
    for path in found:
        try:
            texts.append(lines_of(path))
        except (ValueError, OSError):
            texts.append(None)
    return texts, [path for path, text in zip(found, texts) if text is None]


def lines_of(path):
    """The text of a source file with \\n line ends: UTF-8, or as its first lines say (PEP 263).

    Of a notebook it is what its code cells hold. ValueError says what is wrong.
    """
    if path.suffix.lower() == ".ipynb":
        try:
            text = "\n\n".join("".join(cell["source"]) for cell in read_json(path)["cells"]
                               if cell["cell_type"] == "code")
        except (KeyError, TypeError):
            raise ValueError(f"{path} is not a notebook of today's format: convert it") from None
    else:
        content = read_bytes(path)
        try:
            name = tokenize.detect_encoding(io.BytesIO(content).readline)[0]
            text = content.decode("utf-8-sig" if name.startswith("utf-8") else name)
        except (SyntaxError, UnicodeDecodeError, LookupError):
            raise ValueError(f"{path} is not UTF-8 text: convert it or copy it again") from None
    return re.sub("\r\n?", "\n", text)


def is_json(path):
    """Whether a file holds JSON rows, by its name."""
    return Path(path.name.lower().removesuffix(".gz")).suffix in JSON


def _read_rows(path, field, statements):
    """The program of each JSON row (None if it has none), and the field that holds them."""
    content = read_bytes(path)
    if path.suffix.lower() == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            raise ValueError(f"{path} is damaged: copy it again") from None
    content = content.removeprefix(codecs.BOM_UTF8)
    whole = _json_row(content)
    if whole is None and not content.lstrip().startswith(b"["):
        whole = list(map(_json_row, filter(bytes.strip, content.splitlines())))
    rows = whole if isinstance(whole, list) else [whole]
    rows = [row if isinstance(row, dict) else {} for row in rows]
    first = next(filter(None, rows), {})
    if not first:
        raise ValueError(f"{path} holds no JSON object, or is damaged: give one object a line, or "
                         "a list of them")
    given = field
    field = field or max(FIELDS, key=lambda name: sum(name in row for row in rows))
    if not any(field in row for row in rows):
        wanted = given or ", ".join(FIELDS)
        raise ValueError(f"{path} has no field {wanted}; its first row has "
                         f"{', '.join(first)}: name the one with the program")
    if statements and not any(name in row for row in rows for name in STATEMENTS if name != field):
        raise ValueError(f"no row of {path} has a statement ({', '.join(STATEMENTS)}): leave out "
                         "--statements")
    return [_program_of_row(row, field, statements) for row in rows], field


def _json_row(line):
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _program_of_row(row, field, statements):
    """The program in a row; `statements` puts its statement, if any, before it as comments.

    Example: {"prompt": "Add.", "code": "a + b"} is "a + b", or "# Add.\\na + b". A prompt that is
    itself the beginning of the program, as in HumanEval, always stays.
    """
    code, kind = row.get(field), Cut if row.get("cut") is True else str
    statement = next((row[name] for name in STATEMENTS if name != field
                      and isinstance(row.get(name), str) and row[name].strip()), "")
    if not isinstance(code, str) or not code.strip() or not statement.strip():
        return kind(code) if isinstance(code, str) else code
    if _goes_on(statement, code):
        return kind(statement + code)
    comments = "".join(f"# {line}".rstrip() + "\n" for line in statement.strip().splitlines())
    return kind(comments + code if statements else code)


_OPENS = re.compile(r"[ \t]*(\w+ )*(def|class|function|func|fn|if|for|while|with|try)\b.*[{:(]\s*$"
                    r"|.*\) *\{\s*$")  # a line that opens a block


def _goes_on(prompt, code):
    """Whether a program begins with its prompt: it opens a block, and the code goes on in it.

    No parser decides: the code may be cut off, in another language or of another version of Python.
    """
    lines, indented = prompt.strip().split("\n"), code.lstrip("\r\n")[:1] in (" ", "\t")
    return any(map(_OPENS.match, lines if indented else lines[-1:]))


class Cut(str):
    """A program that ended at a limit of tokens, not where its author would have ended it."""


def _tidy(text):
    """A program with \\n line ends and one at its end, or none if it is Cut; "" if unusable."""
    if not isinstance(text, str) or not text.strip() or re.search("[\ud800-\udfff]", text):
        return ""  # half a surrogate pair is not a character: no tokenizer could write it
    return re.sub("\r\n?", "\n", text).rstrip("\n") + "\n" * (not isinstance(text, Cut))


# ------------------------------------------------------------------- tables and near-duplicates

# A comment, or a string; one that does not end in its line goes to the end, and is no literal.
_LITERALS = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|#.*|['"].*""")


def is_table(text):
    """Whether at least 100 lines, and half of all, hold only literals: nobody writes that by hand.

    Example of such a line: "    0x0041: 'A',  # LATIN CAPITAL LETTER A".
    """
    def bare_of(found):
        return "''" if found[1] else "" if found[0][0] == "#" else found[0]

    lines = [_LITERALS.sub(bare_of, line) for line in text.split("\n") if line.strip()]
    bare = sum(bool(re.search(r"['\d]", line)) and not re.search(
        r"[^\W\d]", re.sub(r"\b0[xX][\da-fA-F]+", "0", line)) for line in lines)
    return bare >= 100 and 2 * bare >= len(lines)


def near_duplicates(programs, share=0.5, least=5):
    """Groups of near-duplicates, direct or linked through others, as lists of indices.

    Two programs are near-duplicates if they have at least `least` lines in common, and at least
    `share` of the lines of the shorter one. A program with fewer lines than that links no others:
    it joins the first that has all of its lines. Lines are compared without white space at either
    end; each counts once, and those of fewer than 10 characters do not count. Of the programs that
    share a line of more than a tenth of all, or of more than 200, such as a licence's, only
    neighbours are compared.
    Example: the lines {a, b}, {b, c, d}, {e} (10 letters each), least = 1: [[0, 1], [2]].
    """
    lines = [{line.strip() for line in text.split("\n") if len(line.strip()) >= 10}
             for text in programs]
    holders, group = collections.defaultdict(list), list(range(len(programs)))
    frequency = collections.Counter(line for some in lines for line in some)
    frequent = min(max(20, len(programs) / 10), 200)

    def first(i):  # the representative of i's group
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for i, some in enumerate(lines):
        earlier = set()
        for line in some:
            earlier.update(holders[line][-1:] if frequency[line] > frequent else holders[line])
            holders[line].append(i)
        for j in earlier:
            if len(some & lines[j]) >= max(least, share * min(len(some), len(lines[j]))):
                group[first(i)] = first(j)
    holder_set, like = functools.cache(lambda line: set(holders[line])), {}
    for i, some in enumerate(lines):
        if 0 < len(some) < least:
            same = like.setdefault(frozenset(some), i)
            # Prefer a longer program to one of the same lines. The rarest line comes first, to keep
            # the sets small.
            longer = [] if same != i else [j for j in set.intersection(*sorted(
                map(holder_set, some), key=len)) if len(lines[j]) > len(some)]
            group[first(i)] = first(min(longer, default=same))
    groups = collections.defaultdict(list)
    for i in range(len(programs)):
        groups[first(i)].append(i)
    return list(groups.values())


def split_corpus(programs, held_out, rng):
    """(programs to learn from, at most `held_out` others drawn by rng, a random.Random).

    Near-duplicates stay on one side, so few held-out programs are nearly one to learn from.
    ValueError if nothing is left to learn from.
    """
    if len(programs) <= held_out:
        raise ValueError(f"a corpus of {len(programs)} programs is too small to hold out "
                         f"{held_out}: hold out fewer or name a larger one")
    groups, drawn = near_duplicates(programs), []
    for some in rng.sample(groups, len(groups)):
        if len(drawn) + len(some) <= held_out:
            drawn += some
    chosen = set(drawn)
    others = [i for i in range(len(programs)) if i not in chosen]
    return [programs[i] for i in rng.sample(others, len(others))], [programs[i] for i in drawn]


# ------------------------------------------------------------------- what the commands share


def read_programs(cfg):
    """(programs to learn from, held-out programs) of cfg.corpus, as texts; prints what was found.

    At most a fifth of the programs is held out.
    """
    if not cfg.corpus:
        raise UserError(f"--corpus is missing: give {CORPUS}")
    texts, found = checked(read_corpus, cfg.corpus, cfg.field or None, cfg.statements)
    print(found)
    learned, held_out = checked(split_corpus, texts, min(cfg.held_out, len(texts) // 5),
                                python_generator(cfg, "split"))
    if len(held_out) < min(cfg.held_out, len(texts) // 5):
        print(f"  {counted(len(held_out), 'program')} held out: more would be near-duplicates of "
              "those learned from")
    return learned, held_out


def pieces(encoding, text, size):
    """The token ids of a long text as lists of at most `size`, one per document.

    Pieces end at the last newline that fits, or are cut at `size` if there is none; none is empty,
    and together they are encode_ordinary(text). Example: 5 tokens "a", "\\n", "b", "c", "d" at
    size 3 give ["a", "\\n"] and ["b", "c", "d"].
    """
    ids, cuts = encoding.encode_ordinary(text), [0]
    while cuts[-1] < len(ids):
        end = cuts[-1] + size
        lines = (n for n in range(end, cuts[-1], -1)
                 if b"\n" in encoding.decode_single_token_bytes(ids[n - 1]))
        cuts.append(len(ids) if end >= len(ids) else next(lines, end))
    return [ids[a:b] for a, b in zip(cuts, cuts[1:])]


def cut(encoding, texts, size):
    """The pieces of all texts: [(at most `size` token ids, whether the text ends with them)].

    A text without \\n at its end goes on: see _tidy.
    """
    return [(ids, text.endswith("\n") and k == len(parts) - 1) for text, parts in (
        (text, pieces(encoding, text, size)) for text in texts) for k, ids in enumerate(parts)]


def kept_costs(folder, base, pieces, together=32):
    """The costs in bits of each piece (token ids), scored or read from files of an earlier run.

    `together` pieces share a file in `folder`, so an interrupted run does not score them again.
    Several processes share the work, and each reads all files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks = {folder / f"nll-{k}.npy": pieces[k:k + together]
              for k in range(0, len(pieces), together)}
    for path, chunk in list(chunks.items())[parallel.rank()::parallel.size()]:
        if not path.exists():
            nll = np.concatenate(score(base.model, chunk, base.encoding.start))
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.save(file, nll)
    parallel.wait()
    costs = []
    for path, chunk in chunks.items():
        with reading(path):
            nll, ends = np.load(path), np.cumsum([len(ids) for ids in chunk])
            if len(nll) != ends[-1]:
                raise ValueError(f"{len(nll)} costs of {ends[-1]} tokens")
            costs += np.split(nll, ends[:-1])
    return costs
