"""Normalisation by a sample's own mean and variance: over a layer, over groups of channels, over one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval
from certify.rules.arithmetic import ScaleShift
from certify.rules.convex import Convex
from certify.rules.extremes import Stack
from certify.rules.operation import Affine, Operation
from certify.rules.pooling import Gather
from certify.rules.product import Product
from certify.rules.shape import Identity, Reshape
from certify.rules.table import Call, Step, like, rule


def _from(first: int, dimensions: int) -> tuple[int, ...]:
    """The dimensions from `first` on, counted from the last, in a value of so many."""
    return tuple(range(first % dimensions - dimensions, 0))


@dataclass(frozen=True)
class Centred(Affine):
    """z less its mean over the dimensions from `first` on."""

    first: int

    def forward(self, *values: Tensor) -> Tensor:
        return values[0] - values[0].mean(_from(self.first, values[0].dim()), keepdim=True)

    def interval(self, *inputs: Interval) -> Interval:
        centre, radius = inputs[0].centre, inputs[0].radius
        dims = _from(self.first, radius.dim())
        # An entry takes its own share of the mean from itself.
        share = 1 / math.prod(radius.shape[dim] for dim in dims)
        reach = (1 - 2 * share) * radius + radius.mean(dims, keepdim=True)
        return Interval.around(self.forward(centre), reach)

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        return constants[0] * (2.0 if norm == "linf" else 1.0)

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        dims = _from(self.first, len(shapes[0]) + 1)
        return (rows - rows.mean(dims, keepdim=True),)

    def constant(self, rows: Tensor) -> Tensor | float:
        return 0.0


@dataclass(frozen=True)
class MeanFrom(Gather):
    """The mean over the dimensions from `first` on, kept as size 1."""

    dims: tuple[int, ...] = ()
    keep: bool = True
    first: int = -1

    def _dims(self, dimensions: int) -> tuple[int, ...]:
        return tuple(dim % dimensions for dim in _from(self.first, dimensions))


@dataclass(frozen=True)
class Normal(Identity):
    """Values of mean square at most 1 from dimension `first` on: none exceeds the root of their number.

    Where they also sum to 0 (`centred`) none exceeds the root of their number less 1.
    """

    first: int = -1
    centred: bool = False

    def interval(self, *inputs: Interval) -> Interval:
        shape = inputs[0].lower.shape
        count = math.prod(shape[dim] for dim in _from(self.first, len(shape)))
        most = torch.full_like(inputs[0].lower, (count - self.centred) ** 0.5)
        return inputs[0].intersect(Interval(-most, most))


def normalised(first: int, eps: float, value: int, *, centred: bool = True) -> list[Step]:
    """(z - mean) / sqrt(variance + eps) over the dimensions from `first` on; without the mean if asked."""
    scale = Convex("square"), MeanFrom(first=first), ScaleShift(shift=lambda: eps), Convex("rsqrt")
    return [
        (Centred(first) if centred else Identity(), (value,)),
        (scale, (-1,)),
        ((Stack(), Product(), Normal(first=first, centred=centred)), (-2, -1)),
    ]


class ByChannel(ScaleShift):
    """A factor and a shift for each channel, dimension 1."""

    def parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (values.dim() - 2))
        scale, shift = (like(part(), values) for part in (self.scale, self.shift))
        return scale.reshape(shape if scale.dim() else ()), shift.reshape(shape if shift.dim() else ())


def _settings(call: Call, *required: str, **defaults: Any) -> tuple[int, dict[str, Any]]:
    """The value and the settings of a call, those of its module where it has one."""
    if call.module is None:
        given = call.bind("input", *required, **defaults)
        return call.value(given["input"]), given
    module = call.module
    given = {name: getattr(module, name) for name in required}
    given |= {name: getattr(module, name, default) for name, default in defaults.items()}
    return call.value(call.bind("input")["input"]), given


def _scaled(call: Call, kind: type[ScaleShift], given: dict[str, Any]) -> tuple[Operation, ...]:
    """The learned scale and shift of a layer, read at each use; nothing where it has none."""
    parts: dict[str, Callable[[], Any]] = {}
    for name, place in (("weight", "scale"), ("bias", "shift")):
        if given.get(name) is not None:
            module = call.module
            parts[place] = (
                call.constant(given[name]) if module is None else functools.partial(getattr, module, name)
            )
    return (kind(**parts),) if parts else ()


def _from_shape(shape: Any) -> int:
    return -1 if isinstance(shape, int) else -len(shape)


@rule(nn.LayerNorm, F.layer_norm)
def layer_norm(call: Call) -> list[Step]:
    """Mean 0 and variance 1 over the last dimensions."""
    value, given = _settings(call, "normalized_shape", weight=None, bias=None, eps=1e-5)
    steps = normalised(_from_shape(given["normalized_shape"]), given["eps"], value)
    return [*steps, ((Identity(), *_scaled(call, ScaleShift, given)), (-1,))]


@rule(nn.RMSNorm, F.rms_norm)
def rms_norm(call: Call) -> list[Step]:
    """Mean square 1 over the last dimensions."""
    value, given = _settings(call, "normalized_shape", weight=None, eps=None)
    # PyTorch takes that of the input's type, which is no longer known; the difference is below any tolerance.
    eps = torch.finfo(torch.float32).eps if given["eps"] is None else given["eps"]
    steps = normalised(_from_shape(given["normalized_shape"]), eps, value, centred=False)
    return [*steps, ((Identity(), *_scaled(call, ScaleShift, given)), (-1,))]


@rule(nn.GroupNorm, F.group_norm)
def group_norm(call: Call) -> list[Step]:
    """Mean 0 and variance 1 over each group of channels."""
    value, given = _settings(call, "num_groups", weight=None, bias=None, eps=1e-5)
    groups = given["num_groups"]
    return [
        (Reshape(lambda values: values.unflatten(1, (groups, -1))), (value,)),
        *normalised(2, given["eps"], -1),
        ((Reshape(lambda values: values.flatten(1, 2)), *_scaled(call, ByChannel, given)), (-1,)),
    ]


@rule(nn.InstanceNorm2d, nn.InstanceNorm1d, F.instance_norm)
def instance_norm(call: Call) -> list[Step]:
    """Mean 0 and variance 1 over each channel."""
    value, given = _settings(
        call, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True,
        momentum=0.1, eps=1e-5,
    )  # fmt: skip
    if given["running_mean"] is not None or not given["use_input_stats"]:
        call.refuse("normalises by running statistics, which is not understood: use batch normalisation")
    steps = normalised(2, given["eps"], value)
    return [*steps, ((Identity(), *_scaled(call, ByChannel, given)), (-1,))]
