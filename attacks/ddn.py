"""Decoupled direction and norm: a gradient step for the direction, a factor for the radius."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.fmn import cosine
from attacks.losses import LOSSES, against, check_loss, clearly_wrong
from attacks.nearest import Best, closer
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample, vector_norm


@register_attack("ddn")
@dataclass(frozen=True, kw_only=True)
class DecoupledDirectionNorm(Attack):
    """Steps along the loss's gradient, onto a sphere that shrinks after a success and grows after a failure.

    d = x_t - x + a_t grad J(x_t, y) / ||grad J(x_t, y)||_2,  x_{t+1} = clip(x + e_{t+1} d / ||d||_2) with
    e_{t+1} = (1 - gamma) e_t where x_t is misclassified, else (1 + gamma) e_t. e_0 is `radius` and a_t falls
    from 1 to 0.01 on a cosine, both in box widths. Where the gradient is zero its direction is drawn. The
    nearest misclassified iterate is kept, and `halvings` forward passes bisect the last part of the way to
    it from x, which the paper does not; its rounding to 256 levels is left out. With an eps a sample leaves
    once it is within, and a point beyond is handed over projected.
    Source: Rony et al. 2019, 1811.09600, algorithm 1.
    """

    paper = "Rony et al. 2019, 1811.09600"
    norms = ("l2",)
    minimal = True

    steps: int = 100
    gamma: float = 0.05
    radius: float = 1.0
    loss: str = "ce"
    halvings: int = 6

    def __post_init__(self) -> None:
        check_loss(self.loss, "ddn")
        if not 0 < self.gamma <= 0.5 or self.radius <= 0 or self.steps < 1:
            raise UserError(
                f"ddn needs 0 < gamma <= 0.5, radius > 0 and steps >= 1, not {self.gamma}, {self.radius} "
                f"and {self.steps}"
            )

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        best, rows = Best.none(batch.x), torch.arange(len(batch), device=batch.x.device)
        goal = -1.0 if threat.eps is None else threat.eps
        live, z = rows, batch.x
        radius = torch.full((len(batch),), self.radius * threat.box.width).to(batch.x)
        diagonal = threat.box.width * batch.x[0].numel() ** 0.5
        for step in range(self.steps):
            logits, _, slope = model.gradient(z, live, against(LOSSES[self.loss], batch.y[live]))
            wrong = clearly_wrong(logits, batch.y[live])
            best.offer(live, z, threat.distance(batch.x[live], z), wrong)
            going = best.distance[live] > goal
            if not bool(going.any()):
                break
            live, z, slope, wrong, radius = (part[going] for part in (live, z, slope, wrong, radius))
            radius = torch.where(wrong, radius * (1 - self.gamma), radius * (1 + self.gamma))
            radius = radius.clamp(max=diagonal)
            stream = randomness.child("step", step)
            length = cosine(1.0, 0.01, step, self.steps + 1) * threat.box.width
            z = _on_sphere(
                batch.x[live], z + length * _unit(slope, batch.index[live], stream), radius, threat
            )
        closer(model, batch, rows[best.distance > goal], threat, best, self.halvings, span=2 * self.gamma)
        return threat.project(batch.x, best.point)


def _unit(slope: Tensor, index: Tensor, randomness: Randomness) -> Tensor:
    """slope / ||slope||_2 of each sample; a random direction where it is zero."""
    flat = per_sample(vector_norm(slope, "l2") == 0, slope)
    if bool(flat.any()):
        slope = torch.where(flat, randomness.normal(index, slope.shape[1:]).to(slope), slope)
    return slope / per_sample(vector_norm(slope, "l2").clamp(min=1e-30), slope)


def _on_sphere(x: Tensor, z: Tensor, radius: Tensor, threat: ThreatModel) -> Tensor:
    """x plus `radius` (k,) times the direction from x to z, clipped to the box."""
    away = z - x
    scale = radius / vector_norm(away, "l2").clamp(min=1e-30)
    return threat.box.clamp(x + per_sample(scale, x) * away)
