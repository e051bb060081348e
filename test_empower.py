"""Tests: Algorithm 1 as printed is the oracle, each formula has an example worked by hand.

Run them with `pytest`. `python test_empower.py` instead prints how fast the game, the optimizer and
the judge are, each against the plain way of doing the same.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import checkpoint
import data
import empower
import realcode
import simhuman
from checkpoint import GPTConfig, read_safetensors, write_safetensors
from contest import (DOMAINS, INTEGERS, SHAPES, Style, compositions, draw_style, make_contest,
                     swaps, write_program)
from empower import (Config, collate, empower_length, empower_lengths, make_batches,
                     muon_and_adamw, score, token_entropy, token_nll, train)
from model import (GPT, KVCache, Muon, draw, extend, orthogonalize, rotary_frequencies,
                   sample)
from simhuman import (KINDS, Assistant, Author, Episode, Human, Turn, Verdict, accept_ratio,
                      check_judge, discounted, discounted_pass_rate, judge, judge_all,
                      paired_difference, pass_at_1, play, self_check, share_saved)

HERE = Path(__file__).parent

# ------------------------------------------------------------------- Algorithm 1


def algorithm_1(nll, eta):
    """Algorithm 1 of the paper as printed, on the costs of l_{n+1:N}: the completion's length."""
    N_minus_n = len(nll)
    for i in range(1, N_minus_n + 1):          # 1: for i in 1..N
        H = sum(nll[:i])                       # 2:   H = -log pi_hat(l_{n+1:n+i} | l_{1:n})
        if H > eta:                            # 3:   if H > eta
            return i - 1                       # 4:     return l_{n+1:n+i-1}
    return N_minus_n                           # 5: return the rest


def random_costs(rng):
    """Costs that add up exactly in binary, so that sums meet eta exactly and often."""
    return rng.integers(0, 9, rng.integers(0, 30)) / 4


def test_exercise_1_empower_length_is_algorithm_1():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        nll, eta = random_costs(rng), rng.integers(0, 40) / 4
        assert empower_length(nll, eta) == algorithm_1(nll, eta)


def test_exercise_1_every_state_at_once_is_one_state_at_a_time():
    rng = np.random.default_rng(1)
    for _ in range(500):
        nll, eta = random_costs(rng), rng.integers(0, 40) / 4
        each = [algorithm_1(nll[n:], eta) for n in range(len(nll))]
        assert empower_lengths(nll, eta).tolist() == each
    real = rng.exponential(1.0, 300).astype(np.float32)
    assert empower_lengths(real, 4.0).tolist() == [algorithm_1(real[n:].astype(float), 4.0)
                                                   for n in range(300)]


@pytest.mark.parametrize("nll, eta, length", [
    ([0.25, 0.5, 2, 0], 1, 2),       # the example of the docstring
    ([0.25, 0.5, 0.25, 0], 1, 4),    # equality is kept (Algorithm 1), and what is free follows
    ([0.25, 0.5, 0.25, 0], 0.75, 2),
    ([2, 0, 0], 1, 0),               # the first token is too dear: say nothing
    ([], 1, 0),                      # nothing is left
    ([0, 0, 0], 0, 3),               # everything is free
])
def test_exercise_1_worked_examples(nll, eta, length):
    assert empower_length(np.array(nll), eta) == length
    if nll:
        assert empower_lengths(np.array(nll), eta)[0] == length


def test_exercise_1_a_larger_eta_never_shortens_a_completion():
    rng = np.random.default_rng(2)
    for _ in range(200):
        nll = rng.exponential(1.0, 20)
        lengths = [empower_lengths(nll, eta) for eta in (0, 0.1, 0.32, 1, 4, 16)]
        assert all((a <= b).all() for a, b in zip(lengths, lengths[1:]))


def test_cost_is_minus_log2_of_the_probability():
    assert token_nll(torch.zeros(2, 2), torch.tensor([0, 1])).tolist() == [1.0, 1.0]
    logits, ids = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    p = logits.softmax(-1).gather(-1, ids[..., None])[..., 0]
    assert torch.allclose(token_nll(logits, ids), -p.log2(), atol=1e-5)


def test_entropy_is_the_mean_cost_of_the_next_token():
    assert token_entropy(torch.zeros(4)).item() == pytest.approx(2)
    assert token_entropy(torch.tensor([0.0, 0.0, -math.inf])).item() == pytest.approx(1)
    logits = torch.randn(3, 5, 7)
    each = torch.stack([token_nll(logits, torch.full((3, 5), i)) for i in range(7)], -1)
    assert torch.allclose(token_entropy(logits), (logits.softmax(-1) * each).sum(-1), atol=1e-5)


def markov_chain(p):
    """A model without layers whose next token depends on the last one alone, with p[last, next]."""
    V = len(p)
    model = GPT(GPTConfig(V, 32, 32, 0, 1, 1, 32, 256, tie_word_embeddings=False))
    for weight in model.parameters():
        weight.data = torch.zeros_like(weight)
    model.norm.weight.data += 1
    model.embed_tokens.weight.data[:, :V] = torch.eye(V)
    model.lm_head.weight.data[:, :V] = torch.tensor(p).clamp(min=1e-30).log().T / 32 ** 0.5
    return model


def information(p, samples=1, steps=3, **options):
    """What the token behind token 0 says about the texts behind it; the last token ends a text."""
    return empower.future_information(markov_chain(p), [0], len(p) - 1, steps, samples,
                                      torch.Generator().manual_seed(0), **options)[0].tolist()


def test_information_about_the_future_by_hand():
    # Behind 0 comes 1 or 2, each in half of the cases. 1: then 3. 2: then 3 or 4, each in half.
    p = np.zeros((6, 6))
    p[0, [1, 2]] = p[2, [3, 4]] = 0.5
    p[1, 3] = p[3, 5] = p[4, 5] = p[5, 5] = 1
    h = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)) - 0.5
    found = information(p, samples=20_000)
    assert found == pytest.approx([h] * 3, abs=0.01) and h == pytest.approx(0.311, abs=1e-3)
    p[1, [3, 4]] = 0.5  # now both say the same of what follows: nothing
    assert information(p) == pytest.approx([0] * 3, abs=1e-6)
    p[1], p[2] = np.eye(6)[3], np.eye(6)[4]  # now all: the bound is met, by every single sample
    assert information(p) == pytest.approx([1] * 3, abs=1e-6)


def test_a_text_that_ended_stays_ended():
    p = np.zeros((4, 4))
    p[0, [1, 3]] = 0.5  # go on, or end: whoever sees the next position knows
    p[1, 1] = p[2, 2] = p[3, 1] = 1
    assert information(p, samples=8) == pytest.approx([1] * 3, abs=1e-6)


def test_information_leaves_out_what_is_unlikely():
    p = np.zeros((5, 5))
    p[0] = [0, 0.6, 0.3, 0.1, 0]
    p[1, 2] = p[2, 3] = p[3, 1] = p[4, 4] = 1
    likely = np.array([2 / 3, 1 / 3])
    found = information(p, samples=40_000, least=0.2)
    assert found == pytest.approx([-(likely * np.log2(likely)).sum()] * 3, abs=0.01)


def test_information_grows_with_the_text_and_stays_below_the_entropy():
    model, generator = tiny_gpt(), torch.Generator().manual_seed(0)
    prefix = [0, 3, 5]
    entropy = token_entropy(model(torch.tensor([prefix]))[0, -1]).item()
    found, counted = empower.future_information(model, prefix, 1, 12, 2000, generator)
    assert (np.diff(found) > -0.01).all() and 0 < found[0] < found[-1] < counted + 0.02
    assert counted == pytest.approx(entropy, abs=0.05) and counted <= entropy


def test_exercise_3_a_rule_is_all_that_tells_the_assistants_apart():
    rules, rng = empower.completion_rules(Config()), np.random.default_rng(0)
    assert list(rules) == ["SFT-10", "SFT-20", "SFT-RAND", "Empower (0.32)", "Empower (4)"]
    nll = np.array([0.25, 0.0625, 0.5, 8.0])
    assert [rules[name](nll, rng) for name in rules if name != "SFT-RAND"] == [10, 20, 2, 3]
    lengths = {rules["SFT-RAND"](nll, rng) for _ in range(2000)}
    assert lengths == set(range(1, 31))
    drawn = [[rules["SFT-RAND"](nll, rng) for _ in range(20)]
             for rng in (np.random.default_rng(1), np.random.default_rng(1))]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("name", ["sft-0", "sft", "SFT-10", "sft-1.5", "dpo"])
def test_exercise_3_any_other_name_is_an_error(name):
    with pytest.raises(empower.UserError, match="empower.*sft-rand.*sft-N"):
        empower.completion_rule(name, 1)


# ------------------------------------------------------------------- the contest


@functools.lru_cache(maxsize=None)
def contest():
    return make_contest(random.Random(0), 600, 100, 300)


class Stdin(io.StringIO):
    """Fails past its end, where a file would say "" for ever to a program that waits for a word."""

    def readline(self, *arguments):
        line = super().readline(*arguments)
        if not line:
            raise EOFError
        return line


def output(program, stdin):
    """What one of our own reference programs (compiled) prints; None where it fails.

    In this process, for speed: they are text of data.py. What a model wrote runs in the judge."""
    stdout, before = io.StringIO(), sys.stdin
    try:
        sys.stdin = Stdin(stdin)
        with contextlib.redirect_stdout(stdout):
            exec(program, {"__name__": "__main__"})
    except Exception:
        return None
    finally:
        sys.stdin = before
    return stdout.getvalue().rstrip()


def solves(program, problem):
    program = compile(program, "program", "exec")
    return all(output(program, stdin) == expected.rstrip() for stdin, expected in problem.tests)


def styles():
    """Each combination of the four habits, names drawn at random."""
    rng = random.Random(0)
    return [Style(*draw_style(rng)[:4], *habits)
            for habits in itertools.product([False, True], repeat=4)]


def test_every_reference_solution_passes_in_every_style():
    for problem in random.Random(1).sample(contest().train + contest().held_out, 500):
        for style in styles():
            program = write_program(problem.parts, style)
            assert solves(program, problem), (problem, program)


def test_a_program_with_one_part_swapped_fails():
    rng, passed, tried = random.Random(2), [], 0
    for problem in rng.sample(contest().train + contest().held_out, 500):
        for parts in swaps(problem.parts):
            tried += 1
            if solves(write_program(parts, draw_style(rng)), problem):
                passed.append((problem.parts, parts))
    assert tried > 10_000 and len(passed) <= 0.01 * tried, (len(passed), tried, passed[:5])


def test_no_composition_is_in_two_splits():
    splits = [{problem.parts for problem in split} for split in contest()]
    assert [len(split) for split in splits] == [600, 100, 300]
    assert len(set.union(*splits)) == 1000


def test_the_contest_is_as_large_as_it_says():
    assert len(SHAPES) >= 3 and len(compositions()) > 5000
    assert [len(part) for part in INTEGERS[2:5]] == [11, 9, 12]


def test_tests_hold_the_edge_cases():
    for problem in contest().held_out:
        domain, shape = DOMAINS[problem.parts[0]], list(SHAPES)[problem.parts[1]]
        lists = []
        for stdin, _ in problem.tests:
            lines = stdin.splitlines()
            lines = {"count": lines[1:], "line": lines, "until": [" ".join(lines[:-1])],
                     "cases": lines[1:]}[shape]
            lists += [line.split() for line in lines]
        if domain is INTEGERS:
            lists = [[int(x) for x in elements] for elements in lists]
            assert any(x < 0 for elements in lists for x in elements)
        keep = domain.select[problem.parts[2]].meaning
        assert any(len(elements) == 1 for elements in lists)
        assert any(not any(map(keep, elements)) for elements in lists)
        assert any(len(set(elements)) < len(elements) for elements in lists)


def test_too_many_problems_is_an_error():
    with pytest.raises(ValueError, match="fewer than"):
        make_contest(random.Random(0), 5000, 500, 500)


# ------------------------------------------------------------------- the tokenizer, documents


@functools.lru_cache(maxsize=None)
def tokenizer():
    rng = random.Random(0)
    texts = [p.statement + write_program(p.parts, draw_style(rng))
             for p in contest().train]
    return data.train_tokenizer(texts, 640)


AWKWARD = ["", " ", "\n\n    x\t= 'ä€😀'\r\n", "<|endoftext|>", "a" * 999, "x=1", "\x00\ud7ff",
           "１２ 3"]


def test_any_text_survives_the_tokenizer():
    for text in AWKWARD:
        ids = tokenizer().encode_ordinary(text)
        assert tokenizer().decode(ids) == text and tokenizer().eot_token not in ids
    assert all(tokenizer().encode_single_token(bytes([byte])) == byte for byte in range(256))


def test_tokenizer_is_saved_and_loaded(tmp_path):
    data.save_tokenizer(tokenizer(), tmp_path)
    loaded = data.load_tokenizer(tmp_path)
    for text in AWKWARD + [problem.statement for problem in contest().dev]:
        assert loaded.encode_ordinary(text) == tokenizer().encode_ordinary(text)
    assert loaded.n_vocab == tokenizer().n_vocab and loaded.eot_token == tokenizer().eot_token
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    vocab = saved["model"]["vocab"]  # each merge makes the next token, in order of rank
    made = [vocab["".join(pair)] for pair in saved["model"]["merges"]]
    assert made == list(range(256, tokenizer().n_vocab - 1))
    # transformers chooses by this file: with another class it would cut text by another pattern.
    more = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert more["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_damaged_tokenizer_is_an_error(tmp_path):
    for text in ("", "{}", '{"model": 5}', "[]", "\x00"):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ValueError, match="tokenizer.json is damaged"):
            data.load_tokenizer(tmp_path)


def test_byte_pairs_by_hand():
    # "ab" is the most frequent pair, then "ab" + "c".
    encoding = data.train_tokenizer(["abc abc ab"], 259)
    assert encoding.decode_single_token_bytes(256) == b"ab"
    assert encoding.n_vocab == 259 and encoding.encode_ordinary("ab")[0] == 256


TOKENIZERS = HERE / "fixtures" / "tokenizers"
FAMILIES = ["qwen", "qwen-files", "llama3", "llama3-ranks", "smollm2", "gpt2"]


@functools.lru_cache(maxsize=None)
def family(name):
    return data.load_tokenizer(TOKENIZERS / name)


def awkward_page(name):
    """(text, the ids that the `tokenizers` library gives it), ... for a folder of fixtures."""
    expected = json.loads((TOKENIZERS / "expected.json").read_text(encoding="utf-8"))
    return list(zip(expected["page"], expected["ids"][name.split("-")[0]]))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_s_tokenizer_gives_the_ids_of_its_family_s_library(name):
    for text, ids in awkward_page(name):
        form = unicodedata.normalize("NFC", text) if "qwen" in name else text
        assert family(name).encode_ordinary(form) == ids, text
        if "Ա" not in text or name != "smollm2":  # of which it lacks a byte
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
           is not None}
    assert [ids[i] for i in encoding.stops] == stops and encoding.eot_token == encoding.stop
    assert ids.get(encoding.bos) == bos and ids[encoding.start] == start
    document = data.document(encoding, "# Add.\n", "a + b\n")
    assert (document[0], document[-1]) == (encoding.start, encoding.stops[0])
    assert encoding.decode(document[1:-1]) == "# Add.\na + b\n"


