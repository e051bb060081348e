"""Tests of published tokenizers: their ids match those of the families' libraries."""

import json
import shutil
import unicodedata

import pytest

import data
from realcode import tokenizer_files
from realcode.tokenizer_files import load_tokenizer
from support.digest import digest_of_tokenizer
from support.test_helpers import TOKENIZERS, family


def test_a_damaged_tokenizer_is_an_error(tmp_path):
    for text in ("", "{}", '{"model": 5}', "[]", "\x00"):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ValueError, match="tokenizer.json is damaged"):
            load_tokenizer(tmp_path)


FAMILIES = ["qwen", "qwen-files", "llama3", "llama3-ranks", "smollm2", "gpt2"]


def awkward_page(name):
    """[(text, its ids in the `tokenizers` library), ...] for a folder of fixtures."""
    expected = json.loads((TOKENIZERS / "expected.json").read_text(encoding="utf-8"))
    return list(zip(expected["page"], expected["ids"][name.split("-")[0]]))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_s_tokenizer_gives_the_ids_of_its_family_s_library(name):
    for text, ids in awkward_page(name):
        form = unicodedata.normalize("NFC", text) if "qwen" in name else text
        assert family(name).encode_ordinary(form) == ids, text
        if "Ա" not in text or name != "smollm2":  # it lacks a byte of Ա
            assert family(name).decode(family(name).encode_ordinary(text)) == text


@pytest.mark.parametrize("name, start, stops, bos", [
    # Qwen's instruct models stop at <|im_end|>, and <|endoftext|> is between their documents.
    ("qwen", "<|endoftext|>", ["<|im_end|>", "<|endoftext|>"], None),
    ("qwen-files", "<|endoftext|>", ["<|endoftext|>"], None),
    ("llama3", "<|begin_of_text|>", ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
     "<|begin_of_text|>"),
    ("llama3-ranks", "<|begin_of_text|>", ["<|end_of_text|>"], "<|begin_of_text|>"),
    ("smollm2", "<|endoftext|>", ["<|endoftext|>"], None),
    ("gpt2", "<|endoftext|>", ["<|endoftext|>"], None)])
def test_a_document_begins_and_ends_as_its_family_s_do(name, start, stops, bos):
    encoding = family(name)
    ids = {i: encoding.decode([i]) for i in (*encoding.stops, encoding.start, encoding.bos) if i
           in encoding._special_tokens.values()}
    assert [ids[i] for i in encoding.stops[:len(stops)]] == stops
    assert set(encoding.stops) >= set(encoding._special_tokens.values())  # none of them is text
    assert ids.get(encoding.bos) == bos and ids[encoding.start] == start
    document = data.document(encoding, "# Add.\n", "a + b\n")
    assert (document[0], document[-1]) == (encoding.start, encoding.stops[0])
    assert encoding.decode(document[1:-1]) == "# Add.\na + b\n"


@pytest.mark.parametrize("generation, config, stops", [
    (None, None, "<|endoftext|>"), (None, "<|im_end|>", "<|im_end|>"), ([], None, "<|endoftext|>"),
    ("<|im_start|>", "<|im_end|>", "<|im_start|>"), (None, ["<|im_start|>"], "<|im_start|>"),
    (["<|im_start|>", "<|im_end|>"], "<|im_end|>", "<|im_end|> <|im_start|>"),
    (["<|im_start|>", "<|im_end|>"], "<|endoftext|>", "<|im_start|> <|im_end|>")])
