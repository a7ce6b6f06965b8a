"""ONNX layers between integers, as onnxruntime's quantiser writes them: sums of whole numbers, rounded again.

Integers are floating numbers here. float32 holds the sums of some 500 products of bytes; longer ones may
differ from onnxruntime's by their rounding, which moves a level in rare cases.
"""

from __future__ import annotations

import operator as python
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from models.onnx.arithmetic import combine
from models.onnx.conversion import Conversion, Known, Symbol, operator
from models.onnx.layers import convolved, product, turned
from models.onnx.pooling import means, over_planes
from models.onnx.quantisation import rounded
from models.onnx.reductions import REDUCTIONS

# The least scale by which values that are all 0 are divided.
LEAST = 1e-30


def _apiece(found: np.ndarray, more: int) -> np.ndarray:
    """A scale or zero point, one number or one an entry of an axis, with `more` axes of size 1 behind."""
    return found.reshape(()) if found.size == 1 else found.reshape(*found.shape, *[1] * more)


def _scale(conversion: Conversion, place: int, more: int = 0) -> np.ndarray:
    return _apiece(conversion.fixed(place).astype(np.float32), more)


def _centred(conversion: Conversion, place: int, zero: int, more: int = 0) -> Symbol | np.ndarray:
    """The input at a place less its zero point."""
    value, offset = conversion.input(place), conversion.input(zero)
    if value is None:
        conversion.refuse(f"lacks input {place}")
    if isinstance(offset, np.ndarray):
        offset = _apiece(offset.astype(np.float64), more)
    if offset is None or (isinstance(offset, np.ndarray) and not offset.any()):
        return value.astype(np.float64) if isinstance(value, np.ndarray) else value
    if isinstance(value, np.ndarray) and isinstance(offset, np.ndarray):
        return np.asarray(value - offset)
    return combine(conversion, "Sub", value, offset)


def _again(conversion: Conversion, value: Symbol, factor: Any, zero: int) -> Symbol:
    """Sums of products times what one is worth, as levels around the zero point at a place of the inputs."""
    return rounded(conversion, combine(conversion, "Mul", value, np.asarray(factor)), _zero(conversion, zero))


def _zero(conversion: Conversion, place: int) -> np.ndarray:
    """The output's zero point, whose type is the output's."""
    found = np.zeros((), np.uint8) if conversion.input(place) is None else conversion.fixed(place)
    if found.dtype.kind not in "iu" or found.size != 1:
        conversion.refuse(f"to {found.dtype} around {found.size} zero points is not understood")
    return found.reshape(())


@operator("QLinearConv")
def convolution(conversion: Conversion) -> Known:
    """A convolution of levels with constant levels, rounded to levels."""
    more = conversion.fixed(3).ndim - 1
    value, weight = _centred(conversion, 0, 2), _centred(conversion, 3, 5, more)
    bias = conversion.fixed(8).astype(np.float64) if conversion.input(8) is not None else None
    factor = _scale(conversion, 1) * _scale(conversion, 4, more - 1) / _scale(conversion, 6)
    if not isinstance(value, Symbol) or not isinstance(weight, np.ndarray):
        conversion.refuse("is understood on values with constant weights")
    return _again(conversion, convolved(conversion, value, weight, bias), factor, 7)


@operator("ConvInteger")
def integer_convolution(conversion: Conversion) -> Known:
    """A convolution of levels with constant levels, as it is."""
    value, weight = _centred(conversion, 0, 2), _centred(conversion, 1, 3, conversion.fixed(1).ndim - 1)
    if not isinstance(value, Symbol) or not isinstance(weight, np.ndarray):
        conversion.refuse("is understood on values with constant weights")
    return convolved(conversion, value, weight, None)


@operator("MatMulInteger")
def integer_product(conversion: Conversion) -> Known:
    """A product of matrices of levels, as it is."""
    return product(conversion, _centred(conversion, 0, 2, 1), _centred(conversion, 1, 3))


@operator("QLinearMatMul")
def level_product(conversion: Conversion) -> Known:
    """A product of matrices of levels, rounded to levels."""
    found = product(conversion, _centred(conversion, 0, 2, 1), _centred(conversion, 3, 5))
    factor = _scale(conversion, 1, 1) * _scale(conversion, 4) / _scale(conversion, 6)
    return _again(conversion, found, factor, 7)


