"""Operations that move entries, leave some out or add constants around them: permute, slices, padding."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval, dot, entries
from certify.rules.operation import Affine, gathered, repeated
from certify.rules.table import BatchSize, Call, Constant, Several, Step, Value, rule
from models.errors import NotApplicable


@dataclass(frozen=True)
class Placement(Affine):
    """Each output entry is one input entry or a constant, and no input entry is used twice."""

    diagonal = True
    copies = True

    @abstractmethod
    def place(self, values: Tensor, fill: float) -> Tensor:
        """The output for values (n, ...), with `fill` where it is constant."""

    @property
    def fill(self) -> float:
        """The constant entries' value."""
        return 0.0

    def forward(self, *values: Tensor) -> Tensor:
        return self.place(values[0], self.fill)

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.forward(inputs[0].lower), self.forward(inputs[0].upper))

    def gain(self, gain: Tensor, norm: str) -> Tensor | None:
        return self.place(gain, 0.0)

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        return constants[0]

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        """Every output entry's row goes back to where the entry came from, others get zero."""
        size = shapes[0].numel()
        places = torch.arange(1, size + 1, dtype=torch.float64, device=rows.device).reshape(1, *shapes[0])
        origin = self.place(places, 0.0).flatten().to(torch.int64)
        back = rows.new_zeros(*rows.shape[:2], size + 1)
        back[:, :, origin] = entries(rows, 2)
        return (back[:, :, 1:].reshape(*rows.shape[:2], *shapes[0]),)

    def constant(self, rows: Tensor) -> Tensor | float:
        return 0.0


@dataclass(frozen=True)
class Permute(Placement):
    """The dimensions in another order, the samples' first: dims[i] is the input's dimension at place i."""

    dims: tuple[int, ...]

    def place(self, values: Tensor, fill: float) -> Tensor:
        return values.permute(self.dims)


@dataclass(frozen=True)
class Exchange(Placement):
    """Two dimensions after the samples' exchanged; negative ones count from the last."""

    first: int
    second: int

    def place(self, values: Tensor, fill: float) -> Tensor:
        if 0 in (self.first % values.dim(), self.second % values.dim()):
            raise NotApplicable("the dimension of the samples is exchanged: keep it first")
        return values.transpose(self.first, self.second)


@dataclass(frozen=True)
class Slice(Placement):
    """A basic index of integers, slices, ... and None over the dimensions after the samples'."""

    index: tuple[Any, ...]

    def place(self, values: Tensor, fill: float) -> Tensor:
        return values[(slice(None), *self.index)]


