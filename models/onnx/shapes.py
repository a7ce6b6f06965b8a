"""ONNX operators that move entries: reshaping, permuting, cutting, joining, padding."""

from __future__ import annotations

import math
import operator as python
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import helper

from models.onnx.conversion import Conversion, Known, Symbol, operator


@operator("Identity", "Dropout")
def identity(conversion: Conversion) -> Known:
    """The same value; dropout outside training."""
    if conversion.current.op_type == "Dropout" and bool(conversion.option("training_mode", 2, False)):
        conversion.refuse("in training mode is random: export the network in eval mode")
    return conversion.symbol()


@operator("Cast", "CastLike")
def cast(conversion: Conversion) -> Known:
    """A change between floating types, which is none here; truth values become 0 and 1."""
    given, like = conversion.input(0), conversion.input(1)
    if isinstance(given, np.ndarray):
        truth = conversion.symbol(1).example.dtype == torch.bool
        return given.astype(bool if truth else torch.empty(0, dtype=conversion.dtype).numpy().dtype)
    value = conversion.symbol()
    if isinstance(like, Symbol):
        kind = 9 if like.example.dtype == torch.bool else 1
    elif isinstance(like, np.ndarray):
        kind = helper.np_dtype_to_tensor_dtype(like.dtype)
    else:
        kind = int(conversion.attribute("to"))
    if kind == 9 and value.example.dtype == torch.bool:
        return value
    if kind not in (1, 10, 11, 16):
        conversion.refuse("to something else than a floating type is not understood")
    if value.example.dtype == torch.bool:
        one, zero = (torch.tensor(number, dtype=conversion.dtype) for number in (1, 0))
        return conversion.call(torch.where, value, one, zero)
    return value


@operator("Shape")
def shape_of(conversion: Conversion) -> Known:
    """The shape of a value, a constant."""
    whole = conversion.symbol().shape
    start, end = conversion.attribute("start", 0), conversion.attribute("end", len(whole))
    return np.array(whole[start:end], dtype=np.int64)


@operator("Size")
def size_of(conversion: Conversion) -> Known:
    """How many entries a value has, a constant."""
    return np.array(math.prod(conversion.symbol().shape), dtype=np.int64)


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
    """The axes in another order."""
    value = conversion.symbol()
    order = [int(axis) for axis in conversion.attribute("perm", range(len(value.shape))[::-1])]
    return permuted(conversion, value, order)


def permuted(conversion: Conversion, value: Symbol, order: list[int]) -> Symbol:
    """The axes in another order; the samples' one, of size 1, may end up anywhere."""
    if value.batched and order[0] == 0:
        return conversion.call(torch.permute, value, tuple(order))
    value = conversion.apart(value)
    moved = conversion.call(torch.permute, value, (0, *(axis + 1 for axis in order)))
    return conversion.reshaped(moved, moved.shape)


def _widened(
    conversion: Conversion, value: Symbol, dim: int, before: list[np.ndarray], after: list[np.ndarray]
) -> Symbol:
    """`value` between constants along a PyTorch dimension: zeros added around it, then the constants."""
    if not before and not after:
        return value
    rest = list(value.example.shape[1:])
    parts = [*before, np.zeros(rest), *after]
    if value.batched:
        parts = [part[0] if part.ndim == len(rest) + 1 else part for part in parts]
    fitting = rest[: dim - 1] + rest[dim:]
    if any(list(part.shape[: dim - 1] + part.shape[dim:]) != fitting for part in parts):
        conversion.refuse(f"joins a constant that does not fit a value of shape {value.shape}")
    places = [0] * 2 * (len(rest) - dim)
    places += [
        sum(part.shape[dim - 1] for part in group)
        for group in (parts[: len(before)], parts[len(before) + 1 :])
    ]
    zeros = conversion.call(F.pad, value, places)
    return conversion.call(python.add, zeros, conversion.tensor(np.concatenate(parts, dim - 1)))


@operator("Concat")
def concatenate(conversion: Conversion) -> Known:
    """Values and constants joined along an axis."""
    parts = [conversion.input(place) for place in range(len(conversion.current.input))]
    values = [part for part in parts if isinstance(part, Symbol)]
    if len({value.batched for value in values}) > 1:
        values = [conversion.reshaped(value, value.shape) for value in values]
    axis = int(conversion.attribute("axis"))
    if axis in (0, -len(values[0].shape)):
        values = [conversion.apart(value) for value in values]
    dim = conversion.dimension(values[0], axis)
    groups: list[list[np.ndarray]] = [[]]
    for place, part in enumerate(parts):
        if isinstance(part, Symbol):
            groups.append([])
        else:
            groups[-1].append(conversion.fixed(place))
    first, *others = groups
    joined = [
        _widened(conversion, value, dim, first if not place else [], after)
        for place, (value, after) in enumerate(zip(values, others, strict=True))
    ]
    if len(joined) == 1:
        return joined[0]
    return conversion.call(torch.cat, joined, dim, batched=values[0].batched)


