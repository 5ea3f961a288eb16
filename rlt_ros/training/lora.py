"""Low-rank adapters (arXiv 2106.09685) on a VLA's linear layers: trained beside frozen weights, merged on saving."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Of attention and feed-forward layers, as transformers calls them in Gemma and SigLIP.
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "gate_proj", "up_proj", "down_proj", "fc1", "fc2")


class LowRank(nn.Module):
    """A frozen linear layer W plus B A / rank * scale, which is zero at first.  A [rank, in], B [out, rank]."""

    def __init__(self, base: nn.Linear, rank: int, scale: float):
        super().__init__()
        self.base, self.factor = base.requires_grad_(False), scale / rank
        weight = base.weight
        self.a = nn.Parameter(torch.randn(rank, base.in_features).to(weight) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank).to(weight))

    @property
    def weight(self) -> Tensor:
        """Of the frozen layer: some models ask for its type and place."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.factor * nn.functional.linear(nn.functional.linear(x, self.a), self.b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer that computes the same."""
        self.base.weight += self.factor * (self.b @ self.a)
        return self.base


def add(model: nn.Module, rank: int = 16, scale: float = 16.0) -> list[nn.Parameter]:
    """Freeze `model`, put an adapter on each of LAYERS, and return the adapters' parameters.

    ValueError when it has no such layer.
    """
    model.requires_grad_(False)
    # MultiheadAttention reads its projection's weight itself, past any forward; it has a class of its own.
    found = [name for name, module in model.named_modules()
             if type(module) is nn.Linear and name.rpartition(".")[2] in LAYERS]  # fmt: skip
    if not found:
        raise ValueError(f"{type(model).__name__} has no layers called {', '.join(LAYERS)}; use --tune full")
    parameters = []
    for name in found:
        adapter = LowRank(model.get_submodule(name), rank, scale)
        model.set_submodule(name, adapter)
        parameters += [adapter.a, adapter.b]
    return parameters


def merge(model: nn.Module) -> None:
    """Add all adapters to the weights that they stand beside, and take them away."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LowRank):
            model.set_submodule(name, module.merged())
