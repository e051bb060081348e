"""Text in: a generated contest or a corpus, the tokenizer, documents and prefixes.

A document is what the language model reads. It opens with the statement (what the human knows) or
without it (all that an assistant sees); a start token begins it and a stop token ends it, which
are one and the same end of text in a tokenizer that is trained here:

    <|endoftext|># Read n, then ... the sum.\\nn = int(input())\\n ... print(sum(b))\\n<|endoftext|>
    <|endoftext|>n = int(input())\\na = list ... print(sum(b))\\n<|endoftext|>

A state is a prefix of a program. How obvious each token behind it is, its cost in bits says, and
Algorithm 1 stops before their sum passes eta (0.32). A label is a target of the loss, - is none:

    prefix              completion, then the human's choice
    n = ... a = list    (    map  (    int  ,     input ().  split ()))  \\n            b     = ...
    cost in bits        .00  .00  .00  .00  .00   .00   .00  .00   .00   .00           1.87  .00
    labels -  -  -  -   (    map  (    int  ,     input ().  split ()))  \\n <|endoftext|>

Programs can also come from a corpus (a folder, a JSONL file, Python's own library), and the
tokenizer from a published checkpoint. This file knows nothing of models.
"""

import ast
import collections
import json
import os
import platform
import re
import sysconfig
import warnings
from pathlib import Path

import tiktoken

from checkpoint import END_OF_TEXT, byte_letters, read_bytes, read_text, read_tokenizer, write_text

# ------------------------------------------------------------------- tokenizer

# A newline with the indentation behind it; a name; a digit; punctuation; other white space.
# The two joiners are spelled out because regex engines do not agree on whether they are letters.
_PATTERN = r"\n *| ?(?:[^\W\d]|[\u200c\u200d])+| ?\d| ?[^\w\s\u200c\u200d]+|\s"


class Tokenizer(tiktoken.Encoding):
    """A tiktoken.Encoding that knows which tokens begin and end a document.

    `bos` is the id that its family puts before every text, or None. `start` opens a document: bos,
    else the end of text, which separates documents where there is no bos. `stops` are the ids that
    end a text; `stop`, the first, is the one that is trained and written. `size` counts the ids.

    Example: Llama 3.2 has size 128256, start == bos == 128000 (<|begin_of_text|>), stop 128001.
    """

    def __init__(self, pattern, ranks, special, stops, bos=None):
        self.size = 1 + max([*ranks.values(), *special.values()])
        # SmolLM2 has no token for 21 of the bytes, and tiktoken cannot do without: they get ids
        # from `size` up, which are dropped from what is encoded, as the family's library does.
        missing = [byte for byte in map(bytes, zip(range(256))) if byte not in ranks]
        ranks = {**ranks, **{byte: self.size + n for n, byte in enumerate(missing)}}
        super().__init__("empower", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        self.max_token_value = self.size - 1  # so that n_vocab == size
        self.bos, self.stops, self.stop = bos, stops, stops[0]
        self.start = special.get(END_OF_TEXT, self.stop) if bos is None else bos

    @property
    def eot_token(self):
        return self.stop

    def encode(self, text, **options):
        return [i for i in super().encode(text, **options) if i < self.size]

    def encode_ordinary(self, text):
        return [i for i in super().encode_ordinary(text) if i < self.size]


def train_tokenizer(texts, vocab_size):
    """Byte-pair encoding on `texts`: a Tokenizer with at most `vocab_size` tokens.

    All 256 single bytes are ranks, so any text can be written; the end-of-text token comes on top
    of the ranks and within `vocab_size`. Fewer tokens come out where nothing is left to merge.
    """
    assert vocab_size > 256, vocab_size
    counts = collections.Counter(m for text in texts for m in re.findall(_PATTERN, text))
    words = {word: [bytes([byte]) for byte in word.encode()] for word in counts}
    ranks = {bytes([byte]): byte for byte in range(256)}
    pairs, holders = collections.Counter(), collections.defaultdict(set)  # pair -> its words

    def count(word, n):
        for pair in zip(words[word], words[word][1:]):
            pairs[pair] += n
            holders[pair].add(word)

    for word in words:
        count(word, counts[word])
    while len(ranks) < vocab_size - 1:
        n, (left, right) = max(zip(pairs.values(), pairs), default=(0, (b"", b"")))
        if n == 0:
            break
        ranks.setdefault(left + right, len(ranks))  # two splits of one string are one token
        for word in holders.pop((left, right)):
            count(word, -counts[word])
            words[word] = _merge(words[word], left, right)
            count(word, counts[word])
    return Tokenizer(_PATTERN, ranks, {END_OF_TEXT: len(ranks)}, [len(ranks)])


def _merge(pieces, left, right):
    """`pieces` with each neighbouring left, right made one."""
    merged = []
    for piece in pieces:
        if merged and merged[-1] == left and piece == right:
            merged[-1] = left + right
        else:
            merged.append(piece)
    return merged


def save_tokenizer(encoding, directory):
    """Writes tokenizer.json, and tokenizer_config.json, as the libraries of Hugging Face read them.

    For what `train_tokenizer` made, loaded again or not; of published families the files are
    copied.
    """
    letters = byte_letters()
    tokens = {i: encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab - 1)}
    ranks = {token: i for i, token in tokens.items()}
    written = {i: "".join(letters[byte] for byte in token) for i, token in tokens.items()}
    merges = [[written[i] for i in _last_pair(token, ranks)]
              for token in tokens.values() if len(token) > 1]
    special = {"id": encoding.n_vocab - 1, "content": END_OF_TEXT, "single_word": False,
               "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    split = {"type": "Split", "pattern": {"Regex": _PATTERN}, "behavior": "Isolated",
             "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": False}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {text: i for i, text in written.items()}, "merges": merges},
    }
    write_text(Path(directory, "tokenizer.json"),
               json.dumps(content, ensure_ascii=False, indent=1))
    # Without it transformers would choose a class by model_type, and that class its own pattern.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT,
              "clean_up_tokenization_spaces": False}
    write_text(Path(directory, "tokenizer_config.json"), json.dumps(config, indent=1) + "\n")


