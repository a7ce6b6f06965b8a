"""Loss and success by look, summed up in a few numbers a cell: the curves that a report draws."""

from __future__ import annotations

import math

import numpy as np
import torch

from attacks.adversarial_batch import AdversarialBatch
from bench.record import Convergence

STEPS = 24


def convergence(result: AdversarialBatch) -> Convergence | None:
    """The course of an attack that was run with `history`, at up to STEPS looks, evenly on a log scale.

    None where it saw no logits, or some that are not finite.
    """
    rows = result.clean.cpu()
    if result.history is None or not result.history.shape[1] or not bool(rows.any()):
        return None
    seen, success = result.history.cpu()[rows], result.success.cpu()[rows]
    counts = (~seen.isnan()).sum(1)
    table = torch.nn.functional.pad(seen, (0, 1), value=torch.nan)
    table.scatter_(1, counts[:, None], -result.margin.cpu()[rows][:, None])
    best = torch.where(table.isnan(), -torch.inf, table).cummax(1).values
    # A sample that no look showed broken was broken by the point that was returned.
    wrong = seen > 0
    first = torch.where(wrong.any(1), wrong.long().argmax(1), counts)
    looks = sorted({round(step) for step in np.geomspace(1, table.shape[1], STEPS)})
    loss = [_short(float(best[:, look - 1].mean())) for look in looks]
    if not all(map(math.isfinite, loss)):
        return None
    share = [float((success & (first < look)).double().mean()) for look in looks]
    return Convergence(n=len(seen), looks=tuple(looks), loss=tuple(loss), success=tuple(map(_short, share)))


def _short(value: float) -> float:
    """Six digits: a header holds dozens of these."""
    return float(f"{value:.6g}")
