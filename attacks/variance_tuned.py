"""Variance tuning: momentum on gradients corrected by those of the last iterate's neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.base import register_attack
from attacks.directions import Direction, Iterate
from attacks.momentum import Momentum
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel


@dataclass
class Tuned:
    """The gradient plus what there was more of it around the last iterate: `variance` (n, ...).

    Neighbours lie in the ball of `around`; those of the step `last` nobody would ask for.
    """

    around: ThreatModel
    randomness: Randomness
    neighbours: int
    last: int
    variance: Tensor
    elsewhere = False

    def __call__(self, at: Iterate) -> Tensor:
        if not self.neighbours:
            return at.gradient
        tuned = at.gradient + self.variance[at.rows]
        if at.step < self.last:
            self.variance[at.rows] = self._mean(at) - at.gradient
        return tuned

    def _mean(self, at: Iterate) -> Tensor:
        total = torch.zeros_like(at.z)
        for neighbour in range(self.neighbours):
            stream = self.randomness.child("step", at.step, neighbour)
            total += at.gradient_at(at.model.box.clamp(self.around.sample(at.z, at.index, stream)))
        return total / self.neighbours


@register_attack("variance-tuned")
@dataclass(frozen=True, kw_only=True)
class VarianceTuned(Momentum):
    """Momentum on gradients tuned by those around the last iterate, for better transfer (VMI-FGSM).

    g_{t+1} = decay g_t + G / ||G||_1 with G = grad J(x_t, y) + v_t, then as `momentum`, and v_{t+1} = (1 /
    N) sum_i grad J(x_t + r_i, y) - grad J(x_t, y), v_0 = 0, over `neighbours` = N random r_i in the ball of
    radius beta eps, drawn for each sample and step: the paper's cube for linf, for l2 the l2 ball. Each x_t
    + r_i is clipped to the box, which the paper leaves out: no network has to answer beyond it. A step
    costs 1 + N passes, the last one 1. `neighbours` = 0 is momentum.
    Source: Wang, He 2021, 2103.15571, algorithm 1.
    """

    paper = "Wang, He 2021, 2103.15571"
    cost = Cost.MEDIUM

    neighbours: int = 20
    beta: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 0 or self.beta <= 0:
            raise UserError(
                f"{self.name} needs neighbours >= 0 and beta > 0, not {self.neighbours} and {self.beta}"
            )

    def direction(self, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Direction:
        reach = self.beta * threat.radius
        # A box that cuts no ball, for draws that are clipped afterwards: cut balls are darker in the mean.
        free = Box(threat.box.lower - reach, threat.box.upper + reach)
        around = ThreatModel(threat.norm, reach, free)
        return Tuned(around, randomness, self.neighbours, self.steps - 1, torch.zeros_like(batch.x))