def load_tokenizer(directory):
    """The Tokenizer of a checkpoint, or of `save_tokenizer`, with the ids of its family's library.

    Text is not normalised (Qwen's library makes it NFC), so that decoding gives back the same
    bytes. FileNotFoundError where there is none, ValueError where it is damaged or of another kind.
    """
    parts = read_tokenizer(directory)
    try:
        return Tokenizer(*parts)
    except ValueError as error:  # its own pattern is only in this file
        raise ValueError(f"{directory}/tokenizer.json is damaged ({error}): copy it anew") from None


def _last_pair(token, ranks):
    """The ids of the two tokens whose merge makes `token`: byte-pair encoding, one step short."""
    pieces = [bytes([byte]) for byte in token]
    while len(pieces) > 2:
        _, k = min((ranks.get(a + b, len(ranks)), k)
                   for k, (a, b) in enumerate(zip(pieces, pieces[1:])))
        pieces[k:k + 2] = [pieces[k] + pieces[k + 1]]
    return [ranks[piece] for piece in pieces]


# ------------------------------------------------------------------- corpora

FIELDS = ("code", "content", "text", "solution", "canonical_solution", "completion")
STATEMENTS = ("prompt", "description", "question")
LONGEST = 400_000  # characters of a program; tiktoken fails on a million of white space
_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "node_modules"}


def read_corpus(source, field=None):
    """The programs of a corpus, each once, and one line that says what they are.

    source: a folder of .py files, a .py file, a file of JSON rows with programs in `field` (else
    in the first of FIELDS that it has), or "stdlib", the library of this Python. A ValueError
    says what is wrong with it.

    Example report: "1,634 programs of 1,918 in kattis.jsonl (field code): 284 duplicates".
    """
    path, where = Path(source), str(source)
    if source == "stdlib":
        where = f"the standard library of Python {platform.python_version()}"
        texts = _read_folder(Path(sysconfig.get_path("stdlib")), _SKIPPED | {"test", "tests"})
    elif path.is_dir():
        texts = _read_folder(path, _SKIPPED)
    elif not path.exists():
        raise ValueError(f"there is no {path}: name a folder, a .py or .jsonl file, or stdlib")
    elif path.suffix == ".py":
        texts = [read_text(path)]
    elif path.suffix in (".jsonl", ".json", ".ndjson"):
        texts, field = _read_rows(path, field)
        where += f" (field {field})"
    else:
        raise ValueError(f"{path} is no corpus: name a folder of .py files, a .py or .jsonl file")
    readable = [text for text in map(_tidy, texts) if text]
    short = [text for text in readable if len(text) <= LONGEST]
    programs = list(dict.fromkeys(short))
    repeated, unreadable = len(short) - len(programs), len(texts) - len(readable)
    left_out = {f"duplicate{'s' * (repeated > 1)}": repeated, "unreadable": unreadable,
                f"longer than {LONGEST:,} characters": len(readable) - len(short)}
    report = f"{len(programs):,} program{'s' * (len(programs) != 1)} of {len(texts):,} in {where}"
    if any(left_out.values()):
        report += ": " + ", ".join(f"{n:,} {what}" for what, n in left_out.items() if n)
    if not programs:
        raise ValueError(f"no usable program: {report}; name another corpus")
    return programs, report


