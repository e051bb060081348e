"""Tests of the optimizers."""

import pytest
import torch

from support.optim import Muon, adamw, orthogonalize


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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_adamw_is_fused_on_gpus(device):
    """There it saves memory; on a CPU it would change the last bits of what was published."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    [optimizer] = adamw(torch.nn.Linear(2, 2, device=device), 1e-3)
    assert bool(optimizer.param_groups[0]["fused"]) == (device == "cuda")
