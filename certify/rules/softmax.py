"""Softmax and what is made of it, by the differences of the values that it compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval
from certify.rules.arithmetic import NEGATED
from certify.rules.convex import Convex
from certify.rules.operation import Affine, Operation, check_enlarged
from certify.rules.pooling import Gather
from certify.rules.table import Call, rule
from models.errors import NotApplicable


@dataclass(frozen=True)
class Differences(Affine):
    """z_j - z_i along `dim`, i in its place and j behind it: (..., m, ...) to (..., m, m, ...)."""

    dim: int

    def _place(self, dimensions: int) -> int:
        place = self.dim % dimensions
        if place == 0:
            raise NotApplicable("a softmax over the samples mixes them: name a dim >= 1")
        return place

    def _apart(self, high: Tensor, low: Tensor) -> Tensor:
        place = self._place(high.dim())
        whole = (*high.shape[1 : place + 1], *high.shape[place:])
        check_enlarged(torch.Size(whole), high[0].numel())
        return high.unsqueeze(place) - low.unsqueeze(place + 1)

    def forward(self, *values: Tensor) -> Tensor:
        return self._apart(values[0], values[0])

    def interval(self, *inputs: Interval) -> Interval:
        place, interval = self._place(inputs[0].lower.dim()), inputs[0]
        ends = self._apart(interval.lower, interval.upper), self._apart(interval.upper, interval.lower)
        for end in ends:
            end.diagonal(dim1=place, dim2=place + 1).zero_()
        return Interval(*ends)

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        """2 for linf; for l2 sum_ij (z_j - z_i)^2 = 2 m |z|^2 - 2 (sum z)^2."""
        count = shapes[0][self._place(len(shapes[0]) + 1) - 1]
        return constants[0] * (2.0 if norm == "linf" else (2.0 * count) ** 0.5)

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        place = self._place(len(shapes[0]) + 1) + 1
        return (rows.sum(place) - rows.sum(place + 1),)

    def constant(self, rows: Tensor) -> Tensor | float:
        return 0.0

    def distinct(self, wanted: Tensor) -> Tensor:
        place = self._place(wanted.dim() - 1)
        pairs = (wanted | wanted.transpose(place, place + 1)).movedim((place, place + 1), (-2, -1))
        return pairs.triu(1).movedim((-2, -1), (place, place + 1))

    def mirrored(self, found: Interval) -> Interval:
        place = self._place(found.lower.dim() - 1)
        turned = (-end.transpose(place, place + 1) for end in (found.upper, found.lower))
        return found.intersect(Interval(*turned))


def softmax_along(dim: int) -> tuple[Operation, ...]:
    """1 / sum_j exp(z_j - z_i), of which the term of j = i is known.

    Source: Wei et al. 2023, 2303.01713, section 3.1.
    """
    return Differences(dim), Convex("saturating exp"), _behind(dim), Convex("reciprocal")


def _behind(dim: int) -> Gather:
    """Sums over the dimension that `Differences` put behind dim."""
    return Gather((dim if dim < 0 else dim + 1,), keep=False, total=True)


def _dim(call: Call) -> tuple[tuple[int], int]:
    """The value and the dimension of a call."""
    if call.module is not None:
        given = call.bind("input") | {"dim": getattr(call.module, "dim", None)}
    else:
        given = call.bind("input", "dim", _stacklevel=3, dtype=None)
    dim = given["dim"]
    if given.get("dtype") is not None:
        call.refuse("changes the numbers' type: leave dtype out")
    if not isinstance(dim, int) or dim == 0:
        call.refuse("needs a dimension after the samples': name one >= 1")
    return (call.value(given["input"]),), dim


@rule(nn.Softmax, F.softmax, torch.softmax, "softmax")
def softmax(call: Call) -> tuple[tuple[Operation, ...], tuple[int]]:
    """exp(z_i) / sum_j exp(z_j)."""
    value, dim = _dim(call)
    return softmax_along(dim), value


@rule(nn.LogSoftmax, F.log_softmax, torch.log_softmax, "log_softmax")
def log_softmax(call: Call) -> tuple[tuple[Operation, ...], tuple[int]]:
    """z_i - ln sum_j exp(z_j), which is -ln sum_j exp(z_j - z_i)."""
    value, dim = _dim(call)
    return (Differences(dim), Convex("exp"), _behind(dim), Convex("-log")), value


@rule(nn.Softmin, F.softmin)
def softmin(call: Call) -> tuple[tuple[Operation, ...], tuple[int]]:
    """The softmax of -z."""
    value, dim = _dim(call)
    return (NEGATED, *softmax_along(dim)), value
