"""Average and max pooling over planes (n, channels, height, width), means and sums over any dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval
from certify.rules.operation import Affine, Operation
from certify.rules.selection import Largest
from certify.rules.shape import as_planes
from certify.rules.table import Call, Step, pair, rule
from models.errors import NotApplicable

Pair = tuple[int, int]


def _overlap(kernel: Pair, stride: Pair) -> int:
    """The largest number of windows that share an entry."""
    return math.ceil(kernel[0] / stride[0]) * math.ceil(kernel[1] / stride[1])


@dataclass(frozen=True)
class AveragePool(Affine):
    """The mean of each window; zeros of the padding count."""

    kernel: Pair
    stride: Pair
    padding: Pair

    def forward(self, *values: Tensor) -> Tensor:
        return F.avg_pool2d(values[0], self.kernel, self.stride, self.padding)

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.forward(inputs[0].lower), self.forward(inputs[0].upper))

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        if norm == "linf":
            return constants[0]
        # ||A||_2^2 <= ||A||_1 ||A||_inf: a row sums to at most 1, a column to its windows' shares.
        return constants[0] * (_overlap(self.kernel, self.stride) / (self.kernel[0] * self.kernel[1])) ** 0.5

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        missing = [
            size - ((out - 1) * stride - 2 * pad + kernel)
            for size, out, stride, pad, kernel in zip(
                shapes[0][-2:], rows.shape[-2:], self.stride, self.padding, self.kernel, strict=True
            )
        ]
        weight = rows.new_full((1, 1, *self.kernel), 1 / (self.kernel[0] * self.kernel[1]))
        planes = rows.flatten(0, 2).unsqueeze(1)
        # Rows that no window reached keep zero, also beyond the output padding that torch allows.
        allowed = [min(gap, stride - 1) for gap, stride in zip(missing, self.stride, strict=True)]
        back = F.conv_transpose2d(planes, weight, None, self.stride, self.padding, allowed)
        rest = [gap - had for gap, had in zip(missing, allowed, strict=True)]
        back = F.pad(back, (0, rest[1], 0, rest[0]))
        return (back.reshape(*rows.shape[:2], *shapes[0]),)

    def constant(self, rows: Tensor) -> Tensor | float:
        return 0.0


@dataclass(frozen=True)
class Gather(Affine):
    """The mean, or the `total`, over dimensions after the samples', kept as size 1 or dropped.

    A mean divides by the number of entries less `correction`.
    """

    dims: tuple[int, ...]
    keep: bool
    total: bool = False
    correction: float = 0.0

    def _dims(self, dimensions: int) -> tuple[int, ...]:
        """The dimensions counted from the front, in a value of so many; never the samples'."""
        places = tuple(sorted(dim % dimensions for dim in self.dims))
        if 0 in places:
            raise NotApplicable("a mean or sum over the samples mixes them: name dimensions >= 1")
        return places

    def forward(self, *values: Tensor) -> Tensor:
        total = values[0].sum(self._dims(values[0].dim()), self.keep)
        return total / self._divisor(values[0].shape[1:])

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.forward(inputs[0].lower), self.forward(inputs[0].upper))

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        count = self._count(shapes[0])
        return constants[0] * (count if norm == "linf" else math.sqrt(count)) / self._divisor(shapes[0])

    def _count(self, shape: torch.Size) -> int:
        return math.prod(shape[dim - 1] for dim in self._dims(len(shape) + 1))

    def _divisor(self, shape: torch.Size) -> float:
        return 1.0 if self.total else self._count(shape) - self.correction

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        spread = rows if self.total else rows / self._divisor(shapes[0])
        if not self.keep:
            for dim in self._dims(len(shapes[0]) + 1):
                spread = spread.unsqueeze(dim + 1)
        return (spread.expand(*rows.shape[:2], *shapes[0]),)

    def constant(self, rows: Tensor) -> Tensor | float:
        return 0.0


