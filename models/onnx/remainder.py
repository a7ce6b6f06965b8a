"""ONNX's Mod: what a division leaves, with the sign of the dividend or of the divisor."""

from __future__ import annotations

import numpy as np
import torch

from models.onnx.arithmetic import aligned, fit
from models.onnx.conversion import Conversion, Known, Symbol, operator
from models.onnx.shapes import broadcast


@operator("Mod")
def remainder(conversion: Conversion) -> Known:
    """As C's fmod where the file says so, else as Python's %."""
    function = torch.fmod if conversion.attribute("fmod", 0) else torch.remainder
    first, second = conversion.input(0), conversion.input(1)
    if isinstance(first, Symbol) and isinstance(second, Symbol):
        return conversion.call(function, *aligned(conversion, [first, second]))
    value, constant = (first, second) if isinstance(first, Symbol) else (second, first)
    assert isinstance(value, Symbol)
    assert isinstance(constant, np.ndarray)
    value = broadcast(conversion, value, np.broadcast_shapes(value.shape, constant.shape))
    fitted = torch.as_tensor(fit(conversion, constant, value), dtype=conversion.dtype)
    return conversion.call(function, *((value, fitted) if isinstance(first, Symbol) else (fitted, value)))
