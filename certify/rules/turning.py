"""Activations whose derivative rises and falls in turn: SiLU, Mish, SELU, Hardswish and the like."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval
from certify.rules.activation import Activation
from certify.rules.arithmetic import ScaleShift
from certify.rules.convex import Convex
from certify.rules.operation import Lines, chord
from certify.rules.table import Call, Step, rule

# Beyond these z each derivative is within 1e-15 of its limit.
ENDS = 40.0
HALVINGS = 48
# Covers the rounding of derivatives in double precision.
ROUNDING = 1 + 1e-9

SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
GELU_SCALE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715

Function = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Course:
    """A function of z and its parameter, and its derivative, monotone between neighbouring `turns`.

    Up to the first turn the derivative rises where `rising` says so, from there on it falls, and so on; at a
    turn it may jump. lowest is where the function is least, -inf where it never falls.
    """

    function: Function
    slope: Function
    turns: tuple[float, ...]
    rising: bool
    lowest: float


def _silu_slope(z: Tensor, _: float) -> Tensor:
    part = torch.sigmoid(z)
    return part * (1 + z * (1 - part))


def _mish_slope(z: Tensor, _: float) -> Tensor:
    part = torch.tanh(F.softplus(z))
    return part + z * (1 - part.square()) * torch.sigmoid(z)


def _gelu_slope(z: Tensor, _: float) -> Tensor:
    part = torch.tanh(GELU_SCALE * (z + GELU_CUBE * z**3))
    return (1 + part + z * (1 - part.square()) * GELU_SCALE * (1 + 3 * GELU_CUBE * z.square())) / 2


def _hardswish_slope(z: Tensor, _: float) -> Tensor:
    return torch.where(z.abs() <= 3, (2 * z + 3) / 6, (z > 0).to(z))


# The turns are the roots of the second derivative, and kinks.
COURSES = {
    "silu": Course(
        lambda z, _: F.silu(z), _silu_slope,
        (-2.3993572805154676678, 2.3993572805154676678), False, -1.2784645427610737951,
    ),
    "mish": Course(
        lambda z, _: F.mish(z), _mish_slope,
        (-2.25637639636079312, 1.4905711794854284593), False, -1.1924312145154952121,
    ),
    "gelu-tanh": Course(
        lambda z, _: F.gelu(z, approximate="tanh"), _gelu_slope,
        (-1.4185040087908283555, 1.4185040087908283555), False, -0.75246142207101625849,
    ),
    "hardswish": Course(lambda z, _: F.hardswish(z), _hardswish_slope, (-3.0, 3.0), False, -1.5),
    "elu": Course(F.elu, lambda z, a: torch.where(z <= 0, a * z.exp(), 1.0), (0.0,), True, -math.inf),
    "logsigmoid": Course(lambda z, _: F.logsigmoid(z), lambda z, _: torch.sigmoid(-z), (), False, -math.inf),
    "tanhshrink": Course(
        lambda z, _: F.tanhshrink(z), lambda z, _: torch.tanh(z).square(), (0.0,), False, -math.inf
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Turning(Activation):
    """One of COURSES between two parallel lines of its chord's slope s.

    Between two turns the derivative takes the value s at most once, where bisection finds it: f(z) - s z is
    extreme at one of these places, at a turn or at an end, and the lines touch it there.
    """

    kind: str
    parameter: float = 1.0

    @property
    def course(self) -> Course:
        """What is known of the function."""
        return COURSES[self.kind]

    def forward(self, *values: Tensor) -> Tensor:
        return self.course.function(values[0], self.parameter)

    def _slope(self, z: Tensor) -> Tensor:
        return self.course.slope(z, self.parameter)

    def interval(self, *inputs: Interval) -> Interval:
        lower, upper, lowest = inputs[0].lower, inputs[0].upper, self.course.lowest
        ends = self.forward(lower), self.forward(upper)
        if lowest == -math.inf:
            return Interval(*ends)
        least = self.forward(torch.as_tensor(lowest, dtype=lower.dtype, device=lower.device))
        dips = (lower < lowest) & (upper > lowest)
        return Interval(torch.where(dips, least, torch.minimum(*ends)), torch.maximum(*ends))

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        places = torch.tensor([-ENDS, *self.course.turns, ENDS]).to(constants[0])
        return constants[0] * ROUNDING * self._slope(places).abs().amax()

    def undecided(self, bounds: Interval) -> Tensor:
        return bounds.upper > bounds.lower

    def _stationary(self, slope: Tensor, bounds: Interval) -> list[Tensor]:
        """For each stretch between two turns where the derivative is `slope`, or an end of the stretch.

        A place outside the interval is moved to its nearer end.
        """
        places: list[Tensor] = []
        edges = [-ENDS, *self.course.turns, ENDS]
        for count, (start, stop) in enumerate(itertools.pairwise(edges)):
            low, high = bounds.lower.clamp(start, stop), bounds.upper.clamp(start, stop)
            rising = self.course.rising == (count % 2 == 0)
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                right = (self._slope(middle) < slope) == rising
                low, high = torch.where(right, middle, low), torch.where(right, high, middle)
            places.append((low + high) / 2)
        return [torch.minimum(torch.maximum(place, bounds.lower), bounds.upper) for place in places]

    def lines(self, bounds: Interval, alpha: Tensor | None) -> Lines:
        slope, below, above = bounds.known(self, "parallel lines", self._parallel).unbind()
        return Lines(slope, below, slope, above, parallel=True)

    def _parallel(self, bounds: Interval) -> Tensor:
        """The chord's slope, and the intercepts of both lines of that slope, as (3, n, ...)."""
        with torch.no_grad():
            slope = chord(self.forward, self._slope(bounds.lower), bounds)
            turns = [
                torch.full_like(slope, turn).maximum(bounds.lower).minimum(bounds.upper)
                for turn in self.course.turns
            ]
            places = [*turns, *self._stationary(slope, bounds)]
        points = torch.stack([bounds.lower, bounds.upper, *places])
        rest = self.forward(points) - slope * points
        return torch.stack([slope, rest.amin(0), rest.amax(0)])


