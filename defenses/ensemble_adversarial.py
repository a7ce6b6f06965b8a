"""Ensemble adversarial training: examples from other networks, which the trained one cannot disarm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.losses import cross_entropy
from attacks.steps import ascend
from defenses.base import Defense, check_radius, check_share, register_defense
from defenses.static import misfit, need_weights, static_network
from models.architecture import Architecture
from models.base import Batch, frozen
from models.errors import UserError
from models.naming import read_names
from models.randomness import Randomness
from models.recipe import Recipe
from models.threat import ThreatModel


@register_defense("ensemble-adversarial")
@dataclass(frozen=True, kw_only=True)
class EnsembleAdversarial(Defense):
    """Trains on clean images and on single-step examples of other, trained networks and of its own in turn.

    min_theta alpha L(f(x), y) + (1 - alpha) L(f(x + eps sign grad_x L(g(x), y')), y), y' what g predicts at x
    and g drawn anew for each batch, uniformly from the static `sources` and f itself. Static examples cannot
    be disarmed by bending f's own gradient, the shortcut of single-step training; the gain is in transferred
    examples, of networks that are not among the sources, and white-box attacks may gain nothing.
    `sources` are zoo names joined by "&", each trained already on the same data: two at least.
    Raises UserError for fewer sources, unknown ones, or (when training begins) ones without weights.
    Source: Tramer, Kurakin, Papernot, Goodfellow, Boneh, McDaniel 2018, 1705.07204, section 3.4.
    """

    paper = "Tramer et al. 2018, 1705.07204"

    eps: float = 0.3
    alpha: float = 0.5
    sources: str = "fc500-150-10&resnet-small"
    epochs: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_radius(self.name, self.eps)
        check_share(self.name, alpha=self.alpha)
        if len(read_names(self.sources)) < 2:
            raise UserError(
                f"{self.name} needs two trained networks or more as sources, not '{self.sources}': "
                "give zoo names joined by &"
            )

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        source = self.source(network, batch, randomness)
        with frozen(source):
            predicted = source(batch.x).argmax(1)
            x_adv = ascend(
                lambda x: cross_entropy(source(x), predicted),
                batch.x,
                batch.x,
                ThreatModel("linf", self.eps),
                steps=1,
                step_size=self.eps,
            )
        clean, adversarial = (functional.cross_entropy(network(x), batch.y) for x in (batch.x, x_adv))
        return self.alpha * clean + (1 - self.alpha) * adversarial

    def source(self, network: nn.Module, batch: Batch, randomness: Randomness) -> nn.Module:
        """The network whose examples this batch brings: one of the static ones, or `network` itself."""
        names = read_names(self.sources)
        generator = randomness.child("source", int(batch.index[0])).generator()
        drawn = int(torch.randint(len(names) + 1, (), generator=generator))
        return network if drawn == len(names) else static_network(names[drawn], batch.x.device)

    def recipe(self, architecture: Architecture) -> Recipe:
        need_weights(self.name, read_names(self.sources))
        return Recipe(epochs=self.epochs, batch_size=128, learning_rate=1e-3)

    def refuses(self, architecture: Architecture) -> str | None:
        reasons = (misfit(name, architecture) for name in read_names(self.sources))
        return next((reason for reason in reasons if reason), None)
