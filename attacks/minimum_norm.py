"""The smallest perturbation by search on balls that shrink, where gradients look ahead."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.chains import Course, Search
from attacks.fab import FastAdaptiveBoundary
from attacks.fmn import FastMinimumNorm
from attacks.losses import clearly_wrong
from attacks.nearest import Best, closer
from attacks.strongest import DRAWS, TARGETS, Ground
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, vector_norm

FROM_CLEAN = Course(steps=20, smooth=0.7)
FROM_RANDOM = Course(steps=20, smooth=0.7, breadth=2.0)
FROM_NEAREST = Course(steps=20, first=0.3)
HALVINGS = 6
FINER = 0.25
SMALLEST = 1e-4
SLACK = 1 + 1e-4


@dataclass(frozen=True)
class Way:
    """Where chains start in a ball: one at the `nearest` point known, three at x or at a `random` point."""

    nearest: bool = False
    targeted: Course | None = None
    random: bool = False


FIRST = Way(nearest=True, targeted=FROM_CLEAN)
AGAIN = Way(targeted=FROM_RANDOM, random=True)
LAST = Way(nearest=True)


@register_attack("minimum-norm")
@dataclass(frozen=True, kw_only=True)
class MinimumNorm(Attack):
    """Finds nearer points than its peers by attacking ball after ball, each a little smaller than the last.

    fmn's point is the first one known, in l2 and l1 fab's where it is nearer. Then a sample's ball is the
    largest of the radii widest * ratio^k (k = 0, 1, ...) below the nearest point known: three chains towards
    the likeliest classes start at x, with derivatives averaged over windows that close (`attacks.smoothed`),
    and one at the nearest point, brought into the ball. A success is brought nearer by bisection and leads to
    the next ball; after a failure the ball is tried once more from a random point, with wider windows, and
    after `patience` failures the search ends. The radii are the same for all samples, which share the passes.
    One run gives every sample's distance, and with them the accuracy at every eps; with an eps a sample
    leaves once it is within.
    Raises UserError for a ratio outside (0, 1) or no patience.
    Source: this project.
    """

    paper = "-"
    norms = ("linf", "l2", "l1")
    minimal = True
    cost = Cost.EXTREME

    ratio: float = 0.95
    patience: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1 or self.patience < 1:
            given = f"{self.ratio:g} and {self.patience}"
            raise UserError(f"minimum-norm needs 0 < ratio < 1 and patience >= 1, not {given}")

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        best = self._first(model, batch, threat, randomness)
        ways = (FIRST, *[AGAIN] * (self.patience - 1))
        self._sweep(model, batch, threat, best, randomness, self.ratio, ways)
        self._sweep(model, batch, threat, best, randomness, self.ratio**FINER, (LAST,))
        return threat.project(batch.x, best.point)

    def _sweep(
        self,
        model: GradientAccess,
        batch: Batch,
        threat: ThreatModel,
        best: Best,
        randomness: Randomness,
        ratio: float,
        ways: tuple[Way, ...],
    ) -> None:
        """Follows every sample through the balls until all `ways` of searching one have failed."""
        goal = 0.0 if threat.eps is None else threat.eps
        failures = torch.zeros(len(batch), dtype=torch.int64, device=batch.x.device)
        for radius in radii(batch.x, threat, ratio):
            ball = replace(threat, eps=max(radius, goal))
            for attempt, way in enumerate(ways):
                # Those whose nearest point lies outside this ball, and lay inside the one before.
                outside = (best.distance > radius) & (best.distance * ratio <= radius * SLACK)
                outside |= ~best.found
                going = (outside & (best.distance > goal) & (failures == attempt)).nonzero()[:, 0]
                if len(going):
                    stream = randomness.child("ball", attempt)
                    broken = self._within_ball(model, batch, going, ball, best, stream, way)
                    failures[going] = torch.where(broken, 0, attempt + 1)

    def _first(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness
    ) -> Best:
        """The points that fmn finds or, in l2 and l1, fab where its are nearer."""
        everyone = torch.arange(len(batch), device=batch.x.device)
        best, part = Best.none(batch.x), model.part(GradientAccess, len(batch), batch.y)
        stream = randomness.child("first")
        for attack in (FastMinimumNorm(), FastAdaptiveBoundary())[: 1 if threat.norm == "linf" else 2]:
            point = attack.propose(part, batch, threat.at(None), stream, None)
            wrong = clearly_wrong(part.logits(point, everyone), batch.y)
            best.offer(everyone, point, threat.distance(batch.x, point), wrong)
        model.absorb(part, everyone)
        return best

    def _within_ball(
        self,
        model: GradientAccess,
        batch: Batch,
        rows: Tensor,
        ball: ThreatModel,
        best: Best,
        randomness: Randomness,
        way: Way,
    ) -> Tensor:
        """Searches the ball around each of `rows` (k,), books what is found; which of them fell (k,)."""
        mine, part = batch[rows], model.part(GradientAccess, len(rows), batch.y[rows])
        search = Search(part, mine, ball, DRAWS if model.stochastic else 1)
        everyone = torch.arange(len(rows), device=rows.device)
        if way.nearest:
            near = ball.project(mine.x, best.point[rows])
            search.climb(everyone, near, torch.full_like(everyone, -1), FROM_NEAREST, "nearest")
        left = search.live
        if len(left) and way.targeted:
            ground = Ground.measured(search, left, randomness)
            start = ball.sample(mine.x, mine.index, randomness) if way.random else mine.x
            ground.aim(search, left, start[left], way.targeted, "ball", ground.likeliest(left, 0, TARGETS))
        model.absorb(part, rows)
        best.offer(rows, search.point, ball.distance(mine.x, search.point).to(best.distance), search.broken)
        closer(model, batch, rows[search.broken], ball, best, HALVINGS, span=1 - self.ratio)
        return search.broken


def radii(x: Tensor, threat: ThreatModel, ratio: float) -> list[float]:
    """The radii of the balls that are tried, from one that holds the box down to SMALLEST of it."""
    widest = float(vector_norm(torch.full_like(x[:1], threat.box.width), threat.norm)) if len(x) else 1.0
    return [widest * ratio**level for level in range(math.ceil(math.log(SMALLEST) / math.log(ratio)))]