@pytest.mark.parametrize("generation, config, stops", [
    (None, None, "<|endoftext|>"), (None, "<|im_end|>", "<|im_end|>"),
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
    assert data.load_tokenizer(tmp_path).stops == [ids[token] for token in stops.split()]


def test_special_tokens_are_found_where_they_are_allowed():
    encoding = family("qwen")
    ids = encoding.encode("<tool_call>1</tool_call><|im_end|>", allowed_special="all")
    assert ids == [encoding._special_tokens["<tool_call>"], *encoding.encode_ordinary("1"),
                   encoding._special_tokens["</tool_call>"], encoding.stop]
    assert encoding.stop not in encoding.encode_ordinary("<|im_end|>")


def test_bytes_without_a_token_are_dropped():
    encoding = family("smollm2")
    saved = json.loads((TOKENIZERS / "smollm2" / "tokenizer.json").read_text(encoding="utf-8"))
    assert encoding.n_vocab == encoding.size == len(saved["model"]["vocab"])
    assert encoding.decode_bytes(encoding.encode_ordinary("aԱ\x00b")) == b"a\xb1b"
    assert encoding.decode_bytes(encoding.encode("aԱ\x00b")) == b"a\xb1b"


def merged(token, ranks):
    """The tokens that merging the neighbours of lowest rank makes of the bytes of `token`."""
    pieces = [bytes([byte]) for byte in token]
    while found := [(ranks[a + b], k) for k, (a, b) in enumerate(zip(pieces, pieces[1:]))
                    if a + b in ranks]:
        _, k = min(found)
        pieces[k:k + 2] = [pieces[k] + pieces[k + 1]]
    return pieces


@pytest.mark.parametrize("name", FAMILIES)
def test_the_merged_bytes_of_a_token_are_the_token(name):
    """Not so for a token of Llama 3 that is found only as a whole: `ignore_merges` is for it."""
    ranks = family(name)._mergeable_ranks
    assert sum(merged(token, ranks) != [token] for token in ranks) == ("llama3" in name)


def test_the_plain_pattern_is_wrong_for_smollm2():
    right = family("smollm2")
    plain = checkpoint._GPT2.replace(r" ?\p{N}+", r"\p{N}")
    wrong = data.Tokenizer(plain, right._mergeable_ranks, right._special_tokens, [0])
    differ = [text for text, ids in awkward_page("smollm2") if wrong.encode_ordinary(text) != ids]
    assert "a  1" in differ and "a   b" not in differ


def with_json(folder, name, change):
    """A copy of a fixture in `folder`, with `change` made to its tokenizer.json."""
    shutil.copytree(TOKENIZERS / name, folder, dirs_exist_ok=True)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(content, content["model"])
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def shuffle_ids(content, model):
    """The same tokens and merges, with the ids of two merged tokens exchanged."""
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
    (lambda c, m: c.update(pre_tokenizer=None), r"has another pre_tokenizer \(null\)"),
    (lambda c, m: c.update(pre_tokenizer={"type": "Metaspace"}), r"\(Metaspace\)"),
    (lambda c, m: c["pre_tokenizer"]["pretokenizers"][0].update(invert=True),
     r"\(Split \+ ByteLevel\)"),
    (lambda c, m: c["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
     r"\(Split \+ ByteLevel\)"),
    (lambda c, m: c.update(post_processor={"type": "RobertaProcessing"}), "RobertaProcessing"),
    (shuffle_ids, "ids in another order than its merges"),
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
    (lambda c, m: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="("), "damaged"),
    (lambda c, m: m["merges"].insert(0, ["a", "no"]), "damaged"),
])
def test_a_tokenizer_of_another_kind_is_refused(tmp_path, change, message):
    with_json(tmp_path, "qwen", change)
    with pytest.raises(ValueError, match=message.replace("|", r"\|")) as error:
        data.load_tokenizer(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(error.value) and ": c" in str(error.value)


def test_merges_are_pairs_or_strings_and_ignore_merges_needs_none(tmp_path):
    text, ids = awkward_page("qwen")[10]
    with_json(tmp_path, "qwen", lambda c, m: m.update(merges=[" ".join(p) for p in m["merges"]]))
    assert data.load_tokenizer(tmp_path).encode_ordinary(text) == ids
    with_json(tmp_path, "qwen", lambda c, m: m.update(merges=[], ignore_merges=True))
    assert data.load_tokenizer(tmp_path).encode_ordinary(text) == ids


@pytest.mark.parametrize("name, file, content, message", [
    ("smollm2", "tokenizer.json", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ("llama3-ranks", "original/tokenizer.model", b"version https://git-lfs.", "git lfs pull"),
    ("llama3-ranks", "original/tokenizer.model", b"\n\x0e\n\x05<unk>\x15", "SentencePiece"),
    ("llama3-ranks", "original/tokenizer.model", b"YQ== 0\nYg==", "is damaged"),
    ("qwen-files", "config.json", b'{"model_type": "phi"}', "of model_type phi"),
    ("qwen-files", "merges.txt", b"\xff", "not a text in UTF-8"),
    ("qwen-files", "tokenizer_config.json", b"{", "tokenizer_config.json is damaged"),
    ("gpt2", "tokenizer.json", b'{"model": {"vocab"', "is damaged"),
    ("gpt2", "tokenizer.json", None, "has none of tokenizer.json, vocab.json"),
])
def test_a_damaged_file_of_a_tokenizer_is_one_sentence(tmp_path, name, file, content, message):
    shutil.copytree(TOKENIZERS / name, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        data.load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_fine_tuned_checkpoint_copies_what_belongs_to_its_tokenizer():
    names = [path.name for path in checkpoint.tokenizer_files(TOKENIZERS / "qwen")]
    assert names == ["tokenizer.json", "generation_config.json"]
    assert checkpoint.tokenizer_files(TOKENIZERS / "llama3-ranks") == [
        TOKENIZERS / "llama3-ranks" / "original" / "tokenizer.model"]


def test_a_program_has_the_same_tokens_with_and_without_its_statement():
    program = write_program(contest().train[0].parts, styles()[5])
    with_goal = data.document(tokenizer(), contest().train[0].statement, program)
    without = data.document(tokenizer(), "", program)
    assert with_goal[-len(without) + 1:] == without[1:]
    assert with_goal[0] == without[0] == without[-1] == tokenizer().eot_token


@pytest.mark.parametrize("size", [1, 3, 7, 10 ** 6])
def test_the_pieces_of_a_text_are_cut_at_newlines_and_make_it_up(size):
    text = "".join(write_program(contest().train[0].parts, style) for style in styles()[:4])
    pieces = data.pieces(tokenizer(), text + "x" * 99, size)
    assert sum(pieces, []) == tokenizer().encode_ordinary(text + "x" * 99)
    assert all(0 < len(ids) <= size for ids in pieces)
    for ids in pieces[:-1]:
        newline = ["\n" in tokenizer().decode([i]) for i in ids]
        assert newline[-1] or not any(newline)
    assert data.pieces(tokenizer(), "", size) == []


def test_pieces_by_hand():
    encoding = data.train_tokenizer([], 257)
    assert list(map(encoding.decode, data.pieces(encoding, "a\nbcd", 3))) == ["a\n", "bcd"]


# ------------------------------------------------------------------- corpora


def write_files(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_rows(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n"
                            for row in rows))
    return path


def test_a_folder_is_a_corpus(tmp_path):
    write_files(tmp_path, {
        "b.py": "x = 1\r\ny = 2\r\n\r\n", "a/c.py": "x = 1\ny = 2", "a/d.py": b"\xef\xbb\xbfz\rw",
        "a/bad.py": b"s = '\xe9'\n", "empty.py": "\n", "note.txt": "", ".git/e.py": "hidden = 1",
        "lib/site-packages/f.py": "g = 1", "__pycache__/g.py": "g = 2", "long.py": "x" * 400_001})
    programs, report = data.read_corpus(tmp_path)
    assert programs == ["z\nw\n", "x = 1\ny = 2\n"][::-1]
    assert report == (f"2 programs of 6 in {tmp_path}: 1 duplicate, 2 unreadable, "
                      "1 longer than 400,000 characters")
    assert data.read_corpus(tmp_path / "b.py") == (
        ["x = 1\ny = 2\n"], f"1 program of 1 in {tmp_path / 'b.py'}")


@pytest.mark.parametrize("row, program", [
    ({"text": "b", "content": "a"}, "a\n"),
    ({"prompt": "Add.\nTwo.\n\nDone.", "code": "a + b"}, "# Add.\n# Two.\n#\n# Done.\na + b\n"),
    ({"question": "def f(x):\n", "canonical_solution": "    return x\n"},
     "def f(x):\n    return x\n"),  # as in HumanEval
    ({"prompt": "x = 1\n", "code": "y = 2"}, "# x = 1\ny = 2\n"),  # is a program without it
    ({"description": "Add.", "completion": "    a +"}, "# Add.\n    a +\n"),  # is none with it
    ({"prompt": None, "solution": "a"}, "a\n"),
])
def test_a_row_is_a_program_behind_its_statement(tmp_path, row, program):
    assert data.read_corpus(write_rows(tmp_path / "rows.jsonl", row))[0] == [program]


def test_rows_without_a_program_are_counted(tmp_path):
    path = write_rows(tmp_path / "rows.ndjson", {"code": "a"}, {"code": "b", "text": "c"}, "{", "",
                      {"code": "a\r\n"}, {"code": 3}, {"code": " "}, {}, "[]", {"code": "\ud800"})
    assert data.read_corpus(path) == (["a\n", "b\n"], f"2 programs of 9 in {path} (field code): "
                                                      "1 duplicate, 6 unreadable")
    programs, report = data.read_corpus(path, field="text")
    assert programs == ["c\n"] and "1 program of 9" in report and "(field text)" in report
    (tmp_path / "list.json").write_text('[{"code": "a"},\n {"code": "b"}]')
    assert data.read_corpus(tmp_path / "list.json")[0] == ["a\n", "b\n"]


@pytest.mark.parametrize("name, content, message", [
    ("absent", None, "there is no .*absent: name"),
    ("rows.jsonl", '{"id": 1, "body": "x"}', "no field code, .*; its first row has id, body: name"),
    ("rows.jsonl", "", "has no field code, .* no field at all"),
    ("rows.jsonl", '{"code": ""}\n{"code": 1}', "no usable program: .*: 2 unreadable; name"),
    ("rows.jsonl", "version https://git-lfs.github.com/spec/v1\n", "only a Git LFS pointer: fetch"),
    ("a.py", "version https://git-lfs.github.com/spec/v1\n", "only a Git LFS pointer: fetch"),
    ("a.py", b"\xff", "not a text in UTF-8: convert"),
    ("a.parquet", "PAR1", "is no corpus: name a folder"),
    ("folder/a.md", "", r"no .py file under .* \(found 1 files: .md\): name"),
])
def test_what_is_no_corpus_gets_one_sentence(tmp_path, name, content, message):
    if content is not None:
        write_files(tmp_path, {name: content})
    with pytest.raises(ValueError, match=message) as error:
        data.read_corpus(tmp_path / name.split("/")[0])
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_the_standard_library_is_a_corpus_without_its_tests():
    programs, report = data.read_corpus("stdlib")
    assert len(programs) > 300 and "in the standard library of Python 3" in report
    assert any("class JSONDecodeError(" in program for program in programs)
    assert not any("import pytest" in program for program in programs)


def test_a_split_holds_each_program_once_and_is_seeded():
    programs = [f"x = {n}\n" for n in range(50)]
    split = data.split_corpus(programs, 10, random.Random(0))
    assert [len(part) for part in split] == [40, 10] and sorted(sum(split, [])) == sorted(programs)
    assert split == data.split_corpus(programs, 10, random.Random(0))
    assert split != data.split_corpus(programs, 10, random.Random(1))
    with pytest.raises(ValueError, match="50 programs is too small to hold out 50: hold out fewer"):
        data.split_corpus(programs, 50, random.Random(0))


@pytest.mark.parametrize("name, field, n", [
    ("kattis.jsonl", "code", 1918), ("HumanEval.jsonl", "canonical_solution", 164)])
def test_real_programs_are_read(name, field, n):
    path = HERE.parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip("the file is not here")
    programs, report = data.read_corpus(path)
    assert len(programs) == n and report == f"{n:,} programs of {n:,} in {path} (field {field})"
    assert all(map(data._parses, programs))


def test_states_are_uniform():
    states = data.draw_states(np.random.default_rng(0), [4] * 4000)
    counts = np.bincount(states, minlength=4)
    assert len(counts) == 4 and (abs(counts - 1000) < 100).all()


# ------------------------------------------------------------------- the model


def tiny_gpt(seed=0, vocab_size=23, layers=2, **options):
    """A random GPT whose weights are scaled up, so that attention is not uniform."""
    cfg = GPTConfig(vocab_size, 32, 64, layers, 4, 2, 8, max_position_embeddings=256, **options)
    model = GPT(cfg)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.4 + (weight.dim() == 1)
    return model


def random_texts(sizes, seed=0, vocab_size=23):
    rng = random.Random(seed)
    return [[rng.randrange(vocab_size) for _ in range(size)] for size in sizes]


def test_logits_do_not_see_the_future():
    model, (text, other) = tiny_gpt(), random_texts([12, 12])
    both = torch.tensor([text, text[:7] + other[7:]])
    logits = model(both)
    assert torch.allclose(logits[0, :7], logits[1, :7], atol=1e-5)
    assert not torch.allclose(logits[0, 7:], logits[1, 7:], atol=1e-2)


@torch.no_grad()
def test_cached_logits_equal_uncached_on_ragged_batches_and_after_rollbacks():
    model, rng = tiny_gpt(), random.Random(0)
    cache, texts = KVCache(model, 6), random_texts([1, 9, 4, 30, 2, 17])
    for k in range(30):
        more = random_texts([rng.randint(0, 7) for _ in texts], rng.random())
        logits = extend(model, cache, texts, more)
        for row, (text, tail) in enumerate(zip(texts, more)):
            full = model(torch.tensor([text + tail]))[0, len(text) - 1:]
            assert torch.allclose(logits[row, :len(tail) + 1], full, atol=1e-4)
            if rng.random() < 0.5:
                texts[row] = text + tail  # accepted
            else:
                texts[row] = text[:rng.randint(1, len(text))]
                cache.rollback(row, len(texts[row]))
        if k % 10 == 9:
            rows = rng.sample(range(len(texts)), len(texts) - 1)
            cache.keep(rows)
            texts = [texts[row] for row in rows]


def test_long_texts_enter_an_empty_cache_without_a_mask_and_are_the_same():
    model = GPT(GPTConfig(23, 32, 64, 2, 2, 1, 16, 1024), torch.Generator().manual_seed(0))
    for weight in model.parameters():
        weight.data.mul_(8 if weight.dim() == 2 else 1)
    texts, cache = random_texts([700, 640, 3]), KVCache(model, 3)
    with torch.no_grad():
        assert cache.place(torch.zeros(3, 600, dtype=torch.long))[1] is None
        for more in ([[], [], []], [[4, 5], [6], [7, 8, 9]]):  # empty, then filled
            logits = extend(model, cache, texts, more)
            for text, tail, row in zip(texts, more, logits):
                whole = model(torch.tensor([text + tail]))[0, len(text) - 1:]
                assert torch.allclose(row[:len(tail) + 1], whole, atol=1e-3)


def test_greedy_sampling_equals_the_argmax_of_full_passes():
    model, texts = tiny_gpt(), random_texts([3, 8, 1])
    new, stopped = sample(model, KVCache(model, 3), texts, 12, 0, temperature=0)
    for text, row, stop in zip(texts, new, stopped):
        text = list(text)
        for token in row + [0] * stop:
            assert model(torch.tensor([text]))[0, -1].argmax() == token
            text.append(token)
        assert stop or len(row) == 12


def test_sampling_follows_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(20_000, 4)
    generator = torch.Generator().manual_seed(0)
    for temperature in (0.5, 1.0):
        counts = draw(logits, temperature, 1.0, generator).bincount(minlength=4) / 20_000
        assert torch.allclose(counts, (logits[0] / temperature).softmax(-1), atol=0.02)


@pytest.mark.parametrize("top_p, kept", [(0.4, [1]), (0.6, [1, 3]), (0.85, [0, 1, 3]),
                                         (1.0, [0, 1, 2, 3])])
def test_top_p_keeps_the_fewest_tokens_that_hold_it(top_p, kept):
    logits = torch.tensor([0.2, 0.5, 0.1, 0.2001]).log().expand(4000, 4)
    drawn = draw(logits, 1.0, top_p, torch.Generator().manual_seed(0))
    assert drawn.unique().tolist() == kept


def costs(model, text, more):
    """The cost in bits of each token of `more` behind `text`, in one full pass."""
    logits = model(torch.tensor([text + more]))[0, len(text) - 1:-1]
    return token_nll(logits, torch.tensor(more, dtype=torch.long)).detach().numpy()


def test_sampling_stops_before_its_text_costs_too_much():
    model, texts = tiny_gpt(), random_texts([6, 6, 6, 6])
    new, _ = sample(model, KVCache(model, 4), texts, 20, stop_token=-1, max_cost=6.0,
                    generator=torch.Generator().manual_seed(0))
    free, _ = sample(model, KVCache(model, 4), texts, 20, stop_token=-1, temperature=0)
    limited, _ = sample(model, KVCache(model, 4), texts, 20, stop_token=-1,
                        temperature=0, max_cost=6.0)
    for text, row, greedy, stopped in zip(texts, new, free, limited):
        assert costs(model, text, row).sum() <= 6.0
        assert len(stopped) == empower_length(costs(model, text, greedy), 6.0) < 20


def test_sampling_draws_the_same_for_the_same_seed():
    model, texts = tiny_gpt(), random_texts([4, 2])
    draws = [sample(model, KVCache(model, 2), texts, 9, 0,
                    generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_a_text_longer_than_the_model_is_an_error():
    model = tiny_gpt()
    with pytest.raises(ValueError, match="300 tokens is longer than the model's 256"):
        extend(model, KVCache(model, 1), [[1] * 300])


def test_a_model_is_saved_and_loaded(tmp_path):
    model, ids = tiny_gpt(), torch.tensor(random_texts([9, 9]))
    model.save_pretrained(tmp_path)
    loaded = GPT.from_pretrained(tmp_path)
    assert torch.equal(model(ids), loaded(ids)) and loaded.config == model.config
    assert loaded.lm_head.weight is loaded.embed_tokens.weight
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name, damage, message", [
    ("model.safetensors", lambda b: b[:-1], "truncated"),
    ("model.safetensors", lambda b: b + b" ", "truncated or damaged"),
    ("model.safetensors", lambda b: b"<!DOCTYPE html><html>Sign in</html>", "an HTML page"),
    ("model.safetensors", lambda b: b[:4], "truncated"),
    ("model.safetensors", lambda b: b"version https://git-lfs" + b[:90], "Git-LFS"),
    ("model.safetensors", lambda b: b[:8] + b"[" + b[9:], "header cannot be read"),
    ("model.safetensors", lambda b: b.replace(b'"F32"', b'"F99"', 1), "F99"),
    ("model.safetensors", lambda b: b.replace(b"[32]", b"[33]", 1), "damaged"),
    ("model.safetensors", lambda b: b.replace(b'"data_offsets": [0,', b'"data_offsets": [8,', 1),
     "damaged"),
    ("config.json", lambda b: b[:30], "config.json is damaged"),
    ("config.json", lambda b: b.replace(b"vocab_size", b"vocab_seize"), "vocab_size"),
    ("config.json", lambda b: b"[1, 2]", "config.json is damaged"),
])
def test_a_damaged_checkpoint_is_an_error(tmp_path, name, damage, message):
    tiny_gpt().save_pretrained(tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        GPT.from_pretrained(tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------- published checkpoints

FAMILIES = ["llama", "llama3", "llama-bias", "smollm2", "qwen2", "qwen3", "mistral"]


def fixture(name):
    """A tiny checkpoint, token ids, and their logits in transformers (fixtures/README.md)."""
    folder = HERE / "fixtures" / name
    ids, logits = (torch.from_numpy(np.load(folder / f)) for f in ("ids.npy", "logits.npy"))
    return GPT.from_pretrained(folder, dtype=torch.float32), ids.long(), logits


def worst(logits, theirs):
    return (logits[:, 4::5] - theirs).abs().max().item()  # they are kept for each fifth position


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_logits_are_those_of_transformers_with_and_without_a_cache(name):
    model, ids, theirs = fixture(name)
    assert worst(model(ids), theirs) < 1e-3
    cache, parts = KVCache(model, 2), []
    for chunk in ids.split([17, 6, *[1] * 17], dim=1):
        parts.append(model(chunk, cache))
        cache.lengths += chunk.shape[1]
    assert worst(torch.cat(parts, dim=1), theirs) < 1e-3


def interleaved(model, monkeypatch):
    def rotate(x, cos, sin):
        a, b, cos, sin = x[..., ::2], x[..., 1::2], cos[..., None, :], sin[..., None, :]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)

    monkeypatch.setattr("model.rotate", rotate)


def no_scaling(model, _):
    model.frequencies = rotary_frequencies(dataclasses.replace(model.config, rope_scaling=None))


def no_query_norm(model, _):
    for layer in model.layers:
        layer.self_attn.q_norm = torch.nn.Identity()


def large_eps(model, _):
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-3


def no_bias(part):
    def ignore(model, _):
        biases = [w for name, w in model.named_parameters() if name.endswith(f"{part}_proj.bias")]
        assert len(biases) == 2
        for bias in biases:
            bias.data.zero_()

    return ignore


@pytest.mark.parametrize("name, mistake", [
    *((name, interleaved) for name in FAMILIES), *((name, large_eps) for name in FAMILIES),
    ("llama3", no_scaling), ("qwen3", no_query_norm),
    *(("qwen2", no_bias(part)) for part in "qkv"),
    *(("llama-bias", no_bias(part)) for part in ("q", "k", "v", "o", "gate", "up", "down"))])
@torch.no_grad()
def test_each_mistake_shows_in_the_logits(name, mistake, monkeypatch):
    model, ids, theirs = fixture(name)
    mistake(model, monkeypatch)
    assert worst(model(ids), theirs) > 1e-3


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_published_model_survives_saving(name, dtype, tmp_path):
    model = GPT.from_pretrained(HERE / "fixtures" / name, dtype=dtype)
    model.save_pretrained(tmp_path)
    loaded, config = GPT.from_pretrained(tmp_path), (tmp_path / "config.json").read_text()
    assert loaded.config == model.config and loaded.config.eos_token_id == 2
    assert f"torch.{json.loads(config)['torch_dtype']}" == str(model.norm.weight.dtype)
    ours, theirs = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key])
        assert theirs[key].requires_grad


def copied(name, folder, **edits):
    """A copy of a fixture with some keys of its config.json changed (...: removed)."""
    shutil.copytree(HERE / "fixtures" / name, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text()) | edits
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not ...}))
    return folder


