"""Sigmoid, tanh and their kind between two lines: tangents, or the chord where no tangent fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval
from certify.rules.activation import Activation
from certify.rules.operation import Lines, chord, tangent_place
from certify.rules.table import Call, Step, rule

# Functions whose derivative grows up to 0 and falls from there on, odd around their value at 0: themselves,
# and their derivative.
SIGMOIDAL: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "sigmoid": (torch.sigmoid, lambda z: torch.sigmoid(z) * (1 - torch.sigmoid(z))),
    "tanh": (torch.tanh, lambda z: 1 - torch.tanh(z).square()),
    "erf": (torch.erf, lambda z: 2 / math.pi**0.5 * torch.exp(-z.square())),
    "softsign": (F.softsign, lambda z: 1 / (1 + z.abs()).square()),
    "atan": (torch.atan, lambda z: 1 / (1 + z.square())),
    "asinh": (torch.asinh, lambda z: torch.rsqrt(1 + z.square())),
}
HALVINGS = 12


@dataclass(frozen=True)
class Sigmoidal(Activation):
    """One of SIGMOIDAL between two lines.

    Without alpha parallel ones, of the smaller slope at the interval's ends: the derivative has one maximum,
    so its least value lies at an end, f(z) - s z is non-decreasing there, and the lines through both ends
    enclose f (Singh et al. 2018, DeepZ). With alpha tangents: the lower line touches the convex part at
    l + alpha (u - l), or at the last point whose tangent still passes below f(u); where there is none it is
    the chord. The upper line is the same of the function turned round. alpha = 1/2 touches nearest to the
    middle, where the gap is smallest (Zhang et al. 2018, 1811.00866, Table 3 and section 3.3).
    """

    kind: str = "sigmoid"
    free_slope = True

    def forward(self, *values: Tensor) -> Tensor:
        return SIGMOIDAL[self.kind][0](values[0])

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        return constants[0] * self._slope(torch.zeros_like(constants[0]))

    def undecided(self, bounds: Interval) -> Tensor:
        return bounds.upper > bounds.lower

    def _slope(self, z: Tensor) -> Tensor:
        return SIGMOIDAL[self.kind][1](z)

    def lines(self, bounds: Interval, alpha: Tensor | None) -> Lines:
        lower, upper = bounds.lower, bounds.upper
        if alpha is not None:
            slope, below = self._below(bounds.known(self, "last tangent", self._last_tangent), bounds, alpha)
            turned = Interval(-upper, -lower)
            last = bounds.known(self, "first tangent", lambda _: self._last_tangent(turned))
            steep, rest = self._below(last, turned, alpha)
            return Lines(slope, below, steep, 2 * self.forward(torch.zeros_like(rest)) - rest)
        slope = torch.minimum(self._slope(lower), self._slope(upper))
        below, above = self.forward(lower) - slope * lower, self.forward(upper) - slope * upper
        return Lines(slope, below, slope, above, parallel=True)

    @torch.no_grad()
    def _last_tangent(self, bounds: Interval) -> Tensor:
        """The last point of the convex part whose tangent lies below f on the interval, NaN without one."""
        lower, upper = bounds.lower, bounds.upper
        end = self.forward(upper)

        def above(z: Tensor) -> Tensor:
            return self.forward(z) + self._slope(z) * (upper - z) - end

        low, high = lower, upper.clamp(max=0.0)
        none = (lower >= 0) | (above(low) > 0)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            fits = above(middle) <= 0
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        # What bisection left is short enough for a secant, which must end where the tangent still fits.
        below, beyond = above(low), above(high)
        share = (-below / (beyond - below).clamp(min=1e-300)).clamp(0, 1)
        secant = low + share * (high - low)
        last = torch.where(above(secant) <= 0, secant, low)
        return torch.where(none, torch.nan, torch.where(upper <= 0, upper, last))

    def _below(self, last: Tensor, bounds: Interval, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and intercept of a line below f, which touches at `alpha`'s place up to `last`.

        Any slope would be valid: f(z) - s z is least at an end, or where f' = s in the convex part.
        """
        beside = alpha.dim() > last.dim()
        lower, upper, last = (
            part.unsqueeze(1) if beside else part for part in (bounds.lower, bounds.upper, last)
        )
        touches = ~last.isnan()
        place = tangent_place(lower, upper, alpha, torch.where(touches, last, lower))
        flat = self._slope(lower)
        slope = torch.where(touches, self._slope(place), chord(self.forward, flat, Interval(lower, upper)))
        ends = torch.minimum(self.forward(lower) - slope * lower, self.forward(upper) - slope * upper)
        touching = torch.where(touches, self.forward(place) - slope * place, ends)
        return slope, torch.minimum(ends, touching)


def _input(call: Call) -> tuple[int]:
    return (call.value(call.bind("input")["input"]),)


@rule(nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid")
def sigmoid(call: Call) -> Step:
    """1 / (1 + exp(-z))."""
    return Sigmoidal(), _input(call)


@rule(nn.Tanh, torch.tanh, F.tanh, "tanh")
def tanh(call: Call) -> Step:
    """tanh(z)."""
    return Sigmoidal("tanh"), _input(call)


@rule(torch.erf, torch.special.erf, "erf")
def erf(call: Call) -> Step:
    """The error function."""
    return Sigmoidal("erf"), _input(call)


@rule(nn.Softsign, F.softsign)
def softsign(call: Call) -> Step:
    """z / (1 + |z|)."""
    return Sigmoidal("softsign"), _input(call)


@rule(torch.atan, torch.arctan, "atan", "arctan")
def arc_tangent(call: Call) -> Step:
    """The angle whose tangent is z."""
    return Sigmoidal("atan"), _input(call)


@rule(torch.asinh, torch.arcsinh, "asinh", "arcsinh")
def area_sine(call: Call) -> Step:
    """log(z + sqrt(1 + z^2)), which grows on either side without end, ever more slowly."""
    return Sigmoidal("asinh"), _input(call)
