"""Elementwise activations between two lines: the ReLU family, sigmoid and tanh."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval
from certify.rules.operation import Lines, Pulled, Relaxed, pull_lines
from certify.rules.table import Call, Step, rule


@dataclass(frozen=True)
class Activation(Relaxed):
    """A function of each entry, non-decreasing, so that intervals map end to end."""

    antisymmetric = True

    @abstractmethod
    def lines(self, bounds: Interval, alpha: Tensor | None) -> Lines:
        """The two lines on lower <= z <= upper; alpha None asks for parallel ones."""

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.forward(inputs[0].lower), self.forward(inputs[0].upper))

    def pull(self, rows: Tensor, bounds: Interval, alpha: Tensor | None, both: bool = False) -> Pulled:
        return pull_lines(rows, self.lines(bounds, alpha), both)


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


@dataclass(frozen=True)
class Sigmoidal(Activation):
    """Sigmoid or tanh between two parallel lines, of the smaller slope at the interval's ends.

    The derivative has one maximum, so its least value on an interval lies at an end: f(z) - s z is
    non-decreasing there, and the lines through both ends enclose f (Singh et al. 2018, DeepZ).
    """

    tanh: bool = False

    def forward(self, *values: Tensor) -> Tensor:
        return torch.tanh(values[0]) if self.tanh else torch.sigmoid(values[0])

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        return constants[0] * (1.0 if self.tanh else 0.25)

    def undecided(self, bounds: Interval) -> Tensor:
        return bounds.upper > bounds.lower

    def _slope(self, z: Tensor) -> Tensor:
        value = self.forward(z)
        return 1 - value.square() if self.tanh else value * (1 - value)

    def lines(self, bounds: Interval, alpha: Tensor | None) -> Lines:
        lower, upper = bounds.lower, bounds.upper
        slope = torch.minimum(self._slope(lower), self._slope(upper))
        below, above = self.forward(lower) - slope * lower, self.forward(upper) - slope * upper
        return Lines(slope, below, slope, above, parallel=True)


def _input(call: Call) -> tuple[int]:
    return (call.value(call.bind("input", inplace=False)["input"]),)


@rule(nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_")
def relu(call: Call) -> Step:
    """max(z, 0)."""
    return ReLU(), _input(call)


@rule(nn.LeakyReLU, F.leaky_relu)
def leaky_relu(call: Call) -> Step:
    """max(z, leak z)."""
    given = call.bind("input", negative_slope=0.01, inplace=False)
    leak = call.module.negative_slope if isinstance(call.module, nn.LeakyReLU) else given["negative_slope"]
    if not 0 <= leak < 1:
        call.refuse(f"a negative slope of {leak} is not understood by the certificates: use one in [0, 1)")
    return ReLU(float(leak)), (call.value(given["input"]),)


@rule(nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid")
def sigmoid(call: Call) -> Step:
    """1 / (1 + exp(-z))."""
    return Sigmoidal(), _input(call)


@rule(nn.Tanh, torch.tanh, F.tanh, "tanh")
def tanh(call: Call) -> Step:
    """tanh(z)."""
    return Sigmoidal(tanh=True), _input(call)
