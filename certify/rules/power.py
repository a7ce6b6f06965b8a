"""Powers of a value by whole and half exponents, and by -3/4."""

from __future__ import annotations

import operator

import torch

from certify.rules.arithmetic import NEGATED
from certify.rules.convex import Convex
from certify.rules.extremes import Stack
from certify.rules.operation import Operation
from certify.rules.product import Product
from certify.rules.shape import Identity
from certify.rules.table import Call, Constant, Step, rule

EXPONENTS: dict[float, tuple[Operation, ...]] = {
    1.0: (Identity(),),
    2.0: (Convex("square"),),
    0.5: (Convex("-sqrt"), NEGATED),
    -0.5: (Convex("rsqrt"),),
    -0.75: (Convex("power -3/4"),),
    -1.0: (Convex("reciprocal"),),
    -2.0: (Convex("reciprocal"), Convex("square")),
}


@rule(torch.pow, operator.pow, "pow")
def power(call: Call) -> Step | list[Step]:
    """z^k by a number k: whole from 1 on, and of positive z also -2, -1, -3/4, -1/2 and 1/2."""
    given = call.bind("input", "exponent")
    value, exponent = call.value(given["input"]), given["exponent"]
    if isinstance(exponent, Constant) and exponent.read().numel() == 1:
        exponent = float(exponent.read())
    if isinstance(exponent, int | float) and exponent in EXPONENTS:
        return EXPONENTS[exponent], (value,)
    if not isinstance(exponent, int | float) or exponent < 1 or exponent != int(exponent):
        call.refuse(f"the exponent {exponent} is not understood by the certificates: use a whole number")
    if exponent % 2 == 0:
        return [*_half(value, int(exponent) // 2), (Convex("square"), (-1,))]
    return [*_half(value, int(exponent) // 2), (Convex("square"), (-1,)), ((Stack(), Product()), (value, -1))]


def _half(value: int, exponent: int) -> list[Step]:
    """Steps that end in z^exponent."""
    if exponent == 1:
        return [(Identity(), (value,))]
    steps = [*_half(value, exponent // 2), (Convex("square"), (-1,))]
    return [*steps, ((Stack(), Product()), (value, -1))] if exponent % 2 else steps
