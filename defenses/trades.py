"""TRADES: accuracy on clean images, and predictions that do not change within the ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.steps import ascend
from defenses.base import Defense, check_radius, check_share, register_defense
from models.architecture import Architecture
from models.base import Batch, frozen
from models.randomness import Randomness
from models.recipe import Recipe
from models.threat import ThreatModel

START = 0.001


@register_defense("trades")
@dataclass(frozen=True, kw_only=True)
class Trades(Defense):
    """Trades clean accuracy against the divergence of predictions within the ball.

    min_theta E[L(f(x), y) + beta max_{||d||_inf <= eps} KL(f(x) || f(x + d))]; the maximum is sought by
    projected ascent from a Gaussian of deviation 0.001 around x, which never needs the label. The radius
    grows linearly from 0 to eps over the first `ramp` of training.
    Source: Zhang et al. 2019, 1901.08573, eq. 5 and algorithm 1 (beta is their 1/lambda).
    """

    paper = "Zhang et al. 2019, 1901.08573"

    eps: float = 0.3
    beta: float = 6.0
    steps: int = 8
    step_size: float = 0.08
    ramp: float = 0.3
    epochs: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_radius(self.name, self.eps)
        check_share(self.name, ramp=self.ramp)

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        scale = min(1.0, progress / self.ramp) if self.ramp else 1.0
        threat = ThreatModel("linf", self.eps * scale)
        noise = START * randomness.normal(batch.index, batch.x.shape[1:]).to(batch.x)
        with frozen(network):
            clean = functional.log_softmax(network(batch.x), 1).detach()
            x_adv = ascend(
                lambda x: divergence(clean, functional.log_softmax(network(x), 1)),
                batch.x,
                threat.project(batch.x, batch.x + noise),
                threat,
                steps=self.steps,
                step_size=self.step_size * scale,
            )
        logits = network(torch.cat([batch.x, x_adv]))
        own, moved = functional.log_softmax(logits, 1).chunk(2)
        return functional.nll_loss(own, batch.y) + self.beta * divergence(own, moved).mean()

    def recipe(self, architecture: Architecture) -> Recipe:
        return Recipe(epochs=self.epochs, batch_size=128, learning_rate=1e-3)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of each sample (n,), from log probabilities (n, classes)."""
    return (p.exp() * (p - q)).sum(1)
