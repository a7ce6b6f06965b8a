"""The fast gradient method: one step of length eps along the raw gradient, the box taken into account."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.losses import LOSSES, against, check_loss
from models.base import Batch
from models.randomness import Randomness
from models.threat import ThreatModel


@register_attack("fgm")
@dataclass(frozen=True, kw_only=True)
class FGM(Attack):
    """One step to where the linearised loss is greatest over ball and box together.

    x' = argmax g . x' over ||x' - x||_p <= eps, x' in the box, g = grad_x J(x, y). Where no bound is in the
    way this is x + eps g / ||g||_2 for l2 and eps on the largest entry for l1; where one is, what the box
    blocks is spent on the entries that are still free, and `fgsm` with its clip is weaker. For l1 that
    sets the largest entries to their bounds one after the other. In linf the two agree.
    Source: Miyato, Dai, Goodfellow 2017, 1605.07725, eq. 5, there without a box.
    """

    paper = "Miyato, Dai, Goodfellow 2017, 1605.07725"
    norms = ("linf", "l2", "l1")

    loss: str = "ce"

    def __post_init__(self) -> None:
        check_loss(self.loss, "fgm")

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        rows = torch.arange(len(batch), device=batch.x.device)
        _, _, gradient = model.gradient(batch.x, rows, against(LOSSES[self.loss], batch.y))
        return threat.furthest(batch.x, gradient)
