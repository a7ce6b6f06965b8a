"""ONNX operators that make one entry of many along some axes: sums, means, extremes, norms."""

from __future__ import annotations

import math
import operator as python
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.onnx.conversion import Conversion, Known, Symbol, operator
from models.onnx.shapes import cut

Dims = tuple[int, ...]


def _largest(conversion: Conversion, value: Symbol, dims: Dims, keep: bool) -> Symbol:
    """The largest entry over `dims`, as max pooling over a plane, which the certificates bound."""
    sizes = value.example.shape
    kept = tuple(dim for dim in range(1, len(sizes)) if dim not in dims)
    if (*kept, *dims) != tuple(range(1, len(sizes))):
        value = conversion.call(torch.permute, value, (0, *kept, *dims))
    count = math.prod(sizes[dim] for dim in dims)
    rest = [sizes[dim] for dim in kept]
    plane = conversion.call(torch.reshape, value, (-1, 1, math.prod(rest), count))
    pooled = conversion.call(F.max_pool2d, plane, [1, count])
    shape = [1 if dim in dims else sizes[dim] for dim in range(1, len(sizes))] if keep else rest
    return conversion.call(torch.reshape, pooled, (-1, *shape))


def _least(conversion: Conversion, value: Symbol, dims: Dims, keep: bool) -> Symbol:
    return conversion.call(python.neg, _largest(conversion, conversion.call(python.neg, value), dims, keep))


def _product(conversion: Conversion, value: Symbol, dims: Dims, keep: bool) -> Symbol:
    """The product over `dims`, halves by halves."""
    for dim in sorted(dims, reverse=True):
        while (size := value.example.shape[dim]) > 1:
            halves = (
                cut(conversion, value, {dim: slice(start, start + size // 2)}) for start in (0, size // 2)
            )
            product = conversion.call(python.mul, *halves)
            rest = cut(conversion, value, {dim: slice(size - size % 2, size)}) if size % 2 else None
            value = (
                conversion.call(torch.cat, [product, rest], dim, batched=value.batched) if rest else product
            )
        value = value if keep else conversion.call(torch.squeeze, value, dim)
    return value


def _direct(function: Callable[..., Tensor], *before: float) -> Callable[..., Symbol]:
    def reduced(conversion: Conversion, value: Symbol, dims: Dims, keep: bool) -> Symbol:
        return conversion.call(function, value, *before, dims, keep)

    return reduced


def _sum_of(inner: Callable[..., Tensor]) -> Callable[..., Symbol]:
    def reduced(conversion: Conversion, value: Symbol, dims: Dims, keep: bool) -> Symbol:
        return conversion.call(torch.sum, conversion.call(inner, value), dims, keep)

    return reduced


REDUCTIONS: dict[str, Callable[[Conversion, Symbol, Dims, bool], Symbol]] = {
    "ReduceMean": _direct(torch.mean),
    "ReduceSum": _direct(torch.sum),
    "ReduceMax": _largest,
    "ReduceMin": _least,
    "ReduceL1": _sum_of(torch.abs),
    "ReduceL2": _direct(torch.linalg.vector_norm, 2.0),
    "ReduceSumSquare": _sum_of(torch.square),
    "ReduceProd": _product,
    "ReduceLogSum": lambda conversion, *rest: conversion.call(
        torch.log, _direct(torch.sum)(conversion, *rest)
    ),
    "ReduceLogSumExp": _direct(torch.logsumexp),
}


@operator("TopK")
def largest_entries(conversion: Conversion) -> Known:
    """The largest or least entries along an axis; nothing may read where they stand, which is left out."""
    given = conversion.option("k", 1)
    count = int(given[0] if isinstance(given, list) else given)
    value = conversion.symbol()
    dim = conversion.dimension(value, int(conversion.attribute("axis", -1)))
    most = bool(conversion.attribute("largest", 1))
    if count == 1:
        return (_largest if most else _least)(conversion, value, (dim,), True)
    if not conversion.attribute("sorted", 1):
        conversion.refuse("of several entries in no order is not understood: sort them")
    if count < 1:
        conversion.refuse(f"of {count} entries is not understood")
    return conversion.first(torch.topk, value, count, dim, most)


@operator("ArgMax", "ArgMin", "Hardmax")
def labels(conversion: Conversion) -> Known:
    """Refused: attacks and certificates ask for scores."""
    scores = conversion.current.input[0]
    conversion.refuse(f"finds labels, not scores: cut the file before it, so that it returns '{scores}'")


@operator(*REDUCTIONS)
def reduce(conversion: Conversion) -> Known:
    """One of REDUCTIONS over some axes, or all; the samples' axis, of size 1, adds nothing to any."""
    value = conversion.symbol()
    keep = bool(conversion.attribute("keepdims", 1))
    given = conversion.option("axes", 1) or []
    if not given and conversion.attribute("noop_with_empty_axes", 0):
        if conversion.current.op_type not in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"):
            conversion.refuse("of each entry alone is not understood")
        return value
    rank = len(value.shape)
    axes = [int(axis) for axis in given or range(rank)]
    if value.batched and {0, -rank} & set(axes):
        value = conversion.apart(value)
    dims = tuple(sorted({conversion.dimension(value, axis) for axis in axes}))
    result = REDUCTIONS[conversion.current.op_type](conversion, value, dims, keep)
    return result if result.batched else conversion.reshaped(result, result.shape)
