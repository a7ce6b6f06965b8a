"""Projected gradient descent: many small steepest steps from random starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.directions import PLAIN, Direction, Iterate, accumulated
from attacks.losses import aimed, check_loss
from attacks.targets import LEAST_LIKELY, NONE, check_target, targets
from models.base import Batch, margin
from models.errors import UserError
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
    target: Tensor | None = None,
    decay: float = 0.0,
    direction: Direction = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Steepest ascent on the samples `rows`, dropping each one as soon as it is misclassified.

    Returns the misclassified point, or else the last iterate, of every row (k, ...), and whether it was
    misclassified (k,). Without `early_stop` every sample takes all steps and its iterate of greatest loss is
    returned, well behind the boundary. With classes `target` (k,) being classified as the target counts
    instead. With `decay` > 0 steps follow the decayed sum of l1-normalised `direction`s (gradients).
    """
    mine, y, aim, project = rows, batch.y[rows], target, threat.projection(batch.x[rows])
    best, broken = start.clone(), torch.zeros(len(rows), dtype=torch.bool, device=start.device)
    live, z, velocity = torch.arange(len(rows), device=start.device), start, torch.zeros_like(start)
    highest = torch.full((len(rows),), -torch.inf).to(start)
    for step in range(steps + 1):
        blind = step == steps or direction.elsewhere
        logits, value, gradient = _looked(model, z, mine, aimed(loss, y, aim), blind=blind)
        won = margin(logits, y) < 0 if aim is None else logits.argmax(1) == aim
        if not early_stop:
            take = value > highest
            best[take], broken[take], highest[take] = z[take], won[take], value[take]
        elif step == steps:
            best[live], broken[live] = z, won
        elif bool(won.any()):
            best[live[won]], broken[live[won]] = z[won], True
            live, mine, y, z, gradient, velocity = (t[~won] for t in (live, mine, y, z, gradient, velocity))
            aim, project = None if aim is None else aim[~won], threat.projection(batch.x[mine])
        if step == steps or not len(live):
            break
        if direction is not PLAIN:
            values, index = aimed(loss, y, aim), batch.index[mine]
            gradient = direction(Iterate(model, z, mine, index, step, values, gradient, velocity))
        if decay:
            gradient = velocity = accumulated(velocity, gradient, decay)
        # In l1 the one entry that moves must be one that the box lets move.
        gradient = threat.box.tangent(z, gradient) if threat.norm == "l1" else gradient
        z = project(torch.add(z, threat.steepest(gradient), alpha=step_size))
    return best, broken


def _looked(
    model: GradientAccess, z: Tensor, rows: Tensor, values: Callable[[Tensor], Tensor], *, blind: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, values and gradients at z; a blind look needs no gradients and gets zeros."""
    if not blind:
        return model.gradient(z, rows, values)
    logits = model.logits(z, rows)
    return logits, values(logits), torch.zeros_like(z)


def climb_from_clean(
    model: GradientAccess,
    batch: Batch,
    threat: ThreatModel,
    *,
    loss: str,
    steps: int,
    step_size: float,
    target: str,
    early_stop: bool = True,
    decay: float = 0.0,
    direction: Direction = PLAIN,
) -> Tensor:
    """`climb` for every sample of the batch, from the clean inputs; `target` is an attack's option."""
    found, _ = climb(
        model,
        batch,
        batch.x,
        torch.arange(len(batch), device=batch.x.device),
        threat,
        loss=loss,
        steps=steps,
        step_size=step_size,
        early_stop=early_stop,
        target=targets(model, batch, target),
        decay=decay,
        direction=direction,
    )
    return found


@register_attack("pgd")
@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected steepest ascent on the loss from several starts in the ball.

    x_{t+1} = Proj(x_t + a steepest(grad J(x_t, y))).
    The first run starts at the clean input, the others at random points; a sample leaves at its
    first misclassification, unless `early_stop` is off. `relative_step` is a in units of eps.
    With a `target` ("least-likely" or a class number) steps descend J(x_t, target) and a sample leaves
    when it is classified as that; success is judged as misclassification all the same, so whether the
    target was reached is read off the logits at x_adv.
    Source: Madry et al. 2018, 1706.06083, section 2.1.
    """

    paper = "Madry et al. 2018, 1706.06083"
    norms = ("linf", "l2", "l1")

    steps: int = 40
    restarts: int = 3
    relative_step: float = 0.1
    loss: str = "ce"
    early_stop: bool = True
    target: str = NONE

    def __post_init__(self) -> None:
        check_loss(self.loss, "pgd")
        check_target(self.target, "pgd", NONE, LEAST_LIKELY)
        if min(self.steps, self.restarts) < 1:
            raise UserError(f"pgd needs steps and restarts >= 1, not {self.steps} and {self.restarts}")

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        best, aim = batch.x.clone(), targets(model, batch, self.target)
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
                target=None if aim is None else aim[rows],
            )
            replace = broken if restart else torch.ones_like(broken)
            best[rows] = torch.where(per_sample(replace, found), found, best[rows])
            rows = rows[~broken]
            if not len(rows):
                break
        return best
