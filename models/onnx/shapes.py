"""ONNX operators that move entries: reshaping, permuting, cutting, joining, padding, means and sums."""

from __future__ import annotations

import math
import operator as python
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from models.onnx.conversion import Conversion, Known, Symbol, operator


@operator("Identity", "Dropout")
def identity(conversion: Conversion) -> Known:
    """The same value; dropout outside training."""
    if conversion.current.op_type == "Dropout" and bool(conversion.option("training_mode", 2, False)):
        conversion.refuse("in training mode is random: export the network in eval mode")
    return conversion.symbol()


@operator("Cast")
def cast(conversion: Conversion) -> Known:
    """A change between floating types, which is none here."""
    kind = int(conversion.attribute("to"))
    if kind not in (1, 10, 11, 16):
        conversion.refuse("to something else than a floating type is not understood")
    return conversion.symbol()


@operator("Shape")
def shape_of(conversion: Conversion) -> Known:
    """The shape of a value, a constant."""
    whole = conversion.symbol().shape
    start, end = conversion.attribute("start", 0), conversion.attribute("end", len(whole))
    return np.array(whole[start:end], dtype=np.int64)


@operator("Flatten")
def flatten(conversion: Conversion) -> Known:
    """Two axes: those before `axis` and the others."""
    value, axis = conversion.symbol(), int(conversion.attribute("axis", 1))
    axis = axis if axis >= 0 else axis + len(value.shape)
    return conversion.reshaped(value, (math.prod(value.shape[:axis]), math.prod(value.shape[axis:])))


