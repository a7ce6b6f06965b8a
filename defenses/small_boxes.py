"""Training on interval bounds of small boxes around adversarial points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.losses import cross_entropy
from attacks.steps import ascend
from defenses.base import check_share, register_defense
from defenses.interval import IntervalTraining, linear_rise
from defenses.normalisation import clean_statistics
from models.base import Batch, frozen
from models.randomness import Randomness
from models.threat import ThreatModel


@register_defense("small-boxes")
@dataclass(frozen=True, kw_only=True)
class SmallBoxes(IntervalTraining):
    """Trains on interval bounds of small boxes around adversarial points: robust, yet hardly regularised.

    A box of radius `share` eps is bounded around the point that `steps` projected gradient steps of
    two radii in all find in the ball of radius (1 - share) eps, so that the box stays within the ball
    of eps. Interval bounds on the whole ball then prove little, tighter certificates more than of a
    network trained on the whole ball. Radius and weights follow the schedule of `interval`.
    Source: Mueller et al. 2023, 2210.04871, section 3 and algorithm 1.
    """

    paper = "Mueller et al. 2023, 2210.04871, algorithm 1 (SABR)"

    overshoot: float = 1.05
    share: float = 0.2
    steps: int = 3
    epochs: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.name, share=self.share)

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        rise = linear_rise(progress, self.warm, self.ramp)
        eps = self.eps * self.overshoot * rise
        centre = self.centres(network, batch, (1 - self.share) * eps, randomness)
        with clean_statistics(network, batch.x) as logits:
            lower = self.margins(network, centre, batch.y, self.share * eps)
        return self.weighted(network, batch, lower, rise, logits)

    def centres(self, network: nn.Module, batch: Batch, radius: float, randomness: Randomness) -> Tensor:
        """Adversarial points (n, ...) within `radius` of the images, found in bfloat16."""
        threat = ThreatModel("linf", radius)
        if not threat.radius:
            return batch.x
        start = threat.sample(batch.x, batch.index, randomness)
        with frozen(network), torch.autocast(batch.x.device.type, torch.bfloat16):
            return ascend(
                lambda x: cross_entropy(network(x).float(), batch.y),
                batch.x,
                start,
                threat,
                steps=self.steps,
                step_size=2 * radius / self.steps,
            )
