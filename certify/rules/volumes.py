"""Convolutions over three dimensions: volumes, and films."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval
from certify.rules.linear import ROUNDING, Read
from certify.rules.operation import Affine, folded
from certify.rules.table import Call, Step, rule

Three = tuple[int, int, int]


@dataclass(frozen=True)
class Conv3d(Affine):
    """Cross-correlation with zero padding; weight (out, in / groups, d, h, w), bias (out,) or None."""

    weight: Read
    bias: Callable[[], Tensor | None]
    stride: Three
    padding: Three
    dilation: Three
    groups: int

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv3d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def forward(self, *values: Tensor) -> Tensor:
        return self._convolve(values[0], self.weight(), self.bias())

    def interval(self, *inputs: Interval) -> Interval:
        weight = self.weight()
        centre = self._convolve(inputs[0].centre, weight, self.bias())
        return Interval.around(centre, self._convolve(inputs[0].radius, weight.abs()))

    def gain(self, gain: Tensor, norm: str) -> Tensor | None:
        weight = self.weight()
        if norm == "l2":
            return self._convolve(gain.square(), weight.square()).sqrt()
        return self._convolve(gain, weight.abs())

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        """For linf the largest l1 norm of a row; for l2 the root of that times the largest of a column."""
        weight = self.weight().abs()
        rows = weight.flatten(1).sum(1).amax()
        if norm == "linf":
            return constants[0] * rows
        columns = torch.stack([part.flatten(2).sum((0, 2)).amax() for part in weight.chunk(self.groups)])
        return constants[0] * ROUNDING * (rows * columns.amax()).sqrt()

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        weight = self.weight()
        missing = [
            shapes[0][1 + i]
            - ((rows.shape[3 + i] - 1) * self.stride[i] - 2 * self.padding[i])
            - self.dilation[i] * (weight.shape[2 + i] - 1)
            - 1
            for i in range(3)
        ]
        back = F.conv_transpose3d(
            folded(rows), weight, None, self.stride, self.padding, missing, self.groups, self.dilation
        )
        return (back.unflatten(0, rows.shape[:2]),)

    def constant(self, rows: Tensor) -> Tensor | float:
        bias = self.bias()
        return 0.0 if bias is None else rows.sum((-3, -2, -1)) @ bias


@rule(nn.Conv3d, F.conv3d)
def conv3d(call: Call) -> Step:
    """nn.Conv3d and F.conv3d with zero padding and constant weights."""
    if isinstance(call.module, nn.Conv3d):
        module = call.module
        if module.padding_mode != "zeros":
            call.refuse(f"padding mode '{module.padding_mode}' is not understood: use zeros")
        given = {**call.bind("input"), "padding": module.padding, "groups": module.groups}
        given |= {"stride": module.stride, "dilation": module.dilation}
        weight, bias = (lambda: module.weight), (lambda: module.bias)
    else:
        given = call.bind("input", "weight", bias=None, stride=1, padding=0, dilation=1, groups=1)
        weight, bias = call.constant(given["weight"]), call.constant(given["bias"])
    if isinstance(given["padding"], str):
        call.refuse("padding by a name is not understood over volumes: give the padding as numbers")
    stride, padding, dilation = (_three(given[name]) for name in ("stride", "padding", "dilation"))
    operation = Conv3d(weight, bias, stride, padding, dilation, int(given["groups"]))
    return operation, (call.value(given["input"]),)


def _three(value: Any) -> Three:
    first, second, third = (value,) * 3 if isinstance(value, int) else value
    return int(first), int(second), int(third)
