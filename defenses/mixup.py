"""mixup: straight lines between images, with labels to match."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Defense, register_defense
from models.base import Batch
from models.randomness import Randomness


@register_defense("mixup")
@dataclass(frozen=True, kw_only=True)
class Mixup(Defense):
    """Trains on convex combinations of two images and of their labels.

    x = l x_i + (1 - l) x_j and the loss l L(f(x), y_i) + (1 - l) L(f(x), y_j), l ~ Beta(alpha, alpha) once a
    batch and j a permutation of it. alpha = 0 is ordinary training. It was said to help against single
    steps; against iterated attacks expect close to nothing.
    Source: Zhang, Cisse, Dauphin, Lopez-Paz 2018, 1710.09412, eq. 1.
    """

    paper = "Zhang, Cisse, Dauphin, Lopez-Paz 2018, 1710.09412"

    alpha: float = 1.0

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        generator = randomness.child("mixup", int(batch.index[0])).generator()
        share = self.share(generator)
        other = torch.randperm(len(batch), generator=generator).to(batch.y.device)
        logits = network(share * batch.x + (1 - share) * batch.x[other])
        first, second = (functional.cross_entropy(logits, y) for y in (batch.y, batch.y[other]))
        return share * first + (1 - share) * second

    def share(self, generator: torch.Generator) -> float:
        """One draw of l: the ratio of two gamma variables."""
        if not self.alpha:
            return 1.0
        both = torch._standard_gamma(torch.full((2,), self.alpha, dtype=torch.float64), generator=generator)
        return float(both[0] / both.sum())
