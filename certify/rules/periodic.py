"""Sine and cosine between two parallel lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.bounds import Interval
from certify.rules.activation import Activation
from certify.rules.operation import Lines, chord
from certify.rules.table import Call, Step, rule

TURN = 2 * math.pi
Function = Callable[[Tensor], Tensor]
# Each wave, its derivative, and the two places in a turn where that is s, for |s| <= 1.
WAVES: dict[str, tuple[Function, Function, Callable[[Tensor], tuple[Tensor, Tensor]]]] = {
    "sin": (torch.sin, torch.cos, lambda s: (torch.acos(s), -torch.acos(s))),
    "cos": (torch.cos, lambda z: -torch.sin(z), lambda s: (torch.asin(-s), math.pi - torch.asin(-s))),
}


@dataclass(frozen=True)
class Wave(Activation):
    """One of WAVES between two parallel lines of its chord's slope s, or of slope 0 beyond one turn.

    f(z) - s z is extreme at an end or where f' = s, in every turn at two places; from one turn to the next
    it changes by -2 pi s, so that of each the first and the last in the interval are looked at.
    """

    kind: str

    def forward(self, *values: Tensor) -> Tensor:
        return WAVES[self.kind][0](values[0])

    def interval(self, *inputs: Interval) -> Interval:
        points = self.forward(self._extreme(torch.zeros_like(inputs[0].lower), inputs[0]))
        return Interval(points.amin(0), points.amax(0))

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        return constants[0]

    def undecided(self, bounds: Interval) -> Tensor:
        return bounds.upper > bounds.lower

    def _extreme(self, slope: Tensor, bounds: Interval) -> Tensor:
        """The ends, and the first and the last place of each kind between them: (6, n, ...)."""
        lower, upper = bounds.lower, bounds.upper
        places = [lower, upper]
        for here in WAVES[self.kind][2](slope):
            first = here + TURN * torch.ceil((lower - here) / TURN)
            last = here + TURN * torch.floor((upper - here) / TURN)
            places += [torch.minimum(first, upper), torch.maximum(last, lower)]
        return torch.stack(places)

    def lines(self, bounds: Interval, alpha: Tensor | None) -> Lines:
        slope, below, above = bounds.known(self, "parallel lines", self._parallel).unbind()
        return Lines(slope, below, slope, above, parallel=True)

    def _parallel(self, bounds: Interval) -> Tensor:
        """The chord's slope, and the intercepts of both lines of that slope, as (3, n, ...)."""
        with torch.no_grad():
            slope = chord(self.forward, WAVES[self.kind][1](bounds.lower), bounds).clamp(-1, 1)
            slope = torch.where(bounds.upper - bounds.lower >= TURN, 0.0, slope)
            places = self._extreme(slope, bounds)
        rest = self.forward(places) - slope * places
        return torch.stack([slope, rest.amin(0), rest.amax(0)])


def _input(call: Call) -> tuple[int]:
    return (call.value(call.bind("input")["input"]),)


@rule(torch.sin, "sin")
def sine(call: Call) -> Step:
    """sin(z)."""
    return Wave("sin"), _input(call)


@rule(torch.cos, "cos")
def cosine(call: Call) -> Step:
    """cos(z)."""
    return Wave("cos"), _input(call)
