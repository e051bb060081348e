"""Tests of packed weights."""

import pytest
import torch
import torch.nn.functional as F

from model import KVCache, sample
from realcode import packed as packing
from realcode.lora import add_lora
from realcode.packed import packed, spread
from realcode.pretrained import PublishedConfig, new_model

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(),
                                reason="this PyTorch has no oneDNN")
LAYERS = 2 * 7 + 1  # all projections, and the head


@pytest.fixture(autouse=True)
def no_model_is_small(monkeypatch):
    monkeypatch.setattr(packing, "SMALL", 0)


def random_gpt(**fields):
    """A GPT with biases, and with weights that are all different from zero."""
    torch.manual_seed(0)
    model = new_model(PublishedConfig(
        vocab_size=70, hidden_size=48, intermediate_size=80, head_dim=16, num_hidden_layers=2,
        num_attention_heads=3, num_key_value_heads=1, attention_bias=True, mlp_bias=True, **fields))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model


@pytest.fixture
def plain(monkeypatch):
    """The layers that have multiplied by their own weights."""
    found, linear = [], F.linear
    monkeypatch.setattr(packing.F, "linear", lambda x, weight, bias: (
        found.append(weight), linear(x, weight, bias))[1])
    return found


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_packed_weights_give_the_same_logits(tied, plain):
    model = random_gpt(tie_word_embeddings=tied)
    for rows, length, used in ((1, 1, False), (1, 3, False), (1, 4, True), (4, 1, True),
                               (15, 1, True), (8, 8, True), (13, 5, False), (70, 9, False)):
        ids = torch.randint(70, (rows, length))
        before = model(ids)
        plain.clear()
        with packed(model):
            torch.testing.assert_close(model(ids), before, atol=1e-4, rtol=1e-4)
        assert len(plain) == (0 if used else LAYERS)
        assert torch.equal(model(ids), before)  # as if nothing had happened


@pytest.mark.parametrize("threads", [1, 2, 3])
@torch.no_grad()
def test_a_single_row_that_threads_share_gives_the_same_logits(threads, plain, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    model = random_gpt()
    for rows, length, left in ((1, 1, threads == 3), (1, 3, True), (4, 1, True)):
        ids = torch.randint(70, (rows, length))
        before = model(ids)
        plain.clear()
        with spread(model):
            torch.testing.assert_close(model(ids), before, atol=1e-4, rtol=1e-4)
        assert bool(plain) == left  # 3 divides 48, but neither 16, 80 nor 70
        assert torch.equal(model(ids), before)
    with torch.enable_grad(), spread(model):  # whoever trains gets the plain product
        model(ids[:1]).sum().backward()
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_packed_weights_write_the_same_text():
    model = random_gpt()
    texts = [[1, 2, 3], [4], list(range(40)), [5, 6]]

    def written():
        return sample(model, KVCache(model, 4), texts, 20, [5], temperature=0)

    before = written()
    with packed(model):
        assert written() == before


def changed(*models):
    """The number of layers that do not use the method of their class."""
    return sum("forward" in vars(module) for model in models for module in model.modules())


def test_a_model_given_twice_or_packed_inside_is_packed_once():
    first, second = random_gpt(), random_gpt()
    with packed(first, first, second):
        with packed(first):
            assert changed(first, second) == 2 * LAYERS
        assert changed(first, second) == 2 * LAYERS
    assert changed(first, second) == 0


@torch.no_grad()
def test_a_weight_that_changes_inside_is_used():
    model, ids = random_gpt(), torch.randint(70, (2, 6))
    with packed(model):
        for weight in model.parameters():
            weight.mul_(1.5)
        inside = model(ids)
    assert torch.equal(inside, model(ids))


def test_it_is_unpacked_after_an_error():
    model = random_gpt()
    with pytest.raises(KeyboardInterrupt), packed(model):
        raise KeyboardInterrupt
    assert changed(model) == 0


def test_gradients_inside_are_those_of_the_weights():
    model = random_gpt()
    ids = torch.randint(70, (2, 6))

    def gradient():
        model.zero_grad()
        F.cross_entropy(model(ids)[0], ids[0]).backward()
        return model.layers[1].mlp.up_proj.weight.grad.clone()

    before = gradient()
    with packed(model):
        assert torch.equal(gradient(), before)


@torch.no_grad()
def test_autocast_inside_is_as_outside():
    model, ids = random_gpt(), torch.randint(70, (2, 6))
    with torch.autocast("cpu", torch.bfloat16):
        before = model(ids)
        with packed(model):
            assert torch.equal(model(ids), before)


@torch.no_grad()
def test_the_frozen_weights_under_lora_are_packed():
    model, ids = random_gpt(), torch.randint(70, (2, 6))
    add_lora(model, 4, None)
    before = model(ids)
    with packed(model):
        assert changed(model) == LAYERS
        torch.testing.assert_close(model(ids), before, atol=1e-4, rtol=1e-4)


def test_a_model_for_which_it_does_not_help_stays_as_it_is(monkeypatch):
    model = random_gpt()
    size = sum(weight.numel() for weight in model.parameters())
    others = random_gpt().bfloat16(), random_gpt().to("meta")
    with packed(*others):
        assert changed(*others) == 0
    for smallest, largest, count in ((size, size, LAYERS), (size + 1, 2 * size, 0),
                                     (0, size - 1, 0)):
        monkeypatch.setattr(packing, "SMALL", smallest)
        monkeypatch.setattr(packing, "LARGE", largest)
        with packed(model):
            assert changed(model) == count
