"""The fast minimum-norm attack: the ball shrinks while a step is adversarial and grows while it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.losses import against, margin_loss, rounding
from attacks.nearest import Best, closer
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample, vector_norm


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """The value at `step` of 0..steps - 1 on half a cosine from `start` to `end`."""
    return end + (start - end) * (1 + math.cos(math.pi * step / max(1, steps - 1))) / 2


@register_attack("fmn")
@dataclass(frozen=True, kw_only=True)
class FastMinimumNorm(Attack):
    """Follows the decision boundary on a ball whose radius adapts to each sample.

    x_{t+1} = Proj_{eps_t}(x_t + a_t g / ||g||_2), g = grad(max_{j != y} z_j - z_y). Until a sample is
    misclassified for the first time eps_t is its distance plus the way to the boundary of the
    linearised model, measured within the box, and a sample that is still right after a tenth of the steps
    goes that way instead; from then on eps_t shrinks by the factor 1 - gamma_t at
    a misclassified iterate, and below the nearest one known, and grows by 1 + gamma_t at another. a_t
    falls from `relative_step` box widths to a hundredth of that on a cosine, gamma_t from `gamma` to
    1e-4. `halvings` forward passes bring the nearest point closer at the end (a
    bisected segment, for l0 entries taken back), which the paper does not. One run gives every sample's
    distance, and with them the accuracy at every eps. With an eps a sample leaves once it is within.
    Source: Pintor et al. 2021, 2102.12827, algorithm 1.
    """

    paper = "Pintor et al. 2021, 2102.12827"
    norms = ("linf", "l2", "l1", "l0")
    minimal = True

    steps: int = 100
    relative_step: float = 1.0
    gamma: float = 0.05
    halvings: int = 6

    def __post_init__(self) -> None:
        if not 0 < self.gamma < 1 or self.relative_step <= 0:
            raise UserError(
                f"fmn needs 0 < gamma < 1 and relative_step > 0, not {self.gamma} and {self.relative_step}"
            )

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        best, live = Best.none(batch.x), torch.arange(len(batch), device=batch.x.device)
        goal = -1.0 if threat.eps is None else threat.eps
        z, radius = batch.x, torch.full((len(batch),), torch.inf, device=batch.x.device)
        for step in range(self.steps):
            x, y = batch.x[live], batch.y[live]
            logits, value, slope = model.gradient(z, live, against(margin_loss, y))
            distance = threat.distance(x, z)
            best.offer(live, z, distance, value > rounding(logits))
            going = best.distance[live] > goal
            if not bool(going.any()):
                break
            live, z, slope, x = live[going], z[going], slope[going], x[going]
            wrong, short = (value > rounding(logits))[going], (rounding(logits) * 2 - value)[going]
            rate = cosine(self.gamma, 1e-4, step, self.steps)
            first = ~best.found[live]
            reach, ahead = distance[going], z
            if bool(first.any()):
                move, _ = threat.nearest_gain(z, slope, short.clamp(min=0))
                reach = reach + vector_norm(move, threat.norm)
                ahead = threat.box.clamp(z + (1.02 * move).to(z))
            radius = self._radius(threat, radius[going], wrong, reach, best.distance[live], rate)
            length = cosine(1.0, 0.01, step, self.steps) * self.relative_step * threat.box.width
            unit = slope / per_sample(vector_norm(slope, "l2").clamp(min=1e-30), z)
            late = first & (step >= self.steps // 10)
            z = torch.where(per_sample(late, z), ahead, threat.shrink(x, z + length * unit, radius))
        rows = torch.arange(len(batch), device=batch.x.device)
        closer(model, batch, rows[best.distance > goal], threat, best, self.halvings)
        return threat.project(batch.x, best.point)

    def _radius(
        self, threat: ThreatModel, radius: Tensor, wrong: Tensor, reach: Tensor, nearest: Tensor, rate: float
    ) -> Tensor:
        """The next radius of each sample (k,): `reach` before the first success, adapted after it."""
        grown, shrunk = radius * (1 + rate), torch.minimum(radius * (1 - rate), nearest)
        if threat.norm == "l0":
            grown = torch.maximum(grown.floor(), radius + 1)
            shrunk = torch.minimum(shrunk.floor(), torch.minimum(radius, nearest) - 1).clamp(min=1)
        return torch.where(torch.isfinite(nearest), torch.where(wrong, shrunk, grown), reach.to(radius))
