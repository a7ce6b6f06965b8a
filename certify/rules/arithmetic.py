"""Sums of values, constants added and multiplied (as when a network normalises), and concatenation."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from certify.bounds import Interval, dot
from certify.rules.operation import Affine, broadcast_shape, folded, gathered, repeated
from certify.rules.table import Call, Step, Value, like, rule
from models.errors import NotApplicable


@dataclass(frozen=True)
class ScaleShift(Affine):
    """out = scale * in + shift, entry by entry; both broadcast over samples.

    Raises UserError where a constant would change the value's shape or differs between samples.
    """

    scale: Callable[[], Any] = lambda: 1.0
    shift: Callable[[], Any] = lambda: 0.0
    diagonal = True

    def parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """scale and shift, each of a shape that broadcasts to one sample of `values` (n, ...)."""
        parts = []
        for constant in (like(self.scale(), values), like(self.shift(), values)):
            if constant.dim() == values.dim() and constant.shape[0] == 1:
                constant = constant[0]
            if torch.broadcast_shapes(constant.shape, values.shape[1:]) != values.shape[1:]:
                raise NotApplicable(
                    f"a constant of shape {tuple(constant.shape)} does not fit values of shape "
                    f"{tuple(values.shape[1:])}: it must broadcast to one sample"
                )
            parts.append(constant)
        return parts[0], parts[1]

    def forward(self, *values: Tensor) -> Tensor:
        scale, shift = self.parts(values[0])
        return values[0] * scale + shift

    def interval(self, *inputs: Interval) -> Interval:
        scale, shift = self.parts(inputs[0].lower)
        # End by end: a centre of [0, 1e30], of a reciprocal of which nothing is known, would lose the shift.
        first, second = inputs[0].lower * scale + shift, inputs[0].upper * scale + shift
        return Interval(torch.minimum(first, second), torch.maximum(first, second))

    def gain(self, gain: Tensor, norm: str) -> Tensor | None:
        return gain * self.parts(gain)[0].abs()

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        scale = self.parts(torch.zeros(1, *shapes[0], dtype=constants[0].dtype))[0]
        return constants[0] * scale.abs().amax()

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        return (rows * self.parts(folded(rows))[0],)

    def constant(self, rows: Tensor) -> Tensor | float:
        shift = self.parts(folded(rows))[1]
        return dot(rows, shift.expand(rows.shape[0], *rows.shape[2:]))


NEGATED = ScaleShift(scale=lambda: -1.0)


@dataclass(frozen=True)
class Sum(Affine):
    """out = first + sign * second, two values that may broadcast."""

    sign: float

    def forward(self, *values: Tensor) -> Tensor:
        first, second = values
        if first.shape != second.shape:
            broadcast_shape(values, "added")
        return first + self.sign * second

    def interval(self, *inputs: Interval) -> Interval:
        first, second = inputs
        if self.sign > 0:
            return Interval(first.lower + second.lower, first.upper + second.upper)
        return Interval(first.lower - second.upper, first.upper - second.lower)

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        if norm == "linf":
            return constants[0] + constants[1]
        often = [repeated(shape, torch.broadcast_shapes(*shapes)) ** 0.5 for shape in shapes]
        return constants[0] * often[0] + constants[1] * often[1]

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        return gathered(rows, shapes[0]), self.sign * gathered(rows, shapes[1])

    def constant(self, rows: Tensor) -> Tensor | float:
        return 0.0


def _sum(call: Call, sign: float) -> Step:
    given = call.bind("input", "other", alpha=1)
    first, second = given["input"], given["other"]
    if given["alpha"] != 1:
        call.refuse("alpha other than 1 is not understood by the certificates")
    if isinstance(first, Value) and isinstance(second, Value):
        return Sum(sign), (first.index, second.index)
    if isinstance(first, Value):
        shift = call.constant(second)
        return ScaleShift(shift=lambda: sign * shift()), (first.index,)
    return ScaleShift(scale=lambda: sign, shift=call.constant(first)), (call.value(second),)


@rule(operator.add, operator.iadd, torch.add, "add", "add_")
def add(call: Call) -> Step:
    """a + b, of two values or of a value and a constant."""
    return _sum(call, 1.0)


@rule(operator.sub, operator.isub, torch.sub, "sub", "sub_")
def subtract(call: Call) -> Step:
    """a - b, of two values or of a value and a constant."""
    return _sum(call, -1.0)


@rule(operator.neg, torch.neg, "neg")
def negate(call: Call) -> Step:
    """-a."""
    return NEGATED, (call.value(call.bind("input")["input"]),)
