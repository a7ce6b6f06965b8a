"""ONNX pooling over one to three axes, with windows that reach over the end and uneven padding."""

from __future__ import annotations

import math
import operator as python
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from models.onnx.conversion import Conversion, Known, Symbol, operator
from models.onnx.layers import padded, window
from models.onnx.shapes import cut, picked


@dataclass(frozen=True)
class Windows:
    """The windows along one axis of `size` entries: `count` of them, each `reach` wide from first to last."""

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    count: int

    @property
    def reach(self) -> int:
        """The entries from a window's first to its last."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def over(self) -> int:
        """How far the last window reaches over the end; negative where it ends earlier."""
        return (self.count - 1) * self.stride + self.reach - self.before - self.size

    def divisors(self, padding: bool) -> np.ndarray:
        """The entries in each window, those of the padding counted or not; beyond it none are."""
        starts = np.arange(self.count) * self.stride - self.before
        low = -self.before if padding else 0
        high = self.size + (self.after if padding else 0)
        return np.minimum(starts + self.reach, high) - np.maximum(starts, low)


Both = tuple[Windows, Windows]
# Each entry of an axis by itself, here of one entry.
ALONE = Windows(1, 1, 1, 1, 0, 0, 1)


def _windows(conversion: Conversion, value: Symbol) -> list[Windows]:
    """The windows along each axis; raises NotApplicable where one lies in the padding alone."""
    kernel = list(conversion.attribute("kernel_shape"))
    sizes = list(value.shape[-len(kernel) :])
    found = []
    for size, *rest in zip(sizes, kernel, *window(conversion, kernel, sizes), strict=True):
        width, stride, dilation, before, after = rest
        room = size + before + after - dilation * (width - 1) - 1
        count = room // stride + 1
        if conversion.attribute("ceil_mode", 0):
            count = -(-room // stride) + 1
            # A window that starts beyond the input and the padding before it is left out.
            count -= (count - 1) * stride >= size + before
        if room < 0 or (count - 1) * stride - before >= size or before >= dilation * (width - 1) + 1:
            conversion.refuse(f"has a window in the padding alone on an input of size {size}")
        found.append(Windows(size, width, stride, dilation, before, after, count))
    return found


def over_planes(
    conversion: Conversion, value: Symbol, pool: Callable[[Conversion, Symbol, Both], Symbol]
) -> Symbol:
    """The value pooled by `pool`, which knows planes: a line is one of height 1.

    Over three axes first each slice is, and then what is left of a slice is the width of a plane.
    """
    axes = len(conversion.attribute("kernel_shape"))
    if axes not in (1, 2, 3):
        conversion.refuse(f"over {axes} axes is not understood")
    value = conversion.with_samples(value, axes + 2)
    windows = _windows(conversion, value)
    channels = value.shape[1]
    if axes == 1:
        line = conversion.call(torch.unsqueeze, value, 2)
        return conversion.call(torch.squeeze, pool(conversion, line, (ALONE, windows[0])), 2)
    if axes == 2:
        return pool(conversion, value, (windows[0], windows[1]))
    depth, first, second = windows
    slices = conversion.call(torch.reshape, value, (-1, channels * depth.size, first.size, second.size))
    pooled = pool(conversion, slices, (first, second))
    rest = first.count * second.count
    plane = conversion.call(torch.reshape, pooled, (-1, channels, depth.size, rest))
    flat = pool(conversion, plane, (depth, replace(ALONE, size=rest, count=rest)))
    return conversion.call(torch.reshape, flat, (-1, channels, depth.count, first.count, second.count))


def _counted(conversion: Conversion, value: Symbol, windows: Both) -> Symbol:
    """The first windows of each axis, as many as ONNX makes."""
    cuts = {
        dim: slice(0, axis.count)
        for dim, axis in enumerate(windows, 2)
        if value.example.shape[dim] != axis.count
    }
    return cut(conversion, value, cuts)


@operator("MaxPool")
def max_pool(conversion: Conversion) -> Known:
    """Max pooling.

    Where windows reach further over the end than PyTorch's even padding, each entry that they
    would find there repeats one that they hold already, so that the largest stays the same.
    """
    return over_planes(conversion, conversion.symbol(), _largest)


def _largest(conversion: Conversion, value: Symbol, windows: Both) -> Symbol:
    for dim, axis in enumerate(windows, 2):
        beyond = axis.size + np.arange(max(0, axis.over - axis.before))
        repeated = beyond - axis.dilation * -((axis.size - 1 - beyond) // axis.dilation)
        if np.any(repeated < 0):
            conversion.refuse(f"has a window in the padding alone on an input of size {axis.size}")
        value = picked(conversion, value, dim, np.concatenate([np.arange(axis.size), repeated]))
    kernel, stride, padding, dilation = (
        [getattr(axis, name) for axis in windows] for name in ("kernel", "stride", "before", "dilation")
    )
    pooled = conversion.call(F.max_pool2d, value, kernel, stride, padding, dilation)
    return _counted(conversion, pooled, windows)


@operator("AveragePool")
def average_pool(conversion: Conversion) -> Known:
    """Average pooling: zeros are added, then each window's mean is corrected where fewer entries count."""
    return over_planes(conversion, conversion.symbol(), means)