@dataclass(frozen=True)
class Pad(Placement):
    """Constant entries around the last dimensions, counted from the last one as in F.pad."""

    widths: tuple[int, ...]
    value: float

    @property
    def fill(self) -> float:
        return self.value

    def place(self, values: Tensor, fill: float) -> Tensor:
        return F.pad(values, self.widths, value=fill)

    def constant(self, rows: Tensor) -> Tensor | float:
        if self.value == 0:
            return 0.0
        inner = list(rows.shape[2:])
        for place, width in enumerate(self.widths):
            inner[-1 - place // 2] -= width
        frame = self.place(rows.new_zeros(1, *inner), self.value)
        return dot(rows, frame.expand(rows.shape[0], *rows.shape[2:]))


@rule("permute", torch.permute)
def permute(call: Call) -> Step | Several:
    """The dimensions after the samples' reordered; one put before the samples' is to be picked from."""
    value, dims = _listed(call, "dims")
    if len(dims) > 1 and dims[1] == 0 and dims[0] > 0:
        first, rest = dims[0], tuple(dim - (dim > dims[0]) for dim in dims[1:])
        ahead = (slice(None),) * (first - 1)
        return Several(lambda index: [((Slice((*ahead, index)), Permute(rest)), (value,))])
    if not dims or dims[0] != 0:
        call.refuse("moves the dimension of the samples: keep 0 first")
    return Permute(dims), (value,)


@rule("transpose", torch.transpose, "swapaxes", torch.swapaxes)
def transpose(call: Call) -> Step:
    """Two dimensions after the samples' exchanged."""
    given = call.bind("input", "dim0", "dim1")
    if 0 in (given["dim0"], given["dim1"]):
        call.refuse("moves the dimension of the samples: exchange dims >= 1")
    return Exchange(given["dim0"], given["dim1"]), (call.value(given["input"]),)


@rule(operator.getitem)
def getitem(call: Call) -> Step:
    """x[:, ...] with integers, slices and None after the samples' own."""
    value, index = call.args
    source = call.value(value)
    parts = index if isinstance(index, tuple) else (index,)
    if not parts or parts[0] not in (slice(None), ...):
        call.refuse("picks some of the samples: start the index with ':'")
    if not all(map(_readable, parts)):
        call.refuse("has an index that the certificates cannot read: use integers and slices of integers")
    return Slice(tuple(parts[1:] if parts[0] != ... else parts)), (source,)


def _readable(part: Any) -> bool:
    if isinstance(part, slice):
        return all(edge is None or isinstance(edge, int) for edge in (part.start, part.stop, part.step))
    return part is None or part is ... or isinstance(part, int)


@rule("narrow", torch.narrow)
def narrow(call: Call) -> Step:
    """A stretch of one dimension after the samples'."""
    given = call.bind("input", "dim", "start", "length")
    dim, start, length = given["dim"], given["start"], given["length"]
    if not isinstance(dim, int) or dim < 1:
        call.refuse("must take its stretch along a dimension >= 1")
    stretch = slice(start, start + length)
    return Slice((*[slice(None)] * (dim - 1), stretch)), (call.value(given["input"]),)


@rule(F.pad)
def pad(call: Call) -> Step:
    """Padding by a constant, anywhere but around the samples."""
    given = call.bind("input", "pad", mode="constant", value=0.0)
    return _padded(call, given["input"], given["pad"], given["mode"], given["value"])


@rule(nn.ZeroPad2d, nn.ConstantPad2d)
def constant_pad(call: Call) -> Step:
    """nn.ZeroPad2d and nn.ConstantPad2d."""
    module = call.module
    assert isinstance(module, nn.ZeroPad2d | nn.ConstantPad2d)
    return _padded(call, call.bind("input")["input"], module.padding, "constant", module.value)


def _padded(call: Call, value: Any, widths: Any, mode: str, fill: Any) -> Step:
    if mode != "constant":
        call.refuse(f"padding mode '{mode}' is not understood by the certificates: use a constant")
    if any(isinstance(part, Value | Constant | BatchSize) for part in [*widths, fill]):
        call.refuse("has widths that the certificates cannot read: use numbers")
    return Pad(tuple(int(width) for width in widths), float(fill or 0.0)), (call.value(value),)


def _listed(call: Call, name: str) -> tuple[int, tuple[int, ...]]:
    """The value and the integers of a call like permute(0, 2, 1) or permute((0, 2, 1))."""
    if call.kwargs:
        given = call.bind("input", name)
        return call.value(given["input"]), tuple(given[name])
    value, *rest = call.args
    listed = rest[0] if rest and isinstance(rest[0], tuple | list) else rest
    return call.value(value), tuple(listed)


@dataclass(frozen=True)
class Broadcast(Affine):
    """Dimensions of size 1 after the samples' repeated up to `sizes`, in which -1 keeps one as it is."""

    sizes: tuple[int, ...]
    diagonal = True
    copies = True

    def forward(self, *values: Tensor) -> Tensor:
        if values[0].dim() != len(self.sizes) + 1:
            raise NotApplicable(
                f"values of shape {tuple(values[0].shape[1:])} are repeated to {self.sizes}: the "
                "certificates need as many dimensions before as after, so unsqueeze them first"
            )
        return values[0].expand(-1, *self.sizes)

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.forward(inputs[0].lower), self.forward(inputs[0].upper))

    def gain(self, gain: Tensor, norm: str) -> Tensor | None:
        return self.forward(gain)

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        whole = self.forward(torch.empty(1, *shapes[0], device="meta")).shape[1:]
        return constants[0] * (1.0 if norm == "linf" else repeated(shapes[0], whole) ** 0.5)

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        return (gathered(rows, shapes[0]),)

    def constant(self, rows: Tensor) -> Tensor | float:
        return 0.0


@rule(torch.broadcast_to, "expand", "broadcast_to")
def broadcast(call: Call) -> Step:
    """Repetition along dimensions of size 1, never the samples'."""
    value, *rest = call.args
    sizes = list(rest[0]) if rest and isinstance(rest[0], tuple | list) else rest
    if call.kwargs or not sizes or not (isinstance(sizes[0], BatchSize) or sizes[0] == -1):
        call.refuse("must keep the samples: start the sizes with x.size(0) or -1")
    if not all(isinstance(size, int) for size in sizes[1:]):
        call.refuse("has sizes that the certificates cannot read: use numbers after the first")
    return Broadcast(tuple(sizes[1:])), (call.value(value),)
