"""Rows of bounded l1 norm: a network whose attacks are attenuated layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Defense, register_defense
from models.architecture import Architecture
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.recipe import Recipe


@register_defense("l1-sparse")
@dataclass(frozen=True, kw_only=True)
class L1Sparse(Defense):
    """Keeps the l1 norm of every row of every layer's weights within `gamma`, by projection after each step.

    A layer then amplifies a linf perturbation by gamma at most, and the network by the product (the
    l1-product certificate). A row is what one output unit or channel reads; the projection onto
    the l1 ball also sets weights to zero. Raises UserError for gamma <= 0.
    Source: Gopalakrishnan et al. 2018, 1810.10625v1, theorem 2; the projection of Duchi et al. 2008.
    """

    paper = "Gopalakrishnan, Marzi, Madhow, Pedarsani 2018, 1810.10625v1"

    gamma: float = 6.0
    epochs: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma > 0:
            raise UserError(f"l1-sparse needs gamma > 0, not {self.gamma:g}")

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        return functional.cross_entropy(network(batch.x), batch.y)

    def after_step(self, network: nn.Module) -> None:
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                rows = module.weight.detach().flatten(1)
                module.weight.data.copy_(project_rows(rows, self.gamma).reshape(module.weight.shape))

    def recipe(self, architecture: Architecture) -> Recipe:
        return Recipe(epochs=self.epochs, batch_size=128, learning_rate=1e-3)


def project_rows(rows: Tensor, radius: float) -> Tensor:
    """The nearest point in l2 to each row (n, d) whose l1 norm is at most `radius`.

    Source: Duchi, Shalev-Shwartz, Singer, Chandra 2008, figure 1.
    """
    size = rows.abs()
    ordered = size.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - radius
    counts = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=rows.dtype)
    last = (ordered * counts > excess).sum(1, keepdim=True).clamp(min=1) - 1
    threshold = (excess.gather(1, last) / (last + 1)).clamp(min=0.0)
    shrunk = rows.sign() * (size - threshold).clamp(min=0.0)
    return torch.where(size.sum(1, keepdim=True) <= radius, rows, shrunk)
