"""Adversarial training on projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.losses import cross_entropy
from attacks.steps import ascend
from defenses.base import Defense, check_radius, check_share, register_defense
from models.architecture import Architecture
from models.base import Batch, frozen
from models.randomness import Randomness
from models.recipe import Recipe
from models.threat import ThreatModel


@register_defense("adversarial-pgd")
@dataclass(frozen=True, kw_only=True)
class AdversarialPGD(Defense):
    """Trains on PGD examples alone.

    min_theta E[max_{||d||_inf <= eps} L(f(x + d), y)], the inner maximum by PGD from a random start.
    The radius grows linearly from 0 to eps over the first `ramp` of training. The inner
    maximum is found in bfloat16, which is several times faster and only has to be good. `averaged`
    keeps a running mean of the weights, under a learning rate that drops twice.
    """

    paper = "Madry et al. 2018, 1706.06083, eq. 2.1"

    eps: float = 0.3
    steps: int = 8
    step_size: float = 0.08
    ramp: float = 0.3
    epochs: int = 30
    averaged: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_radius(self.name, self.eps)
        check_share(self.name, ramp=self.ramp)

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        scale = min(1.0, progress / self.ramp) if self.ramp else 1.0
        threat = ThreatModel("linf", self.eps * scale)
        start = threat.sample(batch.x, batch.index, randomness)
        with frozen(network), torch.autocast(batch.x.device.type, torch.bfloat16):
            x_adv = ascend(
                lambda x: cross_entropy(network(x).float(), batch.y),
                batch.x,
                start,
                threat,
                steps=self.steps,
                step_size=self.step_size * scale,
            )
        return functional.cross_entropy(network(x_adv), batch.y)

    def recipe(self, architecture: Architecture) -> Recipe:
        plain = Recipe(epochs=self.epochs, batch_size=128, learning_rate=1e-3)
        if not self.averaged:
            return plain
        return plain.model_copy(update={"drops": (0.65, 0.85), "average": 0.999})
