"""Variance, standard deviation and log-sum-exp of a value over dimensions."""

from __future__ import annotations

import torch

from certify.rules.arithmetic import NEGATED, Sum
from certify.rules.convex import Convex
from certify.rules.pooling import Gather
from certify.rules.table import Call, Made, Plan, Step, dims_of, rule


def _centred(plan: Plan, value: int, dims: tuple[int, ...]) -> Made:
    return plan.add(Sum(-1.0), value, plan.add(Gather(dims, keep=True), value))


def _variance(call: Call) -> tuple[Plan, Made]:
    given = call.bind("input", dim=None, unbiased=None, keepdim=False, correction=None)
    value, dims, plan = call.value(given["input"]), dims_of(call, given["dim"]), Plan()
    correction = given["correction"]
    if correction is None:
        correction = 1.0 if given["unbiased"] is None else given["unbiased"]
    mean = Gather(dims, bool(given["keepdim"]), correction=float(correction))
    return plan, plan.add((Convex("square"), mean), _centred(plan, value, dims))


@rule(torch.var, "var")
def variance(call: Call) -> list[Step]:
    """The mean square of what is left without the mean, over dimensions after the samples'."""
    return _variance(call)[0].steps


@rule(torch.std, "std")
def standard_deviation(call: Call) -> list[Step]:
    """The root of the variance."""
    plan, found = _variance(call)
    plan.add((Convex("-sqrt"), NEGATED), found)
    return plan.steps


@rule(torch.logsumexp, "logsumexp")
def logsumexp(call: Call) -> list[Step]:
    """ln sum exp z, which is the mean and the same of what is left without it."""
    given = call.bind("input", "dim", keepdim=False)
    value, dims, keep = call.value(given["input"]), dims_of(call, given["dim"]), bool(given["keepdim"])
    plan = Plan()
    total = Convex("exp"), Gather(dims, keep, total=True), Convex("-log"), NEGATED
    rest = plan.add(total, _centred(plan, value, dims))
    plan.add(Sum(1.0), rest, plan.add(Gather(dims, keep), value))
    return plan.steps
