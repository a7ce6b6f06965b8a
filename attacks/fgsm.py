"""The fast gradient sign method and its members in other norms: one step of length eps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.losses import LOSSES, check_loss
from models.base import Batch
from models.randomness import Randomness
from models.threat import ThreatModel


@register_attack("fgsm")
@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step of length eps along the loss's steepest direction.

    x' = clip(x + eps steepest(grad_x J(x, y))): the sign for linf, g/||g||_2 for l2, one entry for l1.
    On a linear model it is the exact maximiser over the ball.
    Source: Goodfellow, Shlens, Szegedy 2015, 1412.6572, section 4.
    """

    paper = "Goodfellow, Shlens, Szegedy 2015, 1412.6572"
    norms = ("linf", "l2", "l1")

    loss: str = "ce"

    def __post_init__(self) -> None:
        check_loss(self.loss, "fgsm")

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        rows = torch.arange(len(batch), device=batch.x.device)
        objective = LOSSES[self.loss]
        _, _, gradient = model.gradient(batch.x, rows, lambda logits: objective(logits, batch.y))
        return threat.project(batch.x, batch.x + threat.radius * threat.steepest(gradient))