def _input(call: Call) -> tuple[int]:
    return (call.value(call.bind("input", inplace=False)["input"]),)


def _setting(call: Call, name: str, default: float) -> tuple[Any, float]:
    """The input of a call and its one setting, from its module where it has one."""
    given = call.bind("input", **{name: default}, inplace=False)
    return given["input"], float(given[name] if call.module is None else getattr(call.module, name))


@rule(nn.SiLU, F.silu)
def silu(call: Call) -> Step:
    """z sigmoid(z)."""
    return Turning("silu"), _input(call)


@rule(nn.Mish, F.mish)
def mish(call: Call) -> Step:
    """z tanh(softplus(z))."""
    return Turning("mish"), _input(call)


@rule(nn.Hardswish, F.hardswish)
def hardswish(call: Call) -> Step:
    """z min(max(z + 3, 0), 6) / 6."""
    return Turning("hardswish"), _input(call)


@rule(nn.LogSigmoid, F.logsigmoid)
def logsigmoid(call: Call) -> Step:
    """-ln(1 + exp(-z))."""
    return Turning("logsigmoid"), _input(call)


@rule(nn.Tanhshrink, F.tanhshrink)
def tanhshrink(call: Call) -> Step:
    """z - tanh(z)."""
    return Turning("tanhshrink"), _input(call)


@rule(nn.SELU, F.selu, torch.selu, torch.selu_)
def selu(call: Call) -> Step:
    """ELU by the constants of Klambauer et al. 2017, 1706.02515."""
    return (Turning("elu", SELU_ALPHA), ScaleShift(scale=lambda: SELU_SCALE)), _input(call)


@rule(nn.CELU, F.celu, torch.celu, torch.celu_)
def celu(call: Call) -> Step:
    """alpha elu(z / alpha)."""
    value, alpha = _setting(call, "alpha", 1.0)
    if alpha <= 0:
        call.refuse(f"alpha = {alpha} is not understood by the certificates: use one above 0")
    inner, outer = ScaleShift(scale=lambda: 1 / alpha), ScaleShift(scale=lambda: alpha)
    return (inner, Convex("elu"), outer), (call.value(value),)


@rule(nn.ELU, F.elu)
def elu(call: Call) -> Step:
    """z above 0 and alpha (exp(z) - 1) below."""
    value, alpha = _setting(call, "alpha", 1.0)
    if alpha < 0:
        call.refuse(f"alpha = {alpha} is not understood by the certificates: use one from 0 on")
    return Convex("elu") if alpha == 1 else Turning("elu", alpha), (call.value(value),)
