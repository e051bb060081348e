"""Tests: Algorithm 1 as printed is the oracle, each formula has an example worked by hand.

Run them with `pytest`; tests of a folder are in that folder. `python test_empower.py` instead
prints how fast the parts are, each against the plain way of doing the same.
"""

import dataclasses
import functools
import itertools
import json
import math
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import data
import empower
from data import collate, make_batches
from empower import Config, empower_length, empower_lengths, score, sft_example, train
from model import (GPT, GPTConfig, KVCache, attend_last, document_nll, draw, extend, sample,
                   token_nll)
from simhuman import (Assistant, Episode, Human, Turn, accept_ratio, attentive, discounted,
                      discounted_pass_rate, pass_at_1, play, typical, typical_limits)
from support.contest import draw_style, write_program
from support.files import slug
from support.optim import adamw, muon_and_adamw
from support.report import left_to_human, summarize
from support.test_helpers import (TINY, in_process, interrupt, made, random_examples, random_texts,
                                  small_contest, stable, tiny_base, tiny_gpt, tiny_run, tokenizer)

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


def test_empower_length_is_algorithm_1():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        nll, eta = random_costs(rng), rng.integers(0, 40) / 4
        assert empower_length(nll, eta) == algorithm_1(nll, eta)


def test_every_state_at_once_is_one_state_at_a_time():
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
    ([2, 0, 0], 1, 0),               # the first token is too expensive: say nothing
    ([], 1, 0),                      # nothing is left
    ([0, 0, 0], 0, 3),               # everything is free
])
def test_worked_examples(nll, eta, length):
    assert empower_length(np.array(nll), eta) == length
    if nll:
        assert empower_lengths(np.array(nll), eta)[0] == length


def test_a_larger_eta_never_shortens_a_completion():
    rng = np.random.default_rng(2)
    for _ in range(200):
        nll = rng.exponential(1.0, 20)
        lengths = [empower_lengths(nll, eta) for eta in (0, 0.1, 0.32, 1, 4, 16)]
        assert all((a <= b).all() for a, b in zip(lengths, lengths[1:]))


def test_the_human_types_where_algorithm_1_stops():
    assert left_to_human(empower_lengths([3, 0, 0.2, 0.2, 2], 0.32)) == [0, 3, 4]
    rng = np.random.default_rng(0)
    for _ in range(300):
        nll, eta, bars, n = random_costs(rng), rng.integers(0, 12) / 4, [], 0
        while n + algorithm_1(nll[n:], eta) < len(nll):
            bars.append(n + algorithm_1(nll[n:], eta))
            n = bars[-1] + 1
        assert left_to_human(empower_lengths(nll, eta)) == bars


def test_rules_by_hand():
    nll, rng = np.array([0.25, 0.0625, 0.5, 8.0]), np.random.default_rng(0)
    assert [empower.empower(eta)(nll, rng) for eta in (0.32, 4, 9)] == [2, 3, 4]
    assert [empower.sft(n)(nll, rng) for n in (1, 10)] == [1, 10]
    assert {empower.sft_rand(30)(nll, rng) for _ in range(2000)} == set(range(1, 31))
    drawn = [[empower.sft_rand(9)(nll, rng) for _ in range(20)]
             for rng in (np.random.default_rng(1), np.random.default_rng(1))]
    assert drawn[0] == drawn[1]


def test_the_table_has_the_assistants_of_the_paper():
    assert list(empower.completion_rules(Config())) == [
        "SFT-4", "SFT-8", "SFT-RAND", "Empower (0.32)", "Empower (4)"]
    rules = empower.completion_rules(Config(turn_tokens=10))  # the paper's K_H and lengths
    rng = np.random.default_rng(0)
    assert rules["SFT-10"]([], rng) == 10 and rules["SFT-20"]([], rng) == 20
    assert max(rules["SFT-RAND"]([], rng) for _ in range(1000)) == 30


