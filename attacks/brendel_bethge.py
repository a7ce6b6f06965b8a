"""The Brendel-Bethge attack: along the decision boundary, in steps that a trust region bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.deepfool import shorten, walk
from attacks.losses import against, clearly_wrong, margin_loss, rounding
from attacks.nearest import Best, closer
from attacks.oracle import candidate
from attacks.trust_region import nearest_in_trust
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, vector_norm

BISECTIONS, DEEPFOOL_STEPS, TRIES = 10, 10, 20
"""For a start: forward passes that bring it to the boundary, DeepFool's steps, points tried after those."""
PROGRESS, SMALLEST = 1e-4, 1e-4
"""The least relative gain of a step that did not fail; a sample leaves at that part of its first radius."""
SWAP = 6.0
"""How much wider l0's trust region is: an entry put back is as far from x as it can be."""


@register_attack("brendel-bethge")
@dataclass(frozen=True, kw_only=True)
class BrendelBethge(Attack):
    """Walks along the decision boundary to its point nearest to x, each step exact within a trust region.

    From z on the boundary z' = argmin_u ||u - x||_p subject to lower <= u <= upper, b . (u - z) = c and
    ||u - z||_2 <= r (attacks/trust_region.py), b the gradient of max_{j != y} z_j - z_y at z, averaged
    over the steps with `momentum` as in the authors' code, and c the linear change that puts its value v
    behind the boundary: -`overshoot` v from the wrong side, -(2 - `overshoot`) v from the right one. Where no
    such u exists the step goes the shortest way to the hyperplane, cut to r. r starts at `radius` times
    the l2 distance of the start (for l0 six times that, so that entries can be swapped whole), falls by
    the factor `final` over `steps`, and by `failure` after each step that brought no nearer misclassified
    point (not for l0, where many good steps leave the count as it is); a sample leaves once r is 1e-4 of
    the first one. The authors' radius depends on the number of entries and falls in 20 jumps. The paper
    starts at an image of another class: here at DeepFool's point after 10 steps (for l0 that of l2), or else
    at uniform noise, bisected to the boundary. The nearest misclassified point met is handed over, brought
    nearer by `halvings` forward passes, which the paper does not. With an eps a sample leaves once it is
    within.
    Source: Brendel, Rauber, Kuemmerer, Ustyuzhaninov, Bethge 2019, 1907.01003, section 3 and eq. 3.
    """

    paper = "Brendel, Rauber, Kuemmerer, Ustyuzhaninov, Bethge 2019, 1907.01003"
    norms = ("l2", "linf", "l1", "l0")
    minimal = True
    cost = Cost.EXPENSIVE

    steps: int = 200
    radius: float = 0.5
    final: float = 1e-3
    failure: float = 0.95
    momentum: float = 0.8
    overshoot: float = 1.1
    halvings: int = 6

    def __post_init__(self) -> None:
        if self.radius <= 0 or not (0 < self.final <= 1 and 0 < self.failure <= 1):
            raise UserError(
                "brendel-bethge needs radius > 0, and final and failure in (0, 1], "
                f"not {self.radius}, {self.final} and {self.failure}"
            )
        if not (0 <= self.momentum < 1 and 1 <= self.overshoot <= 2):
            raise UserError(
                "brendel-bethge needs momentum in [0, 1) and overshoot in [1, 2], "
                f"not {self.momentum} and {self.overshoot}"
            )

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        best, goal = Best.none(batch.x), -1.0 if threat.eps is None else threat.eps
        start, found = _starts(model, batch, threat, randomness)
        self._walk(model, batch, found.nonzero()[:, 0], start[found], threat, best)
        rows = (best.distance > goal).nonzero()[:, 0]
        closer(model, batch, rows, threat, best, self.halvings)
        return threat.project(batch.x, best.point)

    def _walk(
        self, model: GradientAccess, batch: Batch, live: Tensor, z: Tensor, threat: ThreatModel, best: Best
    ) -> None:
        """The walk of the samples `live` (k,) from z (k, ...); `best` takes what it meets."""
        few, goal = threat.norm == "l0", -1.0 if threat.eps is None else threat.eps
        first = self.radius * (SWAP if few else 1.0) * vector_norm(z.double() - batch.x[live].double(), "l2")
        radius, normal = first, torch.zeros_like(z)
        for step in range(self.steps):
            x, y, before = batch.x[live], batch.y[live], best.distance[live]
            logits, value, slope = model.gradient(z, live, against(margin_loss, y))
            best.offer(live, z, threat.distance(x, z), value > rounding(logits))
            if step:
                nearer = best.distance[live] < before * (1 - PROGRESS)
                radius = radius * torch.where(nearer | few, 1.0, self.failure)
                radius = radius * self.final ** (1 / self.steps)
                slope = self.momentum * normal + (1 - self.momentum) * slope
            going = (best.distance[live] > goal) & (radius > SMALLEST * first)
            if not bool(going.any()):
                break
            part = torch.where(value < 0, self.overshoot, 2 - self.overshoot)
            gain = (2 * rounding(logits) - part * value)[going]
            live, x, z, normal, radius, first = (t[going] for t in (live, x, z, slope, radius, first))
            z = threat.box.clamp(nearest_in_trust(threat, x, z, normal, gain, radius).to(z))


def _starts(
    model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness
) -> tuple[Tensor, Tensor]:
    """A misclassified point next to the boundary (n, ...), and the samples that have one (n,)."""
    x, y, rows = batch.x, batch.y, torch.arange(len(batch), device=batch.x.device)
    point, found = walk(
        model,
        x,
        y,
        rows,
        ThreatModel("l2" if threat.norm == "l0" else threat.norm, None, threat.box),
        steps=DEEPFOOL_STEPS,
        overshoot=0.02,
        classes=model.num_classes,
        tangent=True,
    )
    for attempt in range(TRIES):
        left = rows[~found]
        if not len(left):
            break
        tried = candidate(x[left], batch.index[left], threat, attempt, randomness.child("start", attempt))
        wrong = clearly_wrong(model.logits(tried, left), y[left])
        point[left[wrong]], found[left[wrong]] = tried[wrong], True
    rows = rows[found]
    point[rows] = shorten(model, x[rows], y[rows], rows, point[rows], BISECTIONS)
    return point, found
