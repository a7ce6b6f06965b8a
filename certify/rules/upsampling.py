"""Transposed convolutions: the adjoint of a convolution, with a bias of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval
from certify.rules.convolution import Conv2d
from certify.rules.operation import Affine, folded
from certify.rules.shape import as_planes
from certify.rules.table import Call, Step, pair, rule


@dataclass(frozen=True)
class ConvTranspose2d(Affine):
    """The adjoint of the convolution `forwards`; `extra` rows and columns that its strides had left out."""

    forwards: Conv2d
    extra: tuple[int, int]

    def _spread(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        way = self.forwards
        return F.conv_transpose2d(
            x, weight, bias, way.stride, way.padding, self.extra, way.groups, way.dilation
        )

    def forward(self, *values: Tensor) -> Tensor:
        return self._spread(values[0], self.forwards.weight(), self.forwards.bias())

    def interval(self, *inputs: Interval) -> Interval:
        weight = self.forwards.weight()
        centre = self._spread(inputs[0].centre, weight, self.forwards.bias())
        return Interval.around(centre, self._spread(inputs[0].radius, weight.abs()))

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        """For linf the sum of all weights into an output channel; for l2 the norm of the adjoint."""
        way = self.forwards
        weight = way.weight()
        if norm == "linf":
            into = [part.abs().sum((0, 2, 3)) for part in weight.chunk(way.groups)]
            return constants[0] * torch.cat(into).amax()
        zeros = weight.new_zeros(1, *shapes[0], device="meta")
        out = self._spread(zeros, weight.to("meta")).shape[1:]
        return way.lipschitz(norm, constants, [out])

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        way = self.forwards
        back = F.conv2d(folded(rows), way.weight(), None, way.stride, way.padding, way.dilation, way.groups)
        return (back.unflatten(0, rows.shape[:2]),)

    def constant(self, rows: Tensor) -> Tensor | float:
        bias = self.forwards.bias()
        return 0.0 if bias is None else rows.sum((-2, -1)) @ bias


@rule(nn.ConvTranspose2d)
def conv_transpose2d(call: Call) -> Step:
    """nn.ConvTranspose2d."""
    module = call.module
    assert isinstance(module, nn.ConvTranspose2d)
    forwards = Conv2d(
        lambda: module.weight,
        lambda: module.bias,
        pair(module.stride),
        pair(module.padding),
        pair(module.dilation),
        module.groups,
    )
    return ConvTranspose2d(forwards, pair(module.output_padding)), (call.value(call.bind("input")["input"]),)


@rule(nn.ConvTranspose1d)
def conv_transpose1d(call: Call) -> Step:
    """nn.ConvTranspose1d: a transposed convolution over planes of height 1."""
    module = call.module
    assert isinstance(module, nn.ConvTranspose1d)
    (stride,), (dilation,), padding = module.stride, module.dilation, module.padding[0]
    assert isinstance(padding, int)
    forwards = Conv2d(
        lambda: module.weight.unsqueeze(2), lambda: module.bias,
        (1, stride), (0, padding), (1, dilation), module.groups,
    )  # fmt: skip
    flat = ConvTranspose2d(forwards, (0, module.output_padding[0]))
    return as_planes(flat), (call.value(call.bind("input")["input"]),)
