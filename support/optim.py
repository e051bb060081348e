"""The optimizers: Muon for the weight matrices of our own models, AdamW for everything else."""

import torch


def muon_and_adamw(model, lr):
    """For pre-training here: Muon for weight matrices, AdamW at lr / 10 for the rest.

    This needs a third of the tokens that AdamW alone needs.
    """
    inner = {name: name.startswith("layers.") and p.dim() == 2
             for name, p in model.named_parameters()}
    matrices, others = ([p for name, p in model.named_parameters() if inner[name] == wanted]
                        for wanted in (True, False))
    return [Muon(matrices, lr=lr), _adamw(others, lr / 10)]


def adamw(model, lr):
    """For fine-tuning: it erases less of what a model knows than Muon (figures/make.py tune)."""
    return [_adamw(model.parameters(), lr)]


def _adamw(parameters, lr):
    trained = [p for p in parameters if p.requires_grad]
    # On a GPU the default takes 4 more bytes for each parameter during a step.
    fused = any(p.device.type == "cuda" for p in trained) or None
    return torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal for each weight matrix (K. Jordan, 2024).

    The same update as torch.optim.Muon, which computes in bfloat16 and is therefore slow on a CPU
    without instructions for it (`python test_empower.py` prints the ratio). This one computes in
    float32, and handles matrices of the same shape together.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for weight in group["params"]:
                shapes.setdefault(weight.shape, []).append(weight)
            for (rows, columns), weights in shapes.items():
                scale = group["lr"] * max(1, rows / columns) ** 0.5
                n = max(1, 2**24 // (rows * columns))  # how many at once: a stack is an extra copy
                for k in range(0, len(weights), n):
                    chunk = weights[k:k + n]
                    stack = torch.stack([self._momentum(w, group["momentum"]) for w in chunk])
                    for weight, update in zip(chunk, orthogonalize(stack)):
                        weight.sub_(update, alpha=scale)

    def _momentum(self, weight, momentum):
        buffer = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
        buffer.lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(buffer, momentum)  # Nesterov's look-ahead


def orthogonalize(x, steps=5):
    """Brings the singular values of x (n, rows, columns) near 1: quintic Newton-Schulz iteration.

    The coefficients are Jordan's: five steps take any singular value above 0.01 to about 0.7..1.2.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonalize(x.mT, steps).mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return x
