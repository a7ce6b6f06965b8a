"""Operations that move entries without changing them: flatten, reshape, identity, dropout in eval mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval
from certify.rules.operation import Affine
from certify.rules.table import BatchSize, Call, Step, rule
from models.errors import UserError


@dataclass(frozen=True)
class Reshape(Affine):
    """Each sample's entries in another shape: `flatten` from a dimension to a dimension, or a `shape`."""

    shape: tuple[int, ...] | None = None
    flatten: tuple[int, int] = (1, -1)
    diagonal = True

    def forward(self, *values: Tensor) -> Tensor:
        if self.shape is None:
            return values[0].flatten(*self.flatten)
        known = values[0].new_empty(values[0].shape[1:], device="meta").reshape(self.shape).shape
        return values[0].reshape(-1, *known)

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


@rule(nn.Flatten, torch.flatten, "flatten")
def flatten(call: Call) -> Step:
    """Flattening that keeps the samples apart."""
    if isinstance(call.module, nn.Flatten):
        given = call.bind("input") | {"start_dim": call.module.start_dim, "end_dim": call.module.end_dim}
    else:
        given = call.bind("input", start_dim=0, end_dim=-1)
    if given["start_dim"] < 1:
        call.refuse("would mix samples: start at dimension 1")
    return Reshape(flatten=(given["start_dim"], given["end_dim"])), (call.value(given["input"]),)


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
    return Reshape(shape=tuple(sizes[1:])), (call.value(value),)


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
