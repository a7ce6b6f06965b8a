"""Comparisons, and activations that jump where one turns over."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn

from certify.rules.activation import clamped
from certify.rules.arithmetic import NEGATED, ScaleShift, Sum
from certify.rules.jumps import Jumps
from certify.rules.table import Call, Made, Plan, Step, Value, rule


def _difference(call: Call, plan: Plan, *, larger: bool) -> Made:
    """The first of two values, or of a value and a constant, less the second; or turned round."""
    first, second = call.bind("input", "other").values()
    if not larger:
        first, second = second, first
    if isinstance(first, Value) and isinstance(second, Value):
        return plan.add(Sum(-1.0), first.index, second.index)
    if isinstance(first, Value):
        limit = call.constant(second)
        return plan.add(ScaleShift(shift=lambda: -limit()), first.index)
    return plan.add(ScaleShift(scale=lambda: -1.0, shift=call.constant(first)), call.value(second))


def _compared(call: Call, kind: str, *, larger: bool) -> list[Step]:
    """Whether the first of two values, or of a value and a constant, is the larger; or the second."""
    plan = Plan()
    plan.add(Jumps(kind), _difference(call, plan, larger=larger))
    return plan.steps


def _equal(call: Call) -> Plan:
    """1 where a = b, else 0: 1[a >= b] - 1[a > b]."""
    plan = Plan()
    difference = _difference(call, plan, larger=True)
    plan.add(Sum(-1.0), plan.add(Jumps("at least"), difference), plan.add(Jumps("above"), difference))
    return plan


@rule(operator.gt, torch.gt, torch.greater, "gt", "greater")
def greater(call: Call) -> list[Step]:
    """1 where a > b, else 0, of two values or of a value and a constant."""
    return _compared(call, "above", larger=True)


@rule(operator.ge, torch.ge, torch.greater_equal, "ge", "greater_equal")
def greater_equal(call: Call) -> list[Step]:
    """1 where a >= b, else 0, of two values or of a value and a constant."""
    return _compared(call, "at least", larger=True)


@rule(operator.lt, torch.lt, torch.less, "lt", "less")
def less(call: Call) -> list[Step]:
    """1 where a < b, else 0, of two values or of a value and a constant."""
    return _compared(call, "above", larger=False)


@rule(operator.le, torch.le, torch.less_equal, "le", "less_equal")
def less_equal(call: Call) -> list[Step]:
    """1 where a <= b, else 0, of two values or of a value and a constant."""
    return _compared(call, "at least", larger=False)


@rule(operator.eq, torch.eq, "eq")
def equal(call: Call) -> list[Step]:
    """1 where a = b, else 0, of two values or of a value and a constant."""
    return _equal(call).steps


@rule(operator.ne, torch.ne, torch.not_equal, "ne", "not_equal")
def not_equal(call: Call) -> list[Step]:
    """0 where a = b, else 1, of two values or of a value and a constant."""
    return [*_equal(call).steps, ((NEGATED, ScaleShift(shift=lambda: 1.0)), (-1,))]


@rule(torch.heaviside, "heaviside")
def heaviside(call: Call) -> Step:
    """0 below 0 and 1 above; at 0 itself a constant, 0 or 1."""
    given = call.bind("input", "values")
    at_zero = torch.as_tensor(call.constant(given["values"])())
    if not bool(((at_zero == 0) | (at_zero == 1)).all()) or at_zero.numel() > 1:
        call.refuse("has another value at 0 than 0 or 1, which the certificates do not take")
    return Jumps("at least" if bool(at_zero) else "above"), (call.value(given["input"]),)


@rule(nn.Hardshrink, F.hardshrink)
def hardshrink(call: Call) -> list[Step]:
    """z where |z| is above a threshold l, else 0: z - clamp(z, -l, l) + l (1[z > l] - 1[z < -l])."""
    given = call.bind("input", lambd=0.5)
    limit = call.module.lambd if isinstance(call.module, nn.Hardshrink) else given["lambd"]
    if limit < 0:
        call.refuse("has a threshold below 0, which the certificates do not take")
    value, plan = call.value(given["input"]), Plan()
    clamps, _ = clamped(call, given["input"], -float(limit), float(limit))
    clamped_value = plan.add(clamps, value)
    shrunk = plan.add(Sum(-1.0), value, clamped_value)
    over = plan.add((ScaleShift(shift=lambda: -limit), Jumps("above")), value)
    under = plan.add((ScaleShift(scale=lambda: -1.0, shift=lambda: -limit), Jumps("above")), value)
    side = plan.add((Sum(-1.0), ScaleShift(scale=lambda: limit)), over, under)
    plan.add(Sum(1.0), shrunk, side)
    return plan.steps


@rule(nn.Threshold, F.threshold, torch.threshold)
def threshold(call: Call) -> Step | list[Step]:
    """z above a threshold t, else a value v: v + relu(z - t) + (t - v) 1[z > t]."""
    if isinstance(call.module, nn.Threshold):
        given = call.bind("input") | {"threshold": call.module.threshold, "value": call.module.value}
    else:
        given = call.bind("input", "threshold", "value", inplace=False)
    limit, other = float(given["threshold"]), float(given["value"])
    value, plan = call.value(given["input"]), Plan()
    clamps, inputs = clamped(call, given["input"], limit, None)
    if limit == other:
        return clamps, inputs
    larger = plan.add(clamps, value)
    step = (ScaleShift(shift=lambda: -limit), Jumps("above"))
    jump = plan.add((*step, ScaleShift(scale=lambda: limit - other, shift=lambda: other - limit)), value)
    plan.add(Sum(1.0), larger, jump)
    return plan.steps


@rule(operator.invert, torch.logical_not, "logical_not", torch.bitwise_not)
def logical_not(call: Call) -> Step:
    """1 - a, of what a comparison gave."""
    return (NEGATED, ScaleShift(shift=lambda: 1.0)), (call.value(call.bind("input")["input"]),)