def cut(conversion: Conversion, value: Symbol, cuts: dict[int, Any]) -> Symbol:
    """value[...] with a slice or an integer at some PyTorch dimensions."""
    cuts = {dim: cut for dim, cut in cuts.items() if cut != slice(None)}
    if not cuts:
        return value
    index = tuple(cuts.get(dim, slice(None)) for dim in range(max(cuts) + 1))
    return conversion.call(python.getitem, value, index)


def picked(conversion: Conversion, value: Symbol, dim: int, places: np.ndarray) -> Symbol:
    """The entries at `places` along a PyTorch dimension, any of them often: stretches joined."""
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    runs = [slice(int(run[0]), int(run[-1]) + 1) for run in np.split(places, breaks)]
    whole = slice(0, value.example.shape[dim])
    parts = [cut(conversion, value, {} if run == whole else {dim: run}) for run in runs]
    return parts[0] if len(parts) == 1 else conversion.call(torch.cat, parts, dim, batched=value.batched)


@operator("Slice")
def stretches(conversion: Conversion) -> Known:
    """Stretches of some axes, forwards or backwards."""
    value = conversion.symbol()
    starts, ends = conversion.option("starts", 1), conversion.option("ends", 2)
    axes = conversion.option("axes", 3, range(len(starts)))
    steps = conversion.option("steps", 4, [1] * len(starts))
    cuts = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = value.shape[axis]
        places = slice(start, end, step).indices(size)
        if step < 0:
            value = picked(conversion, value, conversion.dimension(value, axis), np.arange(*places))
        elif places != (0, size, 1):
            cuts[conversion.dimension(value, axis)] = slice(*places)
    return cut(conversion, value, cuts)


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
        cut(conversion, value, {dim: slice(end - length, end)})
        for end, length in zip(ends, sizes, strict=True)
    )


@operator("Expand")
def expand(conversion: Conversion) -> Known:
    """Axes of size 1 made longer, or new ones in front."""
    value, wanted = conversion.symbol(), tuple(int(size) for size in conversion.fixed(1))
    try:
        whole = np.broadcast_shapes(value.shape, wanted)
    except ValueError:
        conversion.refuse(f"cannot bring {value.shape} into the shape {wanted}: use a batch of one")
    return broadcast(conversion, value, whole)


def broadcast(conversion: Conversion, value: Symbol, whole: tuple[int, ...]) -> Symbol:
    """The value repeated along axes of size 1, and along new ones in front, into the shape `whole`."""
    if whole == value.shape:
        return value
    rank = len(whole)
    shape = (*[1] * (rank - len(value.shape)), *value.shape)
    batched = value.batched and len(value.shape) == rank and whole[0] == 1
    if not batched and shape != tuple(value.example.shape[1:]):
        value = conversion.call(torch.reshape, value, (-1, *shape), batched=False)
    return conversion.call(
        torch.broadcast_to, value, (-1, *(whole[1:] if batched else whole)), batched=batched
    )


@operator("Tile")
def tile(conversion: Conversion) -> Known:
    """Copies of the value side by side along each axis."""
    value = conversion.symbol()
    for axis, count in enumerate(conversion.fixed(1).tolist()):
        if count != 1:
            places = np.tile(np.arange(value.shape[axis]), count)
            value = picked(conversion, value, conversion.dimension(value, axis), places)
    return value


def _repeated(conversion: Conversion, value: Symbol, axis: int, widths: tuple[int, int], mode: str) -> Symbol:
    """Padding of one axis by its own entries; negative widths are refused."""
    size = value.shape[axis]
    if min(widths) < 0 or (mode == "reflect" and max(widths) >= size):
        conversion.refuse(f"by '{mode}' with widths {widths} does not fit {size} entries")
    places = np.pad(np.arange(size), widths, mode=mode)  # type: ignore[call-overload]
    return picked(conversion, value, conversion.dimension(value, axis), places)


@operator("Pad")
def pad(conversion: Conversion) -> Known:
    """Padding by a constant, or by entries of the value itself."""
    value = conversion.symbol()
    mode = conversion.attribute("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        conversion.refuse(f"by '{mode}' is not understood")
    pads = [int(width) for width in conversion.option("pads", 1)]
    axes = [int(axis) % len(value.shape) for axis in conversion.option("axes", 3, range(len(value.shape)))]
    if mode != "constant":
        for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
            if before or after:
                value = _repeated(conversion, value, axis, (before, after), mode)
        return value
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