@pytest.mark.parametrize("edits, message", [
    ({"architectures": ["GemmaForCausalLM"]}, "unsupported architecture GemmaForCausalLM; supp"),
    ({"architectures": ...}, "no architectures are named"),
    ({"quantization_config": {"bits": 4}}, "quantized"),
    ({"hidden_act": "gelu"}, "unsupported hidden_act gelu; supported: silu"),
    ({"rope_scaling": {"type": "yarn", "factor": 4}}, "unsupported RoPE scaling yarn; supported"),
    ({"rope_scaling": {"type": "llama3", "factor": 4}}, "no positive number for low_freq_factor"),
    ({"rope_scaling": "yarn"}, "config.json"),
    ({"rope_theta": ...}, "no positive number for rope_theta"),
    ({"partial_rotary_factor": 0.5}, "unsupported partial_rotary_factor 0.5"),
    ({"num_attention_heads": ...}, "no positive number for num_attention_heads"),
    ({"hidden_size": None}, "no positive number for hidden_size"),
    ({"head_dim": ...}, r"k_proj.weight is \(16, 16\) in the file and has to be \(8, 16\)"),
    ({"num_key_value_heads": 4}, "4 differ, the first: layers.0.self_attn.k_proj.weight is"),
    ({"vocab_size": 33}, "embed_tokens.weight is"),
    ({"num_hidden_layers": 3}, "layers.2.input_layernorm.weight is absent in the file"),
    ({"num_hidden_layers": 1}, r"layernorm.weight is \(16,\) in the file and has to be absent")])
def test_a_model_that_would_be_another_one_is_refused(edits, message, tmp_path):
    copied("mistral", tmp_path, **edits)
    with pytest.raises(ValueError, match=message) as error:
        GPT.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("absent, message", [
    ("config.json", "config.json is absent"),
    ("model-00002-of-00004.safetensors", "model-00002-of-00004.safetensors is absent and model.s"),
    ("model.safetensors.index.json", "has neither model.safetensors nor model.safetensors.index")])
def test_an_absent_file_is_named(absent, message, tmp_path):
    (copied("qwen3", tmp_path) / absent).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        GPT.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="give the folder of a downloaded checkpoint"):
        GPT.from_pretrained(tmp_path / "nowhere")


def change_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = read_safetensors(path)
    change(tensors)
    write_safetensors(path, tensors)
    return GPT.from_pretrained(folder)


def test_the_head_is_the_file_s_or_else_the_embedding(tmp_path):
    folder = copied("llama3", tmp_path)  # tied, no head in the file
    embedding = read_safetensors(folder / "model.safetensors")["model.embed_tokens.weight"]
    same = change_weights(folder, lambda t: t.update({"lm_head.weight": embedding.clone()}))
    assert same.config.tie_word_embeddings and same.lm_head.weight is same.embed_tokens.weight
    other = change_weights(folder, lambda t: t.update({"lm_head.weight": 2 * embedding}))
    assert not other.config.tie_word_embeddings
    assert torch.equal(other.lm_head.weight, 2 * other.embed_tokens.weight)
    copied("llama", tmp_path)  # not tied
    with pytest.raises(ValueError, match="lm_head.weight is absent in the file"):
        change_weights(folder, lambda t: t.pop("lm_head.weight"))


def test_files_and_tensors_that_are_not_the_model_s_do_no_harm(tmp_path):
    model, ids, theirs = fixture("llama")
    folder = copied("llama", tmp_path)
    (folder / "consolidated.safetensors").write_bytes(b"the weights once more, in Meta's layout")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7], "top_p": 0.9}')
    loaded = change_weights(folder, lambda t: t.update(
        {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert torch.equal(loaded(ids), model(ids))
    assert loaded.config.eos_token_id == model.config.eos_token_id  # the other is the tokenizer's


def test_weights_are_mapped_and_the_file_is_never_written(tmp_path):
    path = copied("llama", tmp_path) / "model.safetensors"
    before = path.read_bytes()
    model = GPT.from_pretrained(tmp_path)
    assert len({weight.untyped_storage().data_ptr() for weight in model.parameters()}) == 1
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert path.read_bytes() == before
    model.save_pretrained(tmp_path)  # over the file that it is mapped from
    assert not GPT.from_pretrained(tmp_path).norm.weight.any()


@pytest.mark.parametrize("name", ["llama", "mistral"])  # 4 and 2 bytes a number
def test_tensors_may_lie_at_any_offset(name, tmp_path):
    model, ids, theirs = fixture(name)
    path = copied(name, tmp_path) / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    path.write_bytes((size + 1).to_bytes(8, "little") + content[8:8 + size] + b" "
                     + content[8 + size:])
    assert torch.equal(GPT.from_pretrained(tmp_path, dtype=torch.float32)(ids), model(ids))


def test_scalars_and_empty_tensors_are_saved_and_loaded(tmp_path):
    tensors = {"a": torch.tensor(2.5), "b": torch.zeros(3, 0), "c": torch.ones(2, 3).mT.half()}
    write_safetensors(tmp_path / "t", tensors)
    loaded = read_safetensors(tmp_path / "t")
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("name, edits, limit", [
    ("mistral", {"sliding_window": None}, 128), ("mistral", {"sliding_window": 64}, 64),
    ("mistral", {"sliding_window": ..., "max_position_embeddings": 8192}, 4096),
    ("mistral", {"sliding_window": 4096}, 128), ("llama", {"sliding_window": 64}, 128),
    ("qwen2", {"sliding_window": 64, "use_sliding_window": False}, 128),
    ("qwen2", {"sliding_window": 64, "use_sliding_window": True}, 64),
    ("qwen3", {"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}, 64)])
def test_the_context_ends_where_a_sliding_window_would_begin_to_slide(name, edits, limit, tmp_path):
    model = GPT.from_pretrained(copied(name, tmp_path, **edits))
    assert model.config.max_position_embeddings == KVCache(model, 1).limit == limit


def test_head_dim_is_read_or_derived(tmp_path):
    cfg = GPT.from_pretrained(copied("qwen2", tmp_path, head_dim=None)).config
    assert cfg.head_dim == cfg.hidden_size // cfg.num_attention_heads == 4
    with pytest.raises(ValueError, match="128"):  # Qwen3's own default
        GPT.from_pretrained(copied("qwen3", tmp_path, head_dim=...))


def test_recomputing_gives_the_same_gradients_and_keeps_less():
    model, ids, _ = fixture("llama-bias")
    gradients, kept = [], []
    for model.recompute in (False, True):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x,
                                                      lambda x: x):
            loss = model(ids).logsumexp(-1).mean()
        kept.append(sum(sizes))
        model.zero_grad()
        loss.backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    assert all(map(torch.equal, *gradients)) and kept[1] < kept[0] / 2


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_autocast_and_bfloat16_run_with_and_without_a_cache(name):
    model, ids, _ = fixture(name)
    full, seen = model(ids), []
    narrow = GPT.from_pretrained(HERE / "fixtures" / name, dtype=torch.bfloat16)
    for module, context in [(model, torch.autocast("cpu", torch.bfloat16)),
                            (narrow, contextlib.nullcontext())]:
        for cache in (None, KVCache(module, 2)):
            module.layers[0].self_attn.o_proj.register_forward_pre_hook(
                lambda _, inputs: seen.append(inputs[0].dtype))
            with context:
                logits = module(ids, cache)
            assert (logits - full).std() < 0.1 * full.std()
    assert set(seen) == {torch.bfloat16}


def test_the_head_reads_no_more_positions_than_are_returned():
    model, sizes = tiny_gpt(), []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[:2]))
    extend(model, KVCache(model, 2), random_texts([30, 20]), [[1, 2], [3]])
    assert sizes == [(2, 3)]


def test_any_of_several_stop_tokens_ends_a_text():
    model, [text] = tiny_gpt(), random_texts([5])

    def greedy(stop_token):
        return sample(model, KVCache(model, 1), [text], 20, stop_token, temperature=0)

    [[*free]], _ = greedy(-1)
    stops = [free[7], free[3]]
    first = min(map(free.index, stops))
    assert greedy(stops) == ([free[:first]], [True])
    assert greedy(stops[0]) == ([free[:free.index(stops[0])]], [True])


def test_rows_without_a_token_are_never_written():
    model, texts = tiny_gpt(), random_texts([4] * 8)
    model.writable = 5
    for temperature in (0, 5.0):
        new, _ = sample(model, KVCache(model, 8), texts, 30, -1, temperature=temperature,
                        generator=torch.Generator().manual_seed(0))
        assert all(token < 5 for row in new for token in row)


# ------------------------------------------------------------------- the trainer


def test_muon_makes_updates_orthogonal():
    torch.manual_seed(0)
    for shape in ((3, 8, 20), (2, 20, 8)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert ((values > 0.5) & (values < 1.3)).all()


def test_muon_is_torch_s_muon_in_float32():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 20), (20, 8), (8, 20))]
    theirs = [torch.nn.Parameter(weight.detach().clone()) for weight in ours]
    optimizers = [Muon(ours, lr=0.1), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0)]
    before = torch.cat([weight.detach().flatten() for weight in ours])
    for _ in range(3):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    ours, theirs = (torch.cat([weight.detach().flatten() for weight in group])
                    for group in (ours, theirs))
    assert (ours - theirs).norm() < 0.02 * (ours - before).norm()


def test_loss_is_on_the_completion_and_its_stop_token_alone():
    # The example of the docstring, beside a longer text that shows the padding; the stop is 0 too.
    ids, labels = collate([([7, 8, 9, 0], 2), ([1, 2, 3, 4, 5, 0], 4)], limit=10)
    assert ids.tolist() == [[7, 8, 9, 0, 0, 0], [1, 2, 3, 4, 5, 0]]
    assert labels.tolist() == [[-100, -100, 9, 0, -100, -100], [-100, -100, -100, -100, 5, 0]]


def test_a_long_prefix_is_cut_on_the_left():
    ids, labels = collate([(list(range(10)), 7)], limit=5)
    assert ids.tolist() == [[5, 6, 7, 8, 9]] and labels.tolist() == [[-100, -100, 7, 8, 9]]


def test_batches_hold_each_example_once_and_little_padding():
    rng = random.Random(0)
    examples = [([0] * rng.randint(1, 90), 0) for _ in range(1003)]
    batches = make_batches(examples, 8, random.Random(1))
    assert sorted(map(id, itertools.chain(*batches))) == sorted(map(id, examples))
    padded = sum(len(batch) * max(len(ids) for ids, _ in batch) for batch in batches)
    assert padded < 1.1 * sum(len(ids) for ids, _ in examples)
    sizes = [len(batch[0][0]) for batch in batches]
    assert sizes != sorted(sizes)


def test_training_teaches_where_to_stop():
    # Write [2, 3] after a prefix of any of these tokens, then stop (1).
    rng = random.Random(0)
    prefixes = [[rng.randint(4, 9) for _ in range(rng.randint(1, 6))] for _ in range(1600)]
    torch.manual_seed(0)
    model = GPT(GPTConfig(12, 32, 64, 1, 2, 1, 16, 64))
    losses = train(model, [(prefix + [2, 3, 1], len(prefix)) for prefix in prefixes], 8,
                   muon_and_adamw(model, 0.02), random.Random(0), "test")
    assert len(losses) == 200 and np.mean(losses[-10:]) < 0.1 < losses[0]
    new, stopped = sample(model, KVCache(model, 1), [[5, 7]], 9, stop_token=1, temperature=0)
    assert new == [[2, 3]] and stopped == [True]


def random_examples(n=40):
    return [(ids, 1 + k % len(ids[1:])) for k, ids in enumerate(random_texts([3 + k % 9
                                                                              for k in range(n)]))]


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_an_update_is_the_gradient_of_the_mean_loss_over_all_labels():
    model, batch = tiny_gpt(), random_examples(7)
    ids, labels = collate(batch, 256)
    loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1),
                                             labels[:, 1:].flatten())
    loss.backward()
    whole = gradients(model)
    for micro_batch in (7, 3, 1):  # added up: the same gradient
        model.zero_grad()
        assert empower.backward(model, batch, micro_batch) == pytest.approx(loss.item(), abs=1e-5)
        assert torch.allclose(gradients(model), whole, atol=1e-5)


