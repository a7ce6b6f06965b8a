"""One of two values by a condition, and conditions joined."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from certify.rules.activation import ReLU
from certify.rules.arithmetic import ScaleShift, Sum
from certify.rules.extremes import Stack
from certify.rules.product import Product
from certify.rules.table import Call, Made, Plan, Step, Value, rule


def _chosen(call: Call, condition: Any, first: Any, second: Any) -> list[Step]:
    """`first` where the condition is 1, `second` where it is 0: second + condition (first - second)."""
    plan = Plan()
    if not isinstance(condition, Value):
        return _masked(call, condition, first, second)
    asked: int | Made = condition.index
    if not isinstance(first, Value) and isinstance(second, Value):
        asked = plan.add(ScaleShift(scale=lambda: -1.0, shift=lambda: 1.0), asked)
        first, second = second, first
    if not isinstance(first, Value):
        one, other = call.constant(first), call.constant(second)
        plan.add(ScaleShift(scale=lambda: one() - other(), shift=other), asked)
    elif isinstance(second, Value):
        difference = plan.add(Sum(-1.0), first.index, second.index)
        part = plan.add((Stack(), Product()), asked, difference)
        plan.add(Sum(1.0), part, second.index)
    else:
        other = call.constant(second)
        difference = plan.add(ScaleShift(shift=lambda: -1.0 * other()), first.index)
        plan.add((Stack(), Product(), ScaleShift(shift=other)), asked, difference)
    return plan.steps


def _masked(call: Call, condition: Any, first: Any, second: Any) -> list[Step]:
    """The same for a condition that is constant: no more than a sum."""
    read, plan = call.constant(condition), Plan()

    def mask() -> Tensor:
        return torch.as_tensor(read()).bool()

    def share(value: Any, kept: bool) -> tuple[ScaleShift, int] | None:
        if not isinstance(value, Value):
            return None
        return ScaleShift(scale=lambda: mask() == kept), value.index

    parts = [part for part in (share(first, True), share(second, False)) if part is not None]
    if not parts:
        call.refuse("chooses between constants by a constant")
    results = [plan.add(operation, index) for operation, index in parts]
    if len(results) == 2:
        plan.add(Sum(1.0), *results)
    else:
        kept = isinstance(second, Value)
        rest = call.constant(first if kept else second)
        plan.add(ScaleShift(shift=lambda: (mask() == kept) * rest()), results[0])
    return plan.steps


@rule(torch.where)
def where(call: Call) -> list[Step]:
    """The one of two values or constants, by a comparison or a constant mask."""
    given = call.bind("condition", "input", "other")
    return _chosen(call, given["condition"], given["input"], given["other"])


@rule("where")
def value_where(call: Call) -> list[Step]:
    """The value itself where a comparison or a constant mask holds, else another."""
    given = call.bind("input", "condition", "other")
    return _chosen(call, given["condition"], given["input"], given["other"])


@rule("masked_fill", torch.masked_fill, "masked_fill_")
def masked_fill(call: Call) -> list[Step]:
    """A constant where a comparison or a constant mask holds, else the value."""
    given = call.bind("input", "mask", "value")
    return _chosen(call, given["mask"], given["value"], given["input"])


@rule(operator.and_, torch.logical_and, "logical_and")
def logical_and(call: Call) -> list[Step]:
    """relu(a + b - 1), of what two comparisons gave."""
    first, second = call.bind("input", "other").values()
    plan = Plan()
    both = plan.add(Sum(1.0), call.value(first), call.value(second))
    plan.add((ScaleShift(shift=lambda: -1.0), ReLU()), both)
    return plan.steps


@rule(operator.or_, torch.logical_or, "logical_or")
def logical_or(call: Call) -> list[Step]:
    """1 - relu(1 - a - b), of what two comparisons gave."""
    first, second = call.bind("input", "other").values()
    plan = Plan()
    both = plan.add(Sum(1.0), call.value(first), call.value(second))
    turned = ScaleShift(scale=lambda: -1.0, shift=lambda: 1.0)
    plan.add((turned, ReLU(), turned), both)
    return plan.steps
