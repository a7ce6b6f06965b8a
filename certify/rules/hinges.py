"""Piecewise linear activations as sums of ReLUs, so that exact methods may split them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from certify.rules.activation import ReLU, clamped
from certify.rules.arithmetic import ScaleShift, Sum
from certify.rules.table import Call, Step, like, rule


@dataclass(frozen=True)
class ChannelScale(ScaleShift):
    """out = (weight or 1 - weight) * in, by one number for all entries or one for each channel."""

    weight: Callable[[], Any] = lambda: 1.0
    complement: bool = False

    def parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        weight = like(self.weight(), values).flatten()
        weight = 1 - weight if self.complement else weight
        shape = (-1, *[1] * (values.dim() - 2)) if weight.numel() > 1 else ()
        return weight.reshape(shape), weight.new_zeros(())


@rule(nn.PReLU, F.prelu)
def prelu(call: Call) -> list[Step]:
    """z above 0 and w z below: w z + (1 - w) relu(z), with any slopes w."""
    module = call.module
    if isinstance(module, nn.PReLU):
        value, weight = call.value(call.bind("input")["input"]), (lambda: module.weight)
    else:
        given = call.bind("input", "weight")
        value, weight = call.value(given["input"]), call.constant(given["weight"])
    return [
        (ChannelScale(weight=weight), (value,)),
        ((ReLU(), ChannelScale(weight=weight, complement=True)), (value,)),
        (Sum(1.0), (-2, -1)),
    ]


@rule(nn.Softshrink, F.softshrink)
def softshrink(call: Call) -> list[Step]:
    """relu(z - l) - relu(-z - l) for a threshold l."""
    given = call.bind("input", lambd=0.5)
    threshold = call.module.lambd if isinstance(call.module, nn.Softshrink) else given["lambd"]
    value, shift = call.value(given["input"]), (lambda: -threshold)
    return [
        ((ScaleShift(shift=shift), ReLU()), (value,)),
        ((ScaleShift(scale=lambda: -1.0, shift=shift), ReLU()), (value,)),
        (Sum(-1.0), (-2, -1)),
    ]


@rule(nn.Hardsigmoid, F.hardsigmoid)
def hardsigmoid(call: Call) -> Step:
    """min(max(z / 6 + 1 / 2, 0), 1)."""
    value = call.bind("input", inplace=False)["input"]
    steps, inputs = clamped(call, value, 0.0, 1.0)
    assert isinstance(steps, tuple)
    return (ScaleShift(scale=lambda: 1 / 6, shift=lambda: 0.5), *steps), inputs