def test_a_rule_cannot_change_the_costs_that_other_rules_get():
    def greedy(nll, rng):
        nll -= 1
        return 3

    nll, rngs = np.ones(4), [np.random.default_rng(0) for _ in range(2)]
    with pytest.raises(ValueError, match="read-only"):
        empower.choose_completions([([1, 2, 3, 4], nll, True)], greedy, *rngs)
    assert nll.tolist() == [1, 1, 1, 1]


def test_cost_is_minus_log2_of_the_probability():
    assert token_nll(torch.zeros(2, 2), torch.tensor([0, 1])).tolist() == [1.0, 1.0]
    logits, ids = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    p = logits.softmax(-1).gather(-1, ids[..., None])[..., 0]
    assert torch.allclose(token_nll(logits, ids), -p.log2(), atol=1e-5)


# ------------------------------------------------------------------- the tokenizer, documents


AWKWARD = ["", " ", "\n\n    x\t= 'ä€😀'\r\n", "<|endoftext|>", "a" * 999, "x=1", "\x00\ud7ff",
           "１２ 3"]


def test_any_text_survives_the_tokenizer():
    for text in AWKWARD:
        ids = tokenizer().encode_ordinary(text)
        assert tokenizer().decode(ids) == text and tokenizer().stop not in ids
    assert all(tokenizer().encode_single_token(bytes([byte])) == byte for byte in range(256))


def test_byte_pairs_by_hand():
    # "ab" is the most frequent pair, then "ab" + "c".
    encoding = data.train_tokenizer(["abc abc ab"], 259)
    assert encoding.decode_single_token_bytes(256) == b"ab"
    assert encoding.n_vocab == 259 and encoding.encode_ordinary("ab")[0] == 256


def test_a_program_has_the_same_tokens_with_and_without_its_statement():
    program = write_program(small_contest().learn[0].parts, draw_style(random.Random(0)))
    with_goal = data.document(tokenizer(), small_contest().learn[0].statement, program)
    without = data.document(tokenizer(), "", program)
    assert with_goal[-len(without) + 1:] == without[1:]
    assert with_goal[0] == without[0] == without[-1] == tokenizer().stop


def test_states_are_uniform():
    states = data.draw_states(np.random.default_rng(0), [4] * 4000)
    counts = np.bincount(states, minlength=4)
    assert len(counts) == 4 and (abs(counts - 1000) < 100).all()


# ------------------------------------------------------------------- the model


def test_logits_do_not_see_the_future():
    model, (text, other) = tiny_gpt(), random_texts([12, 12])
    both = torch.tensor([text, text[:7] + other[7:]])
    logits = model(both)
    assert torch.allclose(logits[0, :7], logits[1, :7], atol=1e-5)
    assert not torch.allclose(logits[0, 7:], logits[1, 7:], atol=1e-2)


@torch.no_grad()
def test_cached_logits_equal_uncached_on_ragged_batches_whatever_becomes_of_the_texts():
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
        if k % 10 == 9:
            rows = rng.sample(range(len(texts)), len(texts) - 1)
            cache = cache.select(rows)
            texts = [texts[row] for row in rows]


def test_attention_of_the_last_position_is_that_of_the_fused_kernel():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 8, generator=generator) for n in (4, 9, 9))
    mask = torch.arange(9) <= torch.tensor([8, 0, 5])[:, None, None, None]  # (B, 1, 1, S)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.allclose(attend_last(q, k, v, mask), fused, atol=1e-6)
    assert torch.equal(attend_last(q, k, v, mask)[1], v[1, :, :1].expand(2, 4, 8))  # sees only one


def test_a_copy_of_a_short_row_is_not_as_long_as_the_longest():
    cache = KVCache(tiny_gpt(), 2)
    extend(tiny_gpt(), cache, [[1] * 200, [1] * 3])
    assert cache.select([1]).keys.shape[3] == 3 + 64


