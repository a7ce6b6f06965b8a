"""Operations that keep every entry in its order: flatten, reshape, squeeze, identity, dropout in eval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval
from certify.rules.operation import Affine, Operation, after_samples
from certify.rules.table import BatchSize, Call, Step, rule
from models.errors import NotApplicable, UserError


@dataclass(frozen=True)
class Reshape(Affine):
    """Each sample's entries in another shape, in the same order; `how` maps (n, ...) to (n, ...)."""

    how: Callable[[Tensor], Tensor]
    diagonal = True
    copies = True

    def forward(self, *values: Tensor) -> Tensor:
        return self.how(values[0])

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.forward(inputs[0].lower), self.forward(inputs[0].upper))

    def gain(self, gain: Tensor, norm: str) -> Tensor | None:
        return self.forward(gain)

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        return constants[0]

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        return (rows.reshape(*rows.shape[:2], *shapes[0]),)

    def constant(self, rows: Tensor) -> Tensor | float:
        return 0.0


@dataclass(frozen=True)
class Identity(Affine):
    """out = in; raises UserError where `module` is dropout in train mode."""

    name: str = ""
    module: nn.Module | None = None
    diagonal = True
    copies = True

    def forward(self, *values: Tensor) -> Tensor:
        if self.module is not None and self.module.training:
            raise UserError(f"{self.name}: dropout in train mode is random: call model.eval()")
        return values[0]

    def interval(self, *inputs: Interval) -> Interval:
        self.forward(inputs[0].lower)
        return inputs[0]

    def gain(self, gain: Tensor, norm: str) -> Tensor | None:
        return gain

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        return constants[0]

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        return (rows,)

    def constant(self, rows: Tensor) -> Tensor | float:
        return 0.0


def _raised(values: Tensor) -> Tensor:
    if values.dim() != 3:
        raise NotApplicable(
            f"a layer over one dimension is applied to values of shape {tuple(values.shape[1:])}: "
            "the certificates need (channels, length)"
        )
    return values.unsqueeze(2)


def as_planes(operation: Operation) -> tuple[Operation, ...]:
    """An operation on planes (n, channels, 1, length) as one on (n, channels, length)."""
    return Reshape(_raised), operation, Reshape(lambda values: values.squeeze(2))


@rule(nn.Flatten, torch.flatten, "flatten")
def flatten(call: Call) -> Step:
    """Flattening that keeps the samples apart."""
    if isinstance(call.module, nn.Flatten):
        given = call.bind("input") | {"start_dim": call.module.start_dim, "end_dim": call.module.end_dim}
    else:
        given = call.bind("input", start_dim=0, end_dim=-1)
    start, end = given["start_dim"], given["end_dim"]
    if start < 1:
        call.refuse("would mix samples: start at dimension 1")
    return Reshape(lambda values: values.flatten(start, end)), (call.value(given["input"]),)


@rule(nn.Unflatten, torch.unflatten, "unflatten")
def unflatten(call: Call) -> Step:
    """A dimension after the samples' split in several."""
    if isinstance(call.module, nn.Unflatten):
        given = call.bind("input") | {"dim": call.module.dim, "sizes": call.module.unflattened_size}
    else:
        given = call.bind("input", "dim", "sizes")
    dim, sizes = given["dim"], given["sizes"]
    if dim == 0:
        call.refuse("would split the dimension of the samples: use dim >= 1")
    if not isinstance(dim, int) or not all(isinstance(size, int) for size in sizes):
        call.refuse("has sizes that the certificates cannot read: use numbers")
    return Reshape(lambda values: values.unflatten(after_samples(dim, values.dim()), tuple(sizes))), (
        call.value(given["input"]),
    )


@rule("view", "reshape", torch.reshape)
def reshape(call: Call) -> Step:
    """view and reshape whose first size is the number of samples, or -1 before known sizes."""
    if call.kwargs or not call.args:
        call.refuse("takes its shape as positional arguments only")
    value, *rest = call.args
    sizes: list[Any] = list(rest[0]) if rest and isinstance(rest[0], (tuple, list)) else rest
    if not sizes or not (isinstance(sizes[0], BatchSize) or sizes[0] == -1):
        call.refuse("must keep the samples: start the shape with x.size(0) or -1")
    if not all(isinstance(size, int) for size in sizes[1:]):
        call.refuse("has a shape that the certificates cannot read: use numbers after the first size")
    shape = tuple(sizes[1:])
    return Reshape(lambda values: _reshaped(values, shape)), (call.value(value),)


def _reshaped(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    known = values.new_empty(values.shape[1:], device="meta").reshape(shape).shape
    return values.reshape(-1, *known)


@rule("unsqueeze", torch.unsqueeze)
def unsqueeze(call: Call) -> Step:
    """A new dimension of size 1 after the samples'."""
    given = call.bind("input", "dim")
    dim = given["dim"]
    if dim == 0:
        call.refuse("would put a dimension before the samples: use dim >= 1")
    return Reshape(lambda values: values.unsqueeze(after_samples(dim, values.dim() + 1))), (
        call.value(given["input"]),
    )


@rule("squeeze", torch.squeeze)
def squeeze(call: Call) -> Step:
    """Named dimensions of size 1 dropped, never the samples'."""
    given = call.bind("input", "dim")
    dims = given["dim"] if isinstance(given["dim"], tuple | list) else (given["dim"],)
    if 0 in dims:
        call.refuse("would drop the dimension of the samples: name dims >= 1")

    def squeezed(values: Tensor) -> Tensor:
        return values.squeeze(tuple(after_samples(dim, values.dim()) for dim in dims))

    return Reshape(squeezed), (call.value(given["input"]),)


@rule(nn.Identity, nn.Dropout, nn.Dropout2d)
def identity(call: Call) -> Step:
    """Identity, and dropout in eval mode."""
    module = None if isinstance(call.module, nn.Identity) else call.module
    return Identity(call.name, module), (call.value(call.bind("input")["input"]),)


@rule(F.dropout)
def dropout(call: Call) -> Step:
    """F.dropout that is switched off."""
    given = call.bind("input", p=0.5, training=True, inplace=False)
    if given["training"] is not False:
        call.refuse("dropout in train mode is random: call model.eval() or pass training=False")
    return Identity(), (call.value(given["input"]),)


@rule("contiguous")
def contiguous(call: Call) -> Step:
    """The same entries in another memory layout."""
    return Identity(), (call.value(call.bind("input")["input"]),)


@rule("float", "double", "type_as", "to")
def converted(call: Call) -> Step:
    """The same numbers as another floating type, of single precision or better, or on another device."""
    value, *rest = call.args
    for part in (*rest, *call.kwargs.values()):
        if isinstance(part, torch.dtype) and part not in (torch.float32, torch.float64):
            call.refuse(f"rounds to {str(part).removeprefix('torch.')}, which is not understood")
    return Identity(), (call.value(value),)
