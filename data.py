"""The tokenizer, documents, states, and the batches that a model learns from.

A document is what the language model reads. It begins with the start token and ends with the stop
token (both are the end of text in a tokenizer trained here). In between come the statement, which
the human knows and an assistant does not see (only the ceiling does), and the program:

    <|endoftext|># Read n, then ... the sum.\\nn = int(input())\\n ... print(sum(b))\\n<|endoftext|>
    <|endoftext|>n = int(input())\\na = list ... print(sum(b))\\n<|endoftext|>

A state is a prefix of a program. The cost in bits of each following token says how predictable it
is, and Algorithm 1 stops before the sum of the costs exceeds eta (0.32 here). A label is a target
of the loss; a dash marks a token without one:

    prefix              completion, then the human's choice
    n = ... a = list    (    map  (    int  ,     input ().  split ()))  \\n            b     = ...
    cost in bits        .00  .00  .00  .00  .00   .00   .00  .00   .00   .00           1.87  .00
    labels -  -  -  -   (    map  (    int  ,     input ().  split ()))  \\n <|endoftext|>

This file knows nothing about models.
"""

import collections
import json
import re
from pathlib import Path

import tiktoken
import torch

from support.checkpoint import END_OF_TEXT, byte_letters, read_tokenizer
from support.files import write_text

# ------------------------------------------------------------------- tokenizer

# A newline and the indentation after it; a name; a digit; punctuation; other white space.
# The two joiners are spelled out because regex engines do not agree on whether they are letters.
_PATTERN = r"\n *| ?(?:[^\W\d]|[\u200c\u200d])+| ?\d| ?[^\w\s\u200c\u200d]+|\s"


class Tokenizer(tiktoken.Encoding):
    """A tiktoken.Encoding that knows which tokens begin and end a document.

    `bos` is the id that its family puts before every text, or None. `start` opens a document: bos,
    or else the end of text, which separates documents if there is no bos. `stops` are the ids that
    end a text; `stop`, the first, is the one we train on and write. `size` counts the ids.

    Example: Llama 3.2 has size 128256, start == bos == 128000 (<|begin_of_text|>), stop 128001.
    """

    def __init__(self, pattern, ranks, special, stops, bos=None):
        self.size = 1 + max([*ranks.values(), *special.values()])
        # SmolLM2 has no token for 21 of the bytes, but tiktoken needs them: they get ids from
        # `size` up, and these are dropped when encoding, as in the family's library.
        missing = [byte for byte in map(bytes, zip(range(256))) if byte not in ranks]
        ranks = {**ranks, **{byte: self.size + n for n, byte in enumerate(missing)}}
        super().__init__("empower", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        self.max_token_value = self.size - 1  # so that n_vocab == size
        self.bos, self.stops, self.stop = bos, stops, stops[0]
        self.start = special.get(END_OF_TEXT, self.stop) if bos is None else bos

    def encode(self, text, **options):
        return [i for i in super().encode(text, **options) if i < self.size]

    def encode_ordinary(self, text):
        return [i for i in super().encode_ordinary(text) if i < self.size]


def train_tokenizer(texts, vocab_size):
    """Trains byte-pair encoding on `texts`: a Tokenizer with at most `vocab_size` tokens.

    All 256 single bytes have ranks, so any text can be written; the end-of-text token comes after
    the ranks and counts towards `vocab_size`. There are fewer tokens if nothing is left to merge.
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
        ranks.setdefault(left + right, len(ranks))  # different pairs can make the same token
        for word in holders.pop((left, right)):
            count(word, -counts[word])
            words[word] = _merge(words[word], left, right)
            count(word, counts[word])
    return Tokenizer(_PATTERN, ranks, {END_OF_TEXT: len(ranks)}, [len(ranks)])


def _merge(pieces, left, right):
    """`pieces` with each adjacent pair of left and right merged."""
    merged = []
    for piece in pieces:
        if merged and merged[-1] == left and piece == right:
            merged[-1] = left + right
        else:
            merged.append(piece)
    return merged


def save_tokenizer(encoding, directory):
    """Writes tokenizer.json and tokenizer_config.json for the Hugging Face libraries.

    Only for tokenizers from `train_tokenizer`, reloaded or not; published ones are copied as files.
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
    # Without this, transformers would choose a class by model_type, with a pattern of its own.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT,
              "clean_up_tokenization_spaces": False}
    write_text(Path(directory, "tokenizer_config.json"), json.dumps(config, indent=1) + "\n")