def test_gradients_are_clipped_to_a_length():
    class Seen(torch.optim.SGD):
        def step(self, closure=None):
            lengths.append(gradients(model).norm().item())

    model, lengths = tiny_gpt(), []
    for clip in (None, 0.01):
        train(model, random_examples(8), 8, [Seen(model.parameters(), lr=0.0)], random.Random(0),
              "test", clip=clip)
    assert lengths[0] > 0.1 and lengths[1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("make", [lambda model: muon_and_adamw(model, 0.01),
                                  lambda model: empower.adamw(model.parameters(), 0.001)])
def test_training_that_was_interrupted_goes_on_to_the_same_weights(tmp_path, monkeypatch, make):
    def pass_over(progress=None):
        model = tiny_gpt()
        losses = train(model, random_examples(), 4, make(model), random.Random(0), "test",
                       progress=progress)
        return losses, torch.cat([p.detach().flatten() for p in model.parameters()])

    whole, path, calls = pass_over(), tmp_path / "progress.pt", []

    def interrupted(*arguments):
        if len(calls) == 6:
            raise KeyboardInterrupt
        calls.append(backward(*arguments))
        return calls[-1]

    backward = empower.backward
    monkeypatch.setattr(empower, "backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pass_over((path, 0))
    monkeypatch.undo()
    kept = path.read_bytes()
    losses, weights = pass_over((path, math.inf))
    assert losses == whole[0] and losses[:6] == calls and torch.equal(weights, whole[1])
    path.write_bytes(kept[:len(kept) // 2])
    with pytest.raises(empower.UserError, match="remove it"):
        pass_over((path, math.inf))


def test_scores_of_a_batch_are_the_scores_of_each_program(monkeypatch):
    model, programs = tiny_gpt(), random_texts([5, 1, 17, 30, 8])
    for scored in (score(model, programs, 0, 40), score(model, programs, 0)):
        for program, nll in zip(programs, scored):
            logits = model(torch.tensor([[0] + program]))[0, :-1]
            assert np.allclose(nll, token_nll(logits, torch.tensor(program)).detach(), atol=1e-4)
    with pytest.raises(ValueError, match="256"):
        score(model, [[1] * 300], 0)


def test_entropies_are_scored_as_costs_are():
    model, programs = tiny_gpt(), random_texts([5, 1, 17])
    for program, found in zip(programs, score(model, programs, 0, cost=token_entropy)):
        logits = model(torch.tensor([[0] + program]))[0, :-1]
        assert np.allclose(found, token_entropy(logits).detach(), atol=1e-4)


def test_the_head_in_slices_is_the_head_at_once():
    model = GPT(GPTConfig(2**17, 8, 8, 1, 1, 1, 8, 2048), torch.Generator().manual_seed(0))
    ids = torch.randint(0, 99, (3, 400))  # 3 * 399 * 2**17 logits: more than one slice
    with torch.no_grad():
        sliced = empower.document_nll(model, ids)
        for k in (0, 170, 398):
            logits = model(ids[:, :k + 1])[:, -1:]
            assert torch.allclose(sliced[:, k:k + 1], token_nll(logits, ids[:, k + 1:k + 2]),
                                  atol=1e-4)


def test_batches_by_length_waste_little_and_stay_within_their_tokens():
    assert empower.batches_by_length([3, 1, 2, 9], 6) == [[1, 2], [0], [3]]
    assert empower.batches_by_length([], 6) == []
    rng = random.Random(0)
    lengths = [rng.randint(1, 99) for _ in range(500)]
    batches = empower.batches_by_length(lengths, 300)
    assert sorted(itertools.chain(*batches)) == list(range(500))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 300 for batch in batches)
    assert len(batches) < 1.2 * sum(lengths) / 300


# ------------------------------------------------------------------- the game


def test_judging_rules():
    for nll, tau, verdicts in [([0, 0, 3], 1.25, (True, False, False)),
                               ([1, 1, 1], 1.25, (True, False, True)),
                               ([0.5, 0.75], 1.25, (True, True, True)),
                               ([2], 1.25, (False, False, False))]:
        assert tuple(rule(nll, tau) for rule in simhuman.JUDGING.values()) == verdicts


def random_goals(sizes):
    return [[0, *text] for text in random_texts(sizes)]


def moves(episode):
    return [(turn.suggestion, turn.accepted, turn.typed) for turn in episode.turns], \
        episode.finished


@torch.no_grad()
def play_slowly(goals, human, assistant, rounds, stop_token):
    """The game of Section 3, one problem after the other, without caches, greedily.

    Each document begins with the stop token. `human` is a Human or an Author.
    """

    def write(model, text, most, max_cost=math.inf):
        new, cost = [], 0.0
        while len(new) < most:
            logits = model(torch.tensor([text + new]))[0, -1:]
            token = logits.argmax(-1)
            cost += float(token_nll(logits, token))
            if int(token) == stop_token or cost > max_cost:
                return new, int(token) == stop_token
            new.append(int(token))
        return new, False

    episodes = []
    for problem, goal in enumerate(goals):
        code, episode = [], Episode(problem)
        known = goal if assistant.knows_goal else [stop_token]
        while len(episode.turns) < rounds and not episode.finished:
            new, _ = write(assistant.model, known + code, assistant.max_tokens, assistant.max_cost)
            turn = Turn(new, [], False)
            if new and isinstance(human, Author):
                turn.accepted = code + new == goal[:len(code + new)]
            elif new:
                logits = human.model(torch.tensor([goal + code + new]))[0, -len(new) - 1:-1]
                turn.nll = human.cost(logits, torch.tensor(new)).tolist()
                turn.accepted = human.accepts(turn.nll)
            code += new * turn.accepted
            if isinstance(human, Author):
                turn.typed = goal[len(code):][:human.turn_tokens]
                episode.finished = code + turn.typed == goal
            else:
                turn.typed, episode.finished = write(human.model, goal + code, human.turn_tokens)
            code += turn.typed
            episode.turns.append(turn)
        episodes.append(episode)
    return episodes


@pytest.mark.parametrize("options", [{"max_tokens": 5}, {"max_tokens": 12, "max_cost": 4.0},
                                     {"max_tokens": 7, "knows_goal": True}])
def test_the_lockstep_game_is_the_game_played_problem_by_problem(options):
    model, goals = tiny_gpt(3), random_goals([4, 7, 1, 9, 5, 3, 8, 6])
    human = Human(model, token_nll, functools.partial(simhuman.skim, tau=4), 3, temperature=0)
    assistant = Assistant(tiny_gpt(4), temperature=0, **options)
    fast = play(goals, human, assistant, 6, 0, 0, None)
    slow = play_slowly(goals, human, assistant, 6, 0)
    assert sum(e.accepted for e in slow) and sum(e.offered - e.accepted for e in slow)
    for a, b in zip(fast, slow):
        assert moves(a) == moves(b)
        for turn, other in zip(a.turns, b.turns):
            assert np.allclose(turn.nll, other.nll, atol=1e-3)


def test_an_author_is_replayed_problem_by_problem_and_in_lockstep():
    model, programs = tiny_gpt(4), random_texts([40, 7, 1, 90, 55, 33])
    for program in programs[::2]:  # the assistant is right about their second half
        new, _ = sample(model, KVCache(model, 1), [[0, *program]], 30, 0, temperature=0)
        program += new[0]
    assistant = Assistant(model, 6, max_cost=20, temperature=0)
    game = programs, Author(3, list(map(len, programs))), assistant, 100, 0
    fast, slow = play(*game, 0, None), play_slowly(*game)
    assert [moves(episode) for episode in fast] == [moves(episode) for episode in slow]
    assert sum(e.accepted for e in slow) and sum(e.offered - e.accepted for e in slow)
    assert [episode.code for episode in fast] == programs and all(e.finished for e in fast)


def test_an_author_accepts_what_comes_next_and_nothing_else():
    author = Author(2, [4] * 5)
    author.begin([[1, 2, 3, 4]] * 5)
    suggestions = [[2, 3], [2, 4], [], [2, 3, 4], [2, 3, 4, 5]]
    assert author.judge([[1]] * 5, suggestions) == [
        ([], True), ([], False), ([], False), ([], True), ([], False)]
    codes = [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], []]
    assert author.write(codes, None, None) == (
        [[2, 3], [3, 4], [4], [], [1, 2]], [False, True, True, True, False])


def test_an_author_of_a_piece_judges_by_what_follows_it_and_stops_at_its_end():
    author = Author(2, [3, 3, 3])
    author.begin([[1, 2, 3, 4, 5]] * 3)
    assert author.judge([[1, 2]] * 3, [[3, 4], [3, 5], [3]]) == [([], True), ([], False),
                                                                 ([], True)]
    assert author.write([[1, 2, 3, 4], [1, 2], [1]], None, None) == ([[], [3], [2, 3]],
                                                                     [True, True, True])


def test_a_human_alone_writes_what_she_would_have_sampled():
    model, goals = tiny_gpt(5), random_goals([4, 7, 1])
    human = Human(model, token_nll, None, 4, temperature=0)
    for rounds in (2, 60):
        new, _ = sample(model, KVCache(model, 3), goals, 4 * rounds, 0, temperature=0)
        episodes = play(goals, human, None, rounds, 0, 0, None)
        assert [episode.code for episode in episodes] == new
        assert all(e.tokens_read == e.offered == 0 for e in episodes)


def test_a_silent_assistant_is_neither_offered_nor_read():
    model = tiny_gpt(5)
    assistant = Assistant(model, 5, max_cost=0.0)  # nothing is free
    human = Human(model, token_nll, functools.partial(simhuman.skim, tau=99), 4, temperature=0)
    silent, alone = (play(random_goals([4, 7]), human, beside, 3, 0, 0, torch.Generator())
                     for beside in (assistant, None))
    assert all(e.offered == e.accepted == e.tokens_read == 0 for e in silent)
    assert [e.code for e in silent] == [e.code for e in alone]


def test_an_episode_that_fills_the_context_is_cut_off():
    model = tiny_gpt(6)
    human = Human(model, token_nll, functools.partial(simhuman.skim, tau=99), 9, temperature=0)
    [episode] = play([[22] + [5] * 200], human, Assistant(model, 20, temperature=0), 1000, 22, 22,
                     None)
    assert not episode.finished and 0 < 201 + len(episode.code) <= 256


# ------------------------------------------------------------------- metrics


def episode(passed=True, accepted=0, rejected=0, written=0, size=1):
    """An episode of suggestions of `size` tokens and one turn that types `written` tokens."""
    turns = [Turn([1] * size, [0.0] * size, k < accepted) for k in range(accepted + rejected)]
    return Episode(0, [*turns, Turn([], [], False, [2] * written)], True, passed)


def test_metrics_by_hand():
    value, error = pass_at_1([episode(p) for p in (True, False, True, False)])
    assert value == 0.5 and error == pytest.approx(0.2887, abs=1e-4)
    assert accept_ratio([episode(accepted=1), episode(accepted=1, rejected=2)]) == (0.5, 0.25)
    assert math.isnan(accept_ratio([episode()])[0])
    half = episode(accepted=1, size=4, written=4), episode(written=2)
    assert share_saved(half)[0] == 0.4 and share_saved(half[:1]) == (0.5, 0.0)
    read_10_wrote_2 = episode(accepted=1, rejected=1, size=5, written=2)
    assert (read_10_wrote_2.tokens_read, read_10_wrote_2.tokens_written) == (10, 2)
    assert discounted(read_10_wrote_2, 0.5, 0.1, 0.5) == 0.25
    assert discounted_pass_rate([read_10_wrote_2, episode(False)], 0.5, 0.1, 0.5) == (0.125, 0.125)


def test_the_accept_ratio_error_is_that_of_a_bootstrap_over_problems():
    rng = random.Random(0)
    row = [episode(accepted=rng.randint(0, 6), rejected=rng.randint(0, 9)) for _ in range(200)]
    again = [accept_ratio(rng.choices(row, k=200))[0] for _ in range(600)]
    assert accept_ratio(row)[1] == pytest.approx(np.std(again), rel=0.15)


def test_paired_difference_uses_the_pairing():
    rng = np.random.default_rng(0)
    hard = rng.random(400)  # what both rows share
    mean, low, high = paired_difference(hard + 0.1, hard, rng)
    assert mean == pytest.approx(0.1) and high - low < 1e-9
    mean, low, high = paired_difference(hard, rng.permutation(hard), rng)
    assert low < 0 < high


def test_the_interval_over_seeds_by_hand():
    mean, low, high = simhuman.seeds_interval([0.1, 0.2, 0.3])
    half = 4.303 * 0.1 / 3 ** 0.5
    assert (mean, low, high) == pytest.approx((0.2, 0.2 - half, 0.2 + half))


def test_quantiles_are_student_s():
    for n, quantile in simhuman.STUDENT.items():
        x = torch.linspace(-4000, quantile, 4_000_001, dtype=torch.float64)
        density = torch.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2) - n / 2 * torch.log1p(
            x ** 2 / (n - 1))) / ((n - 1) * math.pi) ** 0.5
        assert torch.trapezoid(density, x).item() == pytest.approx(0.975, abs=2e-4)


def test_the_interval_over_seeds_holds_the_chance_in_seeds_and_in_problems():
    """In 95 of 100 experiments the truth is within; not so with a bootstrap over five seeds."""
    rng, truth, within, too_short = np.random.default_rng(0), 0.3, 0, 0
    for _ in range(400):
        of_seeds = truth + 0.05 * rng.standard_normal((5, 1))
        problems = rng.random((5, 300)) < of_seeds  # each seed has problems of its own
        _, low, high = simhuman.seeds_interval(problems.mean(1))
        within += low <= truth <= high
        again = problems.mean(1)[rng.integers(0, 5, (1000, 5))].mean(1)
        low, high = np.quantile(again, [0.025, 0.975])
        too_short += not low <= truth <= high
    assert 0.92 <= within / 400 <= 0.98 and too_short / 400 > 0.1


def test_one_game_holds_every_budget():
    model, goals = tiny_gpt(3), random_goals([4, 7, 1, 9, 5, 3])
    human = Human(model, token_nll, functools.partial(simhuman.skim, tau=4), 3)
    whole, *shorter = ([*play(goals, human, Assistant(tiny_gpt(4), 5), rounds, 0, 0,
                              torch.Generator().manual_seed(0))] for rounds in (12, 1, 3, 7))
    assert any(e.finished for e in whole) and any(len(e.turns) == 12 for e in whole)
    for rounds, episodes in zip((1, 3, 7), shorter):
        assert [simhuman.cut_off(e, rounds) for e in whole] == episodes
    whole[0].passed = True
    assert not simhuman.cut_off(whole[0], 1).passed


def test_a_transcript_tells_who_wrote_what():
    turns = [Turn([1, 2], [0.5, 1.5], True, [3]), Turn([4], [9.0], False, [5])]
    text = simhuman.transcript(Episode(0, turns, True, True), "# goal\n", lambda ids: f"<{ids}>")
    assert "assistant  '<[1, 2]>'  1.00 bits a token: accepted" in text
    assert "'<[4]>'  9.00 bits a token: rejected" in text
    assert "<[1, 2, 3, 5]>\npassed: 3 tokens read, 2 written" in text


# ------------------------------------------------------------------- the judge

MB = 2**20
LINUX = sys.platform == "linux"
SPIN = "while True: pass\n"
PASSED, WRONG, TIME = "passed", "wrong answer", "time limit"
MEMORY, ERROR, OUTPUT = "memory limit", "runtime error", "output limit"


def row(kind, program, outcome, expected="1\n", stdin=""):
    return kind, program, stdin, expected, outcome


