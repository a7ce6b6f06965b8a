"""The inputs and outputs that an ONNX file declares, and what is known of them beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from onnx import TensorProto, ValueInfoProto, helper

from models.errors import NotApplicable, UserError

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
}


@dataclass(frozen=True)
class Port:
    """An input or output of the file: its name, its shape, its type, an ONNX number, and a constant's value.

    An input of `value` is no variable: the network was read with it as a constant.
    """

    name: str
    shape: tuple[int, ...]
    element: int
    value: np.ndarray | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Told:
    """What is known of an input beside the file.

    `shapes` are those that it may have: where the file leaves sizes open, the first that fits counts; one of
    a single axis says how many entries there are. `value` are the entries of one that does not vary.
    """

    shapes: tuple[tuple[int, ...], ...] = ()
    value: tuple[float, ...] | None = None


def chosen_sources(
    declared: Sequence[ValueInfoProto], names: Sequence[str], told: Sequence[Told] = ()
) -> tuple[Port, ...]:
    """The inputs in the order of `names`, or the file's; told is in that order too.

    Raises UserError where an input is not there or not named, NotApplicable for a size that nothing tells or
    a type that no variable has.
    """
    by_name = {value.name: value for value in declared}
    for name in names:
        if name not in by_name:
            raise UserError(f"there is no input '{name}': the file has {', '.join(by_name)}")
    if not declared or (names and len(set(names)) < len(declared)):
        given = ", ".join(by_name) or "none"
        raise UserError(f"the network has {len(declared)} inputs ({given}): {len(names)} are named")
    found = [by_name[name] for name in names] or list(declared)
    ports = tuple(
        _port(value, told[place] if place < len(told) else Told()) for place, value in enumerate(found)
    )
    if all(port.value is not None for port in ports):
        raise NotApplicable("the network has no input of a floating type that varies")
    return ports


def _port(source: ValueInfoProto, told: Told) -> Port:
    kind, shape = source.type.tensor_type.elem_type, _shape(source, told)
    if kind in DTYPES and shape:
        return Port(source.name, shape, kind)
    name = TensorProto.DataType.Name(kind)
    if told.value is None:
        what = f"is of type {name}" if shape else "is a single number without an axis"
        raise NotApplicable(f"input '{source.name}' {what}: only a property that fixes its value can be read")
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    value = np.asarray(told.value).reshape(shape)
    if not np.array_equal(value.astype(dtype), value):
        raise UserError(f"input '{source.name}' is of type {name}, but is given {told.value[0]:g}")
    return Port(source.name, shape, kind, value.astype(dtype))


def _shape(source: ValueInfoProto, told: Told) -> tuple[int, ...]:
    """The declared shape, open sizes as told, with a batch of one where nothing tells its size."""
    if not source.type.tensor_type.HasField("shape"):
        if not told.shapes:
            raise NotApplicable(f"input '{source.name}' has no shape")
        return told.shapes[0]
    # Some exporters write an open size as 0 or -1.
    sizes = [max(size.dim_value, 0) for size in source.type.tensor_type.shape.dim]
    if 0 not in sizes:
        return tuple(sizes)
    for shape in told.shapes:
        if len(shape) == len(sizes) and all(
            size in (0, told) for size, told in zip(sizes, shape, strict=True)
        ):
            return shape
    if len(sizes) > 1 and sizes[0] == 0:
        sizes[0] = 1
    entries = [shape[0] for shape in told.shapes if len(shape) == 1]
    rest = math.prod(size for size in sizes if size)
    if sizes.count(0) == 1 and entries and entries[0] % rest == 0:
        sizes[sizes.index(0)] = entries[0] // rest
    if 0 not in sizes:
        return tuple(sizes)
    message = f"axis {sizes.index(0)} of input '{source.name}' has no fixed size"
    if entries:
        message += f", and {entries[0]} entries do not tell it: declare the input's shape as in VNN-LIB 2.0"
    raise NotApplicable(message)
