"""ONNX resizing to a constant size, a constant matrix along each axis, and blocks of pixels as channels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from models.onnx.conversion import Conversion, Known, Symbol, operator
from models.onnx.layers import linear
from models.onnx.shapes import cut

NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _coordinates(how: str, size: int, out: int, scale: np.float32) -> np.ndarray | None:
    """Where each of `out` entries lies among `size` ones, in float32 as in onnxruntime; None if unknown."""
    places, half = np.arange(out, dtype=np.float32), np.float32(0.5)
    if how == "half_pixel" or (how == "pytorch_half_pixel" and out > 1):
        return (places + half) / scale - half
    if how == "asymmetric":
        return places / scale
    if how == "align_corners":
        return places * np.float32(size - 1) / np.float32(max(out - 1, 1))
    return 0 * places if how == "pytorch_half_pixel" else None


def _matrix(size: int, coordinates: np.ndarray, rounding: str | None) -> np.ndarray:
    """The weights (out, size) of nearest neighbours, or of linear interpolation where rounding is None."""
    rows = np.arange(len(coordinates))
    weights = np.zeros((len(coordinates), size))
    if rounding is not None:
        # In float32 the half that is added would carry 0.49999997 over to 1.
        nearest = NEAREST[rounding](coordinates.astype(np.float64))
        weights[rows, nearest.clip(0, size - 1).astype(int)] = 1
        return weights
    inside = coordinates.clip(0, size - 1)
    low = np.floor(inside).astype(int)
    np.add.at(weights, (rows, low), 1 - (inside - low))
    np.add.at(weights, (rows, np.minimum(low + 1, size - 1)), inside - low)
    return weights


def along(conversion: Conversion, value: Symbol, dim: int, matrix: np.ndarray) -> Symbol:
    """The matrix (out, in) times the entries along a PyTorch dimension."""
    weights = conversion.tensor(matrix)
    if dim == value.example.dim() - 1:
        return linear(conversion, weights, None, value)
    turned = linear(conversion, weights, None, conversion.call(torch.transpose, value, dim, -1))
    return conversion.call(torch.transpose, turned, dim, -1)


def _targets(conversion: Conversion, value: Symbol, newest: bool) -> list[tuple[int, int, np.float32]]:
    """Axis, new size and scale of each axis that changes."""
    scales = conversion.option("scales", 2 if newest else 1, [])
    sizes = conversion.option("sizes", 3, []) if newest else []
    axes = conversion.attribute("axes") or range(len(value.shape))
    given = scales or sizes
    if len(axes) != len(given):
        conversion.refuse(f"gives {len(given)} scales or sizes for {len(axes)} axes")
    found = []
    for axis, wanted in zip(axes, given, strict=True):
        size = value.shape[axis]
        # The size in float32 too: 5 entries times 1.4 are 7.
        out = int(np.floor(np.float32(size) * np.float32(wanted))) if scales else int(wanted)
        scale = np.float32(wanted if scales else out / size)
        if out < 1:
            conversion.refuse(f"leaves axis {axis} empty")
        if out != size or scale != 1:
            found.append((int(axis), out, scale))
    # onnxruntime copies where no size changes, whatever the scales.
    return found if any(out != value.shape[axis] for axis, out, _ in found) else []


@operator("Resize", "Upsample")
def resize(conversion: Conversion) -> Known:
    """Nearest neighbours or linear interpolation, with constant scales or sizes."""
    value = conversion.symbol()
    newest = conversion.current.op_type == "Resize" and conversion.opsets.get("", 1) >= 11
    mode = conversion.attribute("mode", "nearest")
    how = conversion.attribute("coordinate_transformation_mode", "half_pixel" if newest else "asymmetric")
    rounding = conversion.attribute("nearest_mode", "round_prefer_floor" if newest else "floor")
    if mode not in ("nearest", "linear") or rounding not in NEAREST:
        conversion.refuse(f"in mode '{mode}' is not understood: use nearest or linear")
    if conversion.attribute("antialias", 0):
        conversion.refuse("with antialias is not understood")
    if conversion.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        conversion.refuse("that keeps the aspect ratio is not understood: give the sizes themselves")
    for axis, out, scale in _targets(conversion, value, newest):
        size = value.shape[axis]
        coordinates = _coordinates(how, size, out, scale)
        if coordinates is None:
            conversion.refuse(f"with coordinates by '{how}' is not understood")
        matrix = _matrix(size, coordinates, rounding if mode == "nearest" else None)
        value = along(conversion, value, conversion.dimension(value, axis), matrix)
    return value


@operator("CenterCropPad")
def centre(conversion: Conversion) -> Known:
    """The middle of some axes, or the value in the middle of zeros."""
    value, wanted = conversion.symbol(), conversion.fixed(1).tolist()
    axes = conversion.attribute("axes", range(len(value.shape)))
    widths = [0, 0] * (value.example.dim() - 1)
    for axis, size in zip(axes, wanted, strict=True):
        more = int(size) - value.shape[axis]
        if not more:
            continue
        dim = conversion.dimension(value, axis)
        if more < 0:
            value = cut(conversion, value, {dim: slice(-more // 2, -more // 2 + int(size))})
        else:
            place = 2 * (value.example.dim() - 1 - dim)
            widths[place : place + 2] = [more // 2, more - more // 2]
    return conversion.call(F.pad, value, widths) if any(widths) else value


@operator("DepthToSpace")
def depth_to_space(conversion: Conversion) -> Known:
    """Channels as blocks of pixels, the blocks' axes before or after the remaining channels'."""
    value, block = conversion.with_samples(conversion.symbol(), 4), int(conversion.attribute("blocksize"))
    _, channels, height, width = value.shape
    rest = channels // block**2
    if conversion.attribute("mode", "DCR") == "DCR":
        shape, order = (block, block, rest, height, width), (0, 3, 4, 1, 5, 2)
    else:
        shape, order = (rest, block, block, height, width), (0, 1, 4, 2, 5, 3)
    split = conversion.call(torch.reshape, value, (-1, *shape))
    moved = conversion.call(torch.permute, split, order)
    return conversion.call(torch.reshape, moved, (-1, rest, height * block, width * block))


@operator("SpaceToDepth")
def space_to_depth(conversion: Conversion) -> Known:
    """Blocks of pixels as channels, each block's own axes before the channels'."""
    value, block = conversion.with_samples(conversion.symbol(), 4), int(conversion.attribute("blocksize"))
    _, channels, height, width = value.shape
    tall, wide = height // block, width // block
    split = conversion.call(torch.reshape, value, (-1, channels, tall, block, wide, block))
    moved = conversion.call(torch.permute, split, (0, 3, 5, 1, 2, 4))
    return conversion.call(torch.reshape, moved, (-1, channels * block**2, tall, wide))
