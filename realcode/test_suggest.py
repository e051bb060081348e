"""Tests of `suggest`: the word at a cursor, and what may be suggested."""

import itertools
import json
import math
import types

import pytest
import torch

import data
from data import END_OF_TEXT
from model import KVCache, sample
from realcode import suggest, tokenizer_files
from realcode.checkpoints import load_checkpoint
from realcode.pretrained import save_published
from support.checkpoint import save_tokenizer
from support.test_helpers import family, in_process, published, tiny_gpt


def greedy(model, text, most, stops):
    """Greedy sampling without caches."""
    new = []
    while len(new) < most:
        logits = model(torch.tensor([text + new]))[0, -1, :model.writable]
        if int(logits.argmax()) in stops:
            break
        new.append(int(logits.argmax()))
    return new


def whole_part(text):
    """The longest beginning of some bytes that is text."""
    return next(text[:n].decode() for n in range(len(text), -1, -1)
                if text[:n].decode(errors="replace").encode() == text[:n])


@torch.no_grad()
def healed(network, encoding, ids, framed=None):
    """Token healing without caches, one full pass for each way: (ids, typed bytes, bits)."""
    before, paths, found = suggest.ways(encoding, ids)
    p = {}
    for path, kept, typed, fits in found:
        begin = framed(before) if framed else [encoding.start, *before]
        text = [*begin, *paths[path][:kept]]
        each = network(torch.tensor([text]))[0].double().softmax(-1)
        given = math.prod(each[len(begin) - 1 + n, i].item() for n, i in enumerate(
            paths[path][:kept]))
        p |= {(*text, i, typed): given * each[-1, i].item() for i in fits}
    assert sum(p.values()) <= 1 + 1e-9
    best = max(p, key=p.get)
    return list(best[:-1]), best[-1], -math.log2(p[best] / sum(p.values()))


CODE = """def bigger(a, b):
    if a > b:
        return a
    return b

    for k in 12:\n\tx = f(k)\n\t\ty[0] = "é"\n  \n        # end
"""