def test_long_texts_enter_an_empty_cache_without_a_mask_and_are_the_same():
    model = GPT(GPTConfig(23, 32, 64, 2, 2, 1, 16, 2048), torch.Generator().manual_seed(0))
    for weight in model.parameters():
        weight.data.mul_(8 if weight.dim() == 2 else 1)
    sizes = [700, 640, 3, 1, 2, 650]  # more than are read at a time
    texts, cache = random_texts(sizes), KVCache(model, 6)
    with torch.no_grad():
        assert cache.place(torch.zeros(6, 600, dtype=torch.long))[1] is None
        for more in ([[]] * 6, [[4, 5], [6], [7, 8, 9], [], [3] * 900, [2]]):  # empty, then filled
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


@torch.no_grad()
def test_after_sampling_the_cache_holds_what_was_written():
    model, texts = tiny_gpt(), random_texts([3, 8, 1, 5, 9, 2, 4, 7])
    cache = KVCache(model, len(texts))
    new, _ = sample(model, cache, texts, 30, [0, 1, 2], generator=torch.Generator().manual_seed(0))
    assert len(set(map(len, new))) > 3  # rows ended, and left the batch, at different steps
    longer = [text + tail for text, tail in zip(texts, new)]
    assert (cache.lengths >= torch.tensor(list(map(len, longer))) - 1).all()  # nothing is fed again
    for text, logits in zip(longer, extend(model, cache, longer)):
        assert torch.allclose(logits[0], model(torch.tensor([text]))[0, -1], atol=1e-4)


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
    """The cost in bits of each token of `more` after `text`, in one full pass."""
    logits = model(torch.tensor([text + more]))[0, len(text) - 1:-1]
    return token_nll(logits, torch.tensor(more, dtype=torch.long)).detach().numpy()


def test_sampling_stops_before_its_text_costs_too_much():
    model, texts = tiny_gpt(), random_texts([6, 6, 6, 6])
    new, _ = sample(model, KVCache(model, 4), texts, 20, stop_tokens=-1, max_cost=6.0,
                    generator=torch.Generator().manual_seed(0))
    free, _ = sample(model, KVCache(model, 4), texts, 20, stop_tokens=-1, temperature=0)
    limited, _ = sample(model, KVCache(model, 4), texts, 20, stop_tokens=-1,
                        temperature=0, max_cost=6.0)
    for text, row, greedy, stopped in zip(texts, new, free, limited):
        assert costs(model, text, row).sum() <= 6.0
        assert len(stopped) == empower_length(costs(model, text, greedy), 6.0) < 20


def test_a_tiny_temperature_takes_the_likeliest():
    for temperature in (0, 1e-7, 1e-42):
        assert draw(torch.tensor([[1.0, 3.0, 2.0]]), temperature, 0.9, None).tolist() == [1]


