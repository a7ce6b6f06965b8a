"""ONNX pooling over one or two axes, with windows that reach over the end and uneven padding."""

from __future__ import annotations

import operator as python
from dataclasses import dataclass

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


def _plane(conversion: Conversion) -> tuple[Symbol, bool]:
    """The input with two axes to pool over, and whether the first of them is new, of size 1."""
    value = conversion.symbol()
    if len(value.shape) != 3:
        return conversion.with_samples(value, 4), False
    return conversion.call(torch.unsqueeze, conversion.with_samples(value, 3), 2), True


def _without(conversion: Conversion, value: Symbol, new: bool) -> Symbol:
    """The pooled value without the axis that `_plane` has put in."""
    return conversion.call(torch.squeeze, value, 2) if new else value


def _windows(conversion: Conversion, value: Symbol) -> tuple[Windows, Windows]:
    """The windows along both axes; raises NotApplicable where one lies in the padding alone."""
    kernel = list(conversion.attribute("kernel_shape"))
    sizes = list(value.shape[-len(kernel) :])
    found = [] if len(kernel) == 2 else [Windows(1, 1, 1, 1, 0, 0, 1)]
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
    return found[0], found[1]


def _counted(conversion: Conversion, value: Symbol, windows: tuple[Windows, Windows]) -> Symbol:
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
    value, new = _plane(conversion)
    windows = _windows(conversion, value)
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
    return _without(conversion, _counted(conversion, pooled, windows), new)


@operator("AveragePool")
def average_pool(conversion: Conversion) -> Known:
    """Average pooling: zeros are added, then each window's mean is corrected where fewer entries count."""
    value, new = _plane(conversion)
    windows = _windows(conversion, value)
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
    return _without(conversion, pooled, new)


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pooling(conversion: Conversion) -> Known:
    """One entry per channel."""
    value, new = _plane(conversion)
    if conversion.current.op_type == "GlobalMaxPool":
        pooled = conversion.call(F.max_pool2d, value, list(value.shape[2:]))
    else:
        pooled = conversion.call(torch.mean, value, (2, 3), True)
    return _without(conversion, pooled, new)
