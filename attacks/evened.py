"""Logits of which one towers over all others, brought to one scale: a loss would see that one alone."""

from __future__ import annotations

import torch
from torch import Tensor

# The largest logit beside the next one, by absolute value: honest networks stay below 100.
TOWERING = 1e3


def unit_of(logits: Tensor) -> float | None:
    """The unit in which logarithms of the logits (k, classes) are on one scale; None where they need none.

    They do where in every row the largest absolute value is TOWERING times the next one, which is not zero.
    """
    size = logits.detach().abs()
    first, second = size.topk(2, dim=1).values.unbind(1)
    if not len(size) or not bool(((second > 0) & (first > TOWERING * second)).all()):
        return None
    return float(size[size > 0].min()) if bool(torch.isfinite(first).all()) else None


def evened(logits: Tensor, unit: float | None) -> Tensor:
    """The logits as they are without a unit, else sign(z) log(1 + |z| / unit): the same decisions."""
    return logits if unit is None else logits.sign() * (logits.abs() / unit).log1p()
