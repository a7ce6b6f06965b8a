"""ONNX operators by triangular and diagonal matrices: parts of matrices, and running sums."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from models.onnx.arithmetic import combine
from models.onnx.conversion import Conversion, Known, operator
from models.onnx.resizing import along


@operator("Trilu")
def triangle(conversion: Conversion) -> Known:
    """The upper or lower triangle of the last two axes, zeros elsewhere."""
    value = conversion.symbol()
    diagonal = 0 if conversion.input(1) is None else int(conversion.fixed(1).item())
    part = np.triu if conversion.attribute("upper", 1) else np.tril
    return combine(conversion, "Mul", value, part(np.ones(value.shape[-2:]), diagonal))


@operator("CumSum")
def running_sum(conversion: Conversion) -> Known:
    """The sum of the entries of an axis up to each, or from there on, with or without itself."""
    value = conversion.symbol()
    axis = int(conversion.fixed(1).item())
    matrix = np.tri(value.shape[axis], k=-1 if conversion.attribute("exclusive", 0) else 0)
    matrix = matrix.T if conversion.attribute("reverse", 0) else matrix
    return along(conversion, value, conversion.dimension(value, axis), np.ascontiguousarray(matrix))


@operator("EyeLike")
def diagonal(conversion: Conversion) -> Known:
    """Ones on a diagonal of a matrix of the value's shape, a constant."""
    shape = conversion.symbol().shape
    if len(shape) != 2:
        conversion.refuse(f"is understood of matrices, not of a value of shape {shape}")
    kind = helper.tensor_dtype_to_np_dtype(int(conversion.attribute("dtype", TensorProto.FLOAT)))
    return np.eye(*shape, k=int(conversion.attribute("k", 0)), dtype=kind)
