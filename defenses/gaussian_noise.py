"""Gaussian noise in training: what randomized smoothing needs of its base classifier."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Defense, register_defense
from models.architecture import Architecture
from models.base import Batch
from models.randomness import Randomness
from models.recipe import Recipe


@register_defense("gaussian-noise")
@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Defense):
    """Trains on images under Gaussian noise of deviation `sigma`, fresh in every epoch.

    min_theta E[L(f(x + n), y)], n ~ N(0, sigma^2 I), not clipped to the box: the noise under which
    smoothing will ask the network.
    Source: Cohen, Rosenfeld, Kolter 2019, 1902.02918, section 3.3.
    """

    paper = "Cohen, Rosenfeld, Kolter 2019, 1902.02918"

    sigma: float = 0.5
    epochs: int = 20

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        noise = randomness.child("noise").normal(batch.index, batch.x.shape[1:]).to(batch.x)
        return functional.cross_entropy(network(batch.x + self.sigma * noise), batch.y)

    def recipe(self, architecture: Architecture) -> Recipe:
        return Recipe(epochs=self.epochs, batch_size=128, learning_rate=1e-3)
