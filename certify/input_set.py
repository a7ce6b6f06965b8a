"""The inputs of one sample as a flat convex set, and the least value of linear functions over it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from models.threat import ThreatModel, vector_norm

BISECTIONS = 40


@dataclass(frozen=True)
class InputSet:
    """{x : lower <= x <= upper, ||x - centre||_norm <= eps} for flat inputs (d,), float64.

    For linf the ball is in the bounds already, and eps plays no part.
    """

    lower: Tensor
    upper: Tensor
    centre: Tensor
    norm: str = "linf"
    eps: float = torch.inf

    # Whether coordinates depend on each other: those of a box do not.
    curved: ClassVar[bool] = False

    @staticmethod
    def of(x: Tensor, threat: ThreatModel) -> InputSet:
        """The threat set of one sample x (1, ...)."""
        lower, upper = (end.flatten() for end in threat.bounds(x))
        ball = threat.norm != "linf" and threat.eps is not None
        return InputSet(lower, upper, x.flatten(), threat.norm if ball else "linf", threat.radius)

    def middle_and_radius(self) -> tuple[Tensor, Tensor]:
        """The box's middle (d,) and half its widths (d,)."""
        return (self.upper + self.lower) / 2, (self.upper - self.lower) / 2

    def least(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A lower bound (k,) on rows . x over the set, rows (k, d), and points (k, d) that nearly reach it.

        Exact for linf. For l2 and l1 it is Lagrange's bound min over the box of
        rows . x + m (||x - centre|| - eps), at a multiplier m >= 0 found by bisection: valid for any
        m, and tight up to the bisection. The points lie in the box, and in the ball up to rounding.
        """
        if self.norm == "linf":
            points = torch.where(rows > 0, self.lower, self.upper)
            middle, radius = self.middle_and_radius()
            return rows @ middle - rows.abs() @ radius, points
        below, above = self.lower - self.centre, self.upper - self.centre
        low = torch.zeros(len(rows), 1, dtype=rows.dtype, device=rows.device)
        high = self._largest_multiplier(rows)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            outside = vector_norm(self._move(rows, middle, below, above), self.norm) > self.eps
            low = torch.where(outside[:, None], middle, low)
            high = torch.where(outside[:, None], high, middle)
        move = self._move(rows, high, below, above)
        point = self._filled(move, self._move(rows, low, below, above))
        linear = rows @ self.centre
        value = linear + (rows * move).sum(1) + high[:, 0] * self._penalty(move)
        free = self._move(rows, torch.zeros_like(high), below, above)
        inside = vector_norm(free, self.norm) <= self.eps
        value = torch.where(inside, linear + (rows * free).sum(1), value)
        return value, self.centre + self._within(torch.where(inside[:, None], free, point))

    def _filled(self, move: Tensor, beyond: Tensor) -> Tensor:
        """For l1, where the minimiser jumps: as far from `move` towards `beyond` as the ball allows."""
        if self.norm != "l1":
            return move
        short, long = vector_norm(move, "l1"), vector_norm(beyond, "l1")
        share = ((self.eps - short) / (long - short).clamp(min=1e-300)).clamp(0, 1)
        return move + share[:, None] * (beyond - move)

    def _largest_multiplier(self, rows: Tensor) -> Tensor:
        """A multiplier at which the penalised minimum lies inside the ball: (k, 1)."""
        if self.norm == "l1":
            return rows.abs().amax(1, keepdim=True)
        return (
            rows.norm(dim=1, keepdim=True) / (2 * self.eps) if self.eps else torch.full_like(rows[:, :1], 1e9)
        )

    def _move(self, rows: Tensor, multiplier: Tensor, below: Tensor, above: Tensor) -> Tensor:
        """The minimiser over the box of rows . v + multiplier * penalty(v), v = x - centre."""
        if self.norm == "l1":
            down = torch.where(rows > multiplier, below, torch.zeros_like(rows))
            return torch.where(rows < -multiplier, above, down)
        safe = (2 * multiplier).clamp(min=1e-300)
        return torch.maximum(torch.minimum(-rows / safe, above), below)

    def _penalty(self, move: Tensor) -> Tensor:
        """||v|| - eps, squared for l2: not positive exactly inside the ball."""
        length = vector_norm(move, self.norm)
        return length - self.eps if self.norm == "l1" else length.square() - self.eps**2

    def _within(self, move: Tensor) -> Tensor:
        """`move` (k, d) scaled into the ball: a box that holds the centre holds the result too."""
        length = vector_norm(move, self.norm).clamp(min=1e-300)
        return move * (self.eps / length).clamp(max=1.0)[:, None]

    def project(self, points: Tensor) -> Tensor:
        """Points (k, d) moved into the set: clipped to the box, then scaled into the ball."""
        clipped = torch.maximum(torch.minimum(points, self.upper), self.lower)
        return clipped if self.norm == "linf" else self.centre + self._within(clipped - self.centre)

    def steepest(self, rows: Tensor, x: Tensor) -> Tensor:
        """A direction (k, d) in which rows . x falls at x, as long as the set: half the box, or eps in l2."""
        if self.norm == "linf":
            return -rows.sign() * (self.upper - self.lower) / 2
        length = vector_norm(rows, "l2").clamp(min=1e-300)
        return -rows / length[:, None] * self.eps

    def beside(self, lower: Tensor, upper: Tensor) -> InputSet:
        """The set with further inputs between lower and upper (k,); linf only."""
        centre = torch.cat([self.centre, (lower + upper) / 2])
        return InputSet(torch.cat([self.lower, lower]), torch.cat([self.upper, upper]), centre)

    def only(self, seen: Tensor) -> InputSet:
        """The set of the inputs `seen` (d,) alone; linf only."""
        return replace(self, lower=self.lower[seen], upper=self.upper[seen], centre=self.centre[seen])

    def standard(self) -> InputSet:
        """The box [-1, 1] in single precision, in the place of this one; linf only."""
        end = torch.ones_like(self.lower, dtype=torch.float32)
        return UnitBox(-end, end, 0 * end)


@dataclass(frozen=True)
class UnitBox(InputSet):
    """The box [-1, 1], over which the least values are norms."""

    def least(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.linalg.vector_norm(rows, 1, dim=1), rows.sign().neg_()
