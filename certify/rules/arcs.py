"""Functions that turn once, at 0, on a stretch around it: hyperbolic sine, arcsine, area tangent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.bounds import Interval
from certify.rules.arithmetic import ScaleShift
from certify.rules.convex import MOST
from certify.rules.table import Call, Step, rule
from certify.rules.turning import ENDS, Course, Turning
from models.errors import NotApplicable

# Below this the root under an arcsine's slope counts as no less.
SMALLEST = 1e-14
# An area tangent of more is no number to go on with.
NEARLY_ONE = 1 - 1e-7
# Each function with its derivative, whether that rises up to 0, and how far around 0 it is looked at.
ARCS: dict[str, tuple[Course, float]] = {
    "sinh": (Course(lambda z, _: z.sinh(), lambda z, _: z.cosh(), (0.0,), False, -math.inf), ENDS),
    "asin": (
        Course(
            lambda z, _: z.asin(), lambda z, _: (1 - z.square()).clamp(min=SMALLEST).rsqrt(),
            (0.0,), False, -math.inf,
        ),
        1.0,
    ),
    "atanh": (
        Course(lambda z, _: z.atanh(), lambda z, _: (1 - z.square()).reciprocal(), (0.0,), False, -math.inf),
        NEARLY_ONE,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Arc(Turning):
    """One of ARCS; where z may leave its stretch nothing is known of its value: +-MOST stands for that."""

    @property
    def course(self) -> Course:
        return ARCS[self.kind][0]

    def _inside(self, bounds: Interval) -> tuple[Interval, Tensor]:
        """Bounds with points in place of those that leave the stretch, and where that is."""
        end = ARCS[self.kind][1]
        outside = (bounds.lower < -end) | (bounds.upper > end)
        if self.kind == "sinh" and bool(outside.any()):
            # It goes on beyond, to values above any that could stand for nothing known.
            raise NotApplicable(
                f"sinh of values that may exceed {end:.0f} is not understood: take a smaller eps"
            )
        return Interval(
            bounds.lower.masked_fill(outside, 0.0), bounds.upper.masked_fill(outside, 0.0)
        ), outside

    def interval(self, *inputs: Interval) -> Interval:
        inside, outside = self._inside(inputs[0])
        found = super().interval(inside)
        return Interval(found.lower.masked_fill(outside, -MOST), found.upper.masked_fill(outside, MOST))

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        raise NotApplicable(f"'{self.kind}' has no Lipschitz constant: use ibp, crown or polytope")

    def _parallel(self, bounds: Interval) -> Tensor:
        inside, outside = self._inside(bounds)
        slope, below, above = super()._parallel(inside).unbind()
        nothing = (slope, 0.0), (below, -MOST), (above, MOST)
        return torch.stack([part.masked_fill(outside, value) for part, value in nothing])


def _input(call: Call) -> tuple[int]:
    return (call.value(call.bind("input")["input"]),)


@rule(torch.sinh, "sinh")
def hyperbolic_sine(call: Call) -> Step:
    """(exp(z) - exp(-z)) / 2."""
    return Arc("sinh"), _input(call)


@rule(torch.asin, torch.arcsin, "asin", "arcsin")
def arc_sine(call: Call) -> Step:
    """The angle whose sine is z, of -1 <= z <= 1."""
    return Arc("asin"), _input(call)


@rule(torch.acos, torch.arccos, "acos", "arccos")
def arc_cosine(call: Call) -> Step:
    """The angle whose cosine is z, of -1 <= z <= 1: pi / 2 - asin(z)."""
    return (Arc("asin"), ScaleShift(scale=lambda: -1.0, shift=lambda: math.pi / 2)), _input(call)


@rule(torch.atanh, torch.arctanh, "atanh", "arctanh")
def area_tangent(call: Call) -> Step:
    """The number whose hyperbolic tangent is z, of -1 < z < 1."""
    return Arc("atanh"), _input(call)