HOSTILE = [*KINDS,  # the kinds of self_check, and then what is like them
    # time
    row("sleep", "import time; time.sleep(60)", TIME),
    row("signals ignored", "from signal import *\nfor s in (SIGTERM, SIGXCPU, SIGINT):"
        " signal(s, SIG_IGN)\n" + SPIN, TIME),
    row("regex", "import re; re.match('(a+)+$', 'a' * 40 + 'b')", TIME),
    row("atexit spin", "import atexit\n@atexit.register\ndef f():\n " + SPIN, TIME),
    row("__del__ spin", "class A:\n def __del__(self):\n  while True: pass\na = A()", TIME),
    row("thread", "import threading\ndef f():\n " + SPIN + "threading.Thread(target=f).start()",
        TIME),
    row("daemon thread", "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), "
        "daemon=True).start()\nprint(1)", PASSED),
    row("stdout closed, spin", "import os\nos.close(1)\n" + SPIN, TIME),
    row("parent stopped", "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\nprint(1)",
        TIME),
    # memory and output
    row("MemoryError caught", "try: [0] * 10**9\nexcept MemoryError: print(1)", PASSED),
    row("huge power", "print(len(str(7 ** 10**8)))", TIME),
    row("endless stderr", "import sys\nwhile True: sys.stderr.write('x' * 999)", OUTPUT),
    row("10 MB file", "open('f', 'wb').write(b'x' * 10**7)", ERROR),
    row("recursion", "def f(): f()\nf()", ERROR),
    row("deep recursion", "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
        (MEMORY, ERROR, TIME)),
    # exits
    row("sys.exit(0)", "print(1, flush=True)\nimport sys\nsys.exit(0)\nprint(2)", PASSED),
    row("_exit, no flush", "import os\nprint(1)\nos._exit(0)", WRONG),
    row("exit message", "import sys\nprint(1)\nsys.exit('message')", ERROR),
    row("quit", "print(1)\nquit()", PASSED),
    row("SIGTERM to parent", "import os, time\nos.kill(os.getppid(), 15)\ntime.sleep(60)", ERROR),
    row("group killed", "import os\nos.killpg(0, 9)", ERROR),
    row("stdout closed, exit", "import os\nprint(1, flush=True)\nos.close(1)", PASSED),
    row("segfault", "import ctypes; ctypes.string_at(0)", ERROR),
    row("abort", "import os; os.abort()", ERROR),
    # files
    row("files deleted", "import os, shutil\nshutil.rmtree(os.getcwd())\nprint(1)", PASSED),
    row("stdin file deleted", "import os\nos.remove('../stdin')\nprint(1)", PASSED),
    row("judge's folder deleted", "import os, shutil\nshutil.rmtree(os.path.dirname(os.getcwd()))"
        "\nprint(1)", PASSED),
    row("chdir /", "import os\nopen('f', 'w').close()\nos.chdir('/')\nprint(1)", PASSED),
    # children
    row("fork and sleep", "import os, time\nif os.fork() == 0: time.sleep(60)\nos.wait()", TIME),
    row("40 forks", "import os, time\nfor _ in range(40):\n if os.fork() == 0:\n  time.sleep(60)\n"
        "print(1)", PASSED),
    # text
    row("spaces, CRLF, blank lines", "print('1  \\r\\n2\\n\\n')", PASSED, "1\n2\n"),
    row("leading space counts", "print(' 1')", WRONG),
    row("lone surrogate printed", "print('\\ud800')", ERROR),
    row("lone surrogate in the source", "print('\ud800')", ERROR),
    row("bytes that are no UTF-8", "import os; os.write(1, b'\\xff')", WRONG),
    row("NUL in the source", "print(1)\0", ERROR),
    row("tabs and spaces", "if 1:\n\tprint(1)\n        print(2)", ERROR),
    row("numpy", "import numpy", ERROR),
    row("prompt", "input('n? ')", PASSED, "n?", "3\n"),
]


def left_behind():
    """Processes of a run that are still there: by parent, or by a folder of the judge."""
    found = []
    for entry in Path("/proc").glob("[0-9]*") if LINUX else []:
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            here = os.readlink(entry / "cwd") if stat[0] != "Z" else ""
        except OSError:
            continue
        if int(stat[1]) == os.getpid() or here.startswith(f"{tempfile.gettempdir()}/judge-"):
            found.append(entry.name)
    return found


@pytest.fixture(autouse=True)
def nothing_left(tmp_path_factory, monkeypatch):
    """After each test: no process, no file of the judge and no thread that was not there before."""
    folder = tmp_path_factory.mktemp("judge")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = set(left_behind()), threading.active_count()
    yield
    simhuman.tqdm.monitor and simhuman.tqdm.monitor.exit()
    assert set(left_behind()) <= before[0] and threading.active_count() <= before[1]
    assert not list(folder.glob("judge-*"))


@pytest.mark.parametrize("kind, program, stdin, expected, right", HOSTILE,
                         ids=[row[0] for row in HOSTILE])
def test_hostile_program(kind, program, stdin, expected, right):
    start = time.monotonic()
    verdict = judge(program, ((stdin, expected),), time_limit=0.5)
    right = right if isinstance(right, tuple) else (right,)
    assert verdict.outcome in right, verdict
    assert time.monotonic() - start < 0.5 + 0.5, kind
    assert verdict.detail.count("\n") == 0 and (verdict.test is None) == verdict.passed


@pytest.mark.parametrize("read", [
    "a = input(); b = input()", "import sys; a, b = sys.stdin.read().split()",
    "import sys; a, b = sys.stdin", "import sys; a = input(); b = next(sys.stdin)",
    "import sys; a = sys.stdin.buffer.readline(); b = sys.stdin.buffer.readline()",
    "a, b = open(0)", "import sys; a, b = map(bytes.decode, sys.stdin.buffer)",
    "import os; a, b = os.read(0, 99).split()",
    "import sys; sys.stdin.read(); sys.stdin.seek(0); a, b = sys.stdin"])
def test_stdin_is_a_file(read):
    assert judge(f"{read}\nprint(int(a) - int(b))", (("7\n5\n", "2"),)).passed


def test_stdin_of_each_run_is_its_own():
    tests = (("a long first line\n", "a long first line"), ("x\n", "x"), ("", ""))
    assert judge("import sys; print(sys.stdin.read())", tests).passed
    assert judge("print(1)", (("x" * MB, "1"),)).passed  # stdin that nobody reads


def test_each_run_has_an_empty_folder():
    program = "import os\nprint(os.listdir(), os.getcwd() == os.environ['HOME'])\nopen('f', 'w')"
    assert judge(program, (("", "[] True"),) * 3).passed
    program = "import os\nprint(os.stat('.').st_mode % 512 == 0o700)\nos.chmod('.', 0)"
    assert judge(program, (("", "True"),) * 3).passed


def test_a_run_that_breaks_the_judge_s_folder_leaves_the_next_one_well():
    for harm in ("os.remove('../stdin')", "shutil.rmtree(os.path.dirname(os.getcwd()))",
                 "os.remove('../stdin'); os.mkdir('../stdin')"):
        program = f"import os, shutil\nx = input()\n{harm}\nprint(x, os.listdir(os.path.curdir) " \
            "if os.path.exists('.') else [])"
        assert judge(program, (("a\n", "a []"), ("b\n", "b []"), ("c\n", "c []"))).passed, harm


def test_first_failing_test_and_detail():
    tests = (("2\n", "4\n"), ("3\n", "9\n"), ("4\n", "16\n"))
    assert judge("print(int(input()) * 2)", tests) == Verdict(
        "wrong answer", 1, "line 1: expected '9', got '6'")
    assert judge("1 / 0", tests).detail == "exit status 1: ZeroDivisionError: division by zero"


def test_judge_all_equals_one_at_a_time():
    jobs = [(f"print({i % 5})" if i % 3 else "1/0", (("", f"{i % 4}"),)) for i in range(24)]
    assert judge_all(jobs, 3, label=None) == [judge(*job) for job in jobs]
    assert judge_all([], label=None) == []


def test_each_distinct_job_runs_once(tmp_path):
    log = tmp_path / "log"
    judge_all([(f"open({str(log)!r}, 'a').write('x')", (("", ""),))] * 9, 2, label=None)
    assert log.read_text() == "x"


def test_verdicts_do_not_depend_on_hashes():
    jobs = [(f"print(list({{'a{i}', 'b{i}', 'c'}})[0][0], hash('{i}') % 2)", (("", "a 0"),))
            for i in range(200)]
    first = judge_all(jobs, 2, label=None)
    assert first == judge_all(jobs, 2, label=None)
    assert {v.outcome for v in first} == {PASSED, WRONG}


def test_other_children_of_this_process_live():
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        judge_all([(kind[1], ((kind[2], kind[3]),)) for kind in KINDS[-3:]])
        assert other.poll() is None
        other.kill()


def test_faults_of_the_judge_raise(monkeypatch):
    with pytest.raises(ValueError, match="without tests"):
        judge("print(1)", ())
    grandparent = "import os\nwith open(f'/proc/{os.getppid()}/stat') as f: " \
        "os.kill(int(f.read().rpartition(')')[2].split()[1]), 9)"
    if LINUX:
        with pytest.raises(RuntimeError, match="helper process died"):
            judge(grandparent, (("", ""),))
        time.sleep(0.5)  # without its helper nobody kills the program: let it end
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(FileNotFoundError):
        judge("print(1)", (("", "1"),))


def test_ctrl_c_ends_everything():
    code = "import simhuman\nprint('on', flush=True)\n" \
        "simhuman.judge_all([(f'{i}\\nwhile True: pass', (('', ''),)) for i in range(9)], 2, 60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, cwd=HERE,
                          env={**os.environ, "TMPDIR": tempfile.gettempdir()}) as host:
        host.stdout.readline()
        time.sleep(0.7)
        assert not LINUX or len(left_behind()) > 2  # the runs are on: this test sees them
        host.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in host.communicate(timeout=5)[1]


def test_check_judge_notices_a_judge_that_passes_everything(monkeypatch):
    check_judge()
    for outcome in (PASSED, ERROR):
        monkeypatch.setattr(simhuman, "judge", lambda *args: Verdict(outcome, None, ""))
        with pytest.raises(RuntimeError, match="Pass@1 would mean nothing"):
            check_judge()


def test_self_check_counts_wrong_verdicts(monkeypatch, capsys):
    monkeypatch.setattr(simhuman, "KINDS", [KINDS[0], (*KINDS[1][:4], PASSED)])
    assert self_check() == 1
    assert "WRONG: not passed" in capsys.readouterr().out


def test_windows_gets_one_sentence(monkeypatch, capsys):
    monkeypatch.delattr(os, "fork")
    monkeypatch.setattr(sys, "argv", ["simhuman.py", "--self-check"])
    with pytest.raises(SystemExit) as end:
        simhuman.main()
    assert end.value.code == 2 and "WSL" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="WSL"):
        judge("print(1)", (("", "1"),))


# ------------------------------------------------------------------- the whole pipeline

TINY = shlex.split("--pretrain-steps 12 --train-problems 40 --held-out-problems 6 --dev-problems 3 "
                   "--layers 1 --width 32 --max-suggestion 12 --rounds 3 --device cpu")


def empower_py(*arguments, cwd=HERE):
    """Runs the command line as a user does: (exit status, stdout, stderr)."""
    done = subprocess.run([sys.executable, HERE / "empower.py", *map(str, arguments)], cwd=cwd,
                          capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished tiny run, and what the run printed."""
    out = tmp_path_factory.mktemp("run") / "out"
    status, stdout, stderr = empower_py("--out", out, *TINY)
    assert status == 0, stderr
    return out, stdout


def stable(out):
    """results.json without what may differ between two runs."""
    results = json.loads((out / "results.json").read_text())
    del results["seconds"], results["config"]["out"]
    return results


def test_a_run_makes_every_row_and_says_whether_the_claims_hold(finished):
    out, stdout = finished
    results = json.loads((out / "results.json").read_text())
    names = [row["name"] for row in results["rows"]]
    assert names == ["Human alone, no round limit", "Human alone", "Base", "Base-10", "Base-20",
                     "Base stopped at 0.32 bits", "SFT-10", "SFT-20", "SFT-RAND", "Empower (0.32)",
                     "Empower (4)", "Base, knows the goal"]
    assert [(claim["baseline"], claim["metric"]) for claim in results["claims"]] == [
        (baseline, metric) for baseline in ("SFT-10", "SFT-20", "SFT-RAND", "Base-10", "Base-20")
        for metric in ("pass@1", "dpr")]
    for name in names:
        assert f"| {name} " in stdout
        transcript = out / "transcripts" / f"{empower.slug(name)}.txt"
        assert transcript.read_text().startswith("# Read ")
    assert "parameters" in stdout and "seed 0, device cpu" in stdout


def test_the_table_is_computed_from_the_episodes(finished):
    out, _ = finished
    results = json.loads((out / "results.json").read_text())
    cfg = Config(**results["config"])
    [folder] = (out / "stages").glob("row-base-10-*")
    row = empower.summarize("Base-10", empower.load_episodes(folder), cfg)
    assert row == next(row for row in results["rows"] if row["name"] == "Base-10")
    episodes = empower.load_episodes(folder)
    assert row["tokens_read"] == np.mean([e.tokens_read for e in episodes])
    assert max(len(t.suggestion) for e in episodes for t in e.turns) <= 10
    assert max(len(t.typed) for e in episodes for t in e.turns) <= 4


def test_the_same_seed_gives_the_same_results(finished, tmp_path):
    status, stdout, _ = empower_py("--out", tmp_path / "again", *TINY)
    assert status == 0 and ": reused" not in stdout
    assert stable(tmp_path / "again") == stable(finished[0])


def test_a_finished_stage_is_reused_and_another_eta_trains_one_assistant(finished, capsys):
    out, _ = finished
    before = stable(out)
    assert empower.main(["--out", str(out), *TINY]) == 0
    assert "kept in" not in capsys.readouterr().out and stable(out) == before
    assert empower.main(["--out", str(out), "--eta", "7", *TINY]) == 0
    made = [line.split(":")[0].strip() for line in capsys.readouterr().out.splitlines()
            if "kept in" in line]
    assert made == ["Empower (7)", "row Base stopped at 7 bits", "row Empower (7)"]


def test_calibration_names_the_tau_that_is_nearest_to_the_paper(finished, capsys):
    out, _ = finished
    assert empower.main(["--out", str(out), "--calibrate", *TINY]) == 0
    printed = capsys.readouterr().out
    rows = [line.split("|")[1:5] for line in printed.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == len(empower.TAUS["skim"])
    best = min(rows, key=lambda row: float(row[3]))
    for row in rows:
        distance = math.dist((float(row[1]), float(row[2])), (0.365, 0.587))
        assert float(row[3]) == pytest.approx(distance, abs=2e-3)
    assert f"--tau {best[0].strip()} is nearest" in printed


@pytest.mark.parametrize("arguments, message", [
    (["--eta", "-1"], "--eta is -1.0"), (["--eta", "nan"], "--eta is nan"),
    (["--eta", "many"], "--eta"), (["--rounds", "0"], "--rounds is 0"),
    (["--no-such-flag"], "--no-such-flag"), (["--width", "40"], "multiple of 32"),
    (["--judging", "rash"], "skim or careful or strict"), (["--device", "tpu"], "--device tpu"),
    (["--gamma", "2"], "--gamma is 2.0"), (["--top-p", "0"], "--top-p is 0"),
    (["--train-problems", "9999"], "fewer than"), (["--out", "/dev/null/x"], "cannot write"),
])
def test_bad_input_gets_one_sentence_and_status_2(arguments, message, tmp_path, capsys):
    try:
        status = empower.main(["--out", str(tmp_path / "out"), *TINY, *arguments])
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2 and message in error and error.count("\n") == 1, error


def spoil_version(out):
    (out / "version").write_text("0\n")


def spoil_checkpoint(out):
    [path] = (out / "stages").glob("base-*/model.safetensors")
    path.write_bytes(path.read_bytes()[:1000])


def spoil_episodes(out):
    [path] = (out / "stages").glob("row-sft-10-*/episodes.json")
    path.write_text(path.read_text()[:100])


@pytest.mark.parametrize("spoil, message", [
    (spoil_version, "version 0"), (spoil_checkpoint, "truncated"), (spoil_episodes, "row-sft-10")])
def test_a_damaged_output_folder_is_one_sentence_and_nothing_is_lost(
        finished, tmp_path, capsys, spoil, message):
    out = tmp_path / "out"
    subprocess.run(["cp", "-r", finished[0], out], check=True)
    spoil(out)
    files = sorted(path for path in out.rglob("*"))
    assert empower.main(["--out", str(out), *TINY]) == 2
    error = capsys.readouterr().err
    assert message in error and "remove" in error and error.count("\n") == 1
    assert files == sorted(path for path in out.rglob("*"))


def test_ctrl_c_loses_one_stage_alone(finished, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    subprocess.run(["cp", "-r", finished[0], out], check=True)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(empower, "train", interrupted)
    assert empower.main(["--out", str(out), "--eta", "9", *TINY]) == 130
    assert "interrupted" in capsys.readouterr().err
    monkeypatch.undo()
    assert not list(out.rglob("*.tmp"))
    assert empower.main(["--out", str(out), "--eta", "9", *TINY]) == 0
    printed = capsys.readouterr().out
    assert "base: reused" in printed and "SFT-10: reused" in printed
    assert "row SFT-10: reused" in printed and "Empower (9): reused" not in printed


def tiny_base(folder):
    """A checkpoint of random weights with the tests' tokenizer, in a folder."""
    tiny_gpt(vocab_size=tokenizer().n_vocab).save_pretrained(folder)
    data.save_tokenizer(tokenizer(), folder)
    return empower.load_checkpoint(folder, "cpu")


def test_an_assistant_is_trained_on_prefix_completion_and_stop(tmp_path):
    ids, end = tokenizer().encode_ordinary("print(sum(b))\n"), tokenizer().stop
    program = ids, np.array([0.25, 0.0625, 4.0, *[0.0] * 9][:len(ids)])
    pairs = empower.choose_completions([program] * 10, [0, 1] * 5,
                                       empower.completion_rules(Config())["Empower (0.32)"], None)
    assert pairs == [(ids[:0], ids[:2]), (ids[:1], ids[1:2])] * 5
    seen = []
    empower.make_assistant(Config(max_suggestion=2), "Empower (0.32)", tiny_base(tmp_path / "base"),
                           pairs, lambda model, examples, rng, label: seen.extend(examples),
                           tmp_path)
    assert seen == [([end, *ids[:2], end], 1), ([end, *ids[:2], end], 2)] * 4  # 0.2 held out
    stopping = json.loads((tmp_path / "stopping.json").read_text())
    assert stopping["target_length"] == 1.5 and stopping["silent_targets"] == 0


def test_the_scorer_does_not_see_the_statement_and_the_human_does(monkeypatch, tmp_path):
    prompts, scored = [], []
    monkeypatch.setattr(empower, "sample", lambda model, cache, texts, *rest, **options: (
        prompts.extend(texts) or [[5, 6]] * len(texts), [True] * len(texts)))
    monkeypatch.setattr(empower, "score", lambda model, programs, end: (
        scored.extend(programs) or [np.zeros(len(program)) for program in programs]))
    base = tiny_base(tmp_path)
    empower.write_programs(Config(), base, base.model, contest(), tmp_path)
    statements = [tokenizer().encode_ordinary(problem.statement) for problem in contest().train]
    assert [prompt[1:] for prompt in prompts] == statements
    assert scored == [tokenizer().encode_ordinary(tokenizer().decode([5, 6]))] * len(statements)


def test_paper_gains_come_from_the_paper_s_table():
    """The means by hand: of Empower beside Gemma .524 / 3, of SFT-10 .264 / 3, and so on."""
    assert empower.paper_gain("SFT-10", "pass@1") == pytest.approx(.524 / .264 - 1)
    assert empower.paper_gain("SFT-20", "dpr") == pytest.approx(.454 / .206 - 1)
    assert empower.paper_gain("Base-10", "dpr") == pytest.approx(.454 / .192 - 1)
    assert empower.paper_gain("SFT-RAND", "pass@1") == pytest.approx(.749 / .413 - 1)
    assert empower.paper_gain("Base-20", "dpr") is None
    assert empower.paper_gain("SFT-10", "share saved") is None
    assert empower.paper_gain("Base", "accept_ratio") == pytest.approx(1.959 / 1.095 - 1)
    assert empower.paper_means("Llama", "SFT-20") == pytest.approx([.409 / 3, .545 / 3, .284 / 3])


def test_a_table_aligns_its_columns_and_shows_what_is_absent():
    rows = [{"name": "a", "x": 0.5, "x_se": 0.25}, {"name": "long", "x": None, "x_se": None}]
    assert empower.table(rows, {"who": "{name}", "x": "{x:.1f} ± {x_se:.2f}"}).splitlines() == [
        "| who  |          x |", "|------|-----------:|", "| a    | 0.5 ± 0.25 |",
        "| long |          - |"]


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit):
        empower.main(["--help"])
    text = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text


