"""Fully connected layers, and batch normalisation by running statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval
from certify.rules.arithmetic import ScaleShift
from certify.rules.operation import Affine, Single
from certify.rules.table import Call, Step, rule
from models.errors import NotApplicable, UserError

# Covers the rounding of singular values in double precision.
ROUNDING = 1 + 1e-9

# Copying a part of a weight pays from so many rows to be multiplied by it.
WORTH = 24

Read = Callable[[], Tensor]


@dataclass(frozen=True)
class Linear(Affine):
    """out = W in + b over the last dimension; weight (out, in), bias (out,) or None."""

    weight: Read
    bias: Callable[[], Tensor | None]

    def forward(self, *values: Tensor) -> Tensor:
        return F.linear(values[0], self.weight(), self.bias())

    def interval(self, *inputs: Interval) -> Interval:
        weight = self.weight()
        centre = F.linear(inputs[0].centre, weight, self.bias())
        return Interval.around(centre, F.linear(inputs[0].radius, weight.abs()))

    def gain(self, gain: Tensor, norm: str) -> Tensor | None:
        weight = self.weight()
        if norm == "l2":
            return F.linear(gain.square(), weight.square()).sqrt()
        if norm == "l1":
            return F.linear(gain, weight.abs())
        return (weight.abs() * gain.unsqueeze(-2)).amax(-1)

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        weight = self.weight()
        if norm == "linf":
            return constants[0] * weight.abs().sum(1).amax()
        return constants[0] * ROUNDING * torch.linalg.matrix_norm(weight, 2)

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        weight = self.weight()
        if rows.dim() == 3 and rows.shape[1] >= WORTH and not torch.is_grad_enabled():
            return (_product(rows, weight),)
        return (rows @ weight,)

    def constant(self, rows: Tensor) -> Tensor | float:
        bias = self.bias()
        if bias is None:
            return 0.0
        return (rows @ bias).flatten(2).sum(2) if rows.dim() > 3 else rows @ bias

    def single(self, places: Tensor, shape: torch.Size, source: torch.Size) -> Single | None:
        if len(shape) > 1:
            return None
        bias = self.bias()
        return Single(self.weight()[places], 0.0 if bias is None else bias[places])


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows (n, k, out) @ weight (out, in), without the neurons for which all of a sample's rows are zero.

    Those are the dead ones. Sample by sample, so that the part of the weight that is left stays in the cache.
    """
    alive = rows.abs().sum(1) != 0
    if 4 * int(alive.sum()) > 3 * alive.numel():
        return rows @ weight
    found = rows.new_empty(*rows.shape[:2], weight.shape[1])
    for one, here, out in zip(rows, alive, found, strict=True):
        places = here.nonzero()[:, 0]
        torch.mm(one.index_select(1, places), weight.index_select(0, places), out=out)
    return found


@dataclass(frozen=True)
class BatchNorm(ScaleShift):
    """Batch normalisation by its running statistics: a factor and a shift per channel.

    Raises UserError in train mode, where a sample's output depends on its batch.
    """

    name: str = ""
    module: nn.Module | None = None

    def parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        module = self.module
        assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        if module.training:
            raise UserError(f"{self.name}: batch normalisation in train mode mixes samples: call eval()")
        if module.running_mean is None or module.running_var is None:
            raise NotApplicable(f"{self.name}: batch normalisation without running statistics mixes samples")
        factor = torch.rsqrt(module.running_var + module.eps)
        factor = factor if module.weight is None else factor * module.weight
        shift = -module.running_mean * factor
        shift = shift if module.bias is None else shift + module.bias
        shape = (-1, *[1] * (values.dim() - 2))
        return factor.reshape(shape), shift.reshape(shape)


@rule(nn.Linear, F.linear)
def linear(call: Call) -> Step:
    """nn.Linear and F.linear with constant weights."""
    if isinstance(call.module, nn.Linear):
        module = call.module
        return Linear(lambda: module.weight, lambda: module.bias), (call.value(call.bind("input")["input"]),)
    given = call.bind("input", "weight", bias=None)
    weight, bias = call.constant(given["weight"]), call.constant(given["bias"])
    return Linear(weight, bias), (call.value(given["input"]),)


@rule(nn.BatchNorm3d, nn.BatchNorm2d, nn.BatchNorm1d)
def batch_norm(call: Call) -> Step:
    """Batch normalisation; train mode is refused when a bound is asked for."""
    return BatchNorm(name=call.name, module=call.module), (call.value(call.bind("input")["input"]),)
