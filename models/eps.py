"""Reads perturbation radii as people write them; needs no torch."""

from __future__ import annotations

import math
from fractions import Fraction

from models.errors import UserError


def parse_eps(value: str | float | None) -> float | None:
    """The radius as a float: "8/255", "0.5/255", "0.1", 0.1 or None (smallest perturbation).

    Raises UserError where the text is no number, or the radius is negative or not finite.
    """
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        eps = _quotient(value.replace(" ", "")) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        raise UserError(f"eps '{value}' is not a number: write it like 0.1 or 8/255") from None
    if not math.isfinite(eps) or eps < 0:
        raise UserError(f"eps must be a finite number >= 0, not {value}")
    return eps


def _quotient(text: str) -> float:
    parts = [Fraction(part) for part in text.split("/")]
    if len(parts) > 2:
        raise ValueError
    return float(parts[0] / parts[1] if len(parts) == 2 else parts[0])
