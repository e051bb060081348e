"""The tokenizers of published checkpoints, read from their files without the libraries behind them.

Covers the byte-level tokenizers of Llama 3, SmolLM2, Qwen2 and Qwen3. What tiktoken would do
differently is refused with a one-sentence error: a wrong merge would not crash, it would produce
fluent nonsense.
"""

import base64
import collections
import math
import re
from pathlib import Path

import data
from data import END_OF_TEXT
from support.checkpoint import byte_letters
from support.files import read_bytes, read_json, read_text

# How a text is cut into the pieces within which byte pairs are merged, if no file says so.
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# SmolLM2 cuts at every digit first, so white space before a digit is not split as before a word.
_SMOLLM2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
_QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
         r"\s*[\r\n]+|\s+(?!\S)|\s+")
_LLAMA3 = _QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
# Another regex is accepted if all of it is known to mean the same in both engines. Not so {1,3}+,
# which only one of them takes for possessive, and ^, $, \b, \w and flags.
_AGREED = re.compile(r"""(?: \\[pP]\{[LNMPSZC][a-z]?\} | \\[sSrnt] | \\[^\w\s] | \(\?[:!=] | [|)]
    | \[\^? (?: \\[pP]\{[LNMPSZC][a-z]?\} | \\[sSrnt] | \\[^\w\s] | [^][\\&^] )+ \]
    | [?*+]\+? | \{\d+(?:,\d*)?\}(?![+?]) | [^][\\(){}|?*+^$.\#] )*""", re.X)


def _split(pattern):
    """The pre_tokenizer of a tokenizer.json that cuts by a regex."""
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}


