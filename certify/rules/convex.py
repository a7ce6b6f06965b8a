"""Convex functions of each entry, between their chord and the parallel line that touches them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from certify.bounds import Interval
from certify.rules.activation import Activation
from certify.rules.arithmetic import NEGATED
from certify.rules.operation import Lines, chord
from certify.rules.table import Call, Step, rule
from models.errors import NotApplicable

# Beyond this, lines and values would overflow on their way through a network.
MOST = 1e30
# Slopes and reciprocals of less are no numbers to go on with.
SMALLEST = 1e-12
# exp of more is no number to go on with either: it is infinite in single precision from 89 on.
HIGHEST = 60.0


@dataclass(frozen=True)
class Shape:
    """A convex function on z >= `domain` with its least value at `lowest`, infinite where it is monotone.

    slope is its derivative, or any subgradient; touching(s) is min over z of f(z) - s z, for every slope s
    that a chord may have; steepest is its largest slope in size, infinite where it has none.
    """

    function: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    touching: Callable[[Tensor], Tensor]
    lowest: float
    steepest: float = torch.inf
    domain: float = -torch.inf


SHAPES = {
    "abs": Shape(torch.abs, torch.sign, torch.zeros_like, 0.0, 1.0),
    "square": Shape(torch.square, lambda z: 2 * z, lambda slope: -slope.square() / 4, 0.0),
    # The slope exp(z) below 0: it is s at z = ln s.
    "elu": Shape(
        F.elu,
        lambda z: z.clamp(max=0).exp(),
        lambda slope: slope - 1 - torch.xlogy(slope, slope),
        -torch.inf,
        1.0,
    ),
    "exp": Shape(torch.exp, torch.exp, lambda slope: slope - torch.xlogy(slope, slope), -torch.inf),
    # For shares of a sum, which are 0 up to any tolerance where this differs from exp.
    "saturating exp": Shape(
        lambda z: z.clamp(max=HIGHEST).exp(),
        lambda z: z.clamp(max=HIGHEST).exp(),
        lambda slope: slope - torch.xlogy(slope, slope),
        -torch.inf,
    ),
    "cosh": Shape(
        torch.cosh, torch.sinh, lambda slope: (1 + slope.square()).sqrt() - slope * slope.asinh(), 0.0
    ),
    # From here on the slopes are negative: 1 / z has the slope s at z = 1 / sqrt(-s), and so on.
    "reciprocal": Shape(
        torch.reciprocal, lambda z: -z.square().reciprocal(), lambda slope: 2 * (-slope).sqrt(),
        torch.inf, domain=SMALLEST,
    ),
    "rsqrt": Shape(
        torch.rsqrt, lambda z: -z.pow(-1.5) / 2, lambda slope: 1.5 * (-2 * slope).pow(1 / 3),
        torch.inf, domain=SMALLEST,
    ),
    # As a local response normalisation has it.
    "power -3/4": Shape(
        lambda z: z.pow(-0.75), lambda z: -0.75 * z.pow(-1.75),
        lambda slope: 1.75 * (slope / -0.75).pow(3 / 7), torch.inf, domain=SMALLEST,
    ),
    "-log": Shape(
        lambda z: -z.log(), lambda z: -z.reciprocal(), lambda slope: 1 + (-slope).log(),
        torch.inf, domain=SMALLEST,
    ),
    "-sqrt": Shape(
        lambda z: -z.sqrt(), lambda z: -z.clamp(min=SMALLEST).rsqrt() / 2, lambda slope: 0.25 / slope,
        torch.inf, domain=0.0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Convex(Activation):
    """One of SHAPES: the chord above, and below the line of the chord's slope that touches the function.

    With alpha the line below touches at l + alpha (u - l). Where z may leave the function's domain nothing
    is known of its value: +-MOST stands for that.
    """

    kind: str
    free_slope = True

    def forward(self, *values: Tensor) -> Tensor:
        return SHAPES[self.kind].function(values[0])

    def _outside(self, bounds: Interval) -> Tensor:
        """Where values may leave the domain; raises NotApplicable where exp or cosh would overflow."""
        largest = torch.maximum(bounds.upper, -bounds.lower) if self.kind == "cosh" else bounds.upper
        if self.kind in ("exp", "cosh") and bool((largest > HIGHEST).any()):
            raise NotApplicable(
                f"{self.kind} of values that may exceed {HIGHEST:.0f} is not understood: take a smaller eps"
            )
        return bounds.lower < SHAPES[self.kind].domain

    def interval(self, *inputs: Interval) -> Interval:
        lower, upper, shape = inputs[0].lower, inputs[0].upper, SHAPES[self.kind]
        ends = self.forward(lower), self.forward(upper)
        lowest = self.forward(torch.as_tensor(shape.lowest, dtype=lower.dtype, device=lower.device))
        dips = (lower < shape.lowest) & (upper > shape.lowest)
        least, most = torch.where(dips, lowest, torch.minimum(*ends)), torch.maximum(*ends)
        outside = self._outside(inputs[0])
        return Interval(least.masked_fill(outside, -MOST), most.masked_fill(outside, MOST))

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        if math.isinf(SHAPES[self.kind].steepest):
            raise NotApplicable(f"'{self.kind}' has no Lipschitz constant: use ibp, crown or polytope")
        return constants[0] * SHAPES[self.kind].steepest

    def undecided(self, bounds: Interval) -> Tensor:
        return bounds.upper > bounds.lower

    def lines(self, bounds: Interval, alpha: Tensor | None) -> Lines:
        shape, outside = SHAPES[self.kind], self._outside(bounds)
        lower, upper = bounds.lower.masked_fill(outside, 1.0), bounds.upper.masked_fill(outside, 1.0)
        least, most = shape.slope(lower), shape.slope(upper)
        # Any slope that the function has somewhere is valid: what rounding makes of it would only be loose.
        slope = chord(self.forward, least, Interval(lower, upper)).maximum(least).minimum(most)
        above = torch.maximum(self.forward(lower) - slope * lower, self.forward(upper) - slope * upper)
        upper_slope, above = slope.masked_fill(outside, 0.0), above.masked_fill(outside, MOST)
        if alpha is None:
            below = shape.touching(slope).masked_fill(outside, -MOST)
            return Lines(upper_slope, below, upper_slope, above, parallel=True)
        if alpha.dim() > lower.dim():
            parts = (lower, upper, upper_slope, above, outside)
            lower, upper, upper_slope, above, outside = (part.unsqueeze(1) for part in parts)
        slope = shape.slope(lower + alpha * (upper - lower))
        below = shape.touching(slope).masked_fill(outside, -MOST)
        return Lines(slope.masked_fill(outside, 0.0), below, upper_slope, above)


def _input(call: Call) -> tuple[int]:
    return (call.value(call.bind("input")["input"]),)


@rule(torch.abs, "abs", abs)
def absolute(call: Call) -> Step:
    """|z|."""
    return Convex("abs"), _input(call)


@rule(torch.square, "square")
def square(call: Call) -> Step:
    """z^2."""
    return Convex("square"), _input(call)


@rule(torch.exp, "exp")
def exponential(call: Call) -> Step:
    """exp(z)."""
    return Convex("exp"), _input(call)


@rule(torch.cosh, "cosh")
def hyperbolic_cosine(call: Call) -> Step:
    """(exp(z) + exp(-z)) / 2."""
    return Convex("cosh"), _input(call)


@rule(torch.log, "log")
def logarithm(call: Call) -> Step:
    """ln z, of values that are positive."""
    return (Convex("-log"), NEGATED), _input(call)


@rule(torch.sqrt, "sqrt")
def square_root(call: Call) -> Step:
    """The square root of values that are positive."""
    return (Convex("-sqrt"), NEGATED), _input(call)


@rule(torch.rsqrt, "rsqrt")
def reciprocal_square_root(call: Call) -> Step:
    """1 / sqrt z of values that are positive."""
    return Convex("rsqrt"), _input(call)


@rule(torch.reciprocal, "reciprocal")
def reciprocal(call: Call) -> Step:
    """1 / z of values that are positive."""
    return Convex("reciprocal"), _input(call)
