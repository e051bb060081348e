"""Tests of low-rank updates and of the estimate of memory."""

import copy
import json

import pytest
import torch

from empower import sft_loss
from realcode.pretrained import PublishedConfig, new_model
from support.files import read_safetensors
from realcode.lora import ALPHA, LowRank, add_lora, merge_lora, projections, save_adapter
from realcode.memory import activation_bytes, available_bytes, parameter_counts, training_bytes
from realcode.training import recomputing
from support.test_helpers import tiny_gpt

IDS = torch.arange(40).reshape(2, 20) % 23


def updated(model, rank=3):
    """The model with LoRA whose updates are no longer 0."""
    generator = torch.Generator().manual_seed(0)
    add_lora(model, rank, generator)
    for _, _, layer in projections(model):
        layer.B.data = torch.randn(layer.B.shape, generator=generator) * 0.1
    return model


@torch.no_grad()
def test_an_update_by_hand():
    linear = torch.nn.Linear(2, 1, bias=False)
    linear.weight.data = torch.tensor([[1.0, 2.0]])
    layer = LowRank(linear, 1, torch.Generator())
    layer.A.data, layer.B.data = torch.tensor([[3.0, 0.0]]), torch.tensor([[5.0]])
    # W x = 1 + 2 = 3; A x = 3, times 5 is 15, times alpha / rank = 2 is 30.
    assert layer(torch.ones(2)).item() == 33


@torch.no_grad()
def test_at_the_start_it_is_the_model_itself():
    model = tiny_gpt()
    before = model(IDS)
    add_lora(model, 4, torch.Generator().manual_seed(0))
    assert torch.equal(model(IDS), before)
    assert len(projections(model)) == 7 * 2


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"architecture": "LlamaForCausalLM",
                                          "attention_bias": True, "mlp_bias": True}])
def test_merged_equals_unmerged(options):
    model = updated(tiny_gpt(**options))
    before = model(IDS)
    names = dict(tiny_gpt(**options).named_parameters()).keys()
    merge_lora(model)
    assert (model(IDS) - before).abs().max() < 1e-5 * before.abs().max()
    assert dict(model.named_parameters()).keys() == names
    assert all(weight.requires_grad for weight in model.parameters())


def test_only_the_updates_are_trained():
    model = updated(tiny_gpt())
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert len(trained) == 2 * 7 * 2
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    labels = IDS.clone()
    sft_loss(model, IDS, labels).backward()
    optimizer.step()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) != (name[-2:] in (".A", ".B")), name


def test_the_gradient_of_an_update_is_that_of_the_merged_weight():
    """dL/dB = alpha / rank dL/dW A^T, and dL/dA = alpha / rank B^T dL/dW."""
    model = updated(tiny_gpt())
    merged = copy.deepcopy(model)
    merge_lora(merged)
    for either in (model, merged):
        sft_loss(either, IDS, IDS.clone()).backward()
    for (_, _, layer), (_, _, linear) in zip(projections(model), projections(merged)):
        gradient = ALPHA * linear.weight.grad
        for ours, theirs in ((layer.B.grad, gradient @ layer.A.T),
                             (layer.A.grad, layer.B.T @ gradient)):
            assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_a_frozen_model_keeps_its_type():
    model = updated(tiny_gpt().bfloat16())
    assert {weight.dtype for name, weight in model.named_parameters()
            if name[-2:] in (".A", ".B")} == {torch.float32}
    assert model(IDS).dtype == torch.bfloat16
    sft_loss(model, IDS, IDS.clone()).backward()
    assert model.layers[0].mlp.up_proj.A.grad.dtype == torch.float32
    merge_lora(model)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_under_autocast_an_update_is_as_narrow_as_its_layer():
    """Queries as wide as their input would keep twice the memory, and differ from values."""
    model = updated(tiny_gpt())
    with torch.autocast("cpu", torch.bfloat16):
        for _, _, layer in projections(model):
            x = torch.randn(1, layer.A.shape[1])
            assert layer(x).dtype == torch.bfloat16


def test_under_autocast_no_copy_of_the_input_is_kept():
    layer, x = LowRank(torch.nn.Linear(5, 3, bias=False), 2, torch.Generator()), torch.ones(4, 5)
    layer.linear.requires_grad_(False).bfloat16()
    x, kept = x.bfloat16().requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t), \
            torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert {t.data_ptr() for t in kept if t.shape == x.shape} == {x.data_ptr()}


def test_the_files_of_an_adapter(tmp_path):
    """As PEFT has them; `fixtures/compare.py lora` loads them with PEFT."""
    model = updated(tiny_gpt())
    save_adapter(model, "/some/base", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, ALPHA * 3)
    assert config["base_model_name_or_path"] == "/some/base"
    weights = read_safetensors(tmp_path / "adapter_model.safetensors")
    assert len(weights) == 2 * 7 * 2
    name = "base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"
    assert torch.equal(weights[name], model.layers[1].self_attn.k_proj.B)


# ------------------------------------------------------------------- memory


def kept_bytes(model, ids):
    """The bytes that autograd keeps for the backward pass, without the weights."""
    found, own = {}, {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes(), tensor  # held: no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(ids)
    return sum(size for size, _ in found.values())


SHAPES = [{}, {"architecture": "LlamaForCausalLM"},
          {"architecture": "Qwen2ForCausalLM", "hidden_size": 256, "intermediate_size": 1024,
           "num_attention_heads": 8, "num_key_value_heads": 8}]


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_estimate_of_activations_is_what_autograd_keeps(shape, rank):
    model = new_model(PublishedConfig(num_hidden_layers=6, **shape))
    if rank:
        add_lora(model, rank, torch.Generator())
    estimate = activation_bytes(model.config, 4 * 200, rank, recompute=False)
    ids = torch.randint(512, (4, 200))
    assert 0.8 < kept_bytes(model, ids) / estimate < 1.0
    one_layer = (estimate - activation_bytes(model.config, 0, rank, False)) / 6
    estimate = activation_bytes(model.config, 4 * 200, rank, recompute=True)
    with recomputing(model):  # in the backward pass, one layer at a time is added
        assert 0.8 < (kept_bytes(model, ids) + one_layer) / estimate < 1.1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parameters_are_counted(shape):
    cfg = PublishedConfig(num_hidden_layers=6, **shape)
    model = new_model(cfg)
    exact = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)
    add_lora(model, 8, torch.Generator())
    updates = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert parameter_counts(cfg, 8) == (exact, updates)


def test_what_saves_memory():
    cfg = PublishedConfig(32000, 1024, 4096, 24, 16, 8, 64)
    full = training_bytes(cfg)
    assert training_bytes(cfg, rank=16, weight_bytes=2) < full
    assert training_bytes(cfg, recompute=True) < training_bytes(cfg, micro_batch=1) < full
    assert training_bytes(cfg, context=512) < full


def test_the_machine_has_memory_and_its_processes_share_it(monkeypatch):
    free = available_bytes("cpu")
    assert 10 ** 7 < free < 10 ** 14
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert available_bytes("cpu") < free / 100
