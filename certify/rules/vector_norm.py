"""Norms of a value over dimensions, and values divided by them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from certify.rules.activation import clamped
from certify.rules.arithmetic import NEGATED
from certify.rules.convex import Convex
from certify.rules.extremes import Stack
from certify.rules.operation import Operation
from certify.rules.pooling import Gather
from certify.rules.product import Product
from certify.rules.selection import LargestOver
from certify.rules.table import Call, Plan, Step, dims_of, rule


def _norm_over(call: Call, order: Any, dims: tuple[int, ...], keep: bool) -> tuple[Operation, ...]:
    """The l1, l2 or linf norm over dimensions."""
    if order in (1, 1.0):
        return Convex("abs"), Gather(dims, keep, total=True)
    if order in (math.inf, "inf"):
        return Convex("abs"), LargestOver(dims, keep)
    if order not in (None, 2, 2.0, "fro"):
        call.refuse(f"the norm of order {order} is not understood by the certificates: use 1, 2 or inf")
    return Convex("square"), Gather(dims, keep, total=True), Convex("-sqrt"), NEGATED


@rule(torch.linalg.vector_norm, torch.linalg.norm)
def vector_norm(call: Call) -> Step:
    """The norm of order 1, 2 or infinity over dimensions after the samples'."""
    given = call.bind("x", ord=2, dim=None, keepdim=False, dtype=None)
    dims = dims_of(call, given["dim"])
    return _norm_over(call, given["ord"], dims, bool(given["keepdim"])), (call.value(given["x"]),)


@rule(torch.norm, "norm")
def norm(call: Call) -> Step:
    """The norm of order 1, 2 or infinity over dimensions, by its older name."""
    given = call.bind("input", p=2, dim=None, keepdim=False, out=None, dtype=None)
    dims = dims_of(call, given["dim"])
    return _norm_over(call, given["p"], dims, bool(given["keepdim"])), (call.value(given["input"]),)


@rule(F.normalize)
def normalize(call: Call) -> list[Step]:
    """z / max(norm of z, eps) along a dimension."""
    given = call.bind("input", p=2.0, dim=1, eps=1e-12, out=None)
    value, plan = call.value(given["input"]), Plan()
    size = plan.add(_norm_over(call, given["p"], dims_of(call, given["dim"]), keep=True), value)
    floored = clamped(call, given["input"], given["eps"], None)[0]
    inverse = plan.add((*(floored if isinstance(floored, tuple) else (floored,)), Convex("reciprocal")), size)
    plan.add((Stack(), Product()), value, inverse)
    return plan.steps
