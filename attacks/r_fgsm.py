"""FGSM after a random step, which leaves the flat spot that FGSM training makes around each image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.losses import LOSSES, against, check_loss
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel


@register_attack("r-fgsm")
@dataclass(frozen=True, kw_only=True)
class RandomFGSM(Attack):
    """A random step of length a, then an FGSM step of length eps - a.

    x* = x' + (eps - a) sign(grad J(x', y)), x' = x + a sign(N(0, I)), both clipped to the box; linf only.
    `relative_start` is a in units of eps. On a network whose gradient is masked at the image itself,
    as FGSM training leaves it, one such step breaks more than FGSM at the same eps and cost.
    Source: Tramer et al. 2018, 1705.07204, eq. 7.
    """

    paper = "Tramer et al. 2018, 1705.07204"
    norms = ("linf",)

    relative_start: float = 0.5
    loss: str = "ce"

    def __post_init__(self) -> None:
        if not 0 <= self.relative_start <= 1:
            raise UserError(f"r-fgsm needs a relative_start from 0 to 1, not {self.relative_start}")
        check_loss(self.loss, "r-fgsm")

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        x, rows = batch.x, torch.arange(len(batch), device=batch.x.device)
        first = self.relative_start * threat.radius
        start = threat.project(x, x + first * randomness.sign(batch.index, x.shape[1:]).to(x))
        _, _, gradient = model.gradient(start, rows, against(LOSSES[self.loss], batch.y))
        return threat.project(x, start + (threat.radius - first) * gradient.sign())