@operator("Reshape")
def reshape(conversion: Conversion) -> Known:
    """Another shape, in which 0 keeps a size and -1 takes what is left."""
    value = conversion.symbol()
    wanted = [int(size) for size in conversion.option("shape", 1)]
    keep = not conversion.attribute("allowzero", 0)
    sizes = [value.shape[place] if size == 0 and keep else size for place, size in enumerate(wanted)]
    total, given = math.prod(value.shape), math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes = [total // max(given, 1) if size == -1 else size for size in sizes]
    if math.prod(sizes) != total:
        conversion.refuse(f"cannot bring {value.shape} into the shape {tuple(wanted)}: use a batch of one")
    return conversion.reshaped(value, sizes)


@operator("Squeeze")
def squeeze(conversion: Conversion) -> Known:
    """Axes of size 1 dropped."""
    value = conversion.symbol()
    axes = conversion.option("axes", 1)
    named = [place for place, size in enumerate(value.shape) if size == 1] if axes is None else axes
    dropped = {int(axis) % len(value.shape) for axis in named}
    return conversion.reshaped(value, [s for place, s in enumerate(value.shape) if place not in dropped])


@operator("Unsqueeze")
def unsqueeze(conversion: Conversion) -> Known:
    """New axes of size 1."""
    value = conversion.symbol()
    axes = conversion.option("axes", 1)
    total = len(value.shape) + len(axes)
    new, old = {int(axis) % total for axis in axes}, iter(value.shape)
    return conversion.reshaped(value, [1 if place in new else next(old) for place in range(total)])


@operator("Transpose")
def transpose(conversion: Conversion) -> Known:
    """The axes in another order; the samples' one, of size 1, may end up anywhere."""
    value = conversion.symbol()
    order = [int(axis) for axis in conversion.attribute("perm", range(len(value.shape))[::-1])]
    if value.batched and order[0] == 0:
        return conversion.call(torch.permute, value, tuple(order))
    if value.batched:
        value = conversion.call(torch.unsqueeze, value, 1, batched=False)
    moved = conversion.call(torch.permute, value, (0, *(axis + 1 for axis in order)))
    return conversion.reshaped(moved, moved.shape)


@operator("Concat")
def concatenate(conversion: Conversion) -> Known:
    """Values joined along an axis that is not the samples'."""
    values = [conversion.symbol(place) for place in range(len(conversion.current.input))]
    if len({value.batched for value in values}) > 1:
        values = [conversion.reshaped(value, value.shape) for value in values]
    dim = conversion.dimension(values[0], int(conversion.attribute("axis")))
    return conversion.call(torch.cat, values, dim, batched=values[0].batched)


def _cut(conversion: Conversion, value: Symbol, cuts: dict[int, Any]) -> Symbol:
    """value[...] with a slice or an integer at some PyTorch dimensions."""
    cuts = {dim: cut for dim, cut in cuts.items() if cut != slice(None)}
    if not cuts:
        return value
    index = tuple(cuts.get(dim, slice(None)) for dim in range(max(cuts) + 1))
    return conversion.call(python.getitem, value, index)


@operator("Slice")
def cut(conversion: Conversion) -> Known:
    """Stretches of some axes, with positive steps."""
    value = conversion.symbol()
    starts, ends = conversion.option("starts", 1), conversion.option("ends", 2)
    axes = conversion.option("axes", 3, range(len(starts)))
    steps = conversion.option("steps", 4, [1] * len(starts))
    cuts = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            conversion.refuse("with a negative step is not understood")
        size = value.shape[axis]
        stretch = slice(*slice(start, end, step).indices(size))
        if stretch != slice(0, size, 1):
            cuts[conversion.dimension(value, axis)] = stretch
    return _cut(conversion, value, cuts)


@operator("Split")
def split(conversion: Conversion) -> tuple[Known, ...]:
    """Consecutive stretches of one axis."""
    value = conversion.symbol()
    dim = conversion.dimension(value, int(conversion.attribute("axis", 0)))
    parts = len(conversion.current.output)
    size = value.example.shape[dim]
    even = -(-size // parts)
    sizes = conversion.option("split", 1) or [min(even, size - even * part) for part in range(parts)]
    ends = np.cumsum(sizes).tolist()
    return tuple(
        _cut(conversion, value, {dim: slice(end - length, end)})
        for end, length in zip(ends, sizes, strict=True)
    )


@operator("Gather")
def gather(conversion: Conversion) -> Known:
    """One entry of an axis, or a stretch of consecutive ones."""
    value, places = conversion.symbol(), conversion.fixed(1)
    axis = int(conversion.attribute("axis", 0)) % len(value.shape)
    places = np.where(places < 0, places + value.shape[axis], places)
    if places.ndim == 0 and value.batched and axis == 0:
        return Symbol(value.node, value.example, batched=False)
    dim = conversion.dimension(value, axis)
    if places.ndim == 0:
        return _cut(conversion, value, {dim: int(places)})
    if places.ndim != 1 or not len(places) or not np.array_equal(places, np.arange(len(places)) + places[0]):
        conversion.refuse("of entries that are not consecutive is not understood")
    return _cut(conversion, value, {dim: slice(int(places[0]), int(places[-1]) + 1)})


@operator("Pad")
def pad(conversion: Conversion) -> Known:
    """Padding by a constant."""
    value = conversion.symbol()
    if conversion.attribute("mode", "constant") != "constant":
        conversion.refuse("by anything but a constant is not understood")
    pads = [int(width) for width in conversion.option("pads", 1)]
    axes = [int(axis) % len(value.shape) for axis in conversion.option("axes", 3, range(len(value.shape)))]
    filled = conversion.option("value", 2, 0.0)
    filled = filled[0] if isinstance(filled, list) else filled
    widths = [(0, 0)] * value.example.dim()
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        if before or after:
            widths[conversion.dimension(value, axis)] = (before, after)
    flat = [width for pair in reversed(widths[1:]) for width in pair]
    while flat[-2:] == [0, 0]:
        flat = flat[:-2]
    return conversion.call(F.pad, value, flat, "constant", float(filled)) if flat else value


@operator("ReduceMean", "ReduceSum")
def reduce(conversion: Conversion) -> Known:
    """The mean or sum over axes that are not the samples'."""
    value = conversion.symbol()
    axes = conversion.option("axes", 1)
    if axes is None:
        conversion.refuse("over all axes is not understood: name them")
    dims = tuple(sorted(conversion.dimension(value, int(axis)) for axis in axes))
    function = torch.mean if conversion.current.op_type == "ReduceMean" else torch.sum
    return conversion.call(function, value, dims, bool(conversion.attribute("keepdims", 1)))