def test_sampling_draws_the_same_for_the_same_seed():
    model, texts = tiny_gpt(), random_texts([4, 2])
    draws = [sample(model, KVCache(model, 2), texts, 9, 0,
                    generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_a_text_longer_than_the_model_is_an_error():
    model = tiny_gpt()
    with pytest.raises(ValueError, match="300 tokens is longer than the model's 256"):
        extend(model, KVCache(model, 1), [[1] * 300])


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


def test_loss_is_on_the_completion_and_its_stop_token_alone():
    # The example of the docstring, and a longer text that shows the padding; the stop is 0 too.
    ids, labels = collate([([7, 8, 9, 0], 2), ([1, 2, 3, 4, 5, 0], 4)])
    assert ids.tolist() == [[7, 8, 9, 0, 0, 0], [1, 2, 3, 4, 5, 0]]
    assert labels.tolist() == [[-100, -100, 9, 0, -100, -100], [-100, -100, -100, -100, 5, 0]]


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
    losses = list(train(model, [(prefix + [2, 3, 1], len(prefix)) for prefix in prefixes], 8,
                        muon_and_adamw(model, 0.02), random.Random(0)))
    assert len(losses) == 200 and np.mean(losses[-10:]) < 0.1 < losses[0]
    new, stopped = sample(model, KVCache(model, 1), [[5, 7]], 9, stop_tokens=1, temperature=0)
    assert new == [[2, 3]] and stopped == [True]


def test_the_learning_rate_rises_and_falls():
    shares = [empower.learning_rate(update, 1000) for update in range(1000)]
    assert shares[0] == 1 / 20 and shares[19] == shares[399] == 1 and shares[999] == 1 / 600
    assert shares[700] == pytest.approx(0.5)


# ------------------------------------------------------------------- scoring


def test_scores_of_a_batch_are_the_scores_of_each_program():
    model, programs = tiny_gpt(), random_texts([5, 1, 17, 30, 8])
    for program, nll in zip(programs, score(model, programs, 0)):
        logits = model(torch.tensor([[0] + program]))[0, :-1]
        assert np.allclose(nll, token_nll(logits, torch.tensor(program)).detach(), atol=1e-4)
    with pytest.raises(ValueError, match="256"):
        score(model, [[1] * 300], 0)
    model.norm.weight.data.fill_(math.inf)
    with pytest.raises(ArithmeticError, match="costs, in torch.bfloat16, are not numbers"):
        score(model.to(torch.bfloat16), programs, 0)


def test_a_document_as_long_as_the_context_is_read_and_a_longer_one_is_refused():
    model = tiny_gpt()
    [text] = random_texts([258])  # the model reads 256 tokens, and the last is only a label
    [loss] = train(model, [(text[:257], 1)], 1, adamw(model, 0.01), random.Random(0))
    assert loss > 0
    with pytest.raises(ValueError, match="257 tokens is longer than the model's 256"):
        list(train(model, [(text, 1)], 1, adamw(model, 0.01), random.Random(0)))


def test_nothing_is_trained_until_the_losses_are_consumed_and_each_can_be_the_last():
    model, examples = tiny_gpt(), random_examples(12)
    before = model.norm.weight.clone()
    updates = train(model, examples, 4, adamw(model, 0.01), random.Random(0))
    assert torch.equal(model.norm.weight, before)
    losses = [next(updates)]
    assert not torch.equal(model.norm.weight, before)
    rest = list(train(model, examples, 4, adamw(model, 0.01), random.Random(0), done=1))
    assert len(losses + rest) == 3


def test_the_head_in_slices_is_the_head_at_once():
    model = GPT(GPTConfig(2**17, 8, 8, 1, 1, 1, 8, 2048), torch.Generator().manual_seed(0))
    ids = torch.randint(0, 99, (3, 400))  # 3 * 399 * 2**17 logits: more than one slice
    with torch.no_grad():
        sliced = document_nll(model, ids)
        for k in (0, 170, 398):
            logits = model(ids[:, :k + 1])[:, -1:]
            assert torch.allclose(sliced[:, k:k + 1], token_nll(logits, ids[:, k + 1:k + 2]),
                                  atol=1e-4)


def test_batches_by_length_waste_little_and_stay_within_their_tokens():
    assert data.batches_by_length([3, 1, 2, 9], 6) == [[1, 2], [0], [3]]
    assert data.batches_by_length([], 6) == []
    rng = random.Random(0)
    lengths = [rng.randint(1, 99) for _ in range(500)]
    batches = data.batches_by_length(lengths, 300)
    assert sorted(itertools.chain(*batches)) == list(range(500))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 300 for batch in batches)
    assert len(batches) < 1.2 * sum(lengths) / 300


# ------------------------------------------------------------------- the game


def accepts(bits):
    """A rule of acceptance: at most so many bits, however many tokens."""
    return functools.partial(typical, limits=[bits])


def test_what_is_typical_of_her_by_hand():
    assert typical_limits([[0, 1, 0, 3]], 0.25, 5) == [1, 3, 4, 4, 4]
    assert typical_limits([[0, 1, 0, 3]], 0.25, 2) == [1, 3]
    assert typical_limits([[1, 1], [0, 2]], 0.5, 2) == [1, 2]  # no run across two programs
    assert typical_limits([[1, 1], [1, 1], [2] * 9], 0.5, 4) == [2, 4, 4, 4]  # above the median
    assert typical_limits([[1, 1], [2] * 9, [2] * 9], 0.5, 4) == [2, 4, 6, 8]  # length it stays
    assert [typical(nll, [1, 3]) for nll in ([0, 2], [1], [2], [2, 2], [0, 1, 2], [0, 1, 3])] == [
        True, True, False, False, True, False]


def test_a_more_careful_human_accepts_less():
    costs = [np.random.default_rng(k).exponential(1.0, 60) for k in range(50)]
    some = [typical_limits(costs, care, 20) for care in (0.5, 0.1, 0.02, 0.005)]
    assert all((np.diff(pair, axis=0) > 0).all() for pair in zip(some, some[1:]))


def test_she_rejects_her_own_text_as_often_as_her_care_says():
    """On texts that her limits do not come from, at any length."""
    model, stop, care = tiny_gpt(7), -1, 0.05
    prompts = [[0, *text] for text in random_texts([6] * 1600, seed=1)]
    texts, _ = sample(model, KVCache(model, 1600), prompts, 30, stop,
                      generator=torch.Generator().manual_seed(0))
    nll = [row[6:] for row in score(model, [a[1:] + b for a, b in zip(prompts, texts)], 0)]
    limits = typical_limits(nll[:800], care, 20)
    for n in (1, 4, 10, 20):
        rejected = [np.mean([not typical(row[k:k + n], limits) for k in range(30 - n + 1)])
                    for row in nll[800:]]
        error = np.std(rejected) / 800 ** 0.5  # the runs of a text overlap: the text is the unit
        assert np.mean(rejected) == pytest.approx(care, abs=4 * error) and error < 0.01


def random_goals(sizes):
    return [[0, *text] for text in random_texts(sizes)]


def moves(episode):
    return [(turn.suggestion, turn.accepted, turn.typed) for turn in episode.turns], \
        episode.finished


@torch.no_grad()
def play_slowly(goals, human, assistant, rounds, stop_token, reads=None):
    """The game of Section 3, one problem after the other, without caches, greedily.

    Each document begins with the stop token. Anyone but a Human is an author who wants her goal.
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
            if new and not isinstance(human, Human):
                turn.accepted = code + new == goal[:len(code + new)]
            elif new:
                turn.read = reads is None or bool(reads[len(episode.turns)][problem])
                logits = human.model(torch.tensor([goal + code + new]))[0, -len(new) - 1:-1]
                turn.nll = token_nll(logits, torch.tensor(new)).tolist()
                turn.accepted = not turn.read or human.accepts(turn.nll)
            code += new * turn.accepted
            if isinstance(human, Human):
                turn.typed, episode.finished = write(human.model, goal + code, human.turn_tokens)
            else:
                turn.typed = goal[len(code):][:human.turn_tokens]
                episode.finished = code + turn.typed == goal
            code += turn.typed
            episode.turns.append(turn)
        episodes.append(episode)
    return episodes


@pytest.mark.parametrize("attention", [1, 0.6])
@pytest.mark.parametrize("options", [{"max_tokens": 5}, {"max_tokens": 12, "max_cost": 4.0},
                                     {"max_tokens": 7, "knows_goal": True}])
def test_the_lockstep_game_is_the_game_played_problem_by_problem(options, attention):
    model, goals = tiny_gpt(3), random_goals([4, 7, 1, 9, 5, 3, 8, 6])
    human = Human(model, functools.partial(typical, limits=[4 * n for n in range(1, 13)]), 3,
                  temperature=0)
    assistant = Assistant(tiny_gpt(4), temperature=0, **options)
    reads = attentive(np.random.default_rng(0), attention, 6, len(goals))
    fast = play(goals, human, assistant, 6, 0, 0, None, None, reads)
    slow = play_slowly(goals, human, assistant, 6, 0, reads)
    unread = [turn.accepted for e in slow for turn in e.turns if not turn.read]
    assert all(unread) and bool(unread) == (attention < 1)
    assert sum(e.accepted for e in slow) and sum(e.offered - e.accepted for e in slow)
    for a, b in zip(fast, slow):
        assert moves(a) == moves(b)
        for turn, other in zip(a.turns, b.turns):
            assert np.allclose(turn.nll, other.nll, atol=1e-3)


def test_she_reads_the_share_of_suggestions_that_her_attention_says():
    more, less = (attentive(np.random.default_rng(7), share, 50, 400) for share in (0.7, 0.4))
    assert more.mean() == pytest.approx(0.7, abs=0.01) and (more | less).sum() == more.sum()
    assert attentive(np.random.default_rng(7), 1, 50, 400).all()
    fewer = attentive(np.random.default_rng(7), 0.7, 9, 400)  # a game with fewer rounds
    assert (fewer == more[:9]).all()


def test_a_human_alone_writes_what_she_would_have_sampled():
    model, goals = tiny_gpt(5), random_goals([4, 7, 1])
    human = Human(model, None, 4, temperature=0)
    for rounds in (2, 60):
        new, _ = sample(model, KVCache(model, 3), goals, 4 * rounds, 0, temperature=0)
        episodes = play(goals, human, None, rounds, 0, 0, None)
        assert [episode.code for episode in episodes] == new
        assert all(e.tokens_read == e.offered == 0 for e in episodes)


def test_a_silent_assistant_is_neither_offered_nor_read():
    model = tiny_gpt(5)
    assistant = Assistant(model, 5, max_cost=0.0)  # nothing is free
    human = Human(model, accepts(999), 4, temperature=0)
    silent, alone = (play(random_goals([4, 7]), human, player, 3, 0, 0, torch.Generator())
                     for player in (assistant, None))
    assert all(e.offered == e.accepted == e.tokens_read == 0 for e in silent)
    assert [e.code for e in silent] == [e.code for e in alone]


def test_a_rule_of_acceptance_may_answer_with_numpy_s_bool():
    human = Human(tiny_gpt(5), lambda nll: np.mean(nll) < 999, 4, temperature=0)
    [episode] = play(random_goals([4]), human, Assistant(tiny_gpt(5), 5), 2, 0, 0,
                     torch.Generator())
    assert any(turn.accepted is True for turn in episode.turns) and episode.code


def test_an_episode_that_fills_the_context_is_cut_off():
    model = tiny_gpt(6)
    human = Human(model, accepts(999), 9, temperature=0)
    [episode] = play([[22] + [5] * 200], human, Assistant(model, 20, temperature=0), 1000, 22, 22,
                     None)
    assert not episode.finished and 256 - 29 < 201 + len(episode.code) <= 256


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
    read_10_wrote_2 = episode(accepted=1, rejected=1, size=5, written=2)
    assert (read_10_wrote_2.tokens_read, read_10_wrote_2.tokens_written) == (10, 2)
    assert discounted(read_10_wrote_2, 0.5, 0.1, 0.5) == 0.25
    assert discounted_pass_rate([read_10_wrote_2, episode(False)], 0.5, 0.1, 0.5) == (0.125, 0.125)


def test_the_accept_ratio_error_is_that_of_a_bootstrap_over_problems():
    rng = random.Random(0)
    row = [episode(accepted=rng.randint(0, 6), rejected=rng.randint(0, 9)) for _ in range(200)]
    again = [accept_ratio(rng.choices(row, k=200))[0] for _ in range(600)]
    assert accept_ratio(row)[1] == pytest.approx(np.std(again), rel=0.15)


# ------------------------------------------------------------------- the whole pipeline


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished tiny run, and what the run printed."""
    return tiny_run(tmp_path_factory.mktemp("run"))


def test_a_run_makes_every_row_and_says_whether_the_claims_hold(finished):
    out, stdout = finished
    results = json.loads((out / "results.json").read_text())
    names = [row["name"] for row in results["rows"]]
    assert names == ["Human alone, no round limit", "Human alone", "Base", "Base-4", "Base-8",
                     "Base stopped at 0.32 bits", "SFT-4", "SFT-8", "SFT-RAND", "Empower (0.32)",
                     "Empower (4)", "Base, knows the goal"]
    assert [(claim["baseline"], claim["metric"]) for claim in results["claims"]] == [
        (baseline, metric) for baseline in [*names[1:9], "Empower (4)"]
        for metric in ("pass@1", "accept_ratio", "dpr")]
    rows = {row["name"]: row for row in results["rows"]}
    for claim in results["claims"]:
        ours, theirs = (rows[name][claim["metric"]]
                        for name in ("Empower (0.32)", claim["baseline"]))
        assert claim["difference"] == (None if None in (ours, theirs) else
                                       pytest.approx(ours - theirs))
    assert "Against the paper's baselines, " in stdout
    for name in names:
        assert f"| {name} " in stdout
        transcript = out / "transcripts" / f"{slug(name)}.txt"
        assert transcript.read_text().startswith("# Read ")
    assert "parameters" in stdout and "seed 0, device cpu" in stdout


def test_the_table_is_computed_from_the_episodes(finished):
    out, _ = finished
    results = json.loads((out / "results.json").read_text())
    [folder] = (out / "stages").glob("row-base-4-??????????")
    episodes = list(map(Episode.from_dict, json.loads((folder / "value.json").read_text())))
    row = summarize("Base-4", episodes, Config(**results["config"]))
    assert row == next(row for row in results["rows"] if row["name"] == "Base-4")
    assert row["tokens_read"] == np.mean([e.tokens_read for e in episodes])
    assert max(len(t.suggestion) for e in episodes for t in e.turns) <= 4
    assert max(len(t.typed) for e in episodes for t in e.turns) <= 4


def test_the_same_seed_gives_the_same_results(finished, tmp_path):
    torch.manual_seed(123)  # of nothing that a run uses
    status, stdout, _ = in_process("--out", tmp_path / "again", *TINY)
    assert status == 0 and ": reused" not in stdout
    assert stable(tmp_path / "again") == stable(finished[0])


def test_a_finished_stage_is_reused_and_another_eta_trains_one_assistant(finished):
    out, _ = finished
    before = stable(out)
    status, stdout, _ = in_process("--out", out, *TINY)
    assert status == 0 and made(stdout) == [] and stable(out) == before
    status, stdout, _ = in_process("--out", out, "--eta", "7", *TINY)
    assert made(stdout) == ["Empower (7)", "stopping of Empower (7)",
                            "row Base stopped at 7 bits", "row Empower (7)",
                            "row Base stopped at 7 bits, reads 0.65", "row Empower (7), reads 0.65"]


def spoil_version(out):
    (out / "version").write_text("0\n")


def spoil_checkpoint(out):
    [path] = (out / "stages").glob("base-*/model.safetensors")
    path.write_bytes(path.read_bytes()[:1000])


def spoil_episodes(out):
    [path] = (out / "stages").glob("row-sft-4-??????????/value.json")
    path.write_text(path.read_text()[:100])


@pytest.mark.parametrize("spoil, message", [
    (spoil_version, "version 0"), (spoil_checkpoint, "truncated"), (spoil_episodes, "row-sft-4")])
def test_a_damaged_output_folder_is_one_sentence_and_nothing_is_lost(
        finished, tmp_path, spoil, message):
    out = tmp_path / "out"
    subprocess.run(["cp", "-r", finished[0], out], check=True)
    spoil(out)
    files = sorted(path for path in out.rglob("*"))
    status, _, error = in_process("--out", out, *TINY)
    assert status == 2 and message in error and "remove" in error and error.count("\n") == 1
    assert files == sorted(path for path in out.rglob("*"))


def test_ctrl_c_loses_only_one_stage(finished, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    interrupt(monkeypatch, torch.Tensor, "backward", 0)
    status, _, stderr = in_process("--out", out, "--eta", "9", *TINY)
    assert status == 130 and "interrupted" in stderr and not list(out.rglob("*.tmp"))
    monkeypatch.undo()
    status, stdout, _ = in_process("--out", out, "--eta", "9", *TINY)
    assert status == 0 and made(stdout) == [
        "Empower (9)", "stopping of Empower (9)", "row Base stopped at 9 bits", "row Empower (9)",
        "row Base stopped at 9 bits, reads 0.65", "row Empower (9), reads 0.65"]


def test_an_assistant_is_trained_on_prefix_completion_and_stop():
    program = [5, 6, 7, 8], np.array([0.25, 0.0625, 4.0, 0.0]), True
    found = empower.choose_completions([program] * 60, empower.empower(0.32),
                                       np.random.default_rng(0), None)
    assert {(*map(tuple, pair), stop) for *pair, stop in found} == {
        ((), (5, 6), True), ((5,), (6,), True), ((5, 6), (), True), ((5, 6, 7), (8,), True)}
    start, stop = tokenizer().start, tokenizer().stop
    assert sft_example(tokenizer(), [5], [6]) == ([start, 5, 6, stop], 2)
    assert sft_example(tokenizer(), [5], [6], stop=False) == ([start, 5, 6], 2)


def test_a_completion_cut_at_the_end_of_a_piece_does_not_learn_to_stop_there():
    for ends in (False, True):  # whether the program ends with the piece
        piece = [5, 6, 7], np.array([4.0, 0.0, 0.0]), ends
        found = empower.choose_completions([piece] * 40, empower.empower(1),
                                           np.random.default_rng(0), None)
        assert {(tuple(completion), stop) for _, completion, stop in found} == {
            ((), True), ((6, 7), ends), ((7,), ends)}


def test_the_scorer_does_not_see_the_statement_and_the_human_does(monkeypatch, tmp_path):
    prompts, scored = [], []
    monkeypatch.setattr(empower, "sample", lambda model, cache, texts, *rest, **options: (
        prompts.extend(texts) or [[5, 6]] * len(texts), [True, False] * (len(texts) // 2)))
    monkeypatch.setattr(empower, "score", lambda model, programs, end: (
        scored.append((model, programs)) or [np.arange(len(program)) for program in programs]))
    base, problems = tiny_base(tmp_path), small_contest().learn
    hers = tiny_gpt(vocab_size=tokenizer().n_vocab)
    written = empower.write_programs(Config(), base, hers, problems)
    statements = [tokenizer().encode_ordinary(problem.statement) for problem in problems]
    program = tokenizer().encode_ordinary(tokenizer().decode([5, 6]))
    assert [prompt[1:] for prompt in prompts] == statements
    assert scored == [(base.model, [program] * len(statements)),
                      (hers, [statement + program for statement in statements])]
    assert [row["ended"] for row in written] == [True, False] * (len(problems) // 2)
    assert written[0]["nll"] == [0, 1]  # and hers: of the program alone, not of the statement
    assert written[0]["her_nll"] == [len(statements[0]), len(statements[0]) + 1]


def test_help_explains_every_setting():
    status, text, _ = in_process("--help")
    for field in dataclasses.fields(Config):
        words = field.metadata["help"].split()
        assert status == 0 and words and "".join(words) in "".join(text.split())


def test_constants_follow_from_the_length_of_a_program():
    """K_H x rounds is 1.25 programs, gamma discounts a whole program as in the paper."""
    cfg, rng = Config(), random.Random(0)
    programs = [write_program(p.parts, draw_style(rng)) for p in small_contest().learn]
    length = np.mean([len(tokenizer().encode_ordinary(program)) for program in programs])
    assert Config(turn_tokens=1).turn_tokens == 1  # the game of Section 3
    assert cfg.turn_tokens * cfg.rounds == pytest.approx(1.25 * length, rel=0.05)
    assert cfg.gamma == pytest.approx(0.999 ** (400 / length), abs=2e-4)


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--tiny"]):
        sys.exit("python test_empower.py prints benchmarks, with --tiny small ones; the tests are "
                 "run by pytest")
    from fixtures import benchmarks
    benchmarks.main(tiny="--tiny" in sys.argv)