def with_token(text):
    """GPT-2's way to cut a text, single bytes, and one token more."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {text: 256}
    return tokenizer_files.Tokenizer(tokenizer_files._GPT2, ranks, {END_OF_TEXT: 257}, [257])


@pytest.mark.parametrize("name", ["qwen", "llama3", "smollm2", b"\n\t", b"  "])
def test_the_tokens_of_the_whole_text_are_among_the_ways_at_every_place(name):
    """White space before a word is cut in another way than at the end: an indent, and a tab."""
    encoding = with_token(name) if isinstance(name, bytes) else family(name)
    whole = encoding.encode_ordinary(CODE)
    ends = list(itertools.accumulate(len(encoding.decode_bytes([i])) for i in whole))
    for place in range(1, len(CODE)):
        text = CODE[:place]
        natural = whole[:1 + sum(end < len(text.encode()) for end in ends)]
        before, paths, found = suggest.ways(encoding, encoding.encode_ordinary(text))
        assert any(natural[:-1] == before + paths[way.path][:way.kept] and natural[-1] in way.fits
                   for way in found), text
        for way in found:  # and each of them gives the text
            kept = before + paths[way.path][:way.kept]
            rest = text.encode()[-way.typed:]
            assert encoding.decode_bytes(kept) + rest == text.encode()
            assert all(encoding.decode_bytes([i]).startswith(rest) for i in way.fits)


def test_a_word_of_several_tokens_is_healed(monkeypatch):
    """" retu" is two tokens, but " return" one."""
    encoding = data.train_tokenizer([" return"] * 20 + [" ret", " set"] * 9, 275)
    ids = encoding.encode_ordinary("x retu")
    [whole] = [i for i in range(encoding.n_vocab - 1) if encoding.decode([i]) == " return"]
    before, paths, _ = suggest.ways(encoding, ids)
    path = next(path for path in paths if encoding.decode(before + path) == "x ret")
    logits = torch.full((len(paths), max(map(len, paths)) + 1, encoding.n_vocab), -50.0)

    def healed_with(p_whole):
        k, n = paths.index(path), len(path)
        logits[k, n - 1, whole], logits[k, n - 1, path[-1]] = math.log(p_whole), math.log(
            1 - p_whole)
        logits[k, n, ids[-1]] = logits[k, n, encoding.encode_ordinary("v")[0]] = math.log(0.5)
        monkeypatch.setattr(suggest, "extend", lambda *arguments: logits)
        return suggest.heal(tiny_gpt(), encoding, types.SimpleNamespace(
            select=lambda rows: types.SimpleNamespace(select=lambda rows: None),
            put_back=lambda rows, part: None), [ids])[0]

    found, typed, bits = healed_with(0.6)
    assert found == [encoding.start, *before, *path[:-1], whole]
    assert encoding.decode(found[1:])[1 + typed:] == "rn"
    assert bits == pytest.approx(-math.log2(0.6 / (0.6 + 0.4 * 0.5)), abs=1e-4)
    assert healed_with(0.1)[:2] == ([encoding.start, *ids], 1)


@pytest.mark.parametrize("name", ["smollm2", "qwen"])
def test_healing_is_that_of_full_passes_and_the_cache_then_serves_it(name):
    """Several texts at once, of which some can be written in several ways."""
    encoding = family(name)
    network = tiny_gpt(vocab_size=encoding.n_vocab, tie_word_embeddings=False)
    texts = [encoding.encode_ordinary(text) for text in (
        "if a > b:\n    ", "if x:\n\tretu", "x", "a = f(\"\"", "if a:\n    return retur", "é")]
    cache = KVCache(network, len(texts))
    assert any(len(suggest.ways(encoding, ids)[1]) > 1 for ids in texts)
    found = suggest.heal(network, encoding, cache, texts)
    for ids, each in zip(texts, found):
        wanted = healed(network, encoding, ids)
        assert each[:2] == wanted[:2] and each[2] == pytest.approx(wanted[2], abs=1e-3)
    new, _ = sample(network, cache, [ids for ids, *_ in found], 5, encoding.stops, temperature=0)
    assert new == [greedy(network, ids, 5, encoding.stops) for ids, *_ in found]
    assert suggest.heal(network, encoding, KVCache(network, 1), [[]]) == [
        ([encoding.start], len(encoding.decode_bytes([encoding.start])), 0.0)]


def test_what_follows_the_cursor_is_read_on_request(tmp_path):
    """Qwen2.5-Coder's order: the text before and after, and then what comes between them."""
    folder, path = published(tmp_path / "model"), tmp_path / "a.py"
    path.write_text("def f(x):\n    return x + 1\n")
    command = "suggest", f"{path}:2:9", "--model", folder, "--max-suggestion", 4, "--eta", 99
    status, _, err = in_process(*command, "--after")
    assert status == 2 and "has no token <|fim_suffix|>: leave out --after" in err
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    last = max(token["id"] for token in tokenizer["added_tokens"])
    tokenizer["added_tokens"] += [{"id": last + k, "content": f"<|fim_{name}|>"}
                                  for k, name in ((1, "suffix"), (2, "middle"))]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = load_checkpoint(folder, "cpu")
    marks = [found.encoding._special_tokens[f"<|fim_{name}|>"]
             for name in ("prefix", "suffix", "middle")]
    framed, room = suggest.frame(found.encoding, "urn x", 100)
    after = found.encoding.encode_ordinary("urn x")
    assert framed([1, 2]) == [marks[0], 1, 2, marks[1], *after, marks[2]]
    assert room == 100 - 3 - len(after)
    ids, typed, _ = healed(found.model, found.encoding, found.encoding.encode_ordinary(
        "def f(x):\n    ret"), framed)
    new = greedy(found.model, ids, 4, found.encoding.stops)
    expected = whole_part(found.encoding.decode_bytes(ids[-1:] + new)[typed:])
    path.write_text("def f(x):\n    return x")
    assert in_process(*command[:1], f"{path}:2:8", *command[2:], "--after") == (0, expected, "")


def test_a_suggestion_ends_with_a_whole_character():
    apple = "🍎".encode()
    assert suggest.whole_characters([b"a", apple[:2], apple[2:], b"b"]) == ["a", "", "🍎", "b"]
    assert suggest.whole_characters([b"ab" + apple[:3]]) == ["ab"]
    assert suggest.whole_characters([b"a", b"b\xffc", b"d"]) == ["a", "b"]


@pytest.mark.parametrize("at", ["heal", "sample"])
def test_logits_that_are_not_numbers_end_a_suggestion(at, tmp_path, monkeypatch):
    folder, path = published(tmp_path / "model", "llama3"), tmp_path / "a.py"
    path.write_text("x = ")
    found = load_checkpoint(folder, "cpu")
    if at == "sample":
        monkeypatch.setattr(suggest, "heal", lambda model, encoding, cache, texts, framed: [
            (texts[0], 1, 0.0)])
    found.model.norm.weight.data[:] = math.inf
    save_published(found.model, folder)
    status, out, err = in_process("suggest", f"{path}:1:4", "--model", folder)
    assert (status, out) == (2, "") and "are not numbers: give --dtype float32" in err


