"""Functions that jump, bounded on both sides of every threshold: signs and rounding."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from certify.bounds import Interval
from certify.rules.activation import Activation, clamped
from certify.rules.arithmetic import NEGATED, ScaleShift, Sum
from certify.rules.operation import Lines
from certify.rules.table import Call, Plan, Step, rule
from models.errors import NotApplicable

# How far from a threshold, relative to 1 + |z|, rounding may decide on which side of it a value falls.
ROUNDING = 1e-5
# A cut ends a range so far beyond its threshold, relative to 1 + |threshold|: a number at which no network's
# own bounds end, by which a branch that has decided for one side is known.
MARK = 1.0000173e-5
# What a mark may lose where a range is bounded again.
LOST = 1e-3


@dataclass(frozen=True)
class Kind:
    """A function that is constant but for jumps upwards: one at 0, or one of height 1 in every unit.

    first is the first jump after the value `low`, as low + first, where there are many; None for one at 0.
    """

    function: Callable[[Tensor], Tensor]
    first: float | None = None


KINDS = {
    "above": Kind(lambda z: (z > 0).to(z.dtype)),
    "at least": Kind(lambda z: (z >= 0).to(z.dtype)),
    "floor": Kind(torch.floor, 1.0),
    "ceil": Kind(torch.ceil, 0.0),
    "round": Kind(torch.round, 0.5),
}


@dataclass(frozen=True)
class Corners:
    """What a function that jumps does on lower - reach <= z <= upper + reach, by entry.

    It rises from `low` to `high` by jumps of `height` one unit apart, from `first` to `last`.
    """

    reach: Tensor
    low: Tensor
    high: Tensor
    height: Tensor
    first: Tensor
    last: Tensor


@dataclass(frozen=True)
class Jumps(Activation):
    """A function that jumps, where a value within ROUNDING (1 + |z|) of a threshold may fall on either side.

    With one jump at c the line above passes through (c, high) and, if that is the smaller gap, (l, low);
    below, any line through (c, low) whose slope is alpha times that to (u, high). With several, one unit
    apart, both lines have the slope of the stairs and touch their corners. All corners are moved outwards
    by what rounding may do.
    """

    kind: str
    antisymmetric = False
    free_slope = True

    def forward(self, *values: Tensor) -> Tensor:
        z = values[0]
        value = KINDS[self.kind].function(z)
        if not z.requires_grad:
            return value
        # Who descends is handed a slope where there is none: that of the stairs, or of a softened step.
        slope = F.softsign(z) / 2 if KINDS[self.kind].first is None else z
        return value + (slope - slope.detach())

    def _nearest(self, z: Tensor) -> Tensor:
        """The threshold nearest to z."""
        first = KINDS[self.kind].first
        return torch.zeros_like(z) if first is None else (z - first).round() + first

    def _marked(self, end: Tensor, side: float) -> tuple[Tensor, Tensor]:
        """Whether a cut put an end there, `side` of a threshold, and the value across the threshold."""
        threshold = self._nearest(end)
        beyond = side * (end - threshold) / (1 + threshold.abs())
        return (beyond <= MARK) & (beyond > MARK * (1 - LOST)), self.forward(threshold - 0.25 * side)

    def _corners(self, bounds: Interval) -> Corners:
        reach = ROUNDING * (1 + torch.maximum(bounds.lower.abs(), bounds.upper.abs()))
        low, high = self.forward(bounds.lower - reach), self.forward(bounds.upper + reach)
        above, lowest = self._marked(bounds.lower, -1.0)
        below, highest = self._marked(bounds.upper, 1.0)
        decided_low, decided_high = torch.where(above, lowest, low), torch.where(below, highest, high)
        # Both sides of one threshold in a range of next to nothing: a value may fall on either.
        clear = decided_low <= decided_high
        low, high = torch.where(clear, decided_low, low), torch.where(clear, decided_high, high)
        start = KINDS[self.kind].first
        if start is None:
            return Corners(reach, low, high, high - low, torch.zeros_like(low), torch.zeros_like(low))
        return Corners(reach, low, high, torch.ones_like(low), low + start, high + start - 1)

    def interval(self, *inputs: Interval) -> Interval:
        corners = self._corners(inputs[0])
        return Interval(corners.low, corners.high)

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        raise NotApplicable("a function that jumps has no Lipschitz constant: use ibp, crown or polytope")

    def undecided(self, bounds: Interval) -> Tensor:
        corners = self._corners(bounds)
        return corners.high > corners.low

    def adaptive(self, bounds: Interval) -> Tensor:
        """1 along stairs, and for one jump where the smaller part of the range lies before it; else 0."""
        corners = self._corners(bounds)
        steep = (corners.last > corners.first) | (bounds.centre > corners.first)
        return steep.to(bounds.lower.dtype)

    def cut(self, bounds: Interval) -> tuple[Tensor, Tensor]:
        """At the middle jump: parts overlap there by what rounding may do, and are marked as decided."""
        corners = self._corners(bounds)
        middle = corners.first + ((corners.last - corners.first) / 2).floor()
        reach = MARK * (1 - LOST / 2) * (1 + middle.abs())
        before, after = middle - reach, middle + reach
        useful = (corners.high > corners.low) & (bounds.lower < before) & (after < bounds.upper)
        return torch.where(useful, after, bounds.centre), torch.where(useful, before, bounds.centre)

    def gap(self, rows: Tensor, z: Tensor, bounds: Interval, alpha: Tensor | None) -> Tensor:
        return super().gap(rows, z, bounds, alpha) * self.undecided(bounds)

    def lines(self, bounds: Interval, alpha: Tensor | None) -> Lines:
        corners = self._corners(bounds)
        alpha = self.adaptive(bounds) if alpha is None else alpha
        jumps, many = corners.high > corners.low, corners.last > corners.first
        above, below = corners.first - corners.reach, corners.first + corners.reach
        left, right = above - bounds.lower, bounds.upper - below
        flat = ~jumps | (left <= corners.reach) | (left < right)
        upper_slope = torch.where(flat, 0.0, corners.height / torch.where(flat, 1.0, left))
        upper_slope = torch.where(many, corners.height, upper_slope)
        top = torch.where(jumps, torch.minimum(corners.low + corners.height, corners.high), corners.high)
        short = ~jumps | (right <= corners.reach)
        steepest = torch.where(short, 0.0, corners.height / torch.where(short, 1.0, right))
        steepest = torch.where(many, corners.height, steepest)
        low = corners.low
        upper_intercept = top - upper_slope * above
        if alpha.dim() > bounds.lower.dim():
            steepest, below, low, upper_slope, upper_intercept = (
                part.unsqueeze(1) for part in (steepest, below, low, upper_slope, upper_intercept)
            )
        lower_slope = alpha * steepest
        return Lines(lower_slope, low - lower_slope * below, upper_slope, upper_intercept)


def _of_one(call: Call, kind: str) -> Step:
    return Jumps(kind), (call.value(call.bind("input")["input"]),)


@rule(torch.sign, "sign", torch.sgn, "sgn")
def sign(call: Call) -> list[Step]:
    """-1, 0 or 1: 1[z > 0] - 1[-z > 0]."""
    value, plan = call.value(call.bind("input")["input"]), Plan()
    above = plan.add(Jumps("above"), value)
    below = plan.add((NEGATED, Jumps("above")), value)
    plan.add(Sum(-1.0), above, below)
    return plan.steps


@rule(torch.floor, "floor")
def floor(call: Call) -> Step:
    """The next whole number below."""
    return _of_one(call, "floor")


@rule(torch.ceil, "ceil")
def ceil(call: Call) -> Step:
    """The next whole number above."""
    return _of_one(call, "ceil")


@rule(torch.round, "round")
def rounded(call: Call) -> Step:
    """The nearest whole number, or the nearest multiple of a power of ten."""
    given = call.bind("input", decimals=0)
    scale = 10.0 ** given["decimals"]
    value = call.value(given["input"])
    if scale == 1:
        return Jumps("round"), (value,)
    return (ScaleShift(scale=lambda: scale), Jumps("round"), ScaleShift(scale=lambda: 1 / scale)), (value,)


@rule(operator.floordiv, torch.floor_divide, "floor_divide")
def floor_divide(call: Call) -> Step:
    """floor(z / c) for a constant c."""
    given = call.bind("input", "other")
    divisor = call.constant(given["other"])
    return (ScaleShift(scale=lambda: 1 / divisor()), Jumps("floor")), (call.value(given["input"]),)


@rule(torch.fake_quantize_per_tensor_affine)
def fake_quantize(call: Call) -> Step:
    """Rounding to a scale's multiples between two levels, as in training for integers."""
    given = call.bind("input", "scale", "zero_point", "quant_min", "quant_max")
    scale, zero = call.constant(given["scale"]), call.constant(given["zero_point"])
    low, high = given["quant_min"], given["quant_max"]
    clamps, inputs = clamped(call, given["input"], float(low), float(high))
    assert isinstance(clamps, tuple)
    first = (ScaleShift(scale=lambda: 1 / scale()), Jumps("round"), ScaleShift(shift=zero))
    last = ScaleShift(scale=scale, shift=lambda: -scale() * zero())
    return (*first, *clamps, last), inputs
