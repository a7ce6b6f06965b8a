"""The ascent of lower slopes: every row of a backward pass climbs with slopes of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.relaxation import Relaxation
from certify.rules.operation import Relaxed

FIRST_MOMENT, SECOND_MOMENT = 0.9, 0.999


@dataclass
class Climb:
    """Adam's ascent on the lower slopes of a group of samples, each step projected on [0, 1].

    alpha[i] (n, classes, *shape of node i). Source: Kingma & Ba 2015, 1412.6980, Algorithm 1.
    """

    alpha: dict[int, Tensor]
    mean: dict[int, Tensor]
    square: dict[int, Tensor]
    count: int = 0

    @staticmethod
    def start(alpha: dict[int, Tensor], classes: int) -> Climb:
        """Every class of a sample starts from the sample's slopes (n, *shape)."""
        first = {i: a.unsqueeze(1).repeat(1, classes, *[1] * (a.dim() - 1)) for i, a in alpha.items()}
        zeros = {i: torch.zeros_like(a) for i, a in first.items()}
        return Climb(first, zeros, dict(zeros))

    def step(self, gradients: dict[int, Tensor], rate: float) -> None:
        """One step of size about `rate` up the gradients."""
        self.count += 1
        for i, gradient in gradients.items():
            self.mean[i] = FIRST_MOMENT * self.mean[i] + (1 - FIRST_MOMENT) * gradient
            self.square[i] = SECOND_MOMENT * self.square[i] + (1 - SECOND_MOMENT) * gradient.square()
            mean = self.mean[i] / (1 - FIRST_MOMENT**self.count)
            scale = (self.square[i] / (1 - SECOND_MOMENT**self.count)).sqrt() + 1e-12
            self.alpha[i] = (self.alpha[i] + rate * mean / scale).clamp(0, 1)

    def keep(self, rows: Tensor) -> None:
        """Only the samples `rows` (m,) go on."""
        for part in (self.alpha, self.mean, self.square):
            part.update({i: value[rows] for i, value in part.items()})


def climbed(
    relaxation: Relaxation,
    node: int,
    rows: Tensor,
    steps: int,
    rate: float,
    done: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The best lower bounds (n, k) on rows . value(node) met while the lower slopes, and mixtures, climb.

    rows (n, k, *shape of node), each with slopes of its own. Samples leave where done(samples, bounds) says
    so of their indices (s,) and bounds (s, k): (s,).
    """
    with torch.no_grad():
        best = torch.maximum(relaxation.lower(node, rows), relaxation.with_alpha({}).lower(node, rows))
    climb = Climb.start({**relaxation.alpha, **_mixtures(relaxation, node)}, rows.shape[1])
    open_ = torch.arange(len(rows), device=rows.device)
    for turn in range(steps + 1):
        leaving = done(open_, best[open_])
        if bool(leaving.any()):
            climb.keep((~leaving).nonzero()[:, 0])
            open_ = open_[~leaving]
        if not len(open_) or not climb.alpha:
            break
        leaves = {i: value.detach().requires_grad_(turn < steps) for i, value in climb.alpha.items()}
        with torch.set_grad_enabled(turn < steps):
            value = relaxation.select(open_).with_alpha(leaves).lower(node, rows[open_])
        best[open_] = torch.maximum(best[open_], value.detach())
        if turn < steps and not value.requires_grad:
            # Nothing that climbs stands before the node.
            break
        if turn < steps:
            ones = torch.ones_like(value)
            found = torch.autograd.grad(value, list(leaves.values()), ones, allow_unused=True)
            gradients = {i: g for i, g in zip(leaves, found, strict=True) if g is not None}
            climb.step(gradients, rate * (1 - turn / steps))
    return best


def _mixtures(relaxation: Relaxation, node: int) -> dict[int, Tensor]:
    """The first weights of the operations before `node` that mix entries."""
    found = {}
    for i, before in enumerate(relaxation.graph.nodes[:node]):
        if isinstance(before.operation, Relaxed) and before.operation.mixed:
            found[i] = before.operation.adaptive(relaxation.bounds[before.inputs[0]])
    return found
