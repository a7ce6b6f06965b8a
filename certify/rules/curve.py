"""Softplus and GELU between two parallel lines of their chord's slope."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval
from certify.rules.activation import Activation
from certify.rules.operation import Lines, chord
from certify.rules.table import Call, Step, rule
from certify.rules.turning import Turning

# GELU decreases up to here, to this least value, and increases from here on.
LOWEST_AT, LOWEST = -0.7517915246935645, -0.1699712074799038
# The largest slope of GELU, at sqrt 2.
STEEPEST = 1.1289042
# Beyond these z, GELU is 0 and z to double precision.
ENDS = 40.0
HALVINGS = 48


@dataclass(frozen=True)
class Softplus(Activation):
    """ln(1 + exp(beta z)) / beta, and z itself beyond threshold / beta, as PyTorch computes it.

    Convex: the chord's slope s gives the line above through both ends; below, the least value of
    f(z) - s z over all z is the entropy H(s) / beta, reached inside the interval. With alpha the line below
    touches at l + alpha (u - l) instead.
    """

    beta: float = 1.0
    threshold: float = 20.0
    free_slope = True

    def forward(self, *values: Tensor) -> Tensor:
        return F.softplus(values[0], self.beta, self.threshold)

    def _drop(self, bounds: Interval) -> Tensor:
        """By how much the switch to z breaks convexity, on intervals that contain it."""
        inside = (bounds.lower * self.beta <= self.threshold) & (bounds.upper * self.beta > self.threshold)
        return inside.to(bounds.lower.dtype) * (1.01 * math.exp(-self.threshold) / self.beta)

    def interval(self, *inputs: Interval) -> Interval:
        ends = super().interval(*inputs)
        drop = self._drop(inputs[0])
        return Interval(ends.lower - drop, ends.upper + drop)

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        return constants[0]

    def undecided(self, bounds: Interval) -> Tensor:
        return bounds.upper > bounds.lower

    def lines(self, bounds: Interval, alpha: Tensor | None) -> Lines:
        lower, upper = bounds.lower, bounds.upper
        slope = chord(self.forward, torch.sigmoid(self.beta * lower), bounds).clamp(0, 1)
        slope = torch.where(self.beta * lower > self.threshold, 1.0, slope)
        drop = self._drop(bounds)
        above = torch.maximum(self.forward(lower) - slope * lower, self.forward(upper) - slope * upper)
        if alpha is None:
            below = self._least(slope)
            return Lines(slope, below - drop, slope, above + drop, parallel=True)
        if alpha.dim() > lower.dim():
            lower, upper, drop, slope, above = (
                part.unsqueeze(1) for part in (lower, upper, drop, slope, above)
            )
        touching = torch.sigmoid(self.beta * (lower + alpha * (upper - lower)))
        touching = torch.where(self.beta * lower > self.threshold, 1.0, touching)
        return Lines(touching, self._least(touching) - drop, slope, above + drop)

    def _least(self, slope: Tensor) -> Tensor:
        """The least value of f(z) - slope z over all z."""
        return (torch.special.entr(slope) + torch.special.entr(1 - slope)) / self.beta


@dataclass(frozen=True)
class GELU(Activation):
    """z Phi(z), Phi the normal distribution function: neither monotone nor convex.

    Its slope falls up to -sqrt 2, rises up to sqrt 2 and falls again, so that f(z) - s z has at most
    three stationary points; bisection finds them, and the two lines touch the extreme ones. With alpha the
    line below is the tangent at l + alpha (u - l) where the function is convex all along the interval.
    """

    free_slope = True

    def forward(self, *values: Tensor) -> Tensor:
        return F.gelu(values[0])

    def interval(self, *inputs: Interval) -> Interval:
        lower, upper = inputs[0].lower, inputs[0].upper
        ends = self.forward(lower), self.forward(upper)
        dips = (lower < LOWEST_AT) & (upper > LOWEST_AT)
        return Interval(torch.where(dips, LOWEST, torch.minimum(*ends)), torch.maximum(*ends))

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        return constants[0] * STEEPEST

    def undecided(self, bounds: Interval) -> Tensor:
        return bounds.upper > bounds.lower

    def _slope(self, z: Tensor) -> Tensor:
        return torch.special.ndtr(z) + z * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)

    def _stationary(self, slope: Tensor, bounds: Interval, start: float, stop: float) -> Tensor:
        """Where the derivative, monotone on [start, stop], is `slope`, or an end of the interval there."""
        low, high = bounds.lower.clamp(start, stop), bounds.upper.clamp(start, stop)
        rising = self._slope(high) >= self._slope(low)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            right = (self._slope(middle) < slope) == rising
            low, high = torch.where(right, middle, low), torch.where(right, high, middle)
        # Where the interval lies outside the branch this is a point outside the interval.
        return torch.minimum(torch.maximum((low + high) / 2, bounds.lower), bounds.upper)

    def lines(self, bounds: Interval, alpha: Tensor | None) -> Lines:
        slope, below, above = bounds.known(self, "parallel lines", self._parallel).unbind()
        if alpha is None:
            return Lines(slope, below, slope, above, parallel=True)
        lower, upper = bounds.lower, bounds.upper
        if alpha.dim() > lower.dim():
            lower, upper, slope, below, above = (
                part.unsqueeze(1) for part in (lower, upper, slope, below, above)
            )
        convex = (lower >= -math.sqrt(2)) & (upper <= math.sqrt(2))
        place = lower + alpha * (upper - lower)
        touching = self._slope(place)
        below = torch.where(convex, self.forward(place) - touching * place, below)
        return Lines(torch.where(convex, touching, slope), below, slope, above)

    def _parallel(self, bounds: Interval) -> Tensor:
        """The chord's slope, and the intercepts of both lines of that slope, as (3, n, ...)."""
        with torch.no_grad():
            slope = chord(self.forward, self._slope(bounds.lower), bounds)
            turn = math.sqrt(2)
            branches = ((-ENDS, -turn), (-turn, turn), (turn, ENDS))
            places = [self._stationary(slope, bounds, *branch) for branch in branches]
        points = torch.stack([bounds.lower, bounds.upper, *places])
        rest = self.forward(points) - slope * points
        return torch.stack([slope, rest.amin(0), rest.amax(0)])


@rule(nn.Softplus, F.softplus)
def softplus(call: Call) -> Step:
    """ln(1 + exp(beta z)) / beta."""
    given = call.bind("input", beta=1.0, threshold=20.0)
    if isinstance(call.module, nn.Softplus):
        given |= {"beta": call.module.beta, "threshold": call.module.threshold}
    return Softplus(float(given["beta"]), float(given["threshold"])), (call.value(given["input"]),)


@rule(nn.GELU, F.gelu)
def gelu(call: Call) -> Step:
    """z Phi(z) by the error function, or approximated by tanh."""
    given = call.bind("input", approximate="none")
    approximate = call.module.approximate if isinstance(call.module, nn.GELU) else given["approximate"]
    return GELU() if approximate == "none" else Turning("gelu-tanh"), (call.value(given["input"]),)