def test_stops_are_those_of_generation_and_the_first_is_the_config_s(
        tmp_path, generation, config, stops):
    shutil.copy(TOKENIZERS / "smollm2" / "tokenizer.json", tmp_path)
    ids = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    for name, eos in (("generation_config", generation), ("config", config)):
        eos = [ids[token] for token in eos] if isinstance(eos, list) else ids.get(eos)
        (tmp_path / f"{name}.json").write_text(json.dumps({"eos_token_id": eos}))
    stops = stops.split()
    assert load_tokenizer(tmp_path).stops[:len(stops)] == [ids[token] for token in stops]
    if not generation and not config:  # then tokenizer_config.json decides
        for name in ("<|im_end|>", {"content": "<|im_end|>", "lstrip": False}):
            (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": name}))
            assert load_tokenizer(tmp_path).stop == ids["<|im_end|>"]


def test_a_tokenizer_without_a_token_that_ends_a_text_is_refused(tmp_path):
    with_json(tmp_path, "gpt2", lambda c, m: (c["added_tokens"].clear(),
                                              m["vocab"].pop("<|endoftext|>", None)))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(ValueError, match="no added token ends a text: eos_token is '</s>'"):
        load_tokenizer(tmp_path)


def test_added_tokens_that_are_not_special_are_found_in_any_text(tmp_path):
    """The ids are the library's; a mark such as <tool_call> is found too, but never written."""
    with_json(tmp_path, "qwen", lambda c, m: c["added_tokens"].append(
        {"id": 500, "content": "DataFrame", "special": False}))
    encoding = load_tokenizer(tmp_path)
    rest = family("qwen").encode_ordinary
    assert encoding.encode_ordinary("x = DataFrame(1)") == [*rest("x = "), 500, *rest("(1)")]
    assert encoding.encode("DataFrame<|im_end|>", allowed_special="all") == [500, encoding.stop]
    assert encoding.encode("aDataFrame") == [*rest("a"), 500]
    mark = encoding._special_tokens["<tool_call>"]
    assert encoding.encode_ordinary("<tool_call>") == [mark] and mark in encoding.stops
    assert 500 not in encoding.stops and b"DataFrame" in encoding.token_byte_values()
    assert set(range(356, 500)) <= set(encoding.stops)  # no token has these ids
    assert digest_of_tokenizer(encoding) != digest_of_tokenizer(tokenizer_files.Tokenizer(
        encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens, encoding.stops))


def test_a_token_made_of_a_pair_that_is_no_merge_is_refused():
    """By ids, "abc" becomes a, bc and then abc; by the list of merges it stays a, bc."""
    vocab, merges = {"a": 0, "b": 1, "c": 2, "bc": 3, "ab": 4, "abc": 5}, ["b c", "a b", "ab c"]
    with pytest.raises(tokenizer_files.Unsupported, match="merge 'a' and 'bc', unlike its merges"):
        tokenizer_files._byte_pairs(vocab, merges, [])
    tokenizer_files._byte_pairs(vocab, [*merges, "a bc"], [])
    tokenizer_files._byte_pairs({"a": 0, "aa": 1, "aaa": 2}, ["a a", "aa a"], [])
    with pytest.raises(tokenizer_files.Unsupported, match="'aa' and 'a'"):
        tokenizer_files._byte_pairs({"a": 0, "aa": 1, "aaa": 2}, ["a a", "a aa"], [])


@pytest.mark.parametrize("regex, known", [
    (r"\p{N}{1,3}+", False), (r"\p{L}+$", False), (r"^\p{L}+|\s+", False), (r"\bx", False),
    (r"(?i:a)|\s+", False), (r"\w+", False), (r"[a-c&&b]+", False), (r"(?<=a)b", False),
    (r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", True),
    (r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s+(?=\S)|\s+", True)])
def test_a_regex_is_read_where_both_engines_agree(tmp_path, regex, known):
    with_json(tmp_path, "qwen", lambda c, m: c["pre_tokenizer"]["pretokenizers"][0][
        "pattern"].update(Regex=regex))
    if known:
        assert load_tokenizer(tmp_path)._pat_str == regex
    else:
        with pytest.raises(ValueError, match="cuts by the regex"):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize("name, says", [("qwen", True), ("llama3", False)])
def test_a_bos_on_which_two_files_differ_is_refused(tmp_path, name, says):
    """As in DeepSeek-R1-Distill; Qwen's own file says false, and has none."""
    shutil.copytree(TOKENIZERS / name, tmp_path, dirs_exist_ok=True)
    for value in (None, not says):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": value}))
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": says}))
    with pytest.raises(ValueError, match=f"tokenizer_config.json has add_bos_token {says}"):
        load_tokenizer(tmp_path)


def test_special_tokens_are_found_where_they_are_allowed():
    encoding = family("qwen")
    ids = encoding.encode("<tool_call>1</tool_call><|im_end|>", allowed_special="all")
    assert ids == [encoding._special_tokens["<tool_call>"], *encoding.encode_ordinary("1"),
                   encoding._special_tokens["</tool_call>"], encoding.stop]
    assert encoding.stop not in encoding.encode_ordinary("<|im_end|>")


def test_bytes_without_a_token_are_dropped():
    encoding = family("smollm2")
    saved = json.loads((TOKENIZERS / "smollm2" / "tokenizer.json").read_text(encoding="utf-8"))
    assert encoding.n_vocab == encoding.n_vocab == len(saved["model"]["vocab"])
    assert encoding.decode_bytes(encoding.encode_ordinary("aԱ\x00b")) == b"a\xb1b"
    assert encoding.decode_bytes(encoding.encode("aԱ\x00b")) == b"a\xb1b"


def merged(token, ranks):
    """The tokens that the bytes of `token` become by merging the neighbours of lowest rank."""
    pieces = [bytes([byte]) for byte in token]
    while found := [(ranks[a + b], k) for k, (a, b) in enumerate(zip(pieces, pieces[1:]))
                    if a + b in ranks]:
        _, k = min(found)
        pieces[k:k + 2] = [pieces[k] + pieces[k + 1]]
    return pieces


@pytest.mark.parametrize("name", FAMILIES)
def test_the_merged_bytes_of_a_token_are_the_token(name):
    """Except one token of Llama 3 that is only found whole: `ignore_merges` is for it."""
    ranks = family(name)._mergeable_ranks
    assert sum(merged(token, ranks) != [token] for token in ranks) == ("llama3" in name)


def test_the_plain_pattern_is_wrong_for_smollm2():
    right = family("smollm2")
    plain = tokenizer_files._GPT2.replace(r" ?\p{N}+", r"\p{N}")
    wrong = tokenizer_files.Tokenizer(plain, right._mergeable_ranks, right._special_tokens, [0])
    differ = [text for text, ids in awkward_page("smollm2") if wrong.encode_ordinary(text) != ids]
    assert "a  1" in differ and "a   b" not in differ


def with_json(folder, name, change):
    """A copy of a fixture in `folder`, with `change` made to its tokenizer.json."""
    shutil.copytree(TOKENIZERS / name, folder, dirs_exist_ok=True)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(content, content["model"])
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def shuffle_ids(content, model):
    """The same tokens and merges, with the ids of two merged tokens swapped."""
    a, b = list(model["vocab"])[-2:]
    model["vocab"][a], model["vocab"][b] = model["vocab"][b], model["vocab"][a]


def added_token(**flags):
    return lambda content, model: content["added_tokens"].append(
        {"id": 600, "content": "<x>", **flags})


@pytest.mark.parametrize("change, message", [
    (lambda c, m: m.update(type="Unigram"), "is a Unigram model"),
    (lambda c, m: m.update(byte_fallback=True), "sets byte_fallback"),
    (lambda c, m: m.update(unk_token="<unk>"), "sets unk_token"),
    (lambda c, m: m.update(continuing_subword_prefix="##"), "sets continuing_subword_prefix"),
    (lambda c, m: c.update(normalizer={"type": "Lowercase"}), "has the normalizer Lowercase"),
    (lambda c, m: c.update(pre_tokenizer=None), r"has an unknown pre_tokenizer \(null\)"),
    (lambda c, m: c.update(pre_tokenizer={"type": "Metaspace"}), r"\(Metaspace\)"),
    (lambda c, m: c["pre_tokenizer"]["pretokenizers"][0].update(invert=True),
     r"\(Split \+ ByteLevel\)"),
    (lambda c, m: c["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
     r"\(Split \+ ByteLevel\)"),
    (lambda c, m: c.update(post_processor={"type": "RobertaProcessing"}), "RobertaProcessing"),
    (shuffle_ids, "ids in a different order from its merges"),
    (lambda c, m: m["merges"].pop(), "tokens that no merge makes"),
    (added_token(lstrip=True), "added token '<x>'"),
    (added_token(single_word=True), "added token '<x>'"),
    (added_token(content="  "), "added token '  '"),
    (added_token(content="<|im_"), "'<|im_' that begins '<|im_end|>'"),
    (added_token(id=3), "two tokens have the id 3"),
    (added_token(id=640), "the id 640 is beyond the vocab_size 640"),
    (lambda c, m: m["vocab"].update({"<|endoftext|>": 5}), "two ids for '<|endoftext|>'"),
    (lambda c, m: m["vocab"].pop("Z"), "no tokens for 'Z'"),
    (lambda c, m: c["added_tokens"].pop(2), "eos_token_id .* is not an added token"),
    (lambda c, m: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="("),
     r"the regex \("),
    (lambda c, m: m["merges"].insert(0, ["a", "no"]), "damaged"),
])
def test_a_tokenizer_of_another_kind_is_refused(tmp_path, change, message):
    with_json(tmp_path, "qwen", change)
    with pytest.raises(ValueError, match=message.replace("|", r"\|")) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(error.value) and ": c" in str(error.value)


def test_merges_are_pairs_or_strings_and_ignore_merges_needs_them_too(tmp_path):
    text, ids = awkward_page("qwen")[10]
    with_json(tmp_path, "qwen", lambda c, m: m.update(merges=[" ".join(p) for p in m["merges"]]))
    assert load_tokenizer(tmp_path).encode_ordinary(text) == ids
    with_json(tmp_path, "qwen", lambda c, m: m.update(merges=[], ignore_merges=True))
    with pytest.raises(ValueError, match="'Ġ' and 'Ġ', unlike its merges"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name, file, content, message", [
    ("smollm2", "tokenizer.json", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ("llama3-ranks", "original/tokenizer.model", b"version https://git-lfs.", "git lfs pull"),
    ("llama3-ranks", "original/tokenizer.model", b"\n\x0e\n\x05<unk>\x15", "SentencePiece"),
    ("llama3-ranks", "original/tokenizer.model", b"YQ== 0\nYg==", "is damaged"),
    ("qwen-files", "config.json", b'{"model_type": "phi"}', "of model_type phi"),
    ("qwen-files", "merges.txt", b"\xff", "not UTF-8 text"),
    ("qwen-files", "tokenizer_config.json", b"{", "tokenizer_config.json is damaged"),
    ("gpt2", "tokenizer.json", b'{"model": {"vocab"', "is damaged"),
    ("gpt2", "tokenizer.json", -1, "is damaged"), ("gpt2", "tokenizer.json", 0.5, "is damaged"),
    ("gpt2", "tokenizer.json", None, "has none of tokenizer.json, vocab.json"),
])
def test_a_damaged_file_of_a_tokenizer_is_one_sentence(tmp_path, name, file, content, message):
    shutil.copytree(TOKENIZERS / name, tmp_path, dirs_exist_ok=True)
    if isinstance(content, (int, float)):  # as the id of a token that is one byte
        parts = json.loads((tmp_path / file).read_text(encoding="utf-8"))
        parts["model"]["vocab"]["a"] = content
        content = json.dumps(parts).encode()
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_fine_tuned_checkpoint_copies_what_belongs_to_its_tokenizer():
    names = [path.name for path in tokenizer_files.tokenizer_files(TOKENIZERS / "qwen")]
    assert names == ["tokenizer.json", "generation_config.json"]
    assert tokenizer_files.tokenizer_files(TOKENIZERS / "llama3-ranks") == [
        TOKENIZERS / "llama3-ranks" / "original" / "tokenizer.model"]
