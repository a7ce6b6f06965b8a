"""RayS: searches signs for the ray on which the boundary is nearest in linf, from labels alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import LabelAccess
from attacks.base import Attack, register_attack
from attacks.oracle import Oracle, bisect
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample


def blocks(entries: int) -> Iterator[slice]:
    """Whole, halves, quarters, ... of `entries` entries in order, then single entries over and over."""
    size, parts = entries, 1
    while True:
        for first in range(0, entries, size):
            yield slice(first, min(first + size, entries))
        parts = min(2 * parts, entries)
        size = -(-entries // parts)


@register_attack("rays")
@dataclass(frozen=True, kw_only=True)
class RayS(Attack):
    """Flips signs block by block to find the ray nearest to the boundary in linf, from labels alone.

    The ray x + r d, cut off by the box, has signs d in {-1, 1}^n, all 1 at first. Each step turns the signs
    of the next block of entries: all, halves, quarters, ... down to single ones. One query at the best
    radius so far says whether the new ray is worth more; if it is, its signs are kept and `halvings`
    queries bisect the radius. Nothing is random. The nearest point seen is handed over; with an eps a sample
    leaves once it is inside the ball. Two deviations: the check is made at (1 - 2^-halvings) r, so that
    whatever passes it is nearer, and the search's tolerance is relative, 2^-halvings of the radius where the
    paper has an absolute one, which is coarse for small radii.
    Source: Chen, Gu 2020, 2006.12792, algorithms 1 to 3.
    """

    paper = "Chen, Gu 2020, 2006.12792"
    norms = ("linf",)
    minimal = True
    access = "labels"
    cost = Cost.EXPENSIVE

    queries: int = 5000
    halvings: int = 10

    def __post_init__(self) -> None:
        if self.queries < 1 or not 1 <= self.halvings <= 20:
            raise UserError("rays needs queries >= 1 and halvings from 1 to 20")

    def propose(
        self, model: LabelAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        oracle, box = Oracle(model, batch, threat, self.queries), threat.box
        signs = torch.ones_like(batch.x).flatten(1)
        rows = torch.arange(len(batch), device=batch.x.device)
        for block in blocks(signs.shape[1]):
            rows = oracle.live(rows)
            if not len(rows):
                break
            tried, x = signs[rows], batch.x[rows]
            tried[:, block] *= -1
            radius = (oracle.distance[rows] * (1 - 0.5**self.halvings)).clamp(max=box.width).to(x)
            point = box.clamp(x + per_sample(radius, x) * tried.reshape(x.shape))
            wrong = oracle.wrong(point, rows)
            if bool(wrong.any()):
                signs[rows[wrong]] = tried[wrong]
                bisect(oracle, point[wrong], rows[wrong], self.halvings)
        return threat.project(batch.x, oracle.best)
