"""Projected gradient descent: many small steepest steps from random starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.losses import LOSSES, against
from models.base import Batch
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample


def climb(
    model: GradientAccess,
    batch: Batch,
    start: Tensor,
    rows: Tensor,
    threat: ThreatModel,
    *,
    loss: str,
    steps: int,
    step_size: float,
    early_stop: bool = True,
) -> tuple[Tensor, Tensor]:
    """Steepest ascent on the samples `rows`, dropping each one as soon as it is misclassified.

    Returns the misclassified point, or else the last iterate, of every row (k, ...), and
    whether it was misclassified (k,). The iterates at steps 0..steps are all looked at.
    Without `early_stop` every sample takes all steps and its iterate of greatest loss is
    returned: what another model is to be fooled by must lie well behind the boundary.
    """
    objective = LOSSES[loss]
    best, broken = start.clone(), torch.zeros(len(rows), dtype=torch.bool, device=start.device)
    highest = torch.full((len(rows),), -torch.inf, device=start.device)
    live = torch.arange(len(rows), device=start.device)
    z, y = start, batch.y[rows]
    project = threat.projection(batch.x[rows])
    for step in range(steps + 1):
        if step < steps:
            logits, value, gradient = model.gradient(z, rows[live], against(objective, y))
        else:
            logits = model.logits(z, rows[live])
            value = objective(logits, y)
        take = torch.ones_like(broken[live]) if early_stop else value > highest[live]
        wrong = logits.argmax(1) != y
        best[live[take]], broken[live[take]], highest[live[take]] = z[take], wrong[take], value[take]
        leaving = wrong & early_stop
        if step == steps or bool(leaving.all()):
            break
        if bool(leaving.any()):
            keep = ~leaving
            live, z, y, gradient = live[keep], z[keep], y[keep], gradient[keep]
            project = threat.projection(batch.x[rows[live]])
        z = project(z + step_size * threat.steepest(gradient))
    return best, broken


@register_attack("pgd")
@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected steepest ascent on the loss from several starts in the ball.

    x_{t+1} = Proj(x_t + a steepest(grad J(x_t, y))).
    The first run starts at the clean input, the others at random points; a sample leaves at its
    first misclassification, unless `early_stop` is off. `relative_step` is a in units of eps.
    Source: Madry et al. 2018, 1706.06083, section 2.1.
    """

    paper = "Madry et al. 2018, 1706.06083"
    norms = ("linf", "l2", "l1")

    steps: int = 40
    restarts: int = 3
    relative_step: float = 0.1
    loss: str = "ce"
    early_stop: bool = True

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        best = batch.x.clone()
        rows = torch.arange(len(batch), device=batch.x.device)
        for restart in range(self.restarts):
            start = batch.x[rows]
            if restart:
                start = threat.sample(start, batch.index[rows], randomness.child("restart", restart))
            found, broken = climb(
                model,
                batch,
                start,
                rows,
                threat,
                loss=self.loss,
                steps=self.steps,
                step_size=self.relative_step * threat.radius,
                early_stop=self.early_stop,
            )
            replace = broken if restart else torch.ones_like(broken)
            best[rows] = torch.where(per_sample(replace, found), found, best[rows])
            rows = rows[~broken]
            if not len(rows):
                break
        return best
