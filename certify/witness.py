"""Checks a solver's dual point in double precision: what it proves, whatever the solver said."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from certify.backward import Relaxation


def slopes_from_multipliers(above_zero: Tensor, above_line: Tensor, default: Tensor) -> Tensor:
    """The lower slope alpha in [0, 1] that a neuron's multipliers stand for, entry by entry.

    above_zero and above_line (m,) are the multipliers of a >= leak z and a >= z. At the optimum
    a's cost is split between the two, so that alpha = above_line / (above_zero + above_line)
    (Salman et al. 2019, 1902.08722, section 4). Anything else a solver returns, NaN included, is
    replaced by `default` (m,) or projected, since any alpha in [0, 1] is valid.
    """
    zero = torch.nan_to_num(above_zero, 0.0, 0.0, 0.0).clamp(min=0)
    line = torch.nan_to_num(above_line, 0.0, 0.0, 0.0).clamp(min=0)
    total = zero + line
    known = total > 1e-12
    return torch.where(known, line / torch.where(known, total, 1.0), default).clamp(0, 1)


def recheck(relaxation: Relaxation, rows: Tensor, alpha: Mapping[int, Tensor]) -> Tensor:
    """Lower bounds (n, k) that lower slopes `alpha` prove for rows (n, k, classes) over the logits.

    One backward pass in the relaxation's own precision, float64; no number of the solver enters
    but the slopes, each projected on [0, 1].
    """
    legal = {i: torch.nan_to_num(value, 0.0, 0.0, 0.0).clamp(0, 1) for i, value in alpha.items()}
    return relaxation.with_alpha(legal).lower(len(relaxation.graph.nodes) - 1, rows)
