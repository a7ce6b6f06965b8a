"""ONNX operators that pick and place entries by constant indices: each entry's number says where it goes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from models.onnx.arithmetic import combine
from models.onnx.conversion import Conversion, Known, Symbol, operator
from models.onnx.layers import linear
from models.onnx.shapes import cut, picked

# Entries in more stretches than this are picked by one matrix, while it has no more numbers than DENSE.
STRETCHES, DENSE = 16, 10**7


@operator("Gather")
def gather(conversion: Conversion) -> Known | tuple[Known, ...]:
    """One entry of an axis, or a list of them."""
    value, places = conversion.symbol(), conversion.fixed(1)
    axis = int(conversion.attribute("axis", 0)) % len(value.shape)
    places = np.where(places < 0, places + value.shape[axis], places)
    if places.ndim == 0 and value.batched and axis == 0:
        return Symbol(value.node, value.example, batched=False)
    if not places.size:
        conversion.refuse(f"of entries in the shape {places.shape} is not understood")
    if value.batched and axis == 0:
        return by_numbers(conversion)
    dim = conversion.dimension(value, axis)
    if places.ndim == 0:
        return cut(conversion, value, {dim: int(places)})
    row = picked(conversion, value, dim, places.reshape(-1))
    return conversion.reshaped(row, (*value.shape[:axis], *places.shape, *value.shape[axis + 1 :]))


@operator("GatherND", "GatherElements", "ScatterND", "ScatterElements", "ReverseSequence")
def by_numbers(conversion: Conversion) -> Symbol:
    """Entries of the data, or of the updates put into it, by constant indices, each at most once."""
    if conversion.attribute("reduction", "none") != "none":
        conversion.refuse("that combines updates with the data is not understood")
    conversion.fixed(1)
    sources = [0, 2] if len(conversion.current.input) > 2 else [0]
    parts: list[Symbol] = []
    filled: list[float] = []
    count = 0
    inputs = [conversion.input(place) for place in range(len(conversion.current.input))]
    for place in sources:
        source = conversion.input(place)
        if source is None:
            conversion.refuse(f"lacks input {place}")
        size = int(np.prod(source.shape))
        if isinstance(source, Symbol):
            parts.append(conversion.reshaped(source, (1, size)))
            numbers, count = np.arange(count, count + size), count + size
        else:
            numbers = -1 - np.arange(len(filled), len(filled) + size)
            filled += source.reshape(-1).tolist()
        inputs[place] = numbers.reshape(source.shape)
    (places,) = conversion.folded(inputs)
    flat = parts[0] if len(parts) == 1 else conversion.call(torch.cat, parts, 1, batched=True)
    return _entries(conversion, flat, places, np.array(filled))


def _entries(conversion: Conversion, flat: Symbol, places: np.ndarray, constants: np.ndarray) -> Symbol:
    """The entries of a row at `places`, or the constants at -1 - place where it is negative."""
    wanted, size = places.reshape(-1), flat.shape[1]
    fixed = wanted < 0
    stretches = 1 + np.count_nonzero(np.diff(wanted) != 1)
    if stretches > STRETCHES and wanted.size * size <= DENSE:
        matrix = np.zeros((wanted.size, size))
        matrix[~fixed, wanted[~fixed]] = 1
        row = linear(conversion, conversion.tensor(matrix), None, flat)
    else:
        if fixed.any():
            flat = conversion.call(F.pad, flat, (0, 1))
        row = picked(conversion, flat, 1, np.where(fixed, size, wanted))
    row = conversion.reshaped(row, places.shape)
    if fixed.any():
        added = np.zeros(wanted.size)
        added[fixed] = constants[-1 - wanted[fixed]]
        row = combine(conversion, "Add", row, added.reshape(places.shape))
    return row