def test_constants_follow_from_the_length_of_a_program():
    """K_H x rounds is 1.25 programs, gamma discounts a whole program as in the paper."""
    cfg, rng = Config(), random.Random(0)
    programs = [write_program(p.parts, draw_style(rng)) for p in contest().train]
    length = np.mean([len(tokenizer().encode_ordinary(program)) for program in programs])
    assert cfg.turn_tokens * cfg.rounds == pytest.approx(1.25 * length, rel=0.05)
    assert cfg.gamma == pytest.approx(0.999 ** (400 / length), abs=2e-4)


# ------------------------------------------------------------------- real code and real models

REPLAY = shlex.split("--width 32 --layers 1 --vocab-size 300 --pretrain-tokens 15000 --context 64 "
                     "--pretrain-batch 4 --pretrain-lr 0.15 --sft-batch 4 --max-suggestion 8 "
                     "--eta 1 --device cpu")
FINETUNE = shlex.split("--context 64 --batch 4 --micro-batch 2 --held-out 2 --lr 0.01 --eta 60 "
                       "--max-suggestion 8 --save-minutes 0 --device cpu")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def in_process(*arguments, terminal=False):
    """What `empower_py` returns, without a process of its own."""
    stdout, stderr = Terminal() if terminal else io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            status = empower.main(list(map(str, arguments)))
        except SystemExit as end:
            status = end.code
    return status, stdout.getvalue(), stderr.getvalue()


def interrupt(monkeypatch, module, name, calls):
    """The call of module.name after so many is Ctrl-C."""
    work, count = getattr(module, name), itertools.count()

    def interrupted(*arguments):
        if next(count) == calls:
            raise KeyboardInterrupt
        return work(*arguments)

    monkeypatch.setattr(module, name, interrupted)


def contents(folder):
    """{path: bytes} of everything below a folder."""
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes()
            for path in sorted(folder.rglob("*"))}


def weights(folder):
    return torch.cat([weight.flatten().float() for name, weight in sorted(
        read_safetensors(folder / "model.safetensors").items())])


