"""The fast adaptive boundary attack: along the linearised decision boundary, always pulled back towards x."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.losses import against, clearly_wrong, log_odds, margin_loss, rounding
from attacks.nearest import Best, closer
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample, vector_norm


def onto(threat: ThreatModel, x: Tensor, slope: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The least move (n, ...) within the box from x to where value + slope . move = 0, and its norm (n,).

    `value` (n,) has either sign. The third result (n,) is False where the box does not reach the
    hyperplane; the move then goes as near as it can.
    """
    ahead = torch.where(value < 0, 1.0, -1.0)
    move, reached = threat.nearest_gain(x, slope * per_sample(ahead, x), value.abs())
    return move, vector_norm(move, threat.norm), reached


@register_attack("fab")
@dataclass(frozen=True, kw_only=True)
class FastAdaptiveBoundary(Attack):
    """Walks along the linearised boundary towards each of the nearest classes, pulled back to x at each step.

    With d and d_x the least moves within the box from x_t and from x onto the boundary linearised at x_t,
    x_{t+1} = Proj((1 - a)(x_t + eta d) + a (x + eta d_x)), a = min(||d|| / (||d|| + ||d_x||), `bias`) and
    eta = `extrapolation`; a misclassified x_{t+1} is noted and drawn back to (1 - b) x + b x_{t+1},
    b = `backward`. The moves are exact in linf, l2 and l1, bounds included. The `targets` classes that are
    nearest for the model linearised at x are each walked towards, from x and then from `restarts` random
    points within half the least distance known. A sample leaves a walk after `patience` steps that brought
    its own least distance down by less than 0.1 %, which the paper does not; so few classes and one
    gradient a step are the targeted form of the authors' code. In the end x + d_x is tried at the nearest
    point, and `halvings` forward passes bisect the last twentieth of the segment from x (neither for 0).
    With an eps a sample is done once it is within.
    Source: Croce, Hein 2020, 1907.02044, algorithm 1; the targeted form is from 2003.01690, section 5.
    """

    paper = "Croce, Hein 2020, 1907.02044"
    norms = ("linf", "l2", "l1")
    minimal = True
    cost = Cost.MEDIUM

    steps: int = 40
    targets: int = 3
    restarts: int = 1
    bias: float = 0.1
    extrapolation: float = 1.05
    backward: float = 0.9
    patience: int = 10
    halvings: int = 6

    def __post_init__(self) -> None:
        if not (0 <= self.bias <= 1 and 0 < self.backward < 1 and self.extrapolation >= 1):
            raise UserError(
                "fab needs bias in [0, 1], backward in (0, 1) and extrapolation >= 1, "
                f"not {self.bias}, {self.backward} and {self.extrapolation}"
            )
        if self.targets < 1:
            raise UserError(f"fab needs targets >= 1, not {self.targets}")

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        best, goal = Best.none(batch.x), _goal(threat)
        rivals, reach = self._nearest(model, batch, threat)
        for restart in range(self.restarts + 1):
            for place in range(rivals.shape[1]):
                rows = (best.distance > goal).nonzero()[:, 0]
                if not len(rows):
                    break
                start = batch.x[rows]
                if restart:
                    radius = torch.where(best.found, best.distance, reach)[rows] / 2
                    start = _around(threat, batch[rows], radius, randomness.child("start", restart, place))
                self._walk(model, batch, rows, start, rivals[rows, place], threat, best)
        rows = (best.distance > goal).nonzero()[:, 0]
        rows = rows[best.found[rows]]
        if len(rows) and self.halvings:
            self._straight(model, batch, rows, threat, best)
        closer(model, batch, rows, threat, best, self.halvings, span=0.05)
        return threat.project(batch.x, best.point)

    def _nearest(self, model: GradientAccess, batch: Batch, threat: ThreatModel) -> tuple[Tensor, Tensor]:
        """The `targets` classes of nearest boundary for the model linearised at x, and the least distance."""
        n, classes = len(batch), model.num_classes
        offsets = torch.arange(1, classes, device=batch.x.device).repeat(n)
        y, x = batch.y.repeat_interleave(classes - 1), batch.x.repeat_interleave(classes - 1, 0)
        rivals = (y + offsets) % classes
        rows = torch.arange(n, device=x.device).repeat_interleave(classes - 1)
        _, value, slope = model.gradient(x, rows, partial(log_odds, y=y, target=rivals))
        _, length, reached = onto(threat, x, slope, value)
        length = torch.where(reached, length, torch.inf).reshape(n, -1)
        nearest = length.topk(min(self.targets, classes - 1), dim=1, largest=False)
        return rivals.reshape(n, -1).gather(1, nearest.indices), nearest.values[:, 0].float()

    def _walk(
        self,
        model: GradientAccess,
        batch: Batch,
        rows: Tensor,
        start: Tensor,
        rivals: Tensor,
        threat: ThreatModel,
        best: Best,
    ) -> None:
        """One walk of the samples `rows` (k,) from `start` (k, ...) towards the classes `rivals` (k,)."""
        z, live, goal = start, rows, _goal(threat)
        lowest = torch.full_like(best.distance, torch.inf)
        stalled = torch.zeros(len(batch), dtype=torch.int64, device=z.device)
        for _ in range(self.steps):
            if not len(live):
                return
            x, y = batch.x[live], batch.y[live]
            logits, value, slope = model.gradient(z, live, partial(log_odds, y=y, target=rivals))
            distance, wrong = threat.distance(x, z).to(lowest), clearly_wrong(logits, y)
            best.offer(live, z, distance, wrong)
            fell = wrong & (distance < lowest[live] * (1 - 1e-3))
            lowest[live] = torch.where(fell, distance, lowest[live])
            stalled[live] = torch.where(fell, 0, stalled[live] + 1)
            z = self._step(threat, x, z, slope, value - 2 * rounding(logits), wrong)
            keep = (stalled[live] < self.patience) & (best.distance[live] > goal)
            live, z, rivals = live[keep], z[keep], rivals[keep]

    def _straight(
        self, model: GradientAccess, batch: Batch, rows: Tensor, threat: ThreatModel, best: Best
    ) -> None:
        """Tries x + d_x for the boundary linearised at the nearest point, exact where the model is affine."""
        x, y, z = batch.x[rows], batch.y[rows], best.point[rows]
        logits, value, slope = model.gradient(z, rows, against(margin_loss, y))
        at_x = value - 2 * rounding(logits) + (slope * (x - z)).flatten(1).sum(1)
        move, _, _ = onto(threat, x, slope, at_x)
        trial = threat.box.clamp((x + move).to(x))
        wrong = clearly_wrong(model.logits(trial, rows), y)
        best.offer(rows, trial, threat.distance(x, trial), wrong)

    def _step(
        self, threat: ThreatModel, x: Tensor, z: Tensor, slope: Tensor, value: Tensor, wrong: Tensor
    ) -> Tensor:
        """From z, drawn back to x where it is `wrong`, to the biased mean of the two projections."""
        back = torch.where(per_sample(wrong, z), x + self.backward * (z - x), z)
        value = value + (slope * (back - z)).flatten(1).sum(1)
        move, length, _ = onto(threat, back, slope, value)
        at_x = value + (slope * (x - back)).flatten(1).sum(1)
        from_x, length_x, _ = onto(threat, x, slope, at_x)
        share = per_sample((length / (length + length_x).clamp(min=1e-30)).clamp(max=self.bias), z)
        mixed = (1 - share) * (back + self.extrapolation * move) + share * (x + self.extrapolation * from_x)
        return threat.box.clamp(mixed.to(z))


def _goal(threat: ThreatModel) -> float:
    """The distance at which a sample is done: never, where the smallest one is asked for."""
    return -1.0 if threat.eps is None else threat.eps


def _around(threat: ThreatModel, batch: Batch, radius: Tensor, randomness: Randomness) -> Tensor:
    """A random point within `radius` (n,) of each sample, in the box."""
    far = threat.at(threat.box.width).sample(batch.x, batch.index, randomness)
    share = (radius / threat.box.width).clamp(max=1.0).to(batch.x)
    return threat.box.clamp(batch.x + per_sample(share, batch.x) * (far - batch.x))
