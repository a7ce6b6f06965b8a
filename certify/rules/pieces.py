"""Calls that cut a value into several: chunk, split and unbind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.rules.operation import after_samples
from certify.rules.placement import Placement
from certify.rules.table import Call, Several, rule


@dataclass(frozen=True)
class Piece(Placement):
    """One of the pieces that a function cuts a value into."""

    cut: Callable[[Tensor], Sequence[Tensor]]
    index: int

    def place(self, values: Tensor, fill: float) -> Tensor:
        return self.cut(values)[self.index]


def _pieces(call: Call, value: object, cut: Callable[[Tensor], Sequence[Tensor]]) -> Several:
    source = call.value(value)
    return Several(lambda index: [(Piece(cut, index), (source,))])


@rule(torch.chunk, "chunk")
def chunk(call: Call) -> Several:
    """A value cut into so many parts along a dimension after the samples'."""
    given = call.bind("input", "chunks", dim=0)
    count, dim = given["chunks"], given["dim"]
    return _pieces(call, given["input"], lambda values: values.chunk(count, after_samples(dim, values.dim())))


@rule(torch.split, "split", "split_with_sizes")
def split(call: Call) -> Several:
    """A value cut into parts of one size or of several along a dimension after the samples'."""
    given = call.bind("input", "size", dim=0)
    size, dim = given["size"], given["dim"]
    return _pieces(call, given["input"], lambda values: values.split(size, after_samples(dim, values.dim())))


@rule(torch.unbind, "unbind")
def unbind(call: Call) -> Several:
    """A value cut at each index of a dimension, which is dropped."""
    given = call.bind("input", dim=0)
    value, dim = given["input"], given["dim"]
    if isinstance(value, Several) and dim == 0:
        return value
    return _pieces(call, value, lambda values: values.unbind(after_samples(dim, values.dim())))
