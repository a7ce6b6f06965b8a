"""Momentum iterated FGSM: steps along a decayed sum of gradients, which transfer better."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.directions import PLAIN, Direction
from attacks.losses import check_loss
from attacks.pgd import climb_from_clean
from attacks.targets import LEAST_LIKELY, NONE, check_target
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel


@register_attack("momentum")
@dataclass(frozen=True, kw_only=True)
class Momentum(Attack):
    """Iterated FGSM along a decayed sum of the gradients, each divided by its l1 norm.

    g_{t+1} = decay g_t + grad J(x_t, y) / ||grad J(x_t, y)||_1,  x_{t+1} = Clip(x_t + a sign(g_{t+1})) for
    linf, a g / ||g||_2 for l2, with a = eps / steps as published. `decay` = 0 gives iterated FGSM. A sample
    leaves at its first misclassification, unless `early_stop` is off: for points that are to transfer
    to another model. With a `target` ("least-likely" or a class number) steps descend J(x_t, target)
    and a sample leaves when it is classified as that; success is judged as misclassification all the same.
    Source: Dong et al. 2018, 1710.06081, algorithm 1 and eq. 9.
    """

    paper = "Dong et al. 2018, 1710.06081"
    norms = ("linf", "l2")

    steps: int = 10
    decay: float = 1.0
    loss: str = "ce"
    early_stop: bool = True
    target: str = NONE

    def __post_init__(self) -> None:
        check_loss(self.loss, self.name)
        check_target(self.target, self.name, NONE, LEAST_LIKELY)
        if self.decay < 0 or self.steps < 1:
            raise UserError(f"{self.name} needs decay >= 0 and steps >= 1, not {self.decay} and {self.steps}")

    def direction(self, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Direction:
        """What takes the place of the gradient at the iterate, in one run."""
        return PLAIN

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        return climb_from_clean(
            model,
            batch,
            threat,
            loss=self.loss,
            steps=self.steps,
            step_size=threat.radius / self.steps,
            target=self.target,
            early_stop=self.early_stop,
            decay=self.decay,
            direction=self.direction(batch, threat, randomness),
        )
