"""ONNX's GridSample: images read at places between their pixels."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from models.onnx.conversion import Conversion, Known, operator
from models.onnx.indexing import DENSE
from models.onnx.layers import linear

# Older opsets have longer names.
MODES = {"linear": "bilinear", "cubic": "bicubic"} | {m: m for m in ("bilinear", "bicubic", "nearest")}


@operator("GridSample")
def grid_sample(conversion: Conversion) -> Known:
    """An image at places that are values, or at constant ones: then a matrix over its pixels."""
    image = conversion.symbol()
    image = conversion.with_samples(image, len(image.shape))
    mode, padding = conversion.attribute("mode", "linear"), conversion.attribute("padding_mode", "zeros")
    if mode not in MODES or padding not in ("zeros", "border", "reflection"):
        conversion.refuse(f"in mode '{mode}' with padding '{padding}' is not understood")
    settings = {
        "mode": MODES[mode],
        "padding_mode": padding,
        "align_corners": bool(conversion.attribute("align_corners", 0)),
    }
    grid = conversion.input(1)
    if not isinstance(grid, np.ndarray):
        places = conversion.with_samples(conversion.symbol(1), len(image.shape))
        return conversion.call(F.grid_sample, image, places, **settings)
    channels, *sizes = image.shape[1:]
    count, out = math.prod(sizes), grid.shape[1:-1]
    if count * math.prod(out) > DENSE:
        conversion.refuse(f"at {math.prod(out)} places of {count} pixels makes too large a matrix")
    basis = torch.eye(count, dtype=torch.float64).reshape(1, count, *sizes)
    weights = F.grid_sample(basis, torch.from_numpy(grid.astype(np.float64)), **settings)
    row = conversion.reshaped(image, (1, channels, count))
    found = linear(conversion, weights.reshape(count, -1).T.to(conversion.dtype), None, row)
    return conversion.reshaped(found, (1, channels, *out))
