"""Tests of packed weights."""

import copy

import pytest
import torch
import torch.nn.functional as F

from model import GPT, GPTConfig, KVCache, sample
from support import packed as packing
from support.lora import add_lora
from support.packed import packed

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(),
                                reason="this PyTorch has no oneDNN")


def random_gpt(**fields):
    """A GPT with biases, and with weights that are all different from zero."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=70, hidden_size=48, intermediate_size=80, head_dim=16,
                          num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
                          attention_bias=True, mlp_bias=True, **fields))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model


@pytest.fixture
def products(monkeypatch):
    """The number of rows of each product with packed weights."""
    rows, product = [], packing.product
    monkeypatch.setattr(packing, "product", lambda layer, weight, x: (
        rows.append(x.flatten(0, -2).shape[0]), product(layer, weight, x))[1])
    return rows


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_packed_weights_give_the_same_logits(tied, products):
    model = random_gpt(tie_word_embeddings=tied)
    for rows, length in ((1, 1), (1, 5), (3, 1), (15, 1), (16, 7), (70, 9)):
        ids = torch.randint(70, (rows, length))
        before = model(ids)
        with packed(model):
            torch.testing.assert_close(model(ids), before, atol=1e-4, rtol=1e-4)
        assert products == [rows * length] * (2 * 7 + 1)  # all projections, and the head
        products.clear()
        assert torch.equal(model(ids), before) and not products  # as if nothing had happened


def test_packed_weights_write_the_same_text(products):
    model = random_gpt()
    texts = [[1, 2, 3], [4], list(range(40))]

    def written():
        return sample(model, KVCache(model, 3), texts, 20, [5], temperature=0)

    before = written()
    with packed(model):
        assert written() == before
    assert products


def test_a_model_given_twice_or_packed_inside_is_the_same_afterwards():
    model = random_gpt()
    with packed(model, model):
        with packed(model):
            pass
    assert all("forward" not in vars(module) for module in model.modules())


def test_it_is_unpacked_after_an_error():
    model = random_gpt()
    with pytest.raises(KeyboardInterrupt), packed(model):
        raise KeyboardInterrupt
    assert all("forward" not in vars(module) for module in model.modules())


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
def test_the_frozen_weights_under_lora_are_packed(products):
    model, ids = random_gpt(), torch.randint(70, (2, 6))
    add_lora(model, 4, None)
    before = model(ids)
    with packed(model):
        torch.testing.assert_close(model(ids), before, atol=1e-4, rtol=1e-4)
    assert len(products) == 2 * 7 + 1


@torch.no_grad()
def test_narrow_weights_and_short_memory_leave_a_model_as_it_is(monkeypatch, products):
    model, ids = random_gpt(), torch.randint(70, (2, 6))
    narrow = copy.deepcopy(model).bfloat16()
    with packed(narrow):
        narrow(ids)
    size = sum(layer.weight.nbytes for layer in model.modules()
               if isinstance(layer, torch.nn.Linear))
    for free, count in ((None, 0), (2 * size - 1, 0), (2 * size, 2 * 7 + 1)):
        monkeypatch.setattr(packing, "available_bytes", lambda device: free)
        with packed(model):
            model(ids)
        assert len(products) == count
