"""Products of two values, entry by entry, between planes over both."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.bounds import Interval, dot
from certify.rules.arithmetic import ScaleShift
from certify.rules.convex import Convex
from certify.rules.extremes import Stack
from certify.rules.linear import Linear
from certify.rules.operation import Pulled, Relaxed, spread
from certify.rules.placement import Exchange
from certify.rules.pooling import Gather
from certify.rules.shape import Reshape
from certify.rules.table import Call, Made, Plan, Step, Value, rule
from models.errors import NotApplicable


@dataclass(frozen=True)
class Product(Relaxed):
    """a b for the pair (a, b) along dimension 1: (n, 2, ...) to (n, ...).

    On a box with centres A, B and radii r, s two planes lie below a b and two above, each tight on two of
    the box's sides. alpha (n, 2, ...) or (n, k, 2, ...) mixes them: [:, 0] those below, [:, 1] those above.
    Halves, as without alpha, make both slopes (B, A), with constants -A B -+ r s.
    Source: McCormick 1976, Mathematical Programming 10, section 3.
    """

    antisymmetric = True
    free_slope = True
    ranged = True

    def forward(self, *values: Tensor) -> Tensor:
        first, second = values[0].unbind(1)
        return first * second

    def interval(self, *inputs: Interval) -> Interval:
        (low, other_low), (high, other_high) = inputs[0].lower.unbind(1), inputs[0].upper.unbind(1)
        corners = torch.stack([low * other_low, low * other_high, high * other_low, high * other_high])
        return Interval(corners.amin(0), corners.amax(0))

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        raise NotApplicable("a product of values has no Lipschitz constant: use ibp, crown or polytope")

    def undecided(self, bounds: Interval) -> Tensor:
        """Both factors, unless one of them is known."""
        moving = bounds.upper > bounds.lower
        return moving.all(1, keepdim=True).expand_as(moving)

    def pull(self, rows: Tensor, bounds: Interval, alpha: Tensor | None, both: bool = False) -> Pulled:
        middle, other = bounds.centre.unbind(1)
        radius, width = bounds.radius.unbind(1)
        above = rows.clamp(max=0)
        area, corner = radius * width, middle * other
        constant = -dot(rows, corner) - dot(rows - 2 * above, area)
        first, second = rows * spread(other, rows), rows * spread(middle, rows)
        if alpha is None:
            opposite = dot(rows, corner) - dot(rows - 2 * above, area) if both else None
            return Pulled(torch.stack([first, second], 2), constant, opposite)
        tilts = 1 - 2 * (alpha if alpha.dim() == rows.dim() + 1 else alpha.unsqueeze(1))
        below, over = (rows - above) * tilts[:, :, 0], above * tilts[:, :, 1]
        first = first + (below - over) * spread(width, rows)
        second = second + (below + over) * spread(radius, rows)
        constant = constant - dot(below - over, middle * width) - dot(below + over, other * radius)
        return Pulled(torch.stack([first, second], 2), constant)

    def gap(self, rows: Tensor, z: Tensor, bounds: Interval, alpha: Tensor | None) -> Tensor:
        (off, other_off), (radius, width) = (z - bounds.centre).unbind(1), bounds.radius.unbind(1)
        tilts = torch.zeros_like(z) if alpha is None else 1 - 2 * alpha
        corner, area = off * other_off, radius * width
        below = area + corner - tilts[:, 0] * (width * off + radius * other_off)
        above = area - corner + tilts[:, 1] * (radius * other_off - width * off)
        return self.felt(rows * torch.where(rows > 0, below, above).clamp(min=0))

    def felt(self, rows: Tensor) -> Tensor:
        return rows.abs().unsqueeze(1).expand(-1, 2, *rows.shape[1:])


@rule(operator.mul, operator.imul, torch.mul, "mul", "mul_")
def multiply(call: Call) -> Step | list[Step]:
    """a * b, of two values or of a value and a constant; a * a is the square."""
    first, second = call.bind("input", "other").values()
    if not isinstance(first, Value):
        first, second = second, first
    if not isinstance(second, Value):
        return ScaleShift(scale=call.constant(second)), (call.value(first),)
    if first == second:
        return Convex("square"), (first.index,)
    return (Stack(), Product()), (first.index, second.index)


@rule(operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div", "div_")
def divide(call: Call) -> Step | list[Step]:
    """a / b, where a or b may be constant; a value below must be positive."""
    first, second = call.bind("input", "other").values()
    if not isinstance(second, Value):
        divisor = call.constant(second)
        return ScaleShift(scale=lambda: 1 / divisor()), (call.value(first),)
    inverse: Step = (Convex("reciprocal"), (second.index,))
    if isinstance(first, Value):
        return [inverse, ((Stack(), Product()), (first.index, -1))]
    return [inverse, (ScaleShift(scale=call.constant(first)), (-1,))]


@rule(torch.matmul, operator.matmul, "matmul", torch.mm, "mm", torch.bmm, "bmm")
def matmul(call: Call) -> Step | list[Step]:
    """x @ M over the last dimension, M @ x over the last but one, and x @ y as sums of products."""
    first, second = call.bind("input", "other").values()
    if isinstance(first, Value) and isinstance(second, Value):
        plan = Plan()
        multiplied(plan, first.index, second.index)
        return plan.steps
    value, constant = (first, second) if isinstance(first, Value) else (second, first)
    matrix = call.constant(constant)
    if matrix().dim() != 2:
        call.refuse("multiplies by something else than a matrix, which is not understood by the certificates")
    if isinstance(first, Value):
        return Linear(lambda: matrix().T, lambda: None), (call.value(value),)
    turn = Exchange(-2, -1)
    return (turn, Linear(matrix, lambda: None), turn), (call.value(value),)


def multiplied(plan: Plan, first: int | Made, second: int | Made) -> Made:
    """The matrix products of results (n, ..., t, d) and (n, ..., d, s): (n, ..., t, s)."""
    left = plan.add(Reshape(lambda values: values.unsqueeze(-1)), first)
    right = plan.add(Reshape(lambda values: values.unsqueeze(-3)), second)
    return plan.add((Stack(), Product(), Gather((-2,), keep=False, total=True)), left, right)
