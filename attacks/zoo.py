"""ZOO: Adam on single entries, whose slopes two scores each give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import ScoreAccess
from attacks.base import Attack, register_attack
from attacks.losses import margin_loss, rounding
from attacks.nearest import Best
from attacks.nes import ENTRIES
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel

FIRST, SECOND = 0.9, 0.999


@dataclass
class EntrywiseAdam:
    """Adam with moments and a count of steps for every single entry of the samples (n, d)."""

    first: Tensor
    second: Tensor
    count: Tensor

    @staticmethod
    def on(x: Tensor) -> EntrywiseAdam:
        """No step yet of any entry of x (n, d)."""
        return EntrywiseAdam(*(torch.zeros_like(x) for _ in range(3)))

    def step(self, rows: Tensor, place: Tensor, slope: Tensor) -> Tensor:
        """The change, in rates, of the entries `place` (k, m) of the samples `rows` (k,), by their slopes."""
        at = (rows[:, None], place)
        self.count[at] += 1
        self.first[at] = FIRST * self.first[at] + (1 - FIRST) * slope
        self.second[at] = SECOND * self.second[at] + (1 - SECOND) * slope.square()
        mean = self.first[at] / (1 - FIRST ** self.count[at])
        scale = (self.second[at] / (1 - SECOND ** self.count[at])).sqrt()
        return -mean / scale.clamp(min=1e-20)

    def rescale(self, factor: Tensor) -> None:
        """Makes the moments those of slopes `factor` (n,) times as steep."""
        self.first *= factor[:, None]
        self.second *= factor[:, None].square()


def hinge(logits: Tensor, y: Tensor) -> Tensor:
    """max(z_y - max_{j != y} z_j, 0) (n,), zero only where the sample is misclassified beyond rounding."""
    return (2 * rounding(logits) - margin_loss(logits, y)).clamp(min=0)


def slopes(
    model: ScoreAccess,
    z: Tensor,
    batch: Batch,
    rows: Tensor,
    place: Tensor,
    width: float,
    threat: ThreatModel,
) -> Tensor:
    """Central differences of the hinge in the entries `place` (k, m) of z (k, d): 2 m queries a sample.

    Points are held to the box, where a difference is one-sided; one that is within rounding is nothing.
    """
    found = torch.zeros_like(z.gather(1, place))
    group = max(ENTRIES // (2 * z.numel()), 1)
    for first in range(0, place.shape[1], group):
        some = place[:, first : first + group]
        here, which = z.repeat_interleave(some.shape[1], 0), some.reshape(-1, 1)
        asked, old = rows.repeat_interleave(some.shape[1]), here.gather(1, which)
        values, ends = [], []
        for sign in (1, -1):
            end = threat.box.clamp(old + sign * width)
            points = here.scatter(1, which, end).reshape(len(here), *batch.x.shape[1:])
            logits = model.logits(points, asked)
            values.append(hinge(logits, batch.y[asked]))
            ends.append(end[:, 0])
        rise = values[0] - values[1]
        rise = torch.where(rise.abs() > rounding(logits), rise, 0.0)
        found[:, first : first + group] = (rise / (ends[0] - ends[1])).reshape(some.shape)
    return found


@register_attack("zoo")
@dataclass(frozen=True, kw_only=True)
class ZOO(Attack):
    """Descends Carlini and Wagner's objective entry by entry, each with its own Adam, from scores alone.

    Minimises ||x' - x||_2^2 + c max(z_y - max_{j != y} z_j, 0), in box widths. A step takes the next
    `entries` entries of a random order, asks 2 scores each for (f(x' + h e_i) - f(x' - h e_i)) / 2h, h =
    `width` box widths, moves them by ADAM (0.9, 0.999, each entry with its own moments and count) with step
    `rate` box widths, clips to the box and asks about the new point. At most `queries` queries a sample; the
    nearest misclassified point is handed over, and with an eps a sample leaves once it is inside the ball.
    Deviations. The paper searches c in rounds that begin anew; here c is `penalty` times the weight at which
    the network, linear with the slopes of the first pass over all entries, has its minimum on the boundary,
    and doubles after each pass that fooled nowhere. An order is drawn afresh after each pass, so that no
    entry is left out (the paper draws entries with replacement). Differences within rounding are nothing,
    as ADAM would make whole steps of them; h and `rate` are larger than the paper's 0.0001 and 0.01, which
    needs float64 scores and millions of queries. No tanh, no importance sampling, no smaller attack space.
    Source: Chen, Zhang, Sharma, Yi, Hsieh 2017, 1708.03999, eq. 4 and 6, algorithms 1 and 2.
    """

    paper = "Chen, Zhang, Sharma, Yi, Hsieh 2017, 1708.03999"
    norms = ("l2",)
    minimal = True
    access = "scores"
    cost = Cost.EXPENSIVE

    queries: int = 5000
    entries: int = 128
    rate: float = 0.1
    penalty: float = 1.0
    width: float = 0.01

    def __post_init__(self) -> None:
        if min(self.queries, self.entries) < 1 or not min(self.rate, self.penalty, self.width) > 0:
            raise UserError("zoo needs queries and entries >= 1, and a rate, a penalty and a width > 0")

    def propose(
        self, model: ScoreAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        unit, x, best = threat.box.width, batch.x.flatten(1), Best.none(batch.x)
        z, adam, weight = x.clone(), EntrywiseAdam.on(x), torch.ones_like(x[:, 0])
        steep, fooled = torch.zeros_like(weight), torch.zeros_like(batch.y, dtype=torch.bool)
        live, left, turn = torch.arange(len(x), device=x.device), self.queries - 1, 0
        order = self._order(batch, randomness, turn)
        gap = hinge(model.logits(batch.x, live), batch.y)
        goal = 0.0 if threat.eps is None else threat.eps
        while left >= 3 and len(live):
            count = min(self.entries, order.shape[1], (left - 1) // 2)
            place, order, left = order[live, :count], order[:, count:], left - 2 * count - 1
            slope = unit * slopes(model, z[live], batch, live, place, self.width * unit, threat)
            steep[live] += slope.square().sum(1)
            delta, at = (z[live] - x[live]).gather(1, place) / unit, (live[:, None], place)
            move = self.rate * unit * adam.step(live, place, 2 * delta + weight[live, None] * slope)
            z[at] = threat.box.clamp(z[at] + move)
            point = z[live].reshape(len(live), *batch.x.shape[1:])
            wrong = hinge(model.logits(point, live), batch.y[live]) == 0
            best.offer(live, point, threat.distance(batch.x[live], point), wrong)
            fooled[live] |= wrong
            if not order.shape[1]:
                turn += 1
                if turn == 1:
                    weight = self.penalty * 2 * gap / steep.clamp(min=1e-20)
                    adam.rescale(weight)
                else:
                    weight = torch.where(fooled, weight, 2 * weight)
                order, fooled = self._order(batch, randomness, turn), torch.zeros_like(fooled)
            live = live[best.distance[live] > goal]
        return threat.project(batch.x, best.point)

    def _order(self, batch: Batch, randomness: Randomness, turn: int) -> Tensor:
        """All entries of each sample in the random order of its pass number `turn` (n, d)."""
        draws = randomness.child("order", turn).uniform(batch.index, batch.x.shape[1:])
        return draws.flatten(1).argsort(1)
