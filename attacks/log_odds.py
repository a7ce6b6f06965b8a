"""Ascent on the log odds of a chosen class against the label."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.pgd import climb_from_clean
from attacks.targets import LEAST_LIKELY, check_target
from models.base import Batch
from models.randomness import Randomness
from models.threat import ThreatModel


@register_attack("log-odds")
@dataclass(frozen=True, kw_only=True)
class LogOdds(Attack):
    """Steepest ascent on ln p_target - ln p_y, towards a class that is chosen beforehand.

    The softmax cancels: the objective is z_target - z_y, and its gradient never saturates. `target` is
    "least-likely" or the number of a class, which must not be the label of a sample. A sample leaves
    when it is classified as its target; success is judged as misclassification, so whether the target
    was reached is read off the logits at x_adv. `relative_step` is in units of eps.
    Source: Karpathy 2015, "Breaking Linear Classifiers on ImageNet"; Illinois ECE 417, lecture 22.
    """

    paper = "Karpathy 2015, Breaking Linear Classifiers on ImageNet"
    norms = ("linf", "l2", "l1")

    target: str = LEAST_LIKELY
    steps: int = 40
    relative_step: float = 0.1

    def __post_init__(self) -> None:
        check_target(self.target, "log-odds", LEAST_LIKELY)

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        return climb_from_clean(
            model,
            batch,
            threat,
            loss="log-odds",
            steps=self.steps,
            step_size=self.relative_step * threat.radius,
            target=self.target,
        )
