"""The boundary attack: a random walk among misclassified points, ever nearer, from labels alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import LabelAccess
from attacks.base import Attack, register_attack
from attacks.oracle import HAIR, Oracle, bisect, starts
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel, per_sample, vector_norm

# The walk is what comes near: finer starts would lie within rounding of the boundary.
HALVINGS = 10
PACE = 0.1
SOURCE_RATE = 0.5
MOST, CONVERGED = 0.5, 1e-4


def sideways(x: Tensor, z: Tensor, draw: Tensor, size: Tensor, box: Box) -> Tensor:
    """z (k, ...) moved on the sphere around x, orthogonally to z - x, by `size` (k,) times its radius.

    The part of `draw` that is orthogonal to z - x says where to. Box entries that would be left are cut off.
    """
    radius = vector_norm(z - x, "l2")
    ray = (z - x) / per_sample(radius, x)
    across = draw - per_sample((draw * ray).flatten(1).sum(1), x) * ray
    across = across / per_sample(vector_norm(across, "l2").clamp(min=1e-30), x)
    turned = ray + per_sample(size, x) * across
    return box.clamp(x + per_sample(radius / vector_norm(turned, "l2"), x) * turned)


def inwards(x: Tensor, point: Tensor, radius: Tensor) -> Tensor:
    """`point` (k, ...) moved straight towards x down to distance `radius` (k,), where it was farther."""
    away = point - x
    part = radius / vector_norm(away, "l2").clamp(min=1e-30)
    return x + per_sample(part.clamp(max=1.0), x) * away


def adapted(size: Tensor, success: Tensor, rate: float) -> Tensor:
    """Sizes (k,) raised by success and lowered by failure, at rest where the share `rate` succeeds."""
    return (size * torch.exp(PACE * (success.to(size) - rate))).clamp(max=MOST)


@register_attack("boundary")
@dataclass(frozen=True, kw_only=True)
class BoundaryAttack(Attack):
    """Walks along the boundary at random, nearer where it can, from labels alone and with `queries` queries.

    From a misclassified point (at most `tries` starts) brought to the boundary by bisection, each step asks
    for a Gaussian move on the sphere around x, of length delta d orthogonal to z - x, d = ||z - x||; where it
    is misclassified, for that point moved on towards x to distance (1 - epsilon) d. Both relative lengths,
    `orthogonal_step` and `source_step` at first, are each sample's own. A sample ends when epsilon has fallen
    to 1e-4, or with an eps once it is inside the ball. Handed over is the nearest misclassified point, moved
    back by a hair (see attacks/oracle.py): nearer ones fool by less than rounding. Four deviations: the start
    is bisected; an orthogonal move that is misclassified is kept even where the step towards x is not; a
    length is multiplied by exp(0.1 (success - rate)) after each trial, where the paper compares windows of
    trials; and orthogonal moves aim at the success rate `orthogonal_rate`: the paper's 0.5 ends farther.
    Source: Brendel, Rauber, Bethge 2018, 1712.04248, algorithm 1 and section 2.
    """

    paper = "Brendel, Rauber, Bethge 2018, 1712.04248"
    norms = ("l2",)
    minimal = True
    access = "labels"
    cost = Cost.EXPENSIVE

    queries: int = 5000
    tries: int = 100
    orthogonal_step: float = 0.01
    source_step: float = 0.01
    orthogonal_rate: float = 0.25

    def __post_init__(self) -> None:
        if self.queries < 1 or self.tries < 1:
            raise UserError("boundary needs queries >= 1 and tries >= 1")
        steps = (self.source_step, self.orthogonal_step)
        if not CONVERGED < min(steps) <= max(steps) <= MOST:
            raise UserError(f"boundary needs a source_step and an orthogonal_step in ({CONVERGED}, {MOST}]")
        if not 0 < self.orthogonal_rate < 1:
            raise UserError(f"boundary needs an orthogonal_rate between 0 and 1, not {self.orthogonal_rate}")

    def propose(
        self, model: LabelAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        oracle = Oracle(model, batch, threat, self.queries, HAIR)
        point, rows = starts(oracle, self.tries, randomness)
        point[rows] = bisect(oracle, point[rows], rows, HALVINGS)
        delta = torch.full((len(batch),), self.orthogonal_step).to(batch.x)
        epsilon = torch.full((len(batch),), self.source_step).to(batch.x)
        step = 0
        while len(rows := oracle.live(rows[epsilon[rows] > CONVERGED])):
            x, z, step = batch.x[rows], point[rows], step + 1
            draw = randomness.child("step", step).normal(batch.index[rows], x.shape[1:]).to(x)
            tried = sideways(x, z, draw, delta[rows], threat.box)
            held = oracle.wrong(tried, rows)
            delta[rows] = adapted(delta[rows], held, self.orthogonal_rate)
            rows_held, x, tried = rows[held], x[held], tried[held]
            goal = (1 - epsilon[rows_held]) * vector_norm(z[held] - x, "l2")
            closer = inwards(x, tried, goal)
            won = oracle.wrong(closer, rows_held)
            epsilon[rows_held] = adapted(epsilon[rows_held], won, SOURCE_RATE)
            point[rows_held] = torch.where(per_sample(won, x), closer, tried)
            oracle.keep(closer[won], rows_held[won])
        return threat.project(batch.x, oracle.best)
