"""SimBA: tries one orthonormal direction after another, both ways, from scores alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import ScoreAccess
from attacks.base import Attack, register_attack
from attacks.images import as_images
from attacks.losses import clearly_wrong
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample

BASES = ("pixel", "dct")
LOWEST = 8
"""The DCT basis begins with the frequencies below 1 / 8 of each side, and then doubles the band."""


def doubt(logits: Tensor, y: Tensor) -> Tensor:
    """ln((1 - p_y) / p_y) (n,): falls as p_y rises, and never saturates where p_y rounds to 0 or 1."""
    rivals = logits.scatter(1, y[:, None], -torch.inf)
    return rivals.logsumexp(1) - logits.gather(1, y[:, None])[:, 0]


def cosines(length: int, like: Tensor) -> Tensor:
    """The orthonormal basis (length, length) of the type II cosine transform, one frequency a row."""
    place = torch.arange(length, device=like.device, dtype=torch.float64)
    rows = torch.cos(math.pi / length * place[:, None] * (place + 0.5)) * (2 / length) ** 0.5
    rows[0] /= 2**0.5
    return rows.to(like)


class Directions:
    """The basis of the inputs x (n, ...), in an order that each sample draws without replacement."""

    def __init__(self, x: Tensor, index: Tensor, basis: str, randomness: Randomness) -> None:
        self.x, self.index, self.basis, self.randomness = x, index, basis, randomness
        self.shape = as_images(x).shape[1:]
        self.entries = x[0].numel()
        self.vertical, self.horizontal = cosines(self.shape[1], x), cosines(self.shape[2], x)
        self.order = self._order(0)

    def _order(self, again: int) -> Tensor:
        draws = self.randomness.child("order", again).uniform(self.index, (self.entries,))
        return (draws.double() + self._bands()).argsort(1)

    def _bands(self) -> Tensor:
        """How often the lowest band must double before it holds each entry (entries,); 0 for pixels."""
        _, h, w = self.shape
        bands = torch.zeros(self.shape, dtype=torch.float64, device=self.x.device)
        share = 1 / LOWEST
        while self.basis == "dct" and share < 1:
            bands[:, math.ceil(share * h) :] += 1
            bands[:, : math.ceil(share * h), math.ceil(share * w) :] += 1
            share *= 2
        return bands.flatten()

    def take(self, step: int, rows: Tensor) -> Tensor:
        """The unit vector that comes in place `step` for the samples `rows` (k,): (k, ...) as x."""
        again, place = divmod(step, self.entries)
        if place == 0 and again:
            self.order = self._order(again)
        chosen = self.order[rows, place]
        if self.basis == "pixel":
            one = torch.zeros(len(rows), self.entries).to(self.x)
            return one.scatter_(1, chosen[:, None], 1.0).reshape(len(rows), *self.x.shape[1:])
        channels, h, w = self.shape
        wave = self.vertical[chosen // w % h][:, :, None] * self.horizontal[chosen % w][:, None, :]
        one = torch.zeros(len(rows), channels, h, w).to(self.x)
        one[torch.arange(len(rows), device=rows.device), chosen // (h * w)] = wave
        return one.reshape(len(rows), *self.x.shape[1:])


@register_attack("simba")
@dataclass(frozen=True, kw_only=True)
class SimBA(Attack):
    """Adds or subtracts one basis vector after another where the label's probability falls, from scores.

    delta + a q is asked about for the next direction q of an orthonormal basis, then delta - a q where the
    first did not lower p_y; one that lowers it is kept. Each sample draws its order without replacement and
    starts afresh after the last one. `basis`: "pixel" (entries), or "dct" (waves; those below 1/8 of each
    side's frequencies come first, then the band doubles). a is `step` in units of the box's width. A sample
    leaves at its first misclassification, or after a pass over the basis that did not move it. Deviations:
    candidates are scaled back to the ball of radius eps and clipped to the box, where the paper has no ball,
    and one that moves nothing is not asked about; p_y is compared by its log-odds, which never saturate.
    Source: Guo, Gardner, You, Wilson, Weinberger 2019, 1905.07121, algorithm 1 and section 3.
    """

    paper = "Guo, Gardner, You, Wilson, Weinberger 2019, 1905.07121"
    norms = ("l2",)
    access = "scores"
    cost = Cost.EXPENSIVE

    queries: int = 5000
    basis: str = "pixel"
    step: float = 0.2

    def __post_init__(self) -> None:
        if self.basis not in BASES:
            raise UserError(f"simba has no basis '{self.basis}': choose {', '.join(BASES)}")
        if self.queries < 1 or not self.step > 0:
            raise UserError("simba needs queries >= 1 and a step > 0")

    def propose(
        self, model: ScoreAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        directions = Directions(batch.x, batch.index, self.basis, randomness)
        climb = Climb(model, batch, threat, self.queries)
        size, step = self.step * threat.box.width, 0
        while len(rows := climb.live()):
            move = size * directions.take(step, rows)
            gained = climb.ask(rows, move)
            climb.ask(rows[~gained], -move[~gained])
            step += 1
            if step % directions.entries == 0:
                climb.turn()
        return climb.point


class Climb:
    """The point of each sample (n, ...) and its doubt, raised by moves that cost one query each."""

    def __init__(self, model: ScoreAccess, batch: Batch, threat: ThreatModel, queries: int) -> None:
        self.model, self.batch, self.threat = model, batch, threat
        self.point, rows = batch.x.clone(), torch.arange(len(batch), device=batch.x.device)
        self.left = torch.full_like(batch.y, queries - 1)
        logits = model.logits(batch.x, rows)
        self.value, self.won = doubt(logits, batch.y), clearly_wrong(logits, batch.y)
        self.moved, self.stuck = torch.zeros_like(self.won), torch.zeros_like(self.won)

    def live(self) -> Tensor:
        """The samples that still hold, have queries left and are not stuck (k,)."""
        return (~self.won & ~self.stuck & (self.left > 0)).nonzero()[:, 0]

    def turn(self) -> None:
        """Begins another pass over the basis: samples that the last one has not moved are stuck."""
        self.stuck, self.moved = ~self.moved, torch.zeros_like(self.moved)

    def ask(self, rows: Tensor, move: Tensor) -> Tensor:
        """Takes the moves (k, ...) of the samples `rows` (k,) that raise their doubt; which did (k,)."""
        tried = self.threat.project(self.batch.x[rows], self.point[rows] + move)
        asked = (self.left[rows] > 0) & (tried != self.point[rows]).flatten(1).any(1)
        gained = torch.zeros_like(asked)
        if not bool(asked.any()):
            return gained
        mine, tried = rows[asked], tried[asked]
        self.left[mine] -= 1
        logits = self.model.logits(tried, mine)
        value, wrong = doubt(logits, self.batch.y[mine]), clearly_wrong(logits, self.batch.y[mine])
        better = (value > self.value[mine]) | wrong
        self.point[mine] = torch.where(per_sample(better, tried), tried, self.point[mine])
        self.value[mine] = torch.where(better, value, self.value[mine])
        self.won[mine] = wrong
        self.moved[mine] |= better
        gained[asked] = better
        return gained
