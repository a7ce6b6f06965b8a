"""Checks a solver's dual point in double precision: what it proves, whatever the solver said."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from certify.relaxation import Relaxation

# Larger weights than these would drown the digits of what they multiply.
LARGEST = 1e6


def _legal(multiplier: Tensor) -> Tensor:
    return torch.nan_to_num(multiplier, 0.0, 0.0, 0.0).clamp(min=0)


def slopes_from_multipliers(above_zero: Tensor, above_line: Tensor, default: Tensor) -> Tensor:
    """The lower slope alpha in [0, 1] that a neuron's multipliers stand for, entry by entry.

    above_zero and above_line (m,) are the multipliers of a >= leak z and a >= z. At the optimum
    a's cost is split between the two, so that alpha = above_line / (above_zero + above_line)
    (Salman et al. 2019, 1902.08722, section 4). Anything else a solver returns, NaN included, is
    replaced by `default` (m,) or projected, since any alpha in [0, 1] is valid.
    """
    zero, line = _legal(above_zero), _legal(above_line)
    total = zero + line
    known = total > 1e-12
    return torch.where(known, line / torch.where(known, total, 1.0), default).clamp(0, 1)


def overlap_from_multipliers(above_zero: Tensor, above_line: Tensor, below_chord: Tensor) -> Tensor:
    """The weight >= 0 on a neuron's lower and upper line at once that its multipliers stand for.

    A solver may hold a neuron at a corner of its triangle, where the chord meets a lower line: then
    both have a multiplier, and what they share says that z keeps to its bounds. Any weight is valid.
    """
    return torch.minimum(_legal(above_zero) + _legal(above_line), _legal(below_chord)).clamp(max=LARGEST)


def recheck(
    relaxation: Relaxation,
    rows: Tensor,
    alpha: Mapping[int, Tensor],
    overlap: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Lower bounds (n, k) that slopes `alpha` and weights `overlap` prove for rows (n, k, classes) of logits.

    One backward pass through the network in the relaxation's own precision, float64; no number of
    the solver enters but these, each projected on what is legal.
    """
    slopes = {i: torch.nan_to_num(value, 0.0, 0.0, 0.0).clamp(0, 1) for i, value in alpha.items()}
    weights = {i: _legal(value).clamp(max=LARGEST) for i, value in (overlap or {}).items()}
    proved = relaxation.with_alpha(slopes, weights).lower(len(relaxation.graph.nodes) - 1, rows)
    return torch.nan_to_num(proved, -torch.inf, -torch.inf, -torch.inf)
