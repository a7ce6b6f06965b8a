"""Carlini and Wagner's l2 attack: the smallest perturbation by descent and a search for the penalty."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.deepfool import walk
from attacks.losses import against, margin_loss, rounding
from attacks.nearest import Best
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel, per_sample, vector_norm

SHRINK = 1 - 1e-6


def unbounded(x: Tensor, box: Box) -> Tensor:
    """w with tanh(w) = the place of x in the box from -1 to 1, shrunk so that w is finite on its faces."""
    return torch.atanh(((x - box.lower) / box.width * 2 - 1) * SHRINK)


@dataclass
class Penalties:
    """The weights c (n,) of a batch and the interval known to hold the smallest one that succeeds."""

    weight: Tensor
    lower: Tensor = field(init=False)
    upper: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.lower = torch.zeros_like(self.weight)
        self.upper = torch.full_like(self.weight, torch.inf)

    def update(self, success: Tensor) -> None:
        """Halves the interval, or multiplies c by 10 while no success is known."""
        self.upper = torch.where(success, torch.minimum(self.upper, self.weight), self.upper)
        self.lower = torch.where(success, self.lower, torch.maximum(self.lower, self.weight))
        bracketed = torch.isfinite(self.upper)
        self.weight = torch.where(bracketed, (self.lower + self.upper) / 2, self.weight * 10)


@dataclass
class Adam:
    """Adam's moments of each sample (k, ...), dropped sample by sample (Kingma, Ba 2015, algorithm 1)."""

    rate: float
    first: Tensor
    second: Tensor
    count: int = 0

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


@register_attack("cw")
@dataclass(frozen=True, kw_only=True)
class CarliniWagner(Attack):
    """Finds the nearest misclassified point in l2, nearer on average than DeepFool's.

    Solves min_w ||x' - x||^2 + c max(z_y - max_{j != y} z_j + confidence, 0) over
    x' = lower + width (tanh(w) + 1) / 2 by Adam in w. c is searched per sample in `rounds` rounds of at most
    `steps` steps, from the value at which the linearised model crosses; a sample leaves a round
    when its own objective has not fallen by 0.1 % for `patience` steps, so that nothing depends
    on the batch. The nearest misclassified iterate is kept. `warm_start` begins each round at
    DeepFool's point, so that the end is never farther, and needs far fewer steps: at a saturated
    pixel tanh is flat, and from x itself (the paper's start) Adam takes hundreds of steps to leave it.
    With an eps, a point farther than eps is handed over projected on the ball.
    Source: Carlini, Wagner 2017, 1608.04644, section V, loss f_6.
    """

    paper = "Carlini, Wagner 2017, 1608.04644"
    norms = ("l2",)
    minimal = True
    cost = Cost.MEDIUM

    rounds: int = 4
    steps: int = 50
    learning_rate: float = 0.04
    confidence: float = 0.0
    patience: int = 10
    warm_start: bool = True

    def __post_init__(self) -> None:
        if self.confidence < 0:
            raise UserError(f"cw needs a confidence >= 0, not {self.confidence}")

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        x, rows = batch.x, torch.arange(len(batch), device=batch.x.device)
        best = Best.none(x)
        start = self._warm(model, batch, rows, threat, best) if self.warm_start else x
        penalties = Penalties(_first_weights(model, batch, rows))
        for _ in range(self.rounds):
            penalties.update(self._descend(model, batch, start, threat.box, penalties.weight, best))
        return threat.project(x, best.point)

    def _warm(
        self, model: GradientAccess, batch: Batch, rows: Tensor, threat: ThreatModel, best: Best
    ) -> Tensor:
        """DeepFool's point where it found one, else x; a point without the confidence is no success yet."""
        x = batch.x
        point, found = walk(
            model, x, batch.y, rows, threat, steps=50, overshoot=0.02, classes=10, tangent=False
        )
        best.offer(rows, point, threat.distance(x, point).float(), found & (self.confidence == 0))
        return torch.where(per_sample(found, x), point, x)

    def _descend(
        self, model: GradientAccess, batch: Batch, start: Tensor, box: Box, weight: Tensor, best: Best
    ) -> Tensor:
        """One round at penalty `weight` (n,) from `start` (n, ...): whether a sample succeeded in it (n,)."""
        live, w = torch.arange(len(start), device=start.device), unbounded(start, box)
        adam = Adam(self.learning_rate, torch.zeros_like(w), torch.zeros_like(w))
        lowest = torch.full_like(weight, torch.inf)
        stalled = torch.zeros(len(w), dtype=torch.int64, device=w.device)
        success = torch.zeros(len(w), dtype=torch.bool, device=w.device)
        for _ in range(self.steps):
            x, y, c, tanh = batch.x[live], batch.y[live], weight[live], torch.tanh(w)
            z = box.clamp(box.lower + box.width / 2 * (tanh + 1))
            logits, value, slope = model.gradient(z, live, against(margin_loss, y))
            slack = rounding(logits)
            distance = vector_norm(z - x, "l2")
            wrong = value > slack + self.confidence
            best.offer(live, z, distance, wrong)
            success[live] |= wrong
            hinge = (self.confidence + 2 * slack - value).clamp(min=0)
            pull = 2 * (z - x) - per_sample(c * (hinge > 0), x) * slope
            w = w + adam.step(pull * (box.width / 2) * (1 - tanh.square()))
            objective = distance.square() + c * hinge
            fell = objective < lowest[live] * (1 - 1e-3)
            lowest[live] = torch.where(fell, objective, lowest[live])
            stalled[live] = torch.where(fell, 0, stalled[live] + 1)
            keep = stalled[live] < self.patience
            live, w = live[keep], w[keep]
            adam.keep(keep)
            if not len(live):
                break
        return success


def _first_weights(model: GradientAccess, batch: Batch, rows: Tensor) -> Tensor:
    """The penalty c at which the minimum for the model linearised at x lies on its boundary: (n,)."""
    _, value, slope = model.gradient(batch.x, rows, against(margin_loss, batch.y))
    return 2 * value.abs() / vector_norm(slope, "l2").square().clamp(min=1e-20)
