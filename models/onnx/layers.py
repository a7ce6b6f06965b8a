"""ONNX operators with weights: products with matrices, convolutions, batch normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.onnx.arithmetic import aligned, combine
from models.onnx.conversion import Conversion, Known, Symbol, operator
from models.onnx.shapes import cut, permuted

Pair = tuple[int, int]


def linear(conversion: Conversion, weight: Tensor, bias: Tensor | None, value: Symbol) -> Symbol:
    """weight @ v + bias over the last dimension; weight (out, in)."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    layer = layer.to(conversion.dtype)
    layer.weight.data = weight.contiguous()
    if bias is not None:
        layer.bias.data = bias.contiguous()
    return conversion.layer(layer, value)


def _times(conversion: Conversion, value: Symbol, matrix: np.ndarray, bias: Tensor | None = None) -> Symbol:
    """value @ matrix."""
    if value.batched and len(value.shape) < 2:
        conversion.refuse("multiplies the axis of the samples, which is not understood")
    weights = conversion.tensor(matrix)
    while weights.dim() > 2 and weights.shape[0] == 1 and weights.dim() <= len(value.shape):
        weights = weights[0]
    if weights.dim() > 2:
        conversion.refuse(f"multiplies by a constant of shape {matrix.shape}, which is not understood")
    if weights.dim() == 1:
        column = linear(conversion, weights[None], bias, value)
        return conversion.reshaped(column, column.shape[:-1])
    return linear(conversion, weights.T, bias, value)


def _of(conversion: Conversion, matrix: np.ndarray, value: Symbol) -> Symbol:
    """matrix @ value."""
    weights = conversion.tensor(matrix)
    while weights.dim() > 2 and weights.shape[0] == 1 and weights.dim() <= len(value.shape):
        weights = weights[0]
    if weights.dim() != 2:
        conversion.refuse(f"multiplies by a constant of shape {matrix.shape}, which is not understood")
    if len(value.shape) == 1:
        return linear(conversion, weights, None, value)
    if value.batched and len(value.shape) == 2:
        # A single row that a column is multiplied with: its first axis is none of samples.
        value = conversion.call(torch.unsqueeze, value, 1, batched=False)
    rest = value.example.shape[1:]
    if rest[-1] == 1:
        row = linear(conversion, weights, None, conversion.reshaped(value, value.shape[:-1]))
        return conversion.reshaped(row, (*row.shape, 1))
    turned = conversion.call(torch.transpose, value, -1, -2)
    return conversion.call(torch.transpose, linear(conversion, weights, None, turned), -1, -2)


@operator("MatMul")
def matmul(conversion: Conversion) -> Known:
    """A product with a constant matrix on either side, or of two values."""
    return product(conversion, conversion.input(0), conversion.input(1))


def product(conversion: Conversion, first: Known, second: Known) -> Symbol:
    """The matrix product of two values, or of a value and a constant."""
    if isinstance(first, Symbol) and isinstance(second, np.ndarray):
        return _times(conversion, first, second)
    if isinstance(first, np.ndarray) and isinstance(second, Symbol):
        return _of(conversion, first, second)
    values = [value for value in (first, second) if isinstance(value, Symbol)]
    if len(values) < 2:
        conversion.refuse("lacks an input")
    if min(len(value.shape) for value in values) < 2:
        conversion.refuse("multiplies two values, one of them a vector, which is not understood")
    return conversion.call(torch.matmul, *aligned(conversion, values, inner=2))


@operator("Gemm")
def gemm(conversion: Conversion) -> Known:
    """alpha A B + beta C with A or B constant, either transposed."""
    first, second, added = (conversion.input(place) for place in range(3))
    alpha, beta = float(conversion.attribute("alpha", 1.0)), float(conversion.attribute("beta", 1.0))
    first = turned(conversion, first) if conversion.attribute("transA", 0) else first
    second = turned(conversion, second) if conversion.attribute("transB", 0) else second
    offset = None if added is None or not isinstance(added, np.ndarray) else beta * added
    if isinstance(first, Symbol) and isinstance(second, np.ndarray):
        width = second.shape[1]
        row = offset is not None and (offset.size == 1 or offset.shape[-1] == offset.size == width)
        bias = conversion.tensor(np.broadcast_to(np.asarray(offset).reshape(-1), (width,))) if row else None
        result = _times(conversion, first, (alpha * second).astype(second.dtype), bias)
        offset = None if row else offset
    elif isinstance(first, np.ndarray) and isinstance(second, Symbol):
        result = _of(conversion, (alpha * first).astype(first.dtype), second)
    else:
        conversion.refuse("multiplies two values, which is not understood")
    if isinstance(added, Symbol):
        return combine(conversion, "Add", result, combine(conversion, "Mul", added, np.array(beta)))
    return result if offset is None else combine(conversion, "Add", result, offset)


def turned(conversion: Conversion, value: Known) -> Known:
    """The transpose of a matrix."""
    if isinstance(value, np.ndarray):
        return value.T
    if not isinstance(value, Symbol) or len(value.shape) != 2:
        conversion.refuse("transposes what is no matrix")
    return permuted(conversion, value, [1, 0])