def _read_folder(folder, skipped):
    """The text of each .py file below `folder` in order of path, None for what is not UTF-8."""
    paths = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in skipped and name[0] != "."]
        paths += [Path(root, name) for name in names]
    found = sorted(path for path in paths if path.suffix == ".py")
    if not found:
        kinds = sorted({path.suffix or path.name for path in paths})
        raise ValueError(f"no .py file under {folder} (found {len(paths)} files"
                         f"{': ' * bool(kinds)}{', '.join(kinds[:5])}): name another folder")
    texts = []
    for path in found:
        try:
            texts.append(read_text(path))
        except (ValueError, OSError):
            texts.append(None)
    return texts


def _read_rows(path, field):
    """The program of each row of JSON, None where it has none, and the field that they are in."""
    content = read_bytes(path)
    rows = (_json_row(content) if content.lstrip().startswith(b"[") else
            map(_json_row, filter(bytes.strip, content.splitlines())))
    rows = [row if isinstance(row, dict) else {} for row in rows or ()]
    first = next(filter(None, rows), {})
    field = field or next((name for name in FIELDS if name in first), None)
    if not any(field in row for row in rows):
        wanted = field or ", ".join(FIELDS)
        raise ValueError(f"{path} has no field {wanted}; its first row has "
                         f"{', '.join(first) or 'no field at all'}: name the one with the program")
    return [_join_statement(row, field) for row in rows], field


def _json_row(line):
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _join_statement(row, field):
    """The program in a row, behind its statement where it has one.

    Example: {"prompt": "Add.", "code": "a + b"} is "# Add.\\na + b". A prompt that the code goes on
    from, as in HumanEval, where the code alone is no program, stays as it is.
    """
    code = row.get(field)
    statement = next((row[name] for name in STATEMENTS
                      if name != field and isinstance(row.get(name), str)), "")
    if not isinstance(code, str) or not code.strip() or not statement.strip():
        return code
    if _parses(statement + code) and not _parses(code):
        return statement + code
    return "".join(f"# {line}".rstrip() + "\n" for line in statement.strip().splitlines()) + code


def _parses(program):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as "\d"
            ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _tidy(text):
    """A program with \\n as its line ends and one at its end; "" where it is none."""
    if not isinstance(text, str) or not text.strip() or re.search("[\ud800-\udfff]", text):
        return ""  # half a surrogate pair is not a character: no tokenizer could write it
    return re.sub("\r\n?", "\n", text).rstrip("\n") + "\n"


def split_corpus(programs, held_out, rng):
    """(the other programs, `held_out` programs drawn by rng, a random.Random), no one in both."""
    if len(programs) <= held_out:
        raise ValueError(f"a corpus of {len(programs)} programs is too small to hold out "
                         f"{held_out}: hold out fewer or name a larger one")
    shuffled = rng.sample(programs, len(programs))
    return shuffled[held_out:], shuffled[:held_out]


# ------------------------------------------------------------------- documents and states


def document(encoding, statement, program):
    """Token ids: the start token, statement ("" for none), program, the stop token.

    Statement and program are encoded apart: a program has the same tokens with and without it.
    """
    return [encoding.start, *encoding.encode_ordinary(statement),
            *encoding.encode_ordinary(program), encoding.stop]


def pieces(encoding, text, size):
    """The token ids of a long text in lists of at most `size`, for one document each.

    Each is cut behind its last token with a newline, if it has one, and is never empty; together
    they are encode_ordinary(text). Example: 5 tokens "a", "\\n", "b", "c", "d" at size 3 are
    ["a", "\\n"] and ["b", "c", "d"].
    """
    ids, cuts = encoding.encode_ordinary(text), [0]
    while cuts[-1] < len(ids):
        end = cuts[-1] + size
        lines = (n for n in range(end, cuts[-1], -1)
                 if b"\n" in encoding.decode_single_token_bytes(ids[n - 1]))
        cuts.append(len(ids) if end >= len(ids) else next(lines, end))
    return [ids[a:b] for a, b in zip(cuts, cuts[1:])]


def draw_states(rng, lengths):
    """One state for each program (Section 4.1): the number n of prefix tokens, uniform in 0..N-1.

    lengths: N of each program, at least 1. rng: a numpy Generator.
    """
    return [int(rng.integers(N)) for N in lengths]
