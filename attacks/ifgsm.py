"""Iterated FGSM (the basic iterative method): small steps from the clean input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.losses import check_loss
from attacks.pgd import climb_from_clean
from attacks.targets import LEAST_LIKELY, NONE, check_target
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel


@register_attack("ifgsm")
@dataclass(frozen=True, kw_only=True)
class IteratedFGSM(Attack):
    """Many small FGSM steps from the clean input, each clipped to the ball.

    x_{t+1} = Clip_{x,eps}(x_t + a sign(grad J(x_t, y))), x_0 = x, for linf.
    `relative_step` is a in units of eps. A sample leaves at its first misclassification.
    With a `target` ("least-likely" or a class number) steps descend J(x_t, target) and a sample leaves
    when it is classified as that; success is judged as misclassification all the same.
    Source: Kurakin, Goodfellow, Bengio 2017, 1607.02533, sections 2.2 and 2.3.
    """

    paper = "Kurakin, Goodfellow, Bengio 2017, 1607.02533"
    norms = ("linf", "l2", "l1")

    steps: int = 10
    relative_step: float = 0.2
    loss: str = "ce"
    target: str = NONE

    def __post_init__(self) -> None:
        check_loss(self.loss, "ifgsm")
        check_target(self.target, "ifgsm", NONE, LEAST_LIKELY)
        if self.steps < 1:
            raise UserError(f"ifgsm needs steps >= 1, not {self.steps}")

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        return climb_from_clean(
            model,
            batch,
            threat,
            loss=self.loss,
            steps=self.steps,
            step_size=self.relative_step * threat.radius,
            target=self.target,
        )