def means(conversion: Conversion, value: Symbol, windows: Both) -> Symbol:
    """The mean of each window of a plane."""
    if any(axis.dilation != 1 for axis in windows):
        conversion.refuse("with dilation is not understood")
    kernel, stride, before = (
        [getattr(axis, name) for axis in windows] for name in ("kernel", "stride", "before")
    )
    height, width = (axis.divisors(bool(conversion.attribute("count_include_pad", 0))) for axis in windows)
    divisors = height[:, None] * width
    over = [max(0, axis.over) for axis in windows]
    # PyTorch itself pads by no more than half a window.
    if before != over or any(2 * far > size for far, size in zip(before, kernel, strict=True)):
        value, before = padded(conversion, value, before, over), [0, 0]
    pooled = conversion.call(F.avg_pool2d, value, kernel, stride, before)
    pooled = _counted(conversion, pooled, windows)
    whole = kernel[0] * kernel[1]
    if not np.all(divisors == whole):
        pooled = conversion.call(python.mul, pooled, conversion.tensor(whole / divisors))
    return pooled


@operator("LpPool")
def norm_pool(conversion: Conversion) -> Known:
    """The lp norm of each window."""
    order = int(conversion.attribute("p", 2))
    if order < 1:
        conversion.refuse(f"by the norm of order {order} is not understood")
    value = conversion.call(torch.square if order == 2 else torch.abs, conversion.symbol())
    if order > 2:
        value = conversion.call(torch.pow, value, float(order))
    total = over_planes(conversion, value, _total)
    if order == 1:
        return total
    return conversion.call(torch.sqrt, total) if order == 2 else conversion.call(torch.pow, total, 1 / order)


def _total(conversion: Conversion, value: Symbol, windows: Both) -> Symbol:
    if any(axis.dilation != 1 for axis in windows):
        conversion.refuse("with dilation is not understood")
    kernel, stride, before = (
        [getattr(axis, name) for axis in windows] for name in ("kernel", "stride", "before")
    )
    value = padded(conversion, value, before, [max(0, axis.over) for axis in windows])
    pooled = _counted(conversion, conversion.call(F.avg_pool2d, value, kernel, stride), windows)
    return conversion.call(python.mul, pooled, float(math.prod(kernel)))


@operator("GlobalLpPool")
def global_norm(conversion: Conversion) -> Known:
    """The lp norm of each channel."""
    value = conversion.symbol()
    value = conversion.with_samples(value, len(value.shape))
    dims = tuple(range(2, len(value.shape)))
    return conversion.call(torch.linalg.vector_norm, value, float(conversion.attribute("p", 2)), dims, True)


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pooling(conversion: Conversion) -> Known:
    """One entry per channel."""
    value = conversion.symbol()
    value = conversion.with_samples(value, len(value.shape))
    channels, *rest = value.shape[1:]
    if conversion.current.op_type == "GlobalAveragePool":
        return conversion.call(torch.mean, value, tuple(range(2, 2 + len(rest))), True)
    if len(rest) != 2:
        value = conversion.call(torch.reshape, value, (-1, channels, 1, math.prod(rest)))
    pooled = conversion.call(F.max_pool2d, value, list(value.shape[2:]))
    return conversion.reshaped(pooled, (1, channels, *[1] * len(rest)))
