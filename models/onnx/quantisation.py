"""ONNX rounding to integers and back: values between levels, kept as floating numbers."""

from __future__ import annotations

import numpy as np
import torch
from onnx import TensorProto, helper

from models.onnx.arithmetic import combine
from models.onnx.conversion import Conversion, Known, Symbol, operator


def _along_axis(conversion: Conversion, value: Symbol, place: int) -> np.ndarray:
    """The scale or zero point at a place of the inputs, one for all entries or one for each of an axis."""
    found = conversion.fixed(place)
    if found.size == 1:
        return found.reshape(())
    axis = int(conversion.attribute("axis", 1)) % len(value.shape)
    if found.shape != (value.shape[axis],) or conversion.attribute("block_size", 0):
        conversion.refuse(
            f"has scales of shape {found.shape}, where one of all or one an entry of an axis is understood"
        )
    return found.reshape(-1, *[1] * (len(value.shape) - axis - 1))


@operator("QuantizeLinear", "com.microsoft:QuantizeLinear")
def quantise(conversion: Conversion) -> Known:
    """round(z / scale) + zero point, between the least and the largest number of its type."""
    value = conversion.symbol()
    kind = int(conversion.attribute("output_dtype", 0)) or TensorProto.UINT8
    zero = np.zeros((), dtype=helper.tensor_dtype_to_np_dtype(kind))
    if conversion.input(2) is not None:
        zero = _along_axis(conversion, value, 2)
    if zero.dtype.kind not in "iu":
        conversion.refuse(f"to {zero.dtype} is not understood: use integers")
    scaled = combine(conversion, "Div", value, _along_axis(conversion, value, 1).astype(np.float64))
    return rounded(conversion, scaled, zero)


def rounded(conversion: Conversion, scaled: Symbol, zero: np.ndarray) -> Symbol:
    """round(z) + zero point, between the least and the largest number of the zero point's type."""
    levels = np.iinfo(zero.dtype)
    moved = combine(conversion, "Add", conversion.call(torch.round, scaled), zero.astype(np.float64))
    return conversion.call(torch.clamp, moved, float(levels.min), float(levels.max))


@operator("DequantizeLinear", "com.microsoft:DequantizeLinear")
def dequantise(conversion: Conversion) -> Known:
    """(z - zero point) scale."""
    value = conversion.symbol()
    if conversion.input(2) is not None:
        zero = _along_axis(conversion, value, 2).astype(np.float64)
        value = combine(conversion, "Sub", value, zero)
    return combine(conversion, "Mul", value, _along_axis(conversion, value, 1).astype(np.float64))
