"""ONNX's Where: by a comparison of values, by a constant mask, by what is no number, or in a spelling."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from models.onnx.arithmetic import aligned, combine, fit
from models.onnx.conversion import Conversion, Known, Symbol, operator

# Where PyTorch's softplus turns into the identity, which its exporter spells out.
SOFT_END = 20.0


@operator("Where")
def where(conversion: Conversion) -> Known:
    """One of two values or constants per entry, by a condition."""
    parts = [conversion.input(place) for place in range(3)]
    if isinstance(parts[0], np.ndarray):
        return _masked(conversion, parts[0], parts[1:])
    if _is_softplus(conversion, parts) or _is_guarded_softmax(parts):
        return parts[2]
    known = [place for place, part in enumerate(parts) if isinstance(part, Symbol)]
    values = aligned(conversion, [conversion.symbol(place) for place in known])
    largest = max(values, key=lambda value: value.example.numel())
    arguments: list[Any] = [None] * 3
    for place, value in zip(known, values, strict=True):
        arguments[place] = value
    for place in {0, 1, 2} - set(known):
        kind = torch.bool if place == 0 else conversion.dtype
        arguments[place] = torch.as_tensor(fit(conversion, conversion.fixed(place), largest), dtype=kind)
    return conversion.call(torch.where, *arguments)


def _is_softplus(conversion: Conversion, parts: list[Known]) -> bool:
    """Whether this is z above SOFT_END, else softplus(z): PyTorch's own softplus."""
    asked, above, below = (part.node if isinstance(part, Symbol) else None for part in parts)
    if asked is None or below is None or asked.target is not torch.gt or below.target is not F.softplus:
        return False
    z, end = asked.args
    if z is not above or below.args != (z,) or not isinstance(end, fx.Node) or end.op != "get_attr":
        return False
    return bool((conversion.root.get_buffer(str(end.target)) == SOFT_END).all())


def _is_guarded_softmax(parts: list[Known]) -> bool:
    """Whether this asks if a softmax is a number, as PyTorch's attention does of rows that are masked whole.

    Of numbers it always is one.
    """
    asked, _, below = (part.node if isinstance(part, Symbol) else None for part in parts)
    if asked is None or below is None or asked.target is not torch.isnan:
        return False
    return asked.args == (below,) and below.target is F.softmax


def _masked(conversion: Conversion, mask: np.ndarray, parts: list[Known]) -> Known:
    """One of two values or constants per entry, by a constant: a sum that certificates bound."""
    first, second = (
        combine(conversion, "Mul", part, where.astype(np.float64))
        if isinstance(part, Symbol)
        else np.where(where, np.asarray(part), 0)
        for part, where in zip(parts, (mask, ~mask), strict=True)
    )
    return combine(conversion, "Add", first, second)


@operator("IsNaN", "IsInf")
def is_no_number(conversion: Conversion) -> Known:
    """Whether an entry is NaN, or infinite with either sign or one."""
    value = conversion.symbol()
    if conversion.current.op_type == "IsNaN":
        return conversion.call(torch.isnan, value)
    above, below = (conversion.attribute(f"detect_{sign}", 1) for sign in ("positive", "negative"))
    if not above and not below:
        conversion.refuse("that detects neither sign is not understood")
    if above and below:
        return conversion.call(torch.isinf, value)
    return conversion.call(torch.isposinf if above else torch.isneginf, value)