def load_tokenizer(directory):
    """The Tokenizer of a checkpoint or from `save_tokenizer`; its ids match the family's library.

    Text is not normalised (Qwen's library makes it NFC), so decoding gives back the same bytes,
    except for the 21 that SmolLM2 has no token for.
    FileNotFoundError if there is none, ValueError if it is damaged or not supported.
    """
    parts = read_tokenizer(directory)
    try:
        return Tokenizer(*parts)
    except (ValueError, TypeError, OverflowError) as error:  # a bad pattern, or a bad id
        raise ValueError(f"{directory}/tokenizer.json is damaged ({error}): copy it again") \
            from None


def _last_pair(token, ranks):
    """The ids of the two tokens that merge into `token`: byte-pair encoding, one step short."""
    pieces = [bytes([byte]) for byte in token]
    while len(pieces) > 2:
        _, k = min((ranks.get(a + b, len(ranks)), k)
                   for k, (a, b) in enumerate(zip(pieces, pieces[1:])))
        pieces[k:k + 2] = [pieces[k] + pieces[k + 1]]
    return [ranks[piece] for piece in pieces]


# ------------------------------------------------------------------- documents and states


def document(encoding, statement, program):
    """Token ids: the start token, statement ("" for none), program, the stop token.

    The two are encoded separately: a program has the same tokens with and without its statement.
    """
    return [encoding.start, *encoding.encode_ordinary(statement),
            *encoding.encode_ordinary(program), encoding.stop]


def pieces(encoding, text, size):
    """The token ids of a long text as lists of at most `size`, one per document.

    Each but the last ends with its last token that has a newline, if it has one, and none is empty;
    together they are encode_ordinary(text). Example: 5 tokens "a", "\\n", "b", "c", "d" at size 3
    give ["a", "\\n"] and ["b", "c", "d"].
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


# ------------------------------------------------------------------- batches and labels


def make_batches(examples, batch_size, rng):
    """Batches of examples of similar length, in random order, each example once.

    rng: a random.Random. Sorting within 50 batches at a time keeps the padding small and the
    order nearly random.
    """
    examples = rng.sample(examples, len(examples))
    batches = []
    for k in range(0, len(examples), 50 * batch_size):
        bucket = sorted(examples[k:k + 50 * batch_size], key=lambda example: len(example[0]))
        batches += [bucket[i:i + batch_size] for i in range(0, len(bucket), batch_size)]
    rng.shuffle(batches)
    return batches


def collate(batch, limit):
    """(ids, labels), both (B, T), from examples (token ids, start): no loss before `start`.

    Example: prefix [7, 8], completion [9], stop 0 -> ids [7, 8, 9, 0], labels [-100, -100, 9, 0].
    A text longer than `limit` loses its beginning, never its end. Padding has the label -100
    whatever its id, so the stop token is learned and the padding is not.
    """
    cut = [(ids[-limit:], max(start - max(len(ids) - limit, 0), 0)) for ids, start in batch]
    ids = torch.zeros(len(cut), max(len(row) for row, _ in cut), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for b, (row, start) in enumerate(cut):
        ids[b, :len(row)] = torch.tensor(row)
        labels[b, start:len(row)] = ids[b, start:len(row)]
    return ids, labels


def batches_by_length(lengths, batch_tokens):
    """Indices in batches of similar length, each of at most `batch_tokens` including padding.

    Example: lengths [3, 1, 2, 9], 6 tokens -> [1, 2], [0], [3]: at least one index in each.
    """
    batches = [[]]
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[i] > batch_tokens:
            batches.append([])
        batches[-1].append(i)
    return [batch for batch in batches if batch]
