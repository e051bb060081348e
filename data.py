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
import re

import tiktoken
import torch

# ------------------------------------------------------------------- tokenizer

END_OF_TEXT = "<|endoftext|>"
# A newline and the indentation after it; a name; a digit; punctuation; other white space.
# The two joiners are spelled out because regex engines do not agree on whether they are letters.
PATTERN = r"\n *| ?(?:[^\W\d]|[\u200c\u200d])+| ?\d| ?[^\w\s\u200c\u200d]+|\s"


class Tokenizer(tiktoken.Encoding):
    """A tiktoken.Encoding that knows which tokens begin and end a document.

    `start` opens a document. `stops` are the ids that end one; `stop`, the first of them, is the
    one that we train on and write. In a tokenizer trained here, the end of text does both.
    """

    def __init__(self, pattern, ranks, special, start, stops):
        super().__init__("empower", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        self.start, self.stops, self.stop = start, stops, stops[0]


def train_tokenizer(texts, vocab_size):
    """Trains byte-pair encoding on `texts`: a Tokenizer with at most `vocab_size` tokens.

    All 256 single bytes have ranks, so any text can be written; the end-of-text token comes after
    the ranks and counts towards `vocab_size`. There are fewer tokens if nothing is left to merge.
    """
    assert vocab_size > 256, vocab_size
    counts = collections.Counter(m for text in texts for m in re.findall(PATTERN, text))
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
    end = len(ranks)
    return Tokenizer(PATTERN, ranks, {END_OF_TEXT: end}, end, [end])


def _merge(pieces, left, right):
    """`pieces` with each adjacent pair of left and right merged."""
    merged = []
    for piece in pieces:
        if merged and merged[-1] == left and piece == right:
            merged[-1] = left + right
        else:
            merged.append(piece)
    return merged


# ------------------------------------------------------------------- documents and states


def document(encoding, statement, program):
    """Token ids: the start token, statement ("" for none), program, the stop token.

    The two are encoded separately: a program has the same tokens with and without its statement.
    """
    return [encoding.start, *encoding.encode_ordinary(statement),
            *encoding.encode_ordinary(program), encoding.stop]


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


def collate(batch):
    """(ids, labels), both (B, T), from examples (token ids, start): no loss before `start`.

    Example: prefix [7, 8], completion [9], stop 0 -> ids [7, 8, 9, 0], labels [-100, -100, 9, 0].
    Padding has the label -100 whatever its id, so the stop token is learned and padding is not.
    """
    ids = torch.zeros(len(batch), max(len(row) for row, _ in batch), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for b, (row, start) in enumerate(batch):
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
