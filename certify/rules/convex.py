"""Convex functions of each entry, between their chord and the parallel line that touches them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from certify.bounds import Interval
from certify.rules.activation import Activation
from certify.rules.operation import Lines
from certify.rules.table import Call, Step, rule
from models.errors import NotApplicable


@dataclass(frozen=True)
class Shape:
    """A convex function with its least value at `lowest`, -inf where it only grows.

    slope is its derivative, or any subgradient; touching(s) is min over z of f(z) - s z, for every slope s
    that a chord may have; steepest is its largest slope, infinite where it has none.
    """

    function: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    touching: Callable[[Tensor], Tensor]
    lowest: float
    steepest: float


SHAPES = {
    "abs": Shape(torch.abs, torch.sign, torch.zeros_like, 0.0, 1.0),
    "square": Shape(torch.square, lambda z: 2 * z, lambda slope: -slope.square() / 4, 0.0, torch.inf),
    # The slope exp(z) below 0: it is s at z = ln s.
    "elu": Shape(
        F.elu,
        lambda z: z.clamp(max=0).exp(),
        lambda slope: slope - 1 - torch.xlogy(slope, slope),
        -torch.inf,
        1.0,
    ),
}


@dataclass(frozen=True)
class Convex(Activation):
    """One of SHAPES: the chord above, and below the line of the chord's slope that touches the function.

    With alpha the line below touches at l + alpha (u - l).
    """

    kind: str
    free_slope = True

    def forward(self, *values: Tensor) -> Tensor:
        return SHAPES[self.kind].function(values[0])

    def interval(self, *inputs: Interval) -> Interval:
        lower, upper, shape = inputs[0].lower, inputs[0].upper, SHAPES[self.kind]
        ends = self.forward(lower), self.forward(upper)
        lowest = self.forward(torch.as_tensor(shape.lowest, dtype=lower.dtype, device=lower.device))
        dips = (lower < shape.lowest) & (upper > shape.lowest)
        return Interval(torch.where(dips, lowest, torch.minimum(*ends)), torch.maximum(*ends))

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        if math.isinf(SHAPES[self.kind].steepest):
            raise NotApplicable(f"'{self.kind}' has no Lipschitz constant: use ibp, crown or polytope")
        return constants[0] * SHAPES[self.kind].steepest

    def undecided(self, bounds: Interval) -> Tensor:
        return bounds.upper > bounds.lower

    def lines(self, bounds: Interval, alpha: Tensor | None) -> Lines:
        lower, upper, shape = bounds.lower, bounds.upper, SHAPES[self.kind]
        width = upper - lower
        flat = width <= 0
        rise = self.forward(upper) - self.forward(lower)
        # Any slope that the function has somewhere is valid: what rounding makes of it would only be loose.
        slope = torch.where(flat, 0.0, rise / torch.where(flat, 1.0, width))
        steepest = shape.steepest
        slope = slope.clamp(-steepest if shape.lowest > -torch.inf else 0.0, steepest)
        above = torch.maximum(self.forward(lower) - slope * lower, self.forward(upper) - slope * upper)
        if alpha is None:
            below = torch.where(flat, self.forward(lower) - slope * lower, shape.touching(slope))
            return Lines(slope, below, slope, above, parallel=True)
        if alpha.dim() > lower.dim():
            lower, upper, slope, above = (part.unsqueeze(1) for part in (lower, upper, slope, above))
        place = lower + alpha * (upper - lower)
        touching = shape.slope(place)
        return Lines(touching, self.forward(place) - touching * place, slope, above)


@rule(torch.abs, "abs", abs)
def absolute(call: Call) -> Step:
    """|z|."""
    return Convex("abs"), (call.value(call.bind("input")["input"]),)


@rule(torch.square, "square")
def square(call: Call) -> Step:
    """z^2."""
    return Convex("square"), (call.value(call.bind("input")["input"]),)


@rule(torch.pow, operator.pow, "pow")
def power(call: Call) -> Step:
    """z^2 by its exponent."""
    given = call.bind("input", "exponent")
    if given["exponent"] != 2:
        call.refuse(f"the exponent {given['exponent']} is not understood by the certificates: use 2")
    return Convex("square"), (call.value(given["input"]),)