@operator("com.microsoft:QGemm")
def level_gemm(conversion: Conversion) -> Known:
    """alpha (A B + C) of levels and a constant C, rounded to levels where the output has a scale."""
    first = _centred(conversion, 0, 2)
    second = _centred(conversion, 3, 5, int(bool(conversion.attribute("transB", 0))))
    found = product(
        conversion,
        turned(conversion, first) if conversion.attribute("transA", 0) else first,
        turned(conversion, second) if conversion.attribute("transB", 0) else second,
    )
    if conversion.input(6) is not None:
        found = combine(conversion, "Add", found, conversion.fixed(6).astype(np.float64))
    factor = np.float32(conversion.attribute("alpha", 1.0)) * _scale(conversion, 1) * _scale(conversion, 4)
    if conversion.input(7) is None:
        return combine(conversion, "Mul", found, np.asarray(factor))
    return _again(conversion, found, factor / _scale(conversion, 7), 8)


@operator("DynamicQuantizeLinear")
def quantise_by_range(conversion: Conversion) -> tuple[Known, ...]:
    """The value as levels from 0 to 255 over its own range and 0, the scale and the zero point."""
    value = conversion.symbol()
    apart = conversion.apart(value)
    dims = tuple(range(1, apart.example.dim()))
    most, least = (REDUCTIONS[name](conversion, apart, dims, False) for name in ("ReduceMax", "ReduceMin"))
    most, least = conversion.call(torch.clamp, most, 0.0), conversion.call(torch.clamp, least, None, 0.0)
    width = conversion.call(python.truediv, conversion.call(python.sub, most, least), 255.0)
    scale = conversion.call(torch.clamp, width, LEAST)
    offset = conversion.call(python.neg, conversion.call(python.truediv, least, scale))
    middle = conversion.call(torch.round, conversion.call(torch.clamp, offset, 0.0, 255.0))
    steps = conversion.call(torch.round, combine(conversion, "Div", value, scale))
    levels = conversion.call(torch.clamp, combine(conversion, "Add", steps, middle), 0.0, 255.0)
    return levels, scale, middle


@operator("com.microsoft:QLinearAdd", "com.microsoft:QLinearMul")
def level_pair(conversion: Conversion) -> Known:
    """The sum or the product of two numbers that levels stand for, as levels."""
    first, second = (_centred(conversion, place, place + 2) for place in (0, 3))
    scale, other, out = (_scale(conversion, place) for place in (1, 4, 6))
    if conversion.current.op_type == "QLinearMul":
        return _again(conversion, combine(conversion, "Mul", first, second), scale * other / out, 7)
    parts = (
        np.asarray(part * share)
        if isinstance(part, np.ndarray)
        else combine(conversion, "Mul", part, np.asarray(share))
        for part, share in ((first, scale / out), (second, other / out))
    )
    return rounded(conversion, combine(conversion, "Add", *parts), _zero(conversion, 7))


@operator("com.microsoft:QLinearConcat")
def level_concatenation(conversion: Conversion) -> Known:
    """Levels of several scales joined as levels of one."""
    parts = []
    for place in range(2, len(conversion.current.input), 3):
        part = _centred(conversion, place, place + 2)
        if not isinstance(part, Symbol):
            conversion.refuse(f"joins a constant, input {place}, which is not understood")
        worth = combine(conversion, "Mul", part, _scale(conversion, place + 1))
        parts.append(combine(conversion, "Div", worth, _scale(conversion, 0)))
    dim = conversion.dimension(parts[0], int(conversion.attribute("axis")))
    joined = conversion.call(torch.cat, parts, dim, batched=parts[0].batched)
    return rounded(conversion, joined, _zero(conversion, 1))


def _mean_of_all(conversion: Conversion, value: Symbol) -> Symbol:
    return conversion.call(torch.mean, value, tuple(range(2, value.example.dim())), True)


FUNCTIONS: dict[str, Callable[[Conversion, Symbol], Symbol]] = {
    "com.microsoft:QLinearSigmoid": lambda conversion, value: conversion.call(torch.sigmoid, value),
    "com.microsoft:QLinearLeakyRelu": lambda conversion, value: conversion.call(
        F.leaky_relu, value, float(conversion.attribute("alpha", 0.01))
    ),
    "com.microsoft:QLinearGlobalAveragePool": _mean_of_all,
    "com.microsoft:QLinearAveragePool": lambda conversion, value: over_planes(conversion, value, means),
}


@operator(*FUNCTIONS)
def level_function(conversion: Conversion) -> Known:
    """A function of the numbers that levels stand for, as levels."""
    value = _centred(conversion, 0, 2)
    if not isinstance(value, Symbol) or conversion.attribute("channels_last", 0):
        conversion.refuse("is understood on values whose channels are the second axis")
    found = FUNCTIONS[f"com.microsoft:{conversion.current.op_type}"](
        conversion, combine(conversion, "Mul", value, _scale(conversion, 1))
    )
    return rounded(conversion, combine(conversion, "Div", found, _scale(conversion, 3)), _zero(conversion, 4))
