"""Transfer: points found on one model, tried on another."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from attacks.access import GradientAccess, ScoreAccess
from attacks.base import Attack, register_attack
from attacks.pgd import PGD
from models.base import Batch, Classifier, frozen
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel


def determined() -> PGD:
    """PGD on the margin that takes all its steps.

    A point just behind the source's boundary seldom transfers: from fc500-150-10 to conv-small at linf 0.2,
    3 % with early stopping and 50 % without. The margin orders iterates by success on the source,
    which cross-entropy with many classes does not; their rates are equal within noise.
    """
    return PGD(steps=10, restarts=1, relative_step=0.2, loss="margin", early_stop=False)


@register_attack("transfer")
@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """Runs the white-box `attack` on `source` and hands its points to the target, which is never asked.

    Where the source is not fooled its best attempt is handed over. Raises UserError where source and
    target differ in their classes or their box, or where `attack` is no plain white-box attack.
    Source: Papernot et al. 2016, 1605.07277; Liu, Chen, Liu, Song 2017, 1611.02770, section 3 (single model).
    """

    paper = "Liu, Chen, Liu, Song 2017, 1611.02770"
    norms = ("linf", "l2", "l1")
    access = "scores"
    models = ("source",)

    source: Classifier
    attack: Attack = field(default_factory=determined)

    def __post_init__(self) -> None:
        if self.attack.access != "gradients" or self.attack.fitted:
            raise UserError(f"transfer needs a white-box attack without fitting, not '{self.attack.name}'")

    def propose(
        self, model: ScoreAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        if (self.source.num_classes, self.source.box) != (model.num_classes, model.box):
            raise UserError(f"source '{self.source.name}' and target differ in classes or box")
        if threat.norm not in self.attack.norms:
            raise UserError(f"attack '{self.attack.name}' has no norm '{threat.norm}'")
        with frozen(self.source):
            view = GradientAccess(self.source, len(batch))
            return self.attack.propose(view, batch, threat, randomness.child("source"), None)