def published(folder, family_name="qwen", dtype=torch.float32):
    """A checkpoint of random weights as published ones are: rows without a token in its head,
    which are the likeliest ones here, and the files of its family's tokenizer beside it."""
    files = TOKENIZERS / family_name
    size = family(family_name).size
    model = tiny_gpt(vocab_size=size + 4, tie_word_embeddings=False, architecture={
        "qwen": "Qwen2ForCausalLM", "llama3": "LlamaForCausalLM"}[family_name],
        eos_token_id=json.loads((files / "config.json").read_text())["eos_token_id"])
    model.lm_head.weight.data[size:] = 9 * torch.tensor([[1.0], [-1], [1], [-1]]) * (
        model.lm_head.weight.data[[5, 5, 6, 6]])
    model.to(dtype).save_pretrained(folder)
    for path in files.iterdir():
        if path.name != "config.json":
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of 25 programs; one of them is there twice."""
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
    for k, problem in enumerate(contest().train[:25]):
        (folder / f"{k}.py").write_text(write_program(problem.parts, draw_style(rng)))
    shutil.copy(folder / "7.py", folder / "copy.py")
    return folder


@pytest.fixture(scope="module")
def replayed(corpus, tmp_path_factory):
    """The folder of a finished replay of the corpus, and what the run printed."""
    out = tmp_path_factory.mktemp("replay") / "out"
    status, stdout, stderr = in_process("replay", "--corpus", corpus, "--out", out, *REPLAY)
    assert status == 0, stderr
    return out, stdout


def rows_of(out):
    return {row["name"]: row for row in json.loads((out / "results.json").read_text())["rows"]}


def test_a_replay_makes_the_paper_s_rows_and_the_run_s_fields(replayed, finished):
    out, stdout = replayed
    assert "25 programs of 26 in" in stdout and ": 1 duplicate\n" in stdout
    assert list(rows_of(out)) == [
        "Human alone", "Base", "Base-10", "Base-20", "Base stopped at 1 bits", "SFT-10", "SFT-20",
        "SFT-RAND", "Empower (1)", "Empower (4)"]
    assert all(f"| {name} " in stdout for name in rows_of(out))
    results, other = (json.loads((folder / "results.json").read_text())
                      for folder in (out, finished[0]))
    assert results.keys() == other.keys() and results["problems"] == 5
    assert results["rows"][0].keys() == other["rows"][0].keys() - {"pass@1", "pass@1_se"}
    assert "pass@1" not in json.dumps(results).lower() and "Pass@1" not in stdout
    assert [(claim["baseline"], claim["metric"]) for claim in results["claims"]] == [
        (baseline, metric) for baseline in ("SFT-10", "SFT-20", "SFT-RAND", "Base-10", "Base-20")
        for metric in ("share saved", "dpr")]


def test_every_replayed_episode_ends_with_the_program_that_was_written(replayed, corpus):
    out, _ = replayed
    cfg = realcode.ReplayConfig(corpus=str(corpus), context=64)
    _, held_out = realcode.read_programs(cfg)
    [base] = (out / "stages").glob("base-*")
    goals, ends = realcode.drawn_goals(cfg, empower.load_checkpoint(base, "cpu"), held_out)
    assert max(ends) <= 64 < max(map(len, goals))  # what follows a piece is there too
    for name, row in rows_of(out).items():
        [folder] = (out / "stages").glob(f"row-{empower.slug(name)}-??????????")
        episodes = empower.load_episodes(folder)
        codes = [episode.code for episode in episodes]
        assert codes == [goal[:len(code)] for goal, code in zip(goals, codes)]
        assert all(len(code) >= end for code, end in zip(codes, ends))
        saved = sum(episode.tokens_accepted for episode in episodes)
        assert row["share_saved"] == saved / sum(map(len, codes))
        assert row["dpr"] == np.mean([0.999 ** (0.1 * e.tokens_read + 0.5 * e.tokens_written)
                                      for e in episodes])  # every program is right in the end
    rows = rows_of(out)
    assert rows["Human alone"]["tokens_written"] == np.mean(ends)
    assert rows["Human alone"]["share_saved"] == 0 < rows["Empower (4)"]["share_saved"]


def test_an_interrupted_replay_goes_on_to_the_same_results(replayed, corpus, tmp_path, monkeypatch):
    out = tmp_path / "again"
    command = "replay", "--corpus", corpus, "--out", out, *REPLAY
    interrupt(monkeypatch, empower, "check_stopping", 1)
    status, _, stderr = in_process(*command)
    assert status == 130 and "run again to go on" in stderr and not list(out.rglob("*.tmp"))
    monkeypatch.undo()
    status, stdout, _ = in_process(*command)
    assert status == 0 and stable(out) == stable(replayed[0])
    assert re.findall(r"  (.*): reused", stdout) == ["base", "SFT-10"]


def test_a_finished_replay_is_reused(replayed, corpus):
    out, _ = replayed
    before = stable(out)
    status, stdout, _ = in_process("replay", "--corpus", corpus, "--out", out, *REPLAY)
    assert status == 0 and stable(out) == before
    assert "kept in" not in stdout and stdout.count(": reused from") == 16


def test_a_corpus_is_split_by_program_and_by_seed(corpus):
    def split(seed, held_out):
        return realcode.read_programs(realcode.ReplayConfig(
            corpus=str(corpus), seed=seed, held_out=held_out))

    train_texts, held_out = split(0, 100)
    assert len(train_texts) == 20 and len(held_out) == 5  # a fifth at most
    assert len({*train_texts, *held_out}) == 25
    assert split(0, 100) == (train_texts, held_out) != split(1, 100)
    assert len(split(0, 3)[1]) == 3


def test_a_small_gpt_reads_a_stop_token_where_a_program_ends_and_nowhere_else(
        tmp_path, monkeypatch):
    def pretrain(cfg, encoding, documents, device, folder):
        found.append(documents)
        raise KeyboardInterrupt  # this was all

    texts, found = [f"x = {n}\n" * (3 * n) for n in range(1, 6)], []
    encoding, expected = data.train_tokenizer(texts, 257), []
    for text in texts:
        *parts, last = data.pieces(encoding, text, 16)
        expected += [[encoding.start, *part] for part in parts]
        expected.append([encoding.start, *last, encoding.stop])
    monkeypatch.setattr(realcode, "pretrain", pretrain)
    for passes in (1, 3):
        cfg = realcode.ReplayConfig(out=str(tmp_path), context=16, vocab_size=257,
                                    pretrain_tokens=passes * sum(map(len, expected)))
        with pytest.raises(KeyboardInterrupt):
            realcode.pretrain_on(cfg, texts, "cpu")
        documents = found.pop()
        assert len(documents) == passes * len(expected)
        for k in range(passes):
            part = documents[k * len(expected):][:len(expected)]
            assert sorted(part) == sorted(expected) and part != expected


@pytest.mark.parametrize("name", ["qwen", "llama3"])
def test_a_replay_of_a_published_model_begins_with_bos_and_writes_no_id_without_a_token(
        name, corpus, tmp_path, monkeypatch):
    folder, encoding, fed, first = published(tmp_path / "model", name), family(name), [], set()
    hidden = GPT.hidden

    def seen_hidden(self, ids, cache=None, rows=None):
        fed.append(int(ids.max()))
        first.update([] if cache else ids[:, 0].tolist())
        return hidden(self, ids, cache, rows)

    def seen_extend(network, cache, texts, more=None):
        first.update(text[0] for text in texts)
        return extend(network, cache, texts, more)

    monkeypatch.setattr(GPT, "hidden", seen_hidden)
    monkeypatch.setattr("model.extend", seen_extend)
    status, _, stderr = in_process(
        "replay", "--corpus", corpus, "--model", folder, "--out", tmp_path / "out", "--context",
        "64", "--train-programs", "10", "--held-out", "2", "--max-suggestion", "4", "--device",
        "cpu")
    assert status == 0, stderr
    assert first == {encoding.start} and (name == "qwen") == (encoding.bos is None)
    assert max(fed) < encoding.size
    assert rows_of(tmp_path / "out")["Base"]["suggestion_length"] > 1
    base, assistant = (tmp_path / "model"), next((tmp_path / "out" / "stages").glob("empower-4-*"))
    assert contents(base).keys() < contents(assistant).keys()


def test_a_model_in_another_dtype_is_another_model(tmp_path):
    published(tmp_path)
    names = [empower.load_checkpoint(tmp_path, "cpu", dtype).name
             for dtype in (None, torch.bfloat16, torch.bfloat16)]
    assert names[0] != names[1] == names[2]  # whose costs and games are its own


@pytest.fixture(scope="module")
def tuned(corpus, tmp_path_factory):
    """(base, what finetune made of it, what that printed) in bfloat16."""
    folder = tmp_path_factory.mktemp("finetune")
    base, out = published(folder / "base", dtype=torch.bfloat16), folder / "tuned"
    status, stdout, stderr = in_process("finetune", "--model", base, "--corpus", corpus, "--out",
                                        out, *FINETUNE)
    assert status == 0, stderr
    return base, out, stdout


def test_a_fine_tuned_checkpoint_is_as_complete_as_its_base(tuned, corpus, tmp_path):
    base, out, stdout = tuned
    before, after = contents(base), contents(out)
    assert after.keys() - before.keys() == {"inputs.json"} and before.keys() < after.keys()
    assert [name for name in before if before[name] != after[name]] == ["model.safetensors"]
    assert read_safetensors(out / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16
    assert not torch.equal(weights(out), weights(base))
    assert not (out.parent / "tuned.partial").exists()
    loaded = empower.load_checkpoint(out, "cpu")
    assert loaded.encoding.encode_ordinary("é = 1\n") == family("qwen").encode_ordinary("é = 1\n")
    assert f"--model {out} " in stdout
    status, printed, stderr = in_process("finetune", "--model", out, "--corpus", corpus, "--out",
                                         tmp_path / "twice", "--dtype", "float32", *FINETUNE)
    assert status == 0, stderr
    assert read_safetensors(tmp_path / "twice" / "model.safetensors")[
        "lm_head.weight"].dtype == torch.float32


def updates(stdout):
    """(updates, first losses, last losses) that finetune printed."""
    return tuple(map(float, re.search(r"(\d+) updates; loss from ([.\d]+) to ([.\d]+)",
                                      stdout).groups()))


def test_fine_tuning_lowers_the_loss(tuned):
    n, first, last = updates(tuned[2])
    assert n > 5 and last < first - 0.5


def examples_of(monkeypatch, *arguments):
    """The examples on which `finetune` trains, without training."""
    def seen(model, examples, *rest):
        found.extend(examples)
        return [0.0]

    found = []
    monkeypatch.setattr(realcode, "train", seen)
    status, _, stderr = in_process("finetune", *arguments)
    assert status == 0, stderr
    return found


def test_a_checkpoint_is_trained_on_prefix_completion_and_stop(
        corpus, tmp_path, monkeypatch):
    folder = published(tmp_path / "base")
    arguments = "--model", folder, "--corpus", corpus, *FINETUNE
    base = empower.load_checkpoint(folder, "cpu")
    learnt, _ = realcode.read_programs(realcode.FinetuneConfig(corpus=str(corpus), held_out=2))
    pieces = [piece for text in learnt for piece in data.pieces(base.encoding, text, 64)]
    costs = score(base.model, pieces, base.encoding.start)
    examples = examples_of(monkeypatch, *arguments, "--out", tmp_path / "a")
    assert len(examples) == len(pieces) > 2 * len(learnt)
    lengths = set()
    for (ids, start), piece, nll in zip(examples, pieces, costs):
        n, completion = start - 1, ids[start:-1]
        assert ids == [base.encoding.start, *piece[:n], *completion, base.encoding.stop]
        assert completion == piece[n:n + algorithm_1(nll[n:], 60)]
        lengths.add(len(completion))
    assert len(lengths) > 2
    ten = examples_of(monkeypatch, *arguments, "--out", tmp_path / "b", "--rule", "sft-10")
    assert [(ids[:start], ids[start:-1]) for ids, start in ten] == [
        (ids[:start], piece[start - 1:start + 9]) for (ids, start), piece in zip(examples, pieces)]
    drawn = [len(ids) - start - 1 for ids, start in examples_of(
        monkeypatch, *arguments, "--out", tmp_path / "c", "--rule", "sft-rand")]
    assert max(drawn) <= 30 and len(set(drawn)) > 10


def test_an_interrupted_fine_tuning_goes_on_to_the_same_weights(
        tuned, corpus, tmp_path, monkeypatch):
    base, whole, printed = tuned
    out, partial = tmp_path / "tuned", tmp_path / "tuned.partial"
    command = "finetune", "--model", base, "--corpus", corpus, "--out", out, *FINETUNE
    interrupt(monkeypatch, empower, "backward", 3)
    status, _, stderr = in_process(*command)
    assert status == 130 and "run again to go on" in stderr
    assert not out.exists() and (partial / "progress.pt").exists()
    (partial / "progress.pt.tmp").write_bytes(b"half")  # as where a computer went off
    (partial / "costs-train" / "nll-0.npy.tmp").write_bytes(b"half")
    monkeypatch.undo()
    monkeypatch.setattr(realcode, "score", None)  # the costs are kept too
    updated, backward = [], empower.backward
    monkeypatch.setattr(empower, "backward", lambda *arguments: (
        updated.append(1) or backward(*arguments)))
    status, stdout, stderr = in_process(*command, "--save-minutes", "9", "--recompute")
    assert status == 0 and "going on in" in stdout, stderr
    assert contents(out) == contents(whole) and not partial.exists()
    assert updates(stdout) == updates(printed) and len(updated) == updates(printed)[0] - 3


def test_a_finished_checkpoint_is_left_alone(tuned, corpus):
    base, out, _ = tuned
    before = contents(out.parent)
    command = "finetune", "--model", base, "--corpus", corpus, "--out", out, *FINETUNE
    status, stdout, _ = in_process(*command)
    assert status == 0 and "is finished: nothing is left to do" in stdout
    for command in ([*command, "--eta", "9"], [*command, "--rule", "sft-10"],
                    [*command[:-1], "cpu", "--out", str(corpus)],
                    [*command, "--out", base], [*command, "--out", base / "config.json"]):
        status, _, stderr = in_process(*command)
        assert status == 2 and stderr.count("\n") == 1
        assert "holds something else, or was begun with other settings: choose another" in stderr
    assert contents(out.parent) == before


def test_exercise_2_choices_are_where_algorithm_1_stops_on_its_way():
    assert empower.choices(np.array([3, 0, 0.2, 0.2, 2]), 0.32) == [0, 3, 4]
    rng = np.random.default_rng(0)
    for _ in range(300):
        nll, eta, bars, n = random_costs(rng), rng.integers(0, 12) / 4, [], 0
        while n + algorithm_1(nll[n:], eta) < len(nll):
            bars.append(n + algorithm_1(nll[n:], eta))
            n = bars[-1] + 1
        assert empower.choices(nll, eta) == bars


@pytest.mark.parametrize("place, n", [
    ("1:1", 0), ("1:3", 2), ("2:1", 3), ("2:2", 4), ("3:1", 6), ("0:1", "has 3 lines"),
    ("4:1", "has 3 lines: give LINE:COL"), ("1:4", "line 1 of f.py has 2 characters.*give 1 to 3"),
    ("1:0", "column is 0: give 1 to 3"), ("3:2", "give 1 to 1"), ("2", "'2' is no place in f.py"),
    ("a:b", "'a:b' is no place"), ("-1:1", "'-1:1' is no place"), ("", "'' is no place")])
def test_a_place_in_a_file_is_a_line_and_a_column_from_1(place, n):
    if isinstance(n, int):
        assert realcode.offset("é😀\ncd\n", place, "f.py") == n
    else:
        with pytest.raises(empower.UserError, match=n):
            realcode.offset("é😀\ncd\n", place, "f.py")


@pytest.mark.parametrize("text", ["é = '😀漢字'\n", "a\tb\x0c", "\U0001f469\u200d\U0001f4bb\n"])
@pytest.mark.parametrize("name", ["tests", "qwen", "llama3"])
def test_the_texts_of_tokens_make_up_the_program(name, text):
    encoding = tokenizer() if name == "tests" else family(name)
    ids = encoding.encode_ordinary(text)
    assert "".join(empower.token_texts(encoding, ids)) == text and len(ids) > len(text.split())


def show(monkeypatch, folder, text, costs, *arguments, merges=0, **options):
    """What `show` prints where a token is a byte, but for some merges, and costs what is given."""
    encoding = data.train_tokenizer([text], 257 + merges)
    base = empower.Checkpoint(tiny_gpt(vocab_size=encoding.size), encoding, None, "")
    monkeypatch.setattr(realcode, "model_at_hand", lambda cfg, kind: base)
    monkeypatch.setattr(realcode, "score", lambda model, programs, start: [
        np.array(costs, dtype=float)] if [len(costs)] == list(map(len, programs)) else None)
    (folder / "program.py").write_text(text)
    status, stdout, stderr = in_process("show", folder / "program.py", "--eta", "0.25", *arguments,
                                        **options)
    assert status == 0, stderr
    return stdout


def test_a_file_is_read_as_in_a_corpus(tmp_path):
    (tmp_path / "a.py").write_bytes(b"\xef\xbb\xbfx = 1\r\ny\r\n")
    assert realcode.read_source(tmp_path / "a.py") == "x = 1\ny\n"
    assert data.read_corpus(tmp_path)[0] == ["x = 1\ny\n"]


def test_a_pipe_that_lacks_a_letter_gets_another_one(shelf, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    status, stdout, stderr = empower_py("show", "a.py", "--model", "model", cwd=shelf)
    assert status == 0 and stdout.startswith("?x??"), stderr


COSTS = [3, 0, 0.125, 0.25, 2, 0]  # of a, b, newline, c, d, newline
SHOWN = [
    ("every", "‹a›b\n‹c›‹d›\n\nThe assistant would have written 3 of 6 tokens, and the human 3, "
              "one where each suggestion stops (eta = 0.25 bits).\n"),
    ("1:1", "▸┃ab\ncd\n\nAt 1:1 the assistant would have written nothing; the next token costs "
            "3.00 (eta = 0.25 bits).\n"),
    ("1:2", "a▸b\n┃cd\n\nAt 1:2 the assistant would have written 'b\\n', 0.12 bits; the next token "
            "costs 0.25 (eta = 0.25 bits).\n"),
    ("2:3", "ab\ncd▸\n┃\n\nAt 2:3 the assistant would have written '\\n', 0.00 bits "
            "(eta = 0.25 bits).\n"),
    ("3:1", "ab\ncd\n▸┃\n\nAt 3:1 the assistant would have written nothing (eta = 0.25 bits).\n"),
]


@pytest.mark.parametrize("at, printed", SHOWN)
def test_a_figure_worked_by_hand(at, printed, tmp_path, monkeypatch):
    assert show(monkeypatch, tmp_path, "ab\ncd\n", COSTS, "--at", at) == printed


@pytest.mark.parametrize("text, merges, at, n", [
    ("abab", 1, "1:1", 0), ("abab", 1, "1:2", 0), ("abab", 1, "1:3", 1), ("abab", 1, "1:4", 1),
    ("abab", 1, "1:5", 2), ("é=1", 0, "1:1", 0), ("é=1", 0, "1:2", 2), ("x😀y", 0, "1:2", 1),
    ("x😀y", 0, "1:3", 5)])
def test_a_state_is_before_the_token_at_the_cursor(text, merges, at, n, tmp_path, monkeypatch):
    """Inside a token, or before a character of several tokens: before all of it."""
    size = len(data.train_tokenizer([text], 257 + merges).encode_ordinary(text))
    costs = [1 + k for k in range(size)]
    printed = show(monkeypatch, tmp_path, text, costs, "--at", at, merges=merges)
    assert f"nothing; the next token costs {n + 1}.00 (" in printed or n == size
    assert ("; the next" in printed) == (n < size)


def plain(picture):
    """A picture without its colours and bars."""
    return re.sub("\033\\[[0-9;]*m|[┃▸]", "", picture)


@pytest.mark.parametrize("at", ["every", "1:2", "3:1"])
def test_a_terminal_gets_colours_and_nothing_else_does(at, tmp_path, monkeypatch):
    draw = functools.partial(show, monkeypatch, tmp_path, "ab\ncd\n", COSTS, "--at", at)
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, piped = draw(terminal=True), draw()
    assert "\033[1;31m" in coloured and "\033" not in piped
    picture, said = coloured.rstrip("\n").rsplit("\n", 1)
    assert plain(picture).rstrip("\n") == "ab\ncd" and piped.endswith(f"\n\n{said}\n")
    assert picture.count("┃") == (3 if at == "every" else 1)
    monkeypatch.setenv("NO_COLOR", "1")
    assert draw(terminal=True) == piped
    monkeypatch.setenv("NO_COLOR", "")
    assert draw(terminal=True) == coloured


@pytest.mark.parametrize("bits, colour", [(0, None), (0.09, None), (0.1, 230), (0.49, 230),
                                          (0.5, 229), (1.5, 222), (3, 215), (7.9, 209), (99, 203)])
def test_a_token_is_shaded_by_its_cost(bits, colour):
    assert (realcode.shade(bits) or [None])[0] == colour
    picture = realcode.shaded(["a\n", "\nb"], [bits, 0], {})
    begin, end = (f"\033[30;48;5;{colour}m", "\033[0m") if colour else ("", "")
    assert picture == f"{begin}a{end}\n{begin}{end}\nb"  # no colour goes beyond a line


@pytest.mark.parametrize("text", ["ab\ncd\n", "a<b> & 'c'\n\n\tif \"d\":\n", "é = '😀漢'\n",
                                  "a\x0c\n\x0cb\x1b[2Jc\x00\n"])
def test_an_svg_is_xml_with_every_character_and_a_bar_for_each_stop(text, tmp_path, monkeypatch):
    costs = [(k % 7) / 4 for k in range(len(text.encode()))]
    printed = show(monkeypatch, tmp_path, text, costs, "--svg", tmp_path / "a.svg")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    shapes = [(shape.tag.rpartition("}")[2], shape.attrib, shape.text) for shape in root]
    assert sum(tag == "rect" and of["fill"] == "#cc0000" for tag, of, _ in shapes) == len(
        empower.choices(costs, 0.25)) == printed.count("‹")
    written = sorted((int(of["y"]), int(of["x"]), content)
                     for tag, of, content in shapes if tag == "text")
    lines = [[content for _, _, content in row]
             for _, row in itertools.groupby(written, key=lambda row: row[0])]
    said = printed.splitlines()[-1]
    assert lines.pop()[0].startswith("from 0.1 bits") and lines.pop() == [said]
    expected = ["".join(c for c in line if c.isprintable() and c != " ")
                for line in text.split("\n")]
    assert ["".join(parts).replace("\ufffd", "") for parts in lines] == list(filter(None, expected))
    assert not list(tmp_path.glob("*.tmp"))


def greedy(model, text, most, stops):
    """Greedy sampling without caches."""
    new = []
    while len(new) < most:
        logits = model(torch.tensor([text + new]))[0, -1, :model.writable]
        if int(logits.argmax()) in stops:
            break
        new.append(int(logits.argmax()))
    return new


@torch.no_grad()
def healed(network, encoding, ids, eta=0.32):
    """Token healing as a loop over the vocabulary and one full pass: (ids, typed bytes) or None."""
    typed = encoding.decode_single_token_bytes(ids[-1])
    p = network(torch.tensor([[encoding.start, *ids[:-1]]]))[0, -1].double().softmax(-1)
    fits = {}
    for i in range(encoding.size):
        with contextlib.suppress(KeyError):
            if i not in encoding._special_tokens.values() and \
                    encoding.decode_single_token_bytes(i).startswith(typed):
                fits[i] = p[i].item()
    best = max(fits, key=fits.get)
    if fits[best] < 2 ** -eta * sum(fits.values()):
        return None
    return [*ids[:-1], best], len(typed)


def test_a_suggestion_alone_is_printed(tmp_path):
    folder, path = published(tmp_path / "model", "llama3"), tmp_path / r"C:\new\a b.py"
    path.write_text("x = int(input())\nprint(é\n")
    network, encoding, *_ = empower.load_checkpoint(folder, "cpu")
    written = set()
    for place, text in [("2:8", "x = int(input())\nprint(é"), ("2:7", "x = int(input())\nprint("),
                        ("1:4", "x ="), ("1:2", "x"), ("2:1", "x = int(input())\n"), ("1:1", "")]:
        ids, typed, expected = encoding.encode_ordinary(text), 0, ""
        if ids:
            ids, typed = healed(network, encoding, ids) or (None, 0)
        if ids is not None:
            new = greedy(network, [encoding.start, *ids], 9, encoding.stops)
            expected = encoding.decode_bytes(ids[-1:] + new)[typed:].decode(errors="replace")
        written.add(bool(expected))
        command = "suggest", f"{path}:{place}", "--model", folder, "--max-suggestion", "9"
        assert in_process(*command) == (0, expected, "")
        if expected:
            assert in_process(*command, terminal=True) == (0, expected + "\n", "")
    assert written == {True, False}


@pytest.mark.parametrize("likely, share, suggestion", [
    ("():", 0.9, "):"),  # a longer token begins with what stands there: its rest, and on
    ("(", 0.9, ""),      # what stands there is the token: what comes behind it
    ("():", 0.7, "")])   # a choice between the two: nothing is obvious
def test_what_was_typed_may_be_half_of_a_token(likely, share, suggestion, tmp_path, monkeypatch):
    encoding = data.train_tokenizer(["():"] * 9 + ["def go"], 262)
    ids = encoding.encode_ordinary("def go(")
    [long] = [i for i in range(encoding.size - 1) if encoding.decode([i]) == likely]
    other = ids[-1] if long != ids[-1] else max(
        i for i in range(encoding.size - 1) if encoding.decode([i]).startswith("("))
    logits = torch.full((1, 1, encoding.size), -50.0)
    logits[0, 0, long], logits[0, 0, other] = math.log(share), math.log(1 - share)
    logits[0, 0, encoding.encode_single_token("d")] = 3.0  # likelier, and does not fit
    asked = []
    monkeypatch.setattr(realcode, "extend", lambda model, cache, texts: (
        asked.extend(texts) or logits))
    monkeypatch.setattr(realcode, "sample", lambda *rest, **options: ([[]], [True]))
    tiny_gpt(vocab_size=encoding.size).save_pretrained(tmp_path)
    data.save_tokenizer(encoding, tmp_path)
    (tmp_path / "a.py").write_text("def go(")
    assert in_process("suggest", tmp_path / "a.py:1:8", "--model", tmp_path) == (0, suggestion, "")
    assert asked == [[encoding.start, *ids[:-1]]]


def test_without_a_model_the_small_gpt_of_a_run_is_at_hand(replayed, corpus):
    out, _ = replayed
    for command, kind in [(["show", corpus / "0.py"], "base"),
                          (["suggest", f"{corpus / '0.py'}:1:1"], "empower")]:
        status, stdout, stderr = in_process(*command, "--out", out, "--device", "cpu")
        assert status == 0 and "using" not in stdout
        assert re.fullmatch(rf"empower.py: using {out}/stages/{kind}-.*\n", stderr)


def test_the_model_at_hand_is_that_of_the_last_run_and_not_the_newest(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    in_process("--out", out, *TINY)  # the last run in the folder that tests share was another
    models = json.loads((out / "results.json").read_text())["models"]
    for name, kind in (("base", "base"), ("Empower (0.32)", "empower-0.32-entropy")):
        newer = out / "stages" / f"{kind}-0123456789"
        shutil.copytree(out / "stages" / models[name], newer)
        os.utime(newer)
    for command, name in ((["show", HERE / "figures" / "program.py"], "base"),
                          (["suggest", f"{HERE / 'figures' / 'program.py'}:3:1"],
                           "Empower (0.32)")):
        status, _, stderr = in_process(*command, "--out", out)
        assert status == 0 and models[name] in stderr
    (out / "results.json").write_text("{")
    status, _, stderr = in_process("show", HERE / "figures" / "program.py", "--out", out)
    assert status == 2 and "results.json cannot be read" in stderr
    (out / "results.json").unlink()  # as before the first run has finished
    status, _, stderr = in_process("show", HERE / "figures" / "program.py", "--out", out)
    assert status == 0 and models["base"] in stderr


def edited_json(path, **edits):
    path.write_text(json.dumps({**json.loads(path.read_text()), **edits}))


@pytest.fixture(scope="module")
def shelf(corpus, tmp_path_factory):
    """A folder with a corpus and a model that are well, and with others that are not."""
    shelf = tmp_path_factory.mktemp("shelf")
    shutil.copytree(corpus, shelf / "corpus")
    write_files(shelf, {
        "empty/note.txt": "", "few/a.py": "a = 1\n", "few/b.py": "b = 1\n", "few/c.py": "c = 1\n",
        "long.py": "x = 1\n" * 200, "nothing.py": "", "blank.py": " " * 10 ** 6,
        "latin.py": b"s = '\xe9'\n", "a.py": "x = 1\n", "rows.jsonl": '{"body": "x"}\n',
        "busy/note.txt": "mine"})
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for name in ("model", "gpt2", "truncated", "pointer", "config-pointer", "unigram", "bare"):
        published(shelf / name)
    weights = shelf / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-99])
    (shelf / "pointer" / "model.safetensors").write_bytes(pointer)
    (shelf / "config-pointer" / "config.json").write_bytes(pointer)
    edited_json(shelf / "gpt2" / "config.json", architectures=["GPT2LMHeadModel"])
    edited_json(shelf / "unigram" / "tokenizer.json", model={"type": "Unigram", "vocab": []})
    (shelf / "bare" / "tokenizer.json").unlink()
    return shelf


MODELS = [("absent", "absent/config.json is absent: give the folder"),
          ("a.py", "a.py/config.json is absent: give the folder"),
          ("gpt2", "unsupported architecture GPT2LMHeadModel; supported: Llama"),
          ("truncated", "model.safetensors is truncated or damaged"),
          ("pointer", "model.safetensors is a Git-LFS pointer: fetch"),
          ("config-pointer", "config.json is only a Git LFS pointer: fetch"),
          ("unigram", "tokenizer.json is a Unigram model, which is not supported: choose"),
          ("bare", "bare has none of tokenizer.json, .*: copy"),
          ("model --dtype int4", "--dtype is 'int4': choose auto, float32, bfloat16")]
CORPORA = [("", "--corpus is missing: give a folder"),
           ("--corpus absent", "there is no absent: name a folder"),
           ("--corpus empty", r"no .py file under empty \(found 1 files: .txt\): name another"),
           ("--corpus model/model.safetensors", "is no corpus: name a folder"),
           ("--corpus rows.jsonl", "rows.jsonl has no field code.* has body: name"),
           ("--corpus rows.jsonl --field text", "rows.jsonl has no field text"),
           ("--corpus latin.py", "latin.py is not a text in UTF-8: convert")]
USES = ["replay --corpus corpus --out new", "finetune --corpus corpus --out new", "show a.py",
        "suggest a.py:1:2"]


@pytest.mark.parametrize("command, message", [
    *((f"{use} --model {model}", message) for use in USES for model, message in MODELS),
    *((f"{use} {corpus}", message) for use in ("replay --out new", "finetune --model model "
                                               "--out new") for corpus, message in CORPORA),
    ("replay --corpus few --out new", "few has 3 programs: a replay needs at least 10"),
    ("replay --corpus corpus --out a.py", "cannot write to --out a.py"),
    ("replay --corpus corpus --out new --model model --context 250",
     "--context is 250, and the model reads 256 tokens: give at most"),
    ("replay --corpus corpus --out new --model model --context 232 --max-suggestion 8",
     "give at most 231"),  # behind it Base-20 writes 20 tokens and the author 4
    ("replay --corpus corpus --out new --context 5000", "the model reads 4096 tokens: give at"),
    ("replay --corpus corpus --out new --context 8", "--context is 8: give"),
    ("finetune --corpus corpus --out new", "--model is missing: give a folder"),
    ("finetune --corpus corpus --model model", "--out is missing: give a folder"),
    ("finetune --corpus corpus --model model --out new", "--context is 1024, and the model reads "
                                                         "256 tokens: give at most 155"),
    ("finetune --corpus corpus --model model --out busy --context 64", "busy holds something else"),
    ("finetune --corpus corpus --model model --out model --context 64", "model holds something"),
    ("finetune --corpus corpus --model model --out a.py/new --context 64", "a.py"),
    *((f"finetune --corpus corpus --model model --out new --rule {rule}", f"--rule is '{rule}': "
       "choose empower, sft-rand or sft-N") for rule in ("sft-0", "sft", "dpo", "SFT-10")),
    ("show", "FILE; see --help"), ("show absent.py", "cannot read absent.py .*: give a text file"),
    ("show empty", "cannot read empty .*: give"),
    ("show latin.py", "latin.py is not a text in UTF-8: convert"),
    ("show a.py", "there is no small GPT in out: run python empower.py first"),
    ("show long.py --model model", "long.py has .* tokens, .* to 255: show a part of it"),
    ("show nothing.py --model model", "nothing.py is empty: show another file"),
    ("show blank.py --model model", "blank.py has 1,000,000 characters: give at most 400,000"),
    ("suggest blank.py:1:9 --model model", "blank.py has 1,000,000 characters: give"),
    ("show a.py --model model --at 9:1", "'9:1' is no place in a.py, which has 2 lines: give"),
    ("show a.py --model model --at here", "'here' is no place in a.py"),
    ("show a.py --model model --svg absent/a.svg", "cannot write absent/a.svg .*: name another"),
    ("suggest", "PLACE; see --help"), ("suggest a.py --model model", "'a.py' is no place: give"),
    ("suggest a.py:1 --model model", "'a.py:1' is no place: give FILE:LINE:COL"),
    ("suggest absent.py:1:1 --model model", "cannot read absent.py .*: give"),
    ("suggest a.py:1:99 --model model", "line 1 of a.py has 5 characters.* give 1 to 6"),
    ("suggest a.py:1:1 --out absent", "there is no small GPT in absent: run python empower.py"),
    ("suggest a.py:1:1 --model model --max-suggestion 300", "--max-suggestion is 300.*give less"),
    ("suggest a.py:1:1 --eta -1", "--eta is -1.0: give"),
    *((f"{use} --no-such-flag", "unrecognized arguments: --no-such-flag; see --help")
      for use in USES),
    ("retrain --corpus corpus", "unrecognized arguments: retrain .*; see --help"),
])
def test_what_cannot_be_used_is_one_sentence_and_nothing_is_written(
        command, message, shelf, monkeypatch):
    monkeypatch.chdir(shelf)
    before = contents(shelf)
    status, _, stderr = in_process(*shlex.split(command))
    assert status == 2 and re.search(message, stderr), stderr
    assert stderr.startswith("empower.py: ") and stderr.count("\n") == 1
    assert contents(shelf) == before


@pytest.mark.parametrize("name", realcode.COMMANDS)
def test_help_of_a_command_explains_every_setting(name):
    settings, _ = realcode.COMMANDS[name]
    status, text, _ = in_process(name, "--help")
    text = "".join(text.split())  # lines are broken at hyphens too
    for field in dataclasses.fields(settings):
        positional = field.metadata["positional"]
        flag = field.name.upper() if positional else f"--{field.name.replace('_', '-')}"
        assert status == 0 and flag in text and "".join(field.metadata["help"].split()) in text


# ------------------------------------------------------------------- the README

README = (HERE / "README.md").read_text()


def readme_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def readme_commands():
    """Those of figures/make.py have their test beside it."""
    return [line for block in readme_blocks("sh") for line in block.splitlines()
            if line.startswith("python ") and "figures/make.py" not in line]


@pytest.mark.parametrize("command", readme_commands())
def test_readme_commands_run(command, request, tmp_path, monkeypatch):
    """As they stand there, at a tiny size, with files of the tests in place of the reader's."""
    script, *words = shlex.split(command.split("#")[0])[1:]
    use = request.getfixturevalue
    if script == "test_empower.py":
        words += ["--tiny"]
    elif words[:1] == ["replay"]:
        words += ["--out", tmp_path / "out", *REPLAY]
    elif words[:1] == ["finetune"]:
        words += FINETUNE
    elif words[:1] in (["show"], ["suggest"]):
        words += ["--out", use("finished")[0]]
    elif script == "empower.py" and "--help" not in words:
        words += ["--out", use("finished")[0], *TINY]
    program = str(HERE / "figures" / "program.py")
    stands_for = {"OUT_DIR": lambda: tmp_path / "student",
                  "stdlib": lambda: use("corpus"), "PATH": lambda: use("corpus"),
                  "DIR": lambda: published(tmp_path / "base"), "DIR2": lambda: tmp_path / "tuned",
                  "FILE": lambda: program, "FILE:3:9": lambda: f"{program}:3:9",
                  "figures/program.svg": lambda: tmp_path / "program.svg"}
    if words[:1] == ["suggest"]:
        stands_for["DIR2"] = stands_for["DIR"]
    words = [stands_for[word]() if word in stands_for else word for word in words]
    monkeypatch.chdir(HERE)
    if script == "empower.py":
        status, _, stderr = in_process(*words)
    else:
        done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
        status, stderr = done.returncode, done.stderr
    assert status == 0, stderr


