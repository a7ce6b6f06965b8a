"""Descent in a variable that the box cannot stop: Carlini and Wagner's tanh, and Adam on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.losses import against, margin_loss, rounding
from attacks.nearest import Best
from models.base import Batch
from models.threat import ThreatModel

SHRINK = 1 - 1e-6
INSET = 0.1


def unbounded(x: Tensor, lower: float | Tensor, upper: float | Tensor, *, inset: float = 0.0) -> Tensor:
    """w with tanh(w) = the place of x between the bounds from -1 to 1, shrunk so that w is finite at both.

    With an `inset` that place is at most 1 - inset in size: there tanh is steep enough to be left in few
    steps. Where the bounds coincide w is 0.
    """
    place = ((x - lower) / (upper - lower) * 2 - 1).nan_to_num(0.0, 0.0, 0.0)
    return torch.atanh(place.clamp(inset - 1, 1 - inset) * SHRINK)


def bounded(w: Tensor, lower: float | Tensor, upper: float | Tensor) -> tuple[Tensor, Tensor]:
    """The point lower + (upper - lower) (tanh(w) + 1) / 2, and its slope in w."""
    tanh, half = torch.tanh(w), (upper - lower) / 2
    return lower + half * (tanh + 1), half * (1 - tanh.square())


@dataclass
class Adam:
    """Adam's moments of each sample (k, ...), dropped sample by sample (Kingma, Ba 2015, algorithm 1)."""

    rate: float
    first: Tensor
    second: Tensor
    count: int = 0

    @staticmethod
    def on(w: Tensor, rate: float) -> Adam:
        """No step yet of w (k, ...)."""
        return Adam(rate, torch.zeros_like(w), torch.zeros_like(w))

    def step(self, gradient: Tensor) -> Tensor:
        """The change to make after seeing `gradient`."""
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient.square()
        mean = self.first / (1 - 0.9**self.count)
        scale = (self.second / (1 - 0.999**self.count)).sqrt()
        # Far below any gradient of a saturated tanh, which would freeze under the usual 1e-8.
        return -self.rate * mean / (scale + 1e-20)

    def keep(self, rows: Tensor) -> None:
        """Forgets the samples outside the mask `rows` (k,)."""
        self.first, self.second = self.first[rows], self.second[rows]


@dataclass(frozen=True)
class FirstSuccess:
    """Adam on the margin between bounds, up to the first point misclassified by more than `confidence`."""

    steps: int
    rate: float
    confidence: float

    def search(
        self,
        model: GradientAccess,
        batch: Batch,
        rows: Tensor,
        threat: ThreatModel,
        point: Tensor,
        bounds: tuple[Tensor, Tensor],
        best: Best,
    ) -> Tensor:
        """Whether each sample of `rows` (k,) got there from `point` within `bounds` (k, ...).

        The points go to `best`. The start is drawn off the bounds; an entry whose two bounds coincide stays.
        """
        lower, upper = bounds
        x, y, w = batch.x[rows], batch.y[rows], unbounded(point, lower, upper, inset=INSET)
        adam, live = Adam.on(w, self.rate), torch.arange(len(rows), device=w.device)
        success = torch.zeros_like(rows, dtype=torch.bool)
        for _ in range(self.steps):
            z, slant = bounded(w, lower[live], upper[live])
            z = threat.box.clamp(z)
            logits, value, slope = model.gradient(z, rows[live], against(margin_loss, y[live]))
            success[live] = value > rounding(logits) + self.confidence
            best.offer(rows[live], z, threat.distance(x[live], z), success[live])
            keep = ~success[live]
            live, w = live[keep], w[keep]
            adam.keep(keep)
            if not len(live):
                break
            w = w + adam.step(-slope[keep] * slant[keep])
        return success
