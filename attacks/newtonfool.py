"""NewtonFool: Newton steps that bring the label's probability down to that of a guess."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.losses import against, clearly_wrong, rounding
from attacks.nearest import Best, closer
from attacks.simba import doubt
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample, vector_norm


def needed(logits: Tensor, value: Tensor) -> Tensor:
    """By how much ln((1 - p) / p) = `value` (n,) must rise for p to fall to 1 / classes, to first order.

    (p - 1 / classes) / (p (1 - p)), infinite where p rounds to 1; at least what tells two classes apart.
    """
    p, rest = torch.sigmoid(-value), torch.sigmoid(value)
    return torch.maximum((p - 1 / logits.shape[1]) / (p * rest), 2 * rounding(logits))


@register_attack("newtonfool")
@dataclass(frozen=True, kw_only=True)
class NewtonFool(Attack):
    """Lowers the label's probability to a guess's by Newton steps, none longer than a share of x's norm.

    x_{i+1} = x_i - d grad p / ||grad p||^2,  d = min(eta ||x_0|| ||grad p||, p - 1 / classes), with p the
    softmax probability of the label, until another class is predicted. The slope is taken of ln((1 - p) / p)
    and the step is the same: grad p = -p (1 - p) times that, which is 0 where p rounds to 1. Where the paper
    has no box, entries that a bound blocks are left out of a step; ||x_0|| is the distance from the box's
    darkest corner, at least the box's width, so that neither units nor black images matter; and no step is
    shorter than what two logits must differ by to be told apart, for two classes are equally likely right on
    the boundary. `halvings` forward passes bisect the way back towards x, which the paper does not: leave it
    0 to compare with published numbers. With an eps, a farther point is handed over projected. All rivals at
    once are made likelier, so that short steps may come to rest before any boundary, on networks trained
    against attacks above all: take a larger `eta` there.
    Source: Jang, Wu, Jha 2017, ACSAC, Objective metrics and gradient descent algorithms for adversarial
    examples in machine learning, algorithm 1.
    """

    paper = "Jang, Wu, Jha 2017, ACSAC"
    norms = ("l2",)
    minimal = True

    steps: int = 100
    eta: float = 0.01
    halvings: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.eta <= 0:
            raise UserError(f"newtonfool needs steps >= 1 and eta > 0, not {self.steps} and {self.eta}")

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        best, rows = Best.none(batch.x), torch.arange(len(batch), device=batch.x.device)
        live, z, box = rows, batch.x, threat.box
        longest = self.eta * vector_norm(batch.x - box.lower, "l2").clamp(min=box.width)
        for _ in range(self.steps):
            logits, value, slope = model.gradient(z, live, against(doubt, batch.y[live]))
            wrong = clearly_wrong(logits, batch.y[live])
            best.offer(live, z, threat.distance(batch.x[live], z), wrong)
            slope = box.tangent(z, slope)
            steep = vector_norm(slope, "l2")
            going = ~wrong & (steep > 0)
            length = torch.minimum(longest[live], needed(logits, value) / steep)
            z = box.clamp(z + per_sample(length, z) * threat.steepest(slope))
            live, z = live[going], z[going]
            if not len(live):
                break
        if len(live):
            wrong = clearly_wrong(model.logits(z, live), batch.y[live])
            best.offer(live, z, threat.distance(batch.x[live], z), wrong)
        closer(model, batch, rows, threat, best, self.halvings)
        return threat.project(batch.x, best.point)