@pytest.mark.parametrize("snippet", readme_blocks("python"))
def test_readme_snippets_run(snippet):
    exec(snippet, {})


# ------------------------------------------------------------------- benchmarks


def seconds(work, *arguments):
    begin = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - begin


def benchmark_game(n, rounds):
    """The lockstep game against `play_slowly`, the same game without batches and caches."""
    finished = [path for path in Path("out", "stages").glob("base-*") if path.suffix != ".tmp"]
    if finished:
        model, encoding, *_ = empower.load_checkpoint(finished[0], "cpu")
        goals = [[encoding.start, *encoding.encode_ordinary(problem.statement)]
                 for problem in contest().dev[:n]]
        end, what = encoding.eot_token, f"the model in {finished[0]}"
    else:
        model = GPT(empower.gpt_config(Config(), 640), torch.Generator().manual_seed(0))
        goals, end, what = [[639] + [5] * 40] * n, 639, "random weights"
    rule = functools.partial(simhuman.skim, tau=Config().tau)
    human = Human(model, token_nll, rule, Config().turn_tokens, temperature=0)
    game = goals, human, Assistant(model, 10, temperature=0), rounds, end
    fast, slow = seconds(play, *game, end, None), seconds(play_slowly, *game)
    print(f"game: {n} problems in lockstep with caches {fast:.2f} s, one by one without "
          f"{slow:.2f} s: {slow / fast:.0f} times ({what})")


def benchmark_muon(steps):
    """Our Muon against torch.optim.Muon on the matrices of the default model."""
    model = GPT(empower.gpt_config(Config(), 640))
    matrices = [weight for weight in model.layers.parameters() if weight.dim() == 2]
    for weight in matrices:
        weight.grad = torch.randn_like(weight)
    times = []
    for optimizer in (Muon(matrices, lr=0.01), torch.optim.Muon(matrices, lr=0.01)):
        optimizer.step()
        times.append(seconds(lambda: [optimizer.step() for _ in range(steps)]) / steps)
    print(f"Muon: a step in float32 {1000 * times[0]:.0f} ms, torch.optim.Muon "
          f"{1000 * times[1]:.0f} ms: {times[1] / times[0]:.1f} times")


def anonymous_memory():
    """Bytes of this process that no file holds, and that so cannot be given up (Linux)."""
    [kilobytes] = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)


def benchmark_loading(layers, vocab_size):
    """A sharded bfloat16 checkpoint, with 16 layers and 128,256 tokens as large as Llama-3.2-1B."""
    if not Path("/proc/self/status").exists():
        return print("loading: not measured, it takes /proc")
    cfg = GPTConfig(vocab_size, 2048, 8192, layers, 32, 8, 64, architecture="LlamaForCausalLM")
    with torch.device("meta"):
        weights = {f"model.{name}": w for name, w in GPT(cfg).named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.asdict(cfg) | {"architectures": [cfg.architecture]}
        Path(folder, "config.json").write_text(json.dumps(config))
        shards = {name: f"{k // 50}.safetensors" for k, name in enumerate(weights)}
        for shard in set(shards.values()):
            write_safetensors(Path(folder, shard), {
                name: torch.full(w.shape, 0.5, dtype=torch.bfloat16)
                for name, w in weights.items() if shards[name] == shard})
        index = json.dumps({"weight_map": shards})
        Path(folder, "model.safetensors.index.json").write_text(index)
        before, begin = anonymous_memory(), time.perf_counter()
        model = GPT.from_pretrained(folder)
        loading, loaded = time.perf_counter() - begin, anonymous_memory()
        with torch.no_grad():
            assert all(w.amax() == 0.5 for w in model.parameters())  # reads every page
        grown = (loaded - before) / 1e6, (anonymous_memory() - before) / 1e6
        print(f"loading: {sum(2 * w.numel() for w in model.parameters()) / 1e9:.2f} GB in "
              f"{loading:.2f} s; memory that no file holds grew by {grown[0]:.1f} MB, by "
              f"{grown[1]:.1f} MB after all was read")


def benchmark_judge(n):
    """judge_all against one interpreter after the other, on programs that print and stop."""
    jobs = [(f"print({k})", (("", f"{k}\n"),)) for k in range(n)]
    fast = seconds(lambda: judge_all(jobs, label=None))
    plain = seconds(lambda: [subprocess.run([sys.executable, "-c", program], capture_output=True)
                             for program, _ in jobs])
    print(f"judge: {n / fast:.0f} programs a second, plain subprocess.run {n / plain:.0f}: "
          f"{plain / fast:.1f} times")


def benchmark_scoring(n):
    """score against nothing but the forward pass over the same batches, in turns."""
    model = GPT(GPTConfig(4096, 384, 1024, 6, 6, 2, 64, 1024), torch.Generator().manual_seed(0))
    programs = random_texts([50 + 37 * k % 450 for k in range(n)], vocab_size=4096)

    @torch.no_grad()
    def forward():
        for chosen in empower.batches_by_length([len(program) for program in programs], 8192):
            model(collate([([0, *programs[i]], 0) for i in chosen], 1024)[0][:, :-1])

    times = [(seconds(score, model, programs, 0), seconds(forward)) for _ in range(min(n, 7))]
    ratio = np.median([scoring / bare for scoring, bare in times[1:]])
    print(f"scoring: {sum(map(len, programs)) / np.median(times, 0)[0]:,.0f} tokens a second, "
          f"{ratio:.2f} times the bare forward pass (median of {len(times) - 1} pairs)")


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--tiny"]):
        sys.exit("python test_empower.py prints benchmarks, with --tiny small ones; the tests are "
                 "run by pytest")
    tiny = "--tiny" in sys.argv  # for the test of this very command
    benchmark_game(*((2, 2) if tiny else (32, Config().rounds)))
    benchmark_scoring(4 if tiny else 64)
    benchmark_muon(1 if tiny else 10)
    benchmark_judge(4 if tiny else 500)
    benchmark_loading(*((1, 1000) if tiny else (16, 128_256)))
