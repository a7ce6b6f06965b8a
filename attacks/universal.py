"""One perturbation for all inputs: DeepFool's steps, accumulated over images inside the norm ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.deepfool import walk
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel

ANYWHERE = Box(-torch.inf, torch.inf)
CHECKS_PER_PASS = 8


@register_attack("universal")
@dataclass(frozen=True, kw_only=True)
class Universal(Attack):
    """One v with ||v||_p <= eps that changes the predicted label of most inputs.

    Seeks P(k(x + v) != k(x)) >= 1 - delta. v is fitted on images that are never scored and is added
    to every input; the sum is projected on ball and box. The steps are DeepFool's in l2 for both
    norms, as published. `chunk` images take their step from one v together; each step is then added
    in turn, unless the v that holds the steps before it already fools the image. chunk=1 is the
    published algorithm. Fitting stops at the fooling rate 1 - delta or after `passes` passes; the
    rate is measured eight times a pass, and the best v seen is kept.
    Source: Moosavi-Dezfooli, Fawzi, Fawzi, Frossard 2017, 1610.08401, algorithm 1 (xi = eps).
    """

    paper = "Moosavi-Dezfooli, Fawzi, Fawzi, Frossard 2017, 1610.08401"
    norms = ("linf", "l2")
    fitted = True
    cost = Cost.MEDIUM

    delta: float = 0.05
    passes: int = 5
    chunk: int = 8
    overshoot: float = 0.02
    steps: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.delta < 1:
            raise UserError(f"universal needs delta in [0, 1), not {self.delta}")

    def fit(self, model: GradientAccess, aside: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        """v (1, ...) with ||v|| <= eps."""
        x, place = aside.x, torch.arange(len(aside))
        y = model.logits(x, None).argmax(1)
        best, fooling = torch.zeros_like(x[:1]), 0.0
        v, due = best, -(-len(aside) // CHECKS_PER_PASS)
        for sweep in range(self.passes):
            order = randomness.child("order", sweep).uniform(place, (1,))[:, 0].argsort().to(x.device)
            unchecked = 0
            for rows in order.split(self.chunk):
                v = self._update(model, v, x[rows], y[rows], threat)
                unchecked += len(rows)
                if unchecked < due:
                    continue
                rate, unchecked = self._fooling(model, v, x, y, threat.box), 0
                if rate > fooling:
                    best, fooling = v, rate
                if fooling >= 1 - self.delta:
                    return best
        return best

    def _fooling(self, model: GradientAccess, v: Tensor, x: Tensor, y: Tensor, box: Box) -> float:
        return float((model.logits(box.clamp(x + v), None).argmax(1) != y).float().mean())

    def _update(self, model: GradientAccess, v: Tensor, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        box, ball = threat.box, ThreatModel(threat.norm, threat.eps, ANYWHERE)
        start = box.clamp(x + v)
        euclidean = ThreatModel("l2", None, box)
        point, found = walk(
            model,
            start,
            y,
            None,
            euclidean,
            steps=self.steps,
            overshoot=self.overshoot,
            classes=10,
            tangent=True,
        )
        moves = point - start
        for i in found.nonzero()[:, 0].tolist():
            if self.chunk > 1 and model.logits(box.clamp(x[i : i + 1] + v), None).argmax(1) != y[i]:
                continue
            v = ball.project(torch.zeros_like(v), v + moves[i : i + 1])
        return v

    def artifacts(self, fitted: Tensor | None) -> dict[str, Tensor]:
        """The perturbation itself, (1, ...)."""
        return {} if fitted is None else {"perturbation": fitted}

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: Tensor
    ) -> Tensor:
        return threat.project(batch.x, batch.x + fitted)