# Those of the families here, by llama.cpp's names for them.
PRE_TOKENIZERS = {"llama-bpe": _split(_LLAMA3), "qwen2": _split(_QWEN), "smollm": {
    "type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]}}
_LLAMA3_SPECIAL = [
    "begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1",
    "finetune_right_pad_id", "step_id", "start_header_id", "end_header_id", "eom_id", "eot_id",
    "python_tag", *(f"reserved_special_token_{n}" for n in range(2, 247))]


class Tokenizer(data.Tokenizer):
    """A tokenizer whose ids match its family's library.

    `bos` is the id that the family puts before every text, or None. A document begins with it or,
    if there is none, with the end of text, which separates documents. `found` are the added tokens
    that are found in any text, as those of a user's are; the others only where they are allowed.
    After the ids that end a text, `stops` has those that no text may hold: a model that writes one
    has ended too. Text is not normalised (Qwen's library makes it NFC), so decoding gives back the
    same bytes.
    Example: Llama 3.2 has n_vocab 128256, start == bos == 128000 (<|begin_of_text|>), stop 128001.
    """

    def __init__(self, pattern, ranks, special, stops, bos=None, found=()):
        size = 1 + max([*ranks.values(), *special.values()])
        # SmolLM2 has no token for 21 of the bytes, but tiktoken needs them: they get ids from
        # `size` up, and these are dropped when encoding, as in the family's library.
        missing = [byte for byte in map(bytes, zip(range(256))) if byte not in ranks]
        ranks = {**ranks, **{byte: size + n for n, byte in enumerate(missing)}}
        start = special.get(END_OF_TEXT, stops[0]) if bos is None else bos
        text = {*ranks.values(), *(special[name] for name in found if not _is_mark(name))}
        super().__init__(pattern, ranks, special, start,
                         list(dict.fromkeys([*stops, *sorted({*range(size)} - text)])))
        self.bos, self.max_token_value = bos, size - 1  # so that n_vocab == size
        self.found = sorted(found)

    def encode(self, text, allowed_special=(), **options):
        allowed = allowed_special if allowed_special == "all" else {*allowed_special, *self.found}
        return [i for i in super().encode(text, allowed_special=allowed, **options)
                if i < self.n_vocab]

    def encode_ordinary(self, text):
        ids = (super().encode(text, allowed_special={*self.found}, disallowed_special=())
               if self.found else super().encode_ordinary(text))
        return [i for i in ids if i < self.n_vocab]

    def token_byte_values(self):
        """The bytes of every token that a text may hold."""
        return [token for token, i in self._mergeable_ranks.items() if i < self.n_vocab] + [
            name.encode() for name in self.found if not _is_mark(name)]


def _is_mark(name):
    """Whether an added token is a mark for software, such as <tool_call>: a text never has it."""
    return re.fullmatch(r"<\S+>", name) is not None


class Unsupported(ValueError):
    """A feature of a tokenizer that tiktoken lacks or handles differently."""


def load_tokenizer(directory):
    """The Tokenizer of a checkpoint.

    Reads tokenizer.json, else vocab.json and merges.txt, else Llama 3's own tokenizer.model.
    FileNotFoundError if there is none, ValueError if it is damaged or not supported.
    """
    directory = Path(directory)
    names = "tokenizer.json", "vocab.json", "tokenizer.model", "original/tokenizer.model"
    path = next((directory / name for name in names if (directory / name).exists()), None)
    if path is None:
        raise FileNotFoundError(f"{directory} has none of {', '.join(names)}: copy the tokenizer's "
                                "files from where the weights came from")
    content = read_bytes(path) if path.suffix == ".model" else read_json(path)
    merges = read_text(directory / "merges.txt") if path.name == "vocab.json" else ""
    config, generation, more = (read_json(directory / f"{name}.json") for name in (
        "config", "generation_config", "tokenizer_config"))
    try:
        if path.name == "tokenizer.json":
            return parse_tokenizer(content, config, generation, more)
        return _with_stops(config, generation, more, *(
            _from_ranks(content) if path.suffix == ".model" else
            _from_files(content, merges, more, config)))
    except Unsupported as error:
        raise ValueError(f"{path} {error}, which is not supported: choose a model with a "
                         "tokenizer like that of Llama 3, Qwen2, Qwen3 or SmolLM2") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged or does not match config.json ({error!r}): copy "
                         "both again") from None


def parse_tokenizer(content, config, generation, more):
    """The Tokenizer in the contents of tokenizer.json and of three others.

    config, generation, more: config.json, generation_config.json and tokenizer_config.json.
    """
    return _with_stops(config, generation, more, *_from_json(content))


def tokenizer_files(directory):
    """The files that a fine-tuned checkpoint copies: the tokenizer and the generation settings."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
             "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
             "generation_config.json", "chat_template.jinja", "original/tokenizer.model")
    return [path for path in (Path(directory, name) for name in names) if path.exists()]


def _from_json(content):
    """(pattern, ranks {bytes: id}, special {content: id}, found, bos) of a tokenizer.json."""
    model, normalizer = content["model"], content.get("normalizer")
    if model.get("type", "BPE") != "BPE":
        raise Unsupported(f"is a {model['type']} model")
    for option in ("byte_fallback", "dropout", "unk_token", "continuing_subword_prefix",
                   "end_of_word_suffix"):
        if model.get(option):
            raise Unsupported(f"sets {option}")
    if normalizer and normalizer["type"] != "NFC":
        raise Unsupported(f"has the normalizer {normalizer['type']}")
    pattern, bos = _pattern(content.get("pre_tokenizer")), _bos(content.get("post_processor"))
    return pattern, *_byte_pairs(model["vocab"], model["merges"], content.get("added_tokens", []),
                                 model.get("ignore_merges")), bos


def _pattern(pre_tokenizer):
    """The regex of a pre_tokenizer: the one in the file, GPT-2's or SmolLM2's."""
    steps = (pre_tokenizer or {"pretokenizers": []}).get("pretokenizers", [pre_tokenizer])
    types, first = [step["type"] for step in steps], steps[0] if steps else {}
    if types[-1:] == ["ByteLevel"] and not steps[-1]["add_prefix_space"]:
        form = *types, steps[-1].get("use_regex", True)
        if form == ("ByteLevel", True):
            return _GPT2
        if form == ("Digits", "ByteLevel", True) and first["individual_digits"]:
            return _SMOLLM2
        if form == ("Split", "ByteLevel", False) and "Regex" in first["pattern"] and (
                first["behavior"], first["invert"]) == ("Isolated", False):
            pattern = first["pattern"]["Regex"]
            if pattern not in (_GPT2, _QWEN, _LLAMA3, data.PATTERN) and not _AGREED.fullmatch(
                    pattern.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "")):
                raise Unsupported(f"cuts by the regex {pattern}")
            return pattern
    raise Unsupported(f"has an unknown pre_tokenizer ({' + '.join(types) or 'null'})")


def _bos(post_processor):
    """The id that a post_processor puts before a text, or None."""
    post_processor = post_processor or {"processors": []}
    for step in post_processor.get("processors", [post_processor]):
        if step["type"] not in ("ByteLevel", "TemplateProcessing"):
            raise Unsupported(f"has the post_processor {step['type']}")
        if step["type"] == "TemplateProcessing" and "SpecialToken" in step["single"][0]:
            return step["special_tokens"][step["single"][0]["SpecialToken"]["id"]]["ids"][0]
    return None


def _byte_pairs(vocab, merges, added, ignore_merges=False):
    """(ranks, special, found) of a vocabulary; Unsupported if its ids do not rank the merges.

    tiktoken merges the neighbours whose union has the lowest id, unless the whole piece is a token;
    the format has a list of merges. They agree if the ids rise along the list, each token is made
    by a merge or `ignore_merges` keeps whole pieces too, and no token is made of other neighbours.
    """
    special, vocab, last = _special_tokens(added), dict(vocab), -1
    for content, i in special.items():
        if vocab.pop(content, i) != i:
            raise ValueError(f"two ids for {content!r}")
    pairs = collections.defaultdict(list)
    for pair in merges:  # "a b" in older files, ["a", "b"] in newer ones
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        if vocab[left + right] < last:
            raise Unsupported(f"has ids in a different order from its merges, e.g. {pair!r}")
        last = vocab[left + right]
        pairs[left + right].append((left, right))
    lone = [text for text in vocab if len(text) > 1 and text not in pairs]
    if lone and not ignore_merges:
        raise Unsupported(f"has tokens that no merge makes, e.g. {lone[0]!r}")
    _check_pairs(vocab, pairs)
    byte_of = {letter: byte for byte, letter in byte_letters().items()}
    ranks = {bytes(map(byte_of.__getitem__, text)): i for text, i in vocab.items()}
    return ranks, special, [token["content"] for token in added if not token.get("special")]


def _check_pairs(vocab, pairs):
    """Raises Unsupported if merging by ids makes a token of a pair that is no merge.

    pairs: {token: the pairs that the list of merges makes it of}. Example: with the merges b c, a
    b, ab c in this order, "abc" is first a, bc by ids too, but only the ids would merge these.
    """
    made = {}  # of each token, the pair that is merged last
    for token in sorted(vocab, key=len):
        made[token] = next((pair for pair in pairs.get(token, ()) if _meet_last(
            *pair, vocab, made)), None)
        if made[token] is None and len(token) > 1:
            for k in range(1, len(token)):
                left, right = token[:k], token[k:]
                if left in made and right in made and _meet_last(left, right, vocab, made):
                    raise Unsupported(f"has ids that merge {left!r} and {right!r}, unlike its "
                                      "merges")


def _meet_last(left, right, vocab, made):
    """Whether merging by ids makes these two tokens of their text before anything across them."""
    while True:
        parts = made[left], made[right]  # we undo the later of the two
        if parts == (None, None):
            return True
        if parts[0] and (not parts[1] or vocab[left] > vocab[right]):
            limit, left = vocab[left], parts[0][1]
        else:
            limit, right = vocab[right] + 1, parts[1][0]  # of equal pairs the first is merged
        if vocab.get(left + right, limit) < limit:
            return False


def _special_tokens(added):
    """{content: id} of all added tokens, even those not marked as special.

    Unsupported if tiktoken would find them elsewhere in a text: it takes the first that fits, not
    the longest, and leaves the white space around it alone.
    """
    for token in added:
        if not token["content"].strip() or any(
                token.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
            raise Unsupported(f"has the white-space-sensitive added token {token['content']!r}")
    special = {token["content"]: token["id"] for token in added}
    ordered = sorted(special)  # a string sorts right before those it begins
    for first, second in zip(ordered, ordered[1:]):
        if second.startswith(first):
            raise Unsupported(f"has the added token {first!r} that begins {second!r}")
    return special


def _from_files(vocab, merges, tokenizer_config, config):
    """The same as `_from_json`, from vocab.json and the files next to it, which Qwen has."""
    if config.get("model_type") not in ("qwen2", "qwen3"):
        raise Unsupported(f"of model_type {config.get('model_type')} has no tokenizer.json")
    lines = merges.split("\n")  # lines after the first may begin with # too: "# #"
    lines = lines[lines[0].startswith("#version"):]
    added = [{**token, "id": int(i)}
             for i, token in tokenizer_config.get("added_tokens_decoder", {}).items()]
    return _QWEN, *_byte_pairs(vocab, [line.strip() for line in lines if line.strip()], added), None


def _from_ranks(content):
    """The same as `_from_json`, from Llama 3's own file, whose lines are: token in base64, rank."""
    if not re.match(rb"[\w+/]+=* \d+\s", content):
        raise Unsupported("is a SentencePiece tokenizer")
    rows = map(bytes.split, content.splitlines())
    ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
    special = {f"<|{name}|>": len(ranks) + n for n, name in enumerate(_LLAMA3_SPECIAL)}
    return _LLAMA3, ranks, special, (), len(ranks)


def _with_stops(config, generation, more, pattern, ranks, special, found, bos):
    """The Tokenizer with these parts, checked against config.json and tokenizer_config.json."""
    ids = [*ranks.values(), *special.values()]
    if len(set(ids)) < len(ids):
        raise ValueError(f"two tokens have the id {collections.Counter(ids).most_common(1)[0][0]}")
    if max(ids) >= config.get("vocab_size", math.inf):
        raise ValueError(f"the id {max(ids)} is beyond the vocab_size {config['vocab_size']}")
    lacking = "".join(chr(byte) for byte in (10, *range(32, 127)) if bytes([byte]) not in ranks)
    if lacking:
        raise ValueError(f"no tokens for {lacking!r}")
    if bos is not None and bos not in special.values():
        raise ValueError(f"the id {bos} before a text is not an added token")
    if more.get("add_bos_token") not in (None, bos is not None):
        # As in DeepSeek-R1-Distill, which transformers 4 reads in one way and 5 in the other.
        raise Unsupported(f"puts {bos} before a text, but tokenizer_config.json has add_bos_token "
                          f"{more['add_bos_token']}")
    return Tokenizer(pattern, ranks, special, _stops(special, config, generation, more), bos, found)


def _stops(special, config, generation, more):
    """The ids that end a text, starting with the one that config.json names.

    Example: [151643, 151645] for generation and 151645 in config.json give [151645, 151643]. If
    neither names any, it is that of tokenizer_config.json, or the end of text.
    """
    name = more.get("eos_token")
    name = name["content"] if isinstance(name, dict) else name
    named = [file["eos_token_id"] for file in (generation, config)
             if file.get("eos_token_id") not in (None, [])]
    named += [special[each] for each in (name, END_OF_TEXT, "<|end_of_text|>") if each in special]
    if not named:
        raise ValueError(f"no added token ends a text: eos_token is {name!r}")
    stops = named[0] if isinstance(named[0], list) else [named[0]]
    if not set(stops) <= set(special.values()):
        raise ValueError(f"eos_token_id {stops} is not an added token")
    return sorted(stops, key=lambda i: i != config.get("eos_token_id"))
