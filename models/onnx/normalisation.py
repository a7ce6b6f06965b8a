"""ONNX normalisation by a sample's own statistics."""

from __future__ import annotations

import math
import operator as python

import torch
import torch.nn.functional as F
from torch import Tensor

from models.onnx.conversion import Conversion, Known, operator


def _fitted(conversion: Conversion, place: int, shape: tuple[int, ...]) -> Tensor | None:
    """The scale or shift at a place of the inputs, as one of `shape`."""
    if conversion.input(place) is None:
        return None
    found = conversion.tensor(conversion.fixed(place))
    try:
        return torch.broadcast_to(found, shape).contiguous()
    except RuntimeError:
        conversion.refuse(f"has a scale or shift of shape {tuple(found.shape)} where {shape} is normalised")


# What ONNX adds to a deviation, squared, in place of the nothing that would divide zeros by zero.
NEARLY_NONE = 1e-18


@operator("LayerNormalization")
def layer_normalization(conversion: Conversion) -> Known:
    """Mean 0 and variance 1 over all axes from `axis` on."""
    value = conversion.symbol()
    first = conversion.dimension(value, int(conversion.attribute("axis", -1)))
    shape = tuple(value.example.shape[first:])
    scale, shift = _fitted(conversion, 1, shape), _fitted(conversion, 2, shape)
    return conversion.call(
        F.layer_norm, value, shape, scale, shift, float(conversion.attribute("epsilon", 1e-5))
    )


@operator("InstanceNormalization", "GroupNormalization")
def group_normalization(conversion: Conversion) -> Known:
    """Mean 0 and variance 1 over the entries of each group of channels, or of each channel."""
    value = conversion.symbol()
    value = conversion.with_samples(value, len(value.shape))
    channels = value.shape[1]
    groups = channels
    if conversion.current.op_type == "GroupNormalization":
        groups = int(conversion.attribute("num_groups"))
    # Before opset 21 groups have a scale each, not channels.
    per_group = groups != channels and conversion.opsets.get("", 1) < 21
    scale, shift = (_fitted(conversion, place, (groups if per_group else channels,)) for place in (1, 2))
    if per_group and scale is not None and shift is not None:
        scale, shift = (part.repeat_interleave(channels // groups) for part in (scale, shift))
    epsilon = float(conversion.attribute("epsilon", 1e-5))
    return conversion.call(F.group_norm, value, groups, scale, shift, epsilon)


@operator("RMSNormalization")
def root_mean_square(conversion: Conversion) -> Known:
    """Mean square 1 over all axes from `axis` on."""
    value = conversion.symbol()
    first = conversion.dimension(value, int(conversion.attribute("axis", -1)))
    shape = tuple(value.example.shape[first:])
    epsilon = float(conversion.attribute("epsilon", 1e-5))
    return conversion.call(F.rms_norm, value, shape, _fitted(conversion, 1, shape), epsilon)


@operator("MeanVarianceNormalization")
def mean_and_variance(conversion: Conversion) -> Known:
    """Mean 0 and variance 1 over some axes, moved to the end; the samples', of size 1, adds nothing."""
    value = whole = conversion.symbol()
    axes = [int(axis) for axis in conversion.attribute("axes", [0, 2, 3])]
    if value.batched:
        value = conversion.apart(value)
    sizes = value.example.shape
    dims = tuple(sorted({conversion.dimension(value, axis) for axis in axes}))
    order = (0, *(dim for dim in range(1, len(sizes)) if dim not in dims), *dims)
    moved = conversion.call(torch.permute, value, order)
    count = math.prod(sizes[dim] for dim in dims)
    flat = conversion.call(torch.reshape, moved, (-1, *moved.example.shape[1 : -len(dims)], count))
    flat = conversion.call(F.layer_norm, flat, (count,), None, None, NEARLY_NONE)
    moved = conversion.call(torch.reshape, flat, (-1, *moved.example.shape[1:]))
    back = conversion.call(torch.permute, moved, tuple(order.index(dim) for dim in range(len(sizes))))
    return conversion.reshaped(back, whole.shape)


@operator("LpNormalization")
def norm_of_one(conversion: Conversion) -> Known:
    """A value divided by its l1 or l2 norm along an axis; zeros stay zeros."""
    value, order = conversion.symbol(), int(conversion.attribute("p", 2))
    if order not in (1, 2):
        conversion.refuse(f"by the norm of order {order} is not understood: use 1 or 2")
    dim = conversion.dimension(value, int(conversion.attribute("axis", -1)))
    return conversion.call(F.normalize, value, p=float(order), dim=dim)


@operator("LRN")
def local_response(conversion: Conversion) -> Known:
    """z / (bias + alpha mean of z^2 over the channels around)^beta, with zeros beyond the outer ones."""
    value = conversion.symbol()
    value = conversion.with_samples(value, len(value.shape))
    size = int(conversion.attribute("size"))
    alpha, beta, bias = (
        float(conversion.attribute(name, default))
        for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    channels, *rest = value.shape[1:]
    squares = conversion.call(torch.square, value)
    plane = conversion.call(torch.reshape, squares, (-1, 1, channels, math.prod(rest)))
    plane = conversion.call(F.pad, plane, (0, 0, (size - 1) // 2, size // 2))
    means = conversion.call(F.avg_pool2d, plane, (size, 1), (1, 1))
    means = conversion.call(torch.reshape, means, (-1, channels, *rest))
    base = conversion.call(python.add, conversion.call(python.mul, means, alpha), bias)
    return conversion.call(python.mul, value, conversion.call(torch.pow, base, -beta))
