"""The input gradient's norm as a penalty: a smooth decision boundary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Defense, register_defense
from models.architecture import Architecture
from models.base import Batch
from models.randomness import Randomness
from models.recipe import Recipe


@register_defense("gradient-penalty")
@dataclass(frozen=True, kw_only=True)
class GradientPenalty(Defense):
    """Penalises the squared l2 norm of the loss' gradient in the input, by double backpropagation.

    min_theta E[J(x, y) + beta ||grad_x J(x, y)||_2^2], J the cross-entropy of one sample.
    Source: Drucker, LeCun 1992; Ross, Doshi-Velez 2018, 1711.09404, eq. 2.
    """

    paper = "Drucker, LeCun 1992; Ross, Doshi-Velez 2018, 1711.09404"

    beta: float = 10.0
    epochs: int = 15

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        x = batch.x.detach().requires_grad_(True)
        values = functional.cross_entropy(network(x), batch.y, reduction="none")
        (gradient,) = torch.autograd.grad(values.sum(), x, create_graph=True)
        return values.mean() + self.beta * gradient.square().flatten(1).sum(1).mean()

    def recipe(self, architecture: Architecture) -> Recipe:
        return Recipe(epochs=self.epochs, batch_size=128, learning_rate=1e-3)