def window(conversion: Conversion, kernel: list[int], sizes: list[int]) -> tuple[list[int], ...]:
    """stride, dilation, and padding before and after, each per axis."""
    axes = len(kernel)
    stride = list(conversion.attribute("strides", [1] * axes))
    dilation = list(conversion.attribute("dilations", [1] * axes))
    pads = list(conversion.attribute("pads", [0] * 2 * axes))
    before, after = pads[:axes], pads[axes:]
    how = conversion.attribute("auto_pad", "NOTSET")
    if how in ("SAME_UPPER", "SAME_LOWER"):
        for axis, size in enumerate(sizes):
            reach = dilation[axis] * (kernel[axis] - 1) + 1
            total = max(0, (-(-size // stride[axis]) - 1) * stride[axis] + reach - size)
            small, large = total // 2, total - total // 2
            before[axis], after[axis] = (small, large) if how == "SAME_UPPER" else (large, small)
    elif how == "VALID":
        before, after = [0] * axes, [0] * axes
    return stride, dilation, before, after


def padded(conversion: Conversion, value: Symbol, before: list[int], after: list[int]) -> Symbol:
    """Zeros around the last axes."""
    widths = [width for pair in reversed(list(zip(before, after, strict=True))) for width in pair]
    return conversion.call(F.pad, value, widths)


def _weights(
    conversion: Conversion, layer: nn.Module, weight: np.ndarray, bias: np.ndarray | None
) -> nn.Module:
    """A layer with this weight and bias."""
    layer = layer.to(conversion.dtype)
    layer.weight.data = conversion.tensor(weight)
    if bias is not None:
        layer.bias.data = conversion.tensor(bias)
    return layer


def _bias(conversion: Conversion) -> np.ndarray | None:
    return None if conversion.input(2) is None else conversion.fixed(2)


@operator("Conv")
def convolution(conversion: Conversion) -> Known:
    """Convolutions over one to three axes."""
    return convolved(conversion, conversion.symbol(), conversion.fixed(1), _bias(conversion))


def convolved(conversion: Conversion, value: Symbol, weight: np.ndarray, bias: np.ndarray | None) -> Symbol:
    """A convolution with the settings of the current node."""
    shape = weight.shape
    axes = len(shape) - 2
    if axes not in (1, 2, 3):
        conversion.refuse(f"over {axes} axes is not understood")
    value = conversion.with_samples(value, axes + 2)
    kernel = list(shape[2:])
    stride, dilation, before, after = window(conversion, kernel, list(value.shape[2:]))
    if before != after:
        value, before = padded(conversion, value, before, after), [0] * axes
    groups = int(conversion.attribute("group", 1))
    kind: Any = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    layer = nn.utils.skip_init(
        kind, shape[1] * groups, shape[0], kernel, stride, before, dilation, groups,
        bias=bias is not None,
    )  # fmt: skip
    return conversion.layer(_weights(conversion, layer, weight, bias), value)


@operator("ConvTranspose")
def transposed_convolution(conversion: Conversion) -> Known:
    """Transposed convolutions over one or two axes; uneven padding cuts the output."""
    shape = conversion.fixed(1).shape
    axes = len(shape) - 2
    if axes not in (1, 2):
        conversion.refuse(f"over {axes} axes is not understood")
    value = conversion.with_samples(conversion.symbol(), axes + 2)
    kernel, sizes = list(shape[2:]), list(value.shape[2:])
    stride, dilation, *_ = window(conversion, kernel, sizes)
    more = list(conversion.attribute("output_padding", [0] * axes))
    whole = [
        step * (size - 1) + extra + apart * (width - 1) + 1
        for step, size, extra, apart, width in zip(stride, sizes, more, dilation, kernel, strict=True)
    ]
    before, after = _cut_off(conversion, whole, [s * step for s, step in zip(sizes, stride, strict=True)])
    padding = before if before == after else [0] * axes
    groups = int(conversion.attribute("group", 1))
    kind: Any = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}[axes]
    layer = nn.utils.skip_init(
        kind, shape[0], shape[1] * groups, kernel, stride, padding, more, groups,
        bias=conversion.input(2) is not None, dilation=dilation,
    )  # fmt: skip
    layer = _weights(conversion, layer, conversion.fixed(1), _bias(conversion))
    result = conversion.layer(layer, value)
    if before == after:
        return result
    stretches = zip(before, whole, after, strict=True)
    return cut(conversion, result, {2 + i: slice(a, end - b) for i, (a, end, b) in enumerate(stretches)})


def _cut_off(conversion: Conversion, whole: list[int], same: list[int]) -> tuple[list[int], list[int]]:
    """How many entries of each axis, `whole` long, a transposed convolution leaves out at either end."""
    how = conversion.attribute("auto_pad", "NOTSET")
    wanted = conversion.attribute("output_shape", same if how.startswith("SAME") else None)
    if wanted is None:
        none = [0] * 2 * len(whole)
        pads = none if how == "VALID" else list(conversion.attribute("pads", none))
        return pads[: len(whole)], pads[len(whole) :]
    total = [size - kept for size, kept in zip(whole, list(wanted)[-len(whole) :], strict=True)]
    if min(total) < 0:
        conversion.refuse(f"makes outputs of size {tuple(whole)}, less than its output shape")
    small, large = [size // 2 for size in total], [size - size // 2 for size in total]
    return (small, large) if how == "SAME_UPPER" else (large, small)


@operator("BatchNormalization")
def batch_normalization(conversion: Conversion) -> Known:
    """Normalisation by the running statistics in the file."""
    statistics = [name for name in conversion.current.output[1:] if name]
    old = conversion.opsets.get("", 1) < 14
    if conversion.attribute("training_mode", 0) or (old and statistics):
        conversion.refuse("in training mode mixes samples: export the network in eval mode")
    value = conversion.symbol()
    value = conversion.with_samples(value, len(value.shape))
    scale, shift, mean, variance = (conversion.tensor(conversion.fixed(place)) for place in range(1, 5))
    kind = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(len(value.shape), nn.BatchNorm1d)
    layer = kind(len(scale), eps=float(conversion.attribute("epsilon", 1e-5))).to(conversion.dtype)
    layer.load_state_dict(
        {"weight": scale, "bias": shift, "running_mean": mean, "running_var": variance}, strict=False
    )
    return conversion.layer(layer, value)
