"""Elementwise activations between two lines: the ReLU family, and clamps made of ReLUs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval
from certify.rules.arithmetic import ScaleShift, Sum
from certify.rules.operation import Lines, Operation, Pulled, Relaxed, pull_lines
from certify.rules.table import Call, Step, rule


@dataclass(frozen=True)
class Activation(Relaxed):
    """A function of each entry, non-decreasing, so that intervals map end to end."""

    antisymmetric = True
    ranged = True

    @abstractmethod
    def lines(self, bounds: Interval, alpha: Tensor | None) -> Lines:
        """The two lines on lower <= z <= upper; alpha None asks for parallel ones."""

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.forward(inputs[0].lower), self.forward(inputs[0].upper))

    def pull(self, rows: Tensor, bounds: Interval, alpha: Tensor | None, both: bool = False) -> Pulled:
        return pull_lines(rows, self.lines(bounds, alpha), both)

    def gap(self, rows: Tensor, z: Tensor, bounds: Interval, alpha: Tensor | None) -> Tensor:
        lines, value = self.lines(bounds, alpha), self.forward(z)
        below = lines.lower_slope * z + (0.0 if lines.lower_intercept is None else lines.lower_intercept)
        above = lines.upper_slope * z + lines.upper_intercept
        return rows.abs() * torch.where(rows > 0, value - below, above - value).clamp(min=0)

    def felt(self, rows: Tensor) -> Tensor:
        return rows.abs()


@dataclass(frozen=True)
class ReLU(Activation):
    """max(z, leak z) with 0 <= leak < 1; leak 0 is the plain ReLU.

    Where l < 0 < u the triangle: the chord (u - leak l)/(u - l) (z - u) + u above, and below any
    line through the origin with slope leak + (1 - leak) alpha, 0 <= alpha <= 1. Without alpha
    the lower slope is the chord's, as in Wong & Kolter 2018, 1711.00851, Algorithm 1.
    """

    leak: float = 0.0
    free_slope = True

    def forward(self, *values: Tensor) -> Tensor:
        return F.leaky_relu(values[0], self.leak) if self.leak else F.relu(values[0])

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        return constants[0]

    def undecided(self, bounds: Interval) -> Tensor:
        return (bounds.lower < 0) & (bounds.upper > 0)

    def adaptive(self, bounds: Interval) -> Tensor:
        """1 where u >= -l, else 0: the smaller triangle (Zhang et al. 2018, 1811.00866, section 3.3)."""
        return (bounds.upper >= -bounds.lower).to(bounds.lower.dtype)

    def cut(self, bounds: Interval) -> tuple[Tensor, Tensor]:
        place = torch.where(self.undecided(bounds), 0.0, bounds.centre)
        return place, place

    def lines(self, bounds: Interval, alpha: Tensor | None) -> Lines:
        # Clamping first makes stable neurons, and l = u = 0, fall out without a division by zero.
        low, high = bounds.lower.clamp(max=0), bounds.upper.clamp(min=0)
        width = high - low
        flat = width <= 0
        chord = torch.where(flat, 0.0, high / torch.where(flat, 1.0, width))
        upper_slope = self.leak + (1 - self.leak) * chord
        intercept = -(1 - self.leak) * chord * low
        if alpha is None:
            return Lines(upper_slope, None, upper_slope, intercept, parallel=True)
        free = self.undecided(bounds)
        if alpha.dim() > free.dim():
            free, chord = free.unsqueeze(1), chord.unsqueeze(1)
            upper_slope = upper_slope.unsqueeze(1)
        lower_slope = self.leak + (1 - self.leak) * torch.where(free, alpha, chord)
        return Lines(lower_slope, None, upper_slope, intercept)


def _input(call: Call) -> tuple[int]:
    return (call.value(call.bind("input", inplace=False)["input"]),)


@rule(nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_")
def relu(call: Call) -> Step:
    """max(z, 0)."""
    return ReLU(), _input(call)


@rule(nn.LeakyReLU, F.leaky_relu)
def leaky_relu(call: Call) -> Step | list[Step]:
    """z above 0 and leak z below."""
    given = call.bind("input", negative_slope=0.01, inplace=False)
    leak = call.module.negative_slope if isinstance(call.module, nn.LeakyReLU) else given["negative_slope"]
    return _leaky(call.value(given["input"]), leak)


@rule(nn.RReLU, F.rrelu)
def rrelu(call: Call) -> Step | list[Step]:
    """In eval mode a leaky ReLU with the mean of the slopes that train mode draws from."""
    given = call.bind("input", lower=1 / 8, upper=1 / 3, training=False, inplace=False)
    if isinstance(call.module, nn.RReLU):
        given |= {name: getattr(call.module, name) for name in ("lower", "upper", "training")}
    if given["training"] is not False:
        call.refuse("in train mode its slopes are random: call model.eval() or pass training=False")
    return _leaky(call.value(given["input"]), (given["lower"] + given["upper"]) / 2)


def _leaky(value: int, leak: float) -> Step | list[Step]:
    """leak z + (1 - leak) relu(z) where the leak is none in [0, 1)."""
    if 0 <= leak < 1:
        return ReLU(float(leak)), (value,)
    whole, rest = ScaleShift(scale=lambda: leak), ScaleShift(scale=lambda: 1 - leak)
    return [(whole, (value,)), ((ReLU(), rest), (value,)), (Sum(1.0), (-2, -1))]


Read = Callable[[], Any]

# A bound of this size is none: adding it would drown every digit of z.
UNBOUNDED = 3.4e38


def _raised(floor: Read) -> tuple[Operation, ...]:
    """max(z, floor) = floor + relu(z - floor): a ReLU, so that exact methods may split it."""
    return ScaleShift(shift=lambda: -floor()), ReLU(), ScaleShift(shift=floor)


def _lowered(ceiling: Read) -> tuple[Operation, ...]:
    """min(z, ceiling) = ceiling - relu(ceiling - z)."""
    mirror = ScaleShift(scale=lambda: -1.0, shift=ceiling)
    return mirror, ReLU(), mirror


def clamped(call: Call, value: Any, low: Any, high: Any) -> Step:
    """min(max(value, low), high); either may be None. Both in turn map intervals end to end."""
    steps: tuple[Operation, ...] = ()
    if low is not None and not (isinstance(low, float) and low <= -UNBOUNDED):
        steps += _raised(call.constant(low))
    if high is not None and not (isinstance(high, float) and high >= UNBOUNDED):
        steps += _lowered(call.constant(high))
    return steps or ScaleShift(), (call.value(value),)


@rule(torch.clamp, torch.clip, "clamp", "clip", "clamp_", "clip_")
def clamp(call: Call) -> Step:
    """min(max(z, low), high)."""
    given = call.bind("input", min=None, max=None)
    return clamped(call, given["input"], given["min"], given["max"])


@rule(nn.Hardtanh, F.hardtanh, nn.ReLU6, F.relu6)
def hardtanh(call: Call) -> Step:
    """min(max(z, low), high) as a layer; ReLU6 between 0 and 6."""
    module = call.module
    if isinstance(module, nn.Hardtanh):
        return clamped(call, call.bind("input")["input"], module.min_val, module.max_val)
    if "relu6" in call.name:
        return clamped(call, call.bind("input", inplace=False)["input"], 0.0, 6.0)
    given = call.bind("input", min_val=-1.0, max_val=1.0, inplace=False)
    return clamped(call, given["input"], given["min_val"], given["max_val"])
