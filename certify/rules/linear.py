"""Fully connected layers, products with a constant matrix, convolutions and batch normalisation."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval
from certify.rules.arithmetic import ScaleShift
from certify.rules.operation import Affine, folded
from certify.rules.placement import Exchange
from certify.rules.shape import as_planes
from certify.rules.table import Call, Step, Value, pair, rule
from models.errors import NotApplicable, UserError

# Covers the rounding of singular values in double precision.
ROUNDING = 1 + 1e-9

# Copying a part of a weight pays from so many rows to be multiplied by it.
WORTH = 24

Read = Callable[[], Tensor]


@dataclass(frozen=True)
class Linear(Affine):
    """out = W in + b over the last dimension; weight (out, in), bias (out,) or None."""

    weight: Read
    bias: Callable[[], Tensor | None]

    def forward(self, *values: Tensor) -> Tensor:
        return F.linear(values[0], self.weight(), self.bias())

    def interval(self, *inputs: Interval) -> Interval:
        weight = self.weight()
        centre = F.linear(inputs[0].centre, weight, self.bias())
        return Interval.around(centre, F.linear(inputs[0].radius, weight.abs()))

    def gain(self, gain: Tensor, norm: str) -> Tensor | None:
        weight = self.weight()
        if norm == "l2":
            return F.linear(gain.square(), weight.square()).sqrt()
        if norm == "l1":
            return F.linear(gain, weight.abs())
        return (weight.abs() * gain.unsqueeze(-2)).amax(-1)

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        weight = self.weight()
        if norm == "linf":
            return constants[0] * weight.abs().sum(1).amax()
        return constants[0] * ROUNDING * torch.linalg.matrix_norm(weight, 2)

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        weight = self.weight()
        if rows.dim() == 3 and rows.shape[1] >= WORTH and not torch.is_grad_enabled():
            return (_product(rows, weight),)
        return (rows @ weight,)

    def constant(self, rows: Tensor) -> Tensor | float:
        bias = self.bias()
        if bias is None:
            return 0.0
        return (rows @ bias).flatten(2).sum(2) if rows.dim() > 3 else rows @ bias


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows (n, k, out) @ weight (out, in), without the neurons for which all of a sample's rows are zero.

    Those are the dead ones. Sample by sample, so that the part of the weight that is left stays in the cache.
    """
    alive = rows.abs().sum(1) != 0
    if 4 * int(alive.sum()) > 3 * alive.numel():
        return rows @ weight
    found = rows.new_empty(*rows.shape[:2], weight.shape[1])
    for one, here, out in zip(rows, alive, found, strict=True):
        places = here.nonzero()[:, 0]
        torch.mm(one.index_select(1, places), weight.index_select(0, places), out=out)
    return found