def test_only_the_suggestion_is_printed(tmp_path):
    folder, path = published(tmp_path / "model", "llama3"), tmp_path / r"C:\new\a b.py"
    path.write_text("x = int(input())\nprint(é\n")
    found = load_checkpoint(folder, "cpu")
    network, encoding = found.model, found.encoding
    written = set()
    for place, text in [("2:8", "x = int(input())\nprint(é"), ("2:7", "x = int(input())\nprint("),
                        ("1:4", "x ="), ("1:2", "x"), ("2:1", "x = int(input())\n"), ("1:1", "")]:
        ids, typed, bits, expected = encoding.encode_ordinary(text), 0, 0, ""
        if ids:
            ids, typed, bits = healed(network, encoding, ids)
        if bits <= 0.32:
            new = greedy(network, ids or [encoding.start], 9, encoding.stops)
            expected = whole_part(encoding.decode_bytes(ids[-1:] + new)[typed:])
        written.add(bool(expected))
        command = "suggest", f"{path}:{place}", "--model", folder, "--max-suggestion", "9"
        assert in_process(*command) == (0, expected, "")
        if expected:
            assert in_process(*command, terminal=True) == (0, expected + "\n", "")
    assert written == {True, False}


@pytest.mark.parametrize("likely, share, suggestion", [
    ("():", 0.9, "):"),  # a longer token begins with what is there: its rest, and on
    ("(", 0.9, ""),      # what is there is the token: what comes after it
    ("():", 0.7, "")])   # a choice between the two: nothing is obvious
def test_what_was_typed_may_be_half_a_token(likely, share, suggestion, tmp_path, monkeypatch):
    encoding = data.train_tokenizer(["():"] * 9 + ["def go"], 262)
    ids = encoding.encode_ordinary("def go(")
    [long] = [i for i in range(encoding.n_vocab - 1) if encoding.decode([i]) == likely]
    other = ids[-1] if long != ids[-1] else max(
        i for i in range(encoding.n_vocab - 1) if encoding.decode([i]).startswith("("))
    logits = torch.full((1, 1, encoding.n_vocab), -50.0)
    logits[0, 0, long], logits[0, 0, other] = math.log(share), math.log(1 - share)
    logits[0, 0, encoding.encode_single_token("d")] = 3.0  # likelier, but does not fit
    asked = []
    monkeypatch.setattr(suggest, "extend", lambda model, cache, texts, more: (
        asked.extend(texts) or logits))
    monkeypatch.setattr(suggest, "sample", lambda *rest, **options: ([[]], [True]))
    save_published(tiny_gpt(vocab_size=encoding.n_vocab), tmp_path)
    save_tokenizer(encoding, tmp_path)
    (tmp_path / "a.py").write_text("def go(")
    assert in_process("suggest", tmp_path / "a.py:1:8", "--model", tmp_path) == (0, suggestion, "")
    assert asked == [[encoding.start, *ids[:-1]]]


@pytest.mark.parametrize("share, room", [(0.9, 0.5 + math.log2(0.9)), (1.0, 0.5), (0.7, None)])
def test_the_token_at_the_cursor_is_part_of_what_a_suggestion_costs(
        share, room, tmp_path, monkeypatch):
    encoding = data.train_tokenizer(["():"] * 9 + ["def go"], 262)
    first, second = (i for i in range(encoding.n_vocab - 1) if encoding.decode([i]) in ("(", "():"))
    logits, given_room = torch.full((1, 1, encoding.n_vocab), -50.0), []
    logits[0, 0, first], logits[0, 0, second] = math.log(share), math.log(1 - share + 1e-20)
    monkeypatch.setattr(suggest, "extend", lambda model, cache, texts, more: logits)
    monkeypatch.setattr(suggest, "sample", lambda *rest, max_cost, **options: (
        given_room.append(max_cost) or [[]], [True]))
    save_published(tiny_gpt(vocab_size=encoding.n_vocab), tmp_path)
    save_tokenizer(encoding, tmp_path)
    (tmp_path / "a.py").write_text("def go(")
    in_process("suggest", tmp_path / "a.py:1:8", "--model", tmp_path, "--eta", "0.5")
    assert given_room == ([] if room is None else [pytest.approx(room)])
