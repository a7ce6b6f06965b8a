"""Carlini and Wagner's attacks: the smallest perturbation by descent and a search for the penalty."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.cw_l0 import lower_count
from attacks.cw_linf import lower_threshold
from attacks.deepfool import walk
from attacks.losses import against, margin_loss, rounding
from attacks.nearest import Best
from attacks.unbounded import Adam, FirstSuccess, bounded, unbounded
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel, per_sample, vector_norm


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


@register_attack("cw")
@dataclass(frozen=True, kw_only=True)
class CarliniWagner(Attack):
    """Finds the nearest misclassified point in l2, linf or l0, nearer on average than DeepFool's.

    In l2 it solves min_w ||x' - x||^2 + c max(z_y - max_{j != y} z_j + confidence, 0) over
    x' = lower + width (tanh(w) + 1) / 2 by Adam in w. c is searched per sample in `rounds` rounds of at most
    `steps` steps, from the value at which the linearised model crosses; a sample leaves a round
    when its own objective has not fallen by 0.1 % for `patience` steps, so that nothing depends
    on the batch. The nearest misclassified iterate is kept. `warm_start` begins each round at
    DeepFool's point, so that the end is never farther, and needs far fewer steps: at a saturated
    pixel tanh is flat, and from x itself (the paper's start) Adam takes hundreds of steps to leave it.
    linf and l0 lower a bound instead, on every entry's change or on the number of entries that may change,
    up to `bounds` times, and descend within it for at most `bound_steps` steps of `bound_rate`.
    With an eps, a point farther than eps is handed over projected on the ball.
    Source: Carlini, Wagner 2017, 1608.04644, sections V and VI, loss f_6.
    """

    paper = "Carlini, Wagner 2017, 1608.04644"
    norms = ("l2", "linf", "l0")
    minimal = True
    cost = Cost.MEDIUM

    rounds: int = 4
    steps: int = 50
    learning_rate: float = 0.04
    confidence: float = 0.0
    patience: int = 10
    warm_start: bool = True
    bounds: int = 25
    bound_steps: int = 20
    bound_rate: float = 0.3

    def __post_init__(self) -> None:
        if self.confidence < 0:
            raise UserError(f"cw needs a confidence >= 0, not {self.confidence}")

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        x, rows = batch.x, torch.arange(len(batch), device=batch.x.device)
        best = Best.none(x)
        walked = ThreatModel("linf" if threat.norm == "linf" else "l2", None, threat.box)
        start = self._warm(model, batch, rows, walked, best) if self.warm_start else x
        if threat.norm == "l2":
            penalties = Penalties(_first_weights(model, batch, rows))
            for _ in range(self.rounds):
                penalties.update(self._descend(model, batch, start, threat.box, penalties.weight, best))
            return threat.project(x, best.point)
        descent = FirstSuccess(self.bound_steps, self.bound_rate, self.confidence)
        if threat.norm == "l0":
            best.distance = torch.where(best.found, threat.distance(x, best.point).float(), torch.inf)
        lower = lower_count if threat.norm == "l0" else lower_threshold
        lower(model, batch, threat, start, best, rounds=self.bounds, descent=descent)
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
        live, w = torch.arange(len(start), device=start.device), unbounded(start, box.lower, box.upper)
        adam = Adam.on(w, self.learning_rate)
        lowest = torch.full_like(weight, torch.inf)
        stalled = torch.zeros(len(w), dtype=torch.int64, device=w.device)
        success = torch.zeros(len(w), dtype=torch.bool, device=w.device)
        for _ in range(self.steps):
            x, y, c = batch.x[live], batch.y[live], weight[live]
            z, slant = bounded(w, box.lower, box.upper)
            z = box.clamp(z)
            logits, value, slope = model.gradient(z, live, against(margin_loss, y))
            slack = rounding(logits)
            distance = vector_norm(z - x, "l2")
            wrong = value > slack + self.confidence
            best.offer(live, z, distance, wrong)
            success[live] |= wrong
            hinge = (self.confidence + 2 * slack - value).clamp(min=0)
            pull = 2 * (z - x) - per_sample(c * (hinge > 0), x) * slope
            w = w + adam.step(pull * slant)
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
