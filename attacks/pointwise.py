"""The pointwise attack: noise that fools, put back to the input entry by entry, from labels alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import LabelAccess
from attacks.base import Attack, register_attack
from attacks.oracle import Oracle, candidate
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel

LEVELS = 20
"""Noise reaches this many shares of the entries, one after the other, until it fools."""
KINDS = 4


class Elimination:
    """The point z (n, d) of each sample while noise is added, and while entries are put back to x.

    level (n,): how much noise has been asked about, -1 once it fooled. turn (n, d): when each entry was last
    tried, below 1 where it has not been; since (n,): when one was last put back; kind (n,): what noise is
    made of, 0 for corners of the box, else one of three pictures.
    """

    def __init__(self, batch: Batch, threat: ThreatModel, randomness: Randomness) -> None:
        self.batch, self.threat, self.randomness = batch, threat, randomness
        self.x = batch.x.flatten(1)
        self.z, self.full = self.x.clone(), self.x.clone()
        self.place, self.turn = (torch.ones_like(self.x, dtype=torch.float64) for _ in range(2))
        self.level, self.since, self.starts, self.kind = (torch.zeros_like(batch.y) for _ in range(4))
        self.clock = 1
        self._begin(torch.arange(len(batch), device=batch.x.device))

    def _begin(self, rows: Tensor) -> None:
        """Draws fresh noise for the samples `rows` (k,), and the order in which it is put back."""
        for start in self.starts[rows].unique().tolist():
            some = rows[self.starts[rows] == start]
            stream, index = self.randomness.child("start", start), self.batch.index[some]
            self.place[some] = stream.child("place").uniform(index, self.x.shape[1:]).double()
            self.turn[some] = stream.child("turn").uniform(index, self.x.shape[1:]).double()
            for kind in (self.kind[some]).unique().tolist():
                self._paint(some[self.kind[some] == kind], kind, stream)
        self.level[rows], self.since[rows] = 1, 1
        self.starts[rows] += 1

    def _paint(self, rows: Tensor, kind: int, randomness: Randomness) -> None:
        """Draws what the noise of the samples `rows` (k,) is made of."""
        x, index, box = self.batch.x[rows], self.batch.index[rows], self.threat.box
        if kind:
            picture = candidate(x, index, self.threat, kind - 1, randomness)
        else:
            high = randomness.child("corner").uniform(index, x.shape[1:]) < 0.5
            picture = torch.where(high, box.upper, box.lower).to(x)
        self.full[rows] = picture.flatten(1)

    def ask(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The next point of each sample of `rows` (k, ...), and the entry that it puts back (k,)."""
        minimal = (self.level[rows] < 0) & (self._waiting(rows).amin(1) > self.since[rows])
        noisy = self.level[rows] > LEVELS
        # What has not fooled, and a picture that has been put back once, give way to the next kind of noise.
        self.kind[rows[noisy | (minimal & (self.kind[rows] > 0))]] += 1
        self.kind %= KINDS
        if bool((minimal | noisy).any()):
            self._begin(rows[minimal | noisy])
        noise = self.place[rows] < (self.level[rows] / LEVELS)[:, None]
        entry = self._waiting(rows).argmin(1)
        back = self.z[rows].scatter(1, entry[:, None], self.x[rows].gather(1, entry[:, None]))
        added = torch.where(noise, self.full[rows], self.x[rows])
        points = torch.where((self.level[rows] < 0)[:, None], back, added)
        return points.reshape(len(rows), *self.batch.x.shape[1:]), entry

    def learn(self, rows: Tensor, points: Tensor, entry: Tensor, wrong: Tensor) -> None:
        """Takes over the points (k, ...) that are misclassified."""
        self.clock += 1
        adding = self.level[rows] > 0
        self.z[rows[wrong]] = points[wrong].flatten(1)
        tried = ~adding
        self.turn[rows[tried], entry[tried]] = self.clock
        self.since[rows[tried & wrong]] = self.clock
        self.level[rows[adding]] = torch.where(wrong[adding], -1, self.level[rows[adding]] + 1)

    def _waiting(self, rows: Tensor) -> Tensor:
        """When each changed entry was last tried (k, d), infinite for the others."""
        return self.turn[rows].masked_fill(self.z[rows] == self.x[rows], torch.inf)


@register_attack("pointwise")
@dataclass(frozen=True, kw_only=True)
class Pointwise(Attack):
    """Puts the entries of noise that fools back to the input while it still fools, from labels alone.

    Salt-and-pepper noise reaches 1/20, 2/20, ... of the entries until the point is misclassified. Then one
    changed entry after another, in random order, is set back to x and stays there where the point is still
    misclassified, over and over until none of those that remain can be put back alone. On an affine network
    of two classes no subset of them can then. What is left of the `queries` starts afresh from other noise,
    where the paper makes ten runs; the fewest changed entries are handed over. Where noise on all entries
    does not fool, the inverted image and two flat ones take its place in turn (see attacks/oracle.py). Only
    changed entries count here: the search for a smaller change of each entry that remains, made for l2, is
    left out. A sample leaves when one entry is enough, or once it is within an eps.
    Source: Schott, Rauber, Bethge, Brendel 2018, 1805.09190, section 5 (Pointwise attack).
    """

    paper = "Schott, Rauber, Bethge, Brendel 2018, 1805.09190"
    norms = ("l0",)
    minimal = True
    access = "labels"
    cost = Cost.EXPENSIVE

    queries: int = 5000

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise UserError(f"pointwise needs queries >= 1, not {self.queries}")

    def propose(
        self, model: LabelAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        oracle, state = Oracle(model, batch, threat, self.queries), Elimination(batch, threat, randomness)
        rows = torch.arange(len(batch), device=batch.x.device)
        while len(rows := oracle.live(rows[oracle.distance[rows] > 1])):
            points, entry = state.ask(rows)
            # A random network may err at x itself, which is no perturbation.
            changed = (points != batch.x[rows]).flatten(1).any(1)
            wrong = oracle.wrong(points, rows) & changed
            oracle.keep(points[wrong], rows[wrong])
            state.learn(rows, points, entry, wrong)
        return threat.project(batch.x, oracle.best)