@dataclass(frozen=True)
class MaxPool(Largest):
    """The largest entry of each window; padding never wins."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def forward(self, *values: Tensor) -> Tensor:
        return F.max_pool2d(values[0], self.kernel, self.stride, self.padding, self.dilation)

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        """1 for linf; for l2 an entry counts once for each window that it may win."""
        if norm == "linf":
            return constants[0]
        step = self.stride if self.dilation == (1, 1) else (1, 1)
        return constants[0] * _overlap(self.kernel, step) ** 0.5

    def groups(self, values: Tensor, fill: float) -> Tensor:
        pad = (self.padding[1], self.padding[1], self.padding[0], self.padding[0])
        padded = F.pad(values, pad, value=fill)
        columns = F.unfold(padded, self.kernel, dilation=self.dilation, stride=self.stride)
        size = [
            (length - dilation * (kernel - 1) - 1) // stride + 1
            for length, dilation, kernel, stride in zip(
                padded.shape[-2:], self.dilation, self.kernel, self.stride, strict=True
            )
        ]
        return columns.unflatten(2, size).unflatten(1, (values.shape[1], -1)).transpose(1, 2)


def _window(call: Call, given: dict[str, Any]) -> tuple[Pair, Pair, Pair]:
    """Kernel, stride and padding of a pooling call; over one dimension those of planes of height 1."""
    if given["ceil_mode"]:
        call.refuse("ceil_mode is not understood by the certificates")
    kernel = _sizes(call, given["kernel_size"], 1)
    stride = kernel if given["stride"] in (None, ()) else _sizes(call, given["stride"], 1)
    return kernel, stride, _sizes(call, given["padding"], 0)


def _sizes(call: Call, value: Any, across: int) -> Pair:
    """Sizes along both axes of a plane; `across` over the height that values of one dimension do not have."""
    if not _is_flat(call):
        return pair(value)
    return across, int(value if isinstance(value, int) else value[0])


def _is_flat(call: Call) -> bool:
    return "1d" in (call.name if call.module is None else type(call.module).__name__)


def _given(call: Call, **defaults: Any) -> dict[str, Any]:
    """The arguments of a pooling call, from its module where it has one."""
    if call.module is None:
        return call.bind("input", "kernel_size", **defaults)
    given = {name: getattr(call.module, name) for name in ("kernel_size", *defaults)}
    return call.bind("input") | given


def _pooled(call: Call, value: Any, operation: Operation) -> Step:
    return as_planes(operation) if _is_flat(call) else operation, (call.value(value),)


@rule(nn.AvgPool1d, F.avg_pool1d)
def average_pool_over_one(call: Call) -> Step:
    """Average pooling over one dimension that counts its padding."""
    return _average_pool(call, _given(call, stride=None, padding=0, ceil_mode=False, count_include_pad=True))


@rule(nn.AvgPool2d, F.avg_pool2d)
def average_pool(call: Call) -> Step:
    """Average pooling that counts its padding."""
    given = _given(
        call, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
    )
    if given["divisor_override"] is not None:
        call.refuse("a divisor other than the window's size is not understood by the certificates")
    return _average_pool(call, given)


def _average_pool(call: Call, given: dict[str, Any]) -> Step:
    kernel, stride, padding = _window(call, given)
    if padding != (0, 0) and not given["count_include_pad"]:
        call.refuse("a divisor other than the window's size is not understood by the certificates")
    return _pooled(call, given["input"], AveragePool(kernel, stride, padding))


@rule(nn.MaxPool2d, F.max_pool2d, nn.MaxPool1d, F.max_pool1d)
def max_pool(call: Call) -> Step:
    """Max pooling with any kernel, stride, padding and dilation."""
    given = _given(call, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False)
    if given["return_indices"]:
        call.refuse("return_indices is not understood by the certificates")
    kernel, stride, padding = _window(call, given)
    dilation = _sizes(call, given["dilation"], 1)
    return _pooled(call, given["input"], MaxPool(kernel, stride, padding, dilation))


@rule(nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d, nn.AdaptiveAvgPool1d, F.adaptive_avg_pool1d)
def adaptive_average_pool(call: Call) -> Step:
    """Adaptive average pooling to one entry per channel."""
    if isinstance(call.module, nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool1d):
        given = call.bind("input") | {"output_size": call.module.output_size}
    else:
        given = call.bind("input", "output_size")
    if given["output_size"] not in (1, (1,), [1], (1, 1), [1, 1]):
        call.refuse(f"an output size of {given['output_size']} is not understood by the certificates: use 1")
    return Gather((-1,) if _is_flat(call) else (-2, -1), keep=True), (call.value(given["input"]),)


@rule("mean", torch.mean)
def mean(call: Call) -> Step:
    """The mean over dimensions after the samples'."""
    return _gathered(call, total=False)


@rule("sum", torch.sum)
def sum_over(call: Call) -> Step:
    """The sum over dimensions after the samples'."""
    return _gathered(call, total=True)


def _gathered(call: Call, total: bool) -> Step:
    given = call.bind("input", "dim", keepdim=False)
    dims = given["dim"] if isinstance(given["dim"], tuple | list) else (given["dim"],)
    if not dims or 0 in dims or not all(isinstance(dim, int) for dim in dims):
        call.refuse("would mix samples: name dimensions >= 1")
    return Gather(tuple(dims), bool(given["keepdim"]), total), (call.value(given["input"]),)