@dataclass(frozen=True)
class Conv2d(Affine):
    """Cross-correlation with zero padding; weight (out, in / groups, h, w), bias (out,) or None."""

    weight: Read
    bias: Callable[[], Tensor | None]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

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
        total = self._convolve(gain, weight.abs())
        if norm == "l1":
            return total
        # A row's largest entry is at most the kernel's largest one times the largest gain.
        most = weight.abs().flatten(1).amax(1) * gain.amax()
        return torch.minimum(total, most[:, None, None].expand_as(total))

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        """For linf the largest l1 norm of an output channel's kernel; for l2 the norm of a circulant.

        Strides are unfolded into channels. The convolution is then part of a circular one on a torus
        large enough not to wrap, whose norm is the largest over its frequencies (Sedghi, Gupta, Long
        2019, 1805.10408): an upper bound, where the reshaped kernel's norm is none.
        """
        weight = self.weight()
        if norm == "linf":
            return constants[0] * weight.abs().flatten(1).sum(1).amax()
        blocks = [_polyphase(part, self.stride, self.dilation) for part in weight.chunk(self.groups)]
        size = [
            (length + 2 * pad) // stride + blocks[0].shape[2 + axis]
            for axis, (length, pad, stride) in enumerate(
                zip(shapes[0][-2:], self.padding, self.stride, strict=True)
            )
        ]
        spectra = [torch.fft.fft2(block, size).permute(2, 3, 0, 1) for block in blocks]
        largest = torch.stack([torch.linalg.matrix_norm(spectrum, 2).amax() for spectrum in spectra])
        return constants[0] * ROUNDING * largest.amax()

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        weight = self.weight()
        missing = [
            size - ((out - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1)
            for size, out, stride, pad, dilation, kernel in zip(
                shapes[0][-2:],
                rows.shape[-2:],
                self.stride,
                self.padding,
                self.dilation,
                weight.shape[-2:],
                strict=True,
            )
        ]
        back = F.conv_transpose2d(
            folded(rows), weight, None, self.stride, self.padding, missing, self.groups, self.dilation
        )
        return (back.unflatten(0, rows.shape[:2]),)

    def constant(self, rows: Tensor) -> Tensor | float:
        bias = self.bias()
        return 0.0 if bias is None else rows.sum((-2, -1)) @ bias


def _polyphase(weight: Tensor, stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """The kernel of the same map with stride 1, after each stride x stride block became channels."""
    out, channels, height, width = weight.shape
    spaced = weight.new_zeros(out, channels, (height - 1) * dilation[0] + 1, (width - 1) * dilation[1] + 1)
    spaced[:, :, :: dilation[0], :: dilation[1]] = weight
    missing = [-size % step for size, step in zip(spaced.shape[2:], stride, strict=True)]
    padded = F.pad(spaced, (0, missing[1], 0, missing[0]))
    split = padded.unflatten(3, (-1, stride[1])).unflatten(2, (-1, stride[0]))
    return split.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


@dataclass(frozen=True)
class BatchNorm(ScaleShift):
    """Batch normalisation by its running statistics: a factor and a shift per channel.

    Raises UserError in train mode, where a sample's output depends on its batch.
    """

    name: str = ""
    module: nn.Module | None = None

    def parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        module = self.module
        assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        if module.training:
            raise UserError(f"{self.name}: batch normalisation in train mode mixes samples: call eval()")
        if module.running_mean is None or module.running_var is None:
            raise NotApplicable(f"{self.name}: batch normalisation without running statistics mixes samples")
        factor = torch.rsqrt(module.running_var + module.eps)
        factor = factor if module.weight is None else factor * module.weight
        shift = -module.running_mean * factor
        shift = shift if module.bias is None else shift + module.bias
        shape = (-1, *[1] * (values.dim() - 2))
        return factor.reshape(shape), shift.reshape(shape)


@rule(nn.Linear, F.linear)
def linear(call: Call) -> Step:
    """nn.Linear and F.linear with constant weights."""
    if isinstance(call.module, nn.Linear):
        module = call.module
        return Linear(lambda: module.weight, lambda: module.bias), (call.value(call.bind("input")["input"]),)
    given = call.bind("input", "weight", bias=None)
    weight, bias = call.constant(given["weight"]), call.constant(given["bias"])
    return Linear(weight, bias), (call.value(given["input"]),)


@rule(torch.matmul, operator.matmul, "matmul", torch.mm, "mm")
def matmul(call: Call) -> Step:
    """x @ M over the last dimension, and M @ x over the last but one, with a constant matrix M."""
    first, second = call.bind("input", "other").values()
    if isinstance(first, Value) and isinstance(second, Value):
        call.refuse("the product of two values is not understood by the certificates")
    value, constant = (first, second) if isinstance(first, Value) else (second, first)
    matrix = call.constant(constant)
    if matrix().dim() != 2:
        call.refuse("multiplies by something else than a matrix, which is not understood by the certificates")
    if isinstance(first, Value):
        return Linear(lambda: matrix().T, lambda: None), (call.value(value),)
    turn = Exchange(-2, -1)
    return (turn, Linear(matrix, lambda: None), turn), (call.value(value),)


@rule(nn.Conv1d)
def conv1d(call: Call) -> Step:
    """nn.Conv1d with zero padding: a convolution over planes of height 1."""
    module = call.module
    assert isinstance(module, nn.Conv1d)
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        call.refuse("padding other than zeros by a number is not understood: give the padding as a number")
    (stride,), (padding,), (dilation,) = module.stride, module.padding, module.dilation
    flat = Conv2d(
        lambda: module.weight.unsqueeze(2), lambda: module.bias,
        (1, stride), (0, padding), (1, dilation), module.groups,
    )  # fmt: skip
    return as_planes(flat), (call.value(call.bind("input")["input"]),)


@rule(nn.Conv2d, F.conv2d)
def conv2d(call: Call) -> Step:
    """nn.Conv2d and F.conv2d with zero padding and constant weights."""
    if isinstance(call.module, nn.Conv2d):
        module = call.module
        if module.padding_mode != "zeros":
            call.refuse(f"padding mode '{module.padding_mode}' is not understood: use zeros")
        given = {**call.bind("input"), "padding": module.padding, "groups": module.groups}
        given |= {"stride": module.stride, "dilation": module.dilation}
        weight, bias = (lambda: module.weight), (lambda: module.bias)
    else:
        given = call.bind("input", "weight", bias=None, stride=1, padding=0, dilation=1, groups=1)
        weight, bias = call.constant(given["weight"]), call.constant(given["bias"])
    padding = given["padding"]
    if isinstance(padding, str):
        padding = _padding(call, padding, tuple(weight().shape[-2:]), pair(given["dilation"]))
    operation = Conv2d(
        weight, bias, pair(given["stride"]), pair(padding), pair(given["dilation"]), int(given["groups"])
    )
    return operation, (call.value(given["input"]),)


def _padding(call: Call, name: str, kernel: tuple[int, ...], dilation: tuple[int, int]) -> tuple[int, int]:
    total = [d * (k - 1) if name == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    if any(size % 2 for size in total):
        call.refuse("padding 'same' with an even kernel is not symmetric: give the padding as a number")
    return total[0] // 2, total[1] // 2


@rule(nn.BatchNorm2d, nn.BatchNorm1d)
def batch_norm(call: Call) -> Step:
    """Batch normalisation; train mode is refused when a bound is asked for."""
    return BatchNorm(name=call.name, module=call.module), (call.value(call.bind("input")["input"]),)
