"""No defence: ordinary training on the cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Defense, register_defense
from models.base import Batch
from models.randomness import Randomness


@register_defense("none")
@dataclass(frozen=True, kw_only=True)
class NoDefense(Defense):
    """Ordinary training: min_theta E[-ln softmax(f(x))_y]."""

    paper = "-"

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        return functional.cross_entropy(network(batch.x), batch.y)
