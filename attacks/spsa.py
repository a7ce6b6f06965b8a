"""SPSA: Adam on gradients that are estimated from scores along random signs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import ScoreAccess
from attacks.base import Attack, register_attack
from attacks.nes import Estimator, check_estimate, climb
from models.base import Batch
from models.cost import Cost
from models.randomness import Randomness
from models.threat import ThreatModel

FIRST, SECOND = 0.9, 0.999


@register_attack("spsa")
@dataclass(frozen=True, kw_only=True)
class SPSA(Attack):
    """Runs Adam on a gradient estimated from scores alone along random signs.

    All entries move at once, each by `width` box widths up or down, and back (`samples` queries a step,
    half of them mirror images, and one for the point itself; at most `queries` a sample). Adam (0.9, 0.999)
    steps a m / sqrt(v), a = `relative_step` eps (the paper: 0.01 in pixels of [0, 1]), and the ball is
    projected on. In l2, which the paper does not have, a step of length a follows m: divided entry by
    entry it would turn towards the gradient's sign. Sorted, the counts of forward passes are the curve of
    accuracy against queries.
    Source: Uesato, O'Donoghue, van den Oord, Kohli 2018, 1802.05666, section 3.3 and algorithm 1.
    """

    paper = "Uesato et al. 2018, 1802.05666"
    norms = ("linf", "l2")
    access = "scores"
    cost = Cost.EXPENSIVE

    queries: int = 5000
    samples: int = 128
    width: float = 0.01
    relative_step: float = 0.1
    loss: str = "margin"

    def __post_init__(self) -> None:
        check_estimate(self.name, self.queries, self.samples, self.width, self.loss)

    def propose(
        self, model: ScoreAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        def rule(estimate: Tensor, state: Tensor, step: int) -> tuple[Tensor, Tensor]:
            mean = FIRST * state[0] + (1 - FIRST) * estimate
            square = SECOND * state[1] + (1 - SECOND) * estimate.square()
            if threat.norm == "l2":
                direction = threat.steepest(mean)
            else:
                spread = (square / (1 - SECOND**step)).sqrt().clamp(min=1e-30)
                direction = mean / (1 - FIRST**step) / spread
            return self.relative_step * threat.radius * direction, torch.stack([mean, square])

        estimator = Estimator(Randomness.sign, self.loss, self.samples // 2, self.width * threat.box.width)
        return climb(model, batch, threat, randomness, estimator, rule, queries=self.queries)
