"""Salt and pepper: ever fewer black and white pixels that still fool, from labels alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import LabelAccess
from attacks.base import Attack, register_attack
from attacks.oracle import Oracle
from attacks.sparse_rs import as_inputs, as_places
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel

LEVELS = 20
"""Noise reaches this many shares of the pixels, one after the other, until it fools."""
MOST = 2**20
"""No sample draws more often than this."""
RISING, PROBING, HALVING = range(3)


class Noise:
    """What becomes black or white in each sample, in which order, and how much of it is asked about next.

    x and full (n, pixels, channels): the inputs, and the noise on all of their pixels. rank (n, pixels): the
    order in which they take part. low, high (n,): pixels that did not fool and pixels that do. stage (n,):
    whether noise rises until it fools, is asked for once below the best distance, or is halved.
    """

    def __init__(self, batch: Batch, threat: ThreatModel, randomness: Randomness) -> None:
        self.batch, self.threat, self.randomness = batch, threat, randomness
        self.x = as_places(batch.x, "mask")
        self.full, self.rank = self.x.clone(), torch.zeros_like(self.x[:, :, 0], dtype=torch.int64)
        self.low, self.high, self.stage, self.draws = (torch.zeros_like(batch.y) for _ in range(4))
        self._draw(
            torch.arange(len(batch), device=batch.x.device),
            torch.full_like(batch.y, torch.inf, dtype=torch.float64),
        )

    def _draw(self, rows: Tensor, best: Tensor) -> None:
        """Fresh noise for the samples `rows` (k,), as much as is nearer than the `best` distance (k,)."""
        keys, shape = self.batch.index[rows] * MOST + self.draws[rows], self.rank.shape[1:]
        order = self.randomness.child("order").uniform(keys, shape).argsort(1)
        white = self.randomness.child("colour").uniform(keys, shape) < 0.5
        colour = torch.where(white, self.threat.box.upper, self.threat.box.lower).to(self.x)
        self.rank[rows] = order.argsort(1)
        self.full[rows] = colour[:, :, None].expand_as(self.x[rows])
        self.draws[rows] += 1
        change = self.full[rows].double() - self.x[rows].double()
        size = (change != 0).double() if self.threat.norm == "l0" else change.square()
        length = size.sum(2).gather(1, order).cumsum(1)
        limit = best if self.threat.norm == "l0" else best.square()
        self.stage[rows] = torch.where(best.isinf(), RISING, PROBING)
        self.low[rows] = 0
        most = (length < limit[:, None]).sum(1).clamp(min=1)
        self.high[rows] = torch.where(best.isinf(), self._risen(self.low[rows]), most)

    def _risen(self, count: Tensor) -> Tensor:
        """The next larger number of pixels while noise rises."""
        pixels = self.rank.shape[1]
        return (count + -(-pixels // LEVELS)).clamp(max=pixels)

    def ask(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The next point of each sample of `rows` (k, ...), and how many pixels take part in it (k,)."""
        count = torch.where(
            self.stage[rows] == HALVING, (self.low[rows] + self.high[rows]) // 2, self.high[rows]
        )
        noisy = (self.rank[rows] < count[:, None])[:, :, None]
        points = torch.where(noisy, self.full[rows], self.x[rows])
        return as_inputs(points, self.batch.x[rows], "mask"), count

    def learn(self, rows: Tensor, count: Tensor, wrong: Tensor, best: Tensor) -> None:
        """Moves on after the answers `wrong` (k,) to `count` (k,) pixels; `best` (k,) as for `_draw`."""
        stage = self.stage[rows]
        self.high[rows] = torch.where(wrong, count, self.high[rows])
        self.low[rows] = torch.where(wrong, self.low[rows], count)
        again = (stage == RISING) & ~wrong
        over = again & (count == self.rank.shape[1])
        self.high[rows[again]] = self._risen(count[again])
        self.stage[rows[wrong]] = HALVING
        settled = (stage != RISING) | wrong
        over |= settled & (self.high[rows] - self.low[rows] <= 1)
        over |= (stage == PROBING) & ~wrong
        if bool(over.any()):
            self._draw(rows[over], best[over])


@register_attack("salt-and-pepper")
@dataclass(frozen=True, kw_only=True)
class SaltAndPepper(Attack):
    """Turns random pixels black and white until the label changes, then ever fewer, from labels alone.

    Each draw puts the pixels in a random order and makes each black or white in all channels. Noise reaches
    1/20, 2/20, ... of them until the point is misclassified; then the number of pixels is bisected.
    Every later draw is asked about once, with as many pixels as stay nearer than the best point, and bisected
    where that fools; the source draws anew for every query and raises the probability of noise instead.
    The distance counts changed entries (l0), or is their l2 norm. A vector is one row of pixels. `pointwise`,
    which puts single entries back, comes much nearer in l0. With an eps a sample leaves once it is within.
    Source: Rauber, Brendel, Bethge 2017, 1707.04131 (SaltAndPepperNoiseAttack).
    """

    paper = "Rauber, Brendel, Bethge 2017, 1707.04131"
    norms = ("l0", "l2")
    minimal = True
    access = "labels"
    cost = Cost.EXPENSIVE

    queries: int = 1000

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise UserError(f"salt-and-pepper needs queries >= 1, not {self.queries}")

    def propose(
        self, model: LabelAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        oracle, noise = Oracle(model, batch, threat, self.queries), Noise(batch, threat, randomness)
        rows = torch.arange(len(batch), device=batch.x.device)
        least = 1.0 if threat.norm == "l0" else 0.0
        while len(rows := oracle.live(rows[oracle.distance[rows] > least])):
            points, count = noise.ask(rows)
            # A random network may err at x itself, which is no perturbation.
            changed = (points != batch.x[rows]).flatten(1).any(1)
            wrong = oracle.wrong(points, rows) & changed
            oracle.keep(points[wrong], rows[wrong])
            noise.learn(rows, count, wrong, oracle.distance[rows])
        return threat.project(batch.x, oracle.best)
