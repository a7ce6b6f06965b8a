"""Training on interval bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from certify.graph import trace
from certify.ibp import interval_margins
from defenses.base import Defense, check_radius, check_share, random_layer, register_defense
from defenses.normalisation import add_normalisation, clean_statistics, fold_normalisation
from models.architecture import Architecture
from models.base import Batch
from models.randomness import Randomness
from models.recipe import Recipe
from models.threat import ThreatModel


@register_defense("interval")
@dataclass(frozen=True, kw_only=True)
class IntervalTraining(Defense):
    """Trains on the cheapest certificate: interval bounds on the margins, over a growing ball.

    min_theta k L(f(x), y) + (1 - k) L(-J_eps(x), y), J the interval lower bounds on z_y - z_j with the last
    layer folded into them. k falls from 1 to `clean_weight` and the radius rises from 0 to `overshoot` times
    eps between the first `warm` and the first `ramp` of training, both on a line.
    With `batch_norm` every layer but the last is followed by batch normalisation while it is trained, by the
    clean batch's statistics for the bounds too; afterwards it is folded into the layer.
    With `exponent` q > 0 the certified term is the generalised cross-entropy (1 - p_y^q) / q, which an image
    cannot raise over 1 / q: capacity goes to those that can be certified, not to those that cannot.
    `single_precision` computes in float32 what a network's recipe computes in bfloat16, whose rounding of
    the bounds a long training learns to lean on.
    Source: Gowal et al. 2018, 1810.12715, sections 3 and 4; Shi et al. 2021, 2103.17268 (batch norm);
    Zhang & Sabuncu 2018, 1805.07836, eq. 6 (generalised cross-entropy).
    """

    paper = "Gowal et al. 2018, 1810.12715, eq. 12 (interval bound propagation)"

    eps: float = 0.1
    overshoot: float = 1.1667
    clean_weight: float = 0.0
    warm: float = 0.02
    ramp: float = 0.5
    epochs: int = 60
    batch_norm: bool = False
    exponent: float = 0.0
    single_precision: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_radius(self.name, self.eps, self.overshoot)
        check_share(self.name, clean_weight=self.clean_weight, warm=self.warm, ramp=self.ramp)
        check_share(self.name, exponent=self.exponent)

    def before_training(self, network: nn.Module) -> None:
        if self.batch_norm:
            add_normalisation(network)

    def after_training(self, network: nn.Module) -> None:
        if self.batch_norm:
            fold_normalisation(network)

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        rise = linear_rise(progress, self.warm, self.ramp)
        with clean_statistics(network, batch.x) as logits:
            lower = self.margins(network, batch.x, batch.y, self.eps * self.overshoot * rise)
        return self.weighted(network, batch, lower, rise, logits)

    def margins(self, network: nn.Module, x: Tensor, y: Tensor, radius: float) -> Tensor:
        """Interval lower bounds (n, classes) on z_y - z_j over the balls of `radius` around x (n, ...)."""
        return interval_margins(trace(network, like=x), x, y, ThreatModel("linf", radius))

    def weighted(
        self, network: nn.Module, batch: Batch, lower: Tensor, rise: float, logits: Tensor | None = None
    ) -> Tensor:
        """k L(f(x), y) + (1 - k) L(-lower, y), k on its way from 1 to `clean_weight` as `rise` goes to 1.

        Asks `network` for the clean logits (n, classes) where they are not given.
        """
        certified = generalised_cross_entropy(-lower, batch.y, self.exponent)
        weight = 1 - (1 - self.clean_weight) * rise
        if not weight:
            return certified
        logits = network(batch.x) if logits is None else logits
        return weight * functional.cross_entropy(logits, batch.y) + (1 - weight) * certified

    def refuses(self, architecture: Architecture) -> str | None:
        has = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in architecture.build().modules())
        if self.batch_norm and has:
            return "it has batch normalisation of its own: leave batch_norm out"
        return random_layer(architecture)

    def recipe(self, architecture: Architecture) -> Recipe:
        return Recipe(
            epochs=self.epochs,
            batch_size=100,
            learning_rate=1e-3,
            drops=(0.65, 0.85),
            average=0.999,
            precision="float32" if self.single_precision else architecture.recipe.precision,
        )


def generalised_cross_entropy(logits: Tensor, y: Tensor, exponent: float) -> Tensor:
    """The mean of (1 - p_y^q) / q over logits (n, classes), q the `exponent`; at 0 the cross-entropy."""
    if not exponent:
        return functional.cross_entropy(logits, y)
    losses = functional.cross_entropy(logits, y, reduction="none")
    return (-torch.expm1(-exponent * losses) / exponent).mean()


def linear_rise(progress: float, start: float, end: float) -> float:
    """0 until `start`, 1 from `end`, a line between."""
    return min(1.0, max(0.0, (progress - start) / (end - start))) if end > start else float(progress >= end)
