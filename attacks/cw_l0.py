"""Carlini and Wagner's l0 attack: descent on ever fewer entries, the least useful ones put back."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.losses import against, margin_loss
from attacks.nearest import Best, closer
from attacks.unbounded import FirstSuccess
from models.base import Batch
from models.threat import ThreatModel

FALL = 0.7
HALVINGS = 6


def lower_count(
    model: GradientAccess,
    batch: Batch,
    threat: ThreatModel,
    start: Tensor,
    best: Best,
    *,
    rounds: int,
    descent: FirstSuccess,
) -> None:
    """Minimises max(margin + confidence, 0) over ever fewer free entries of x', into `best`.

    Entries are ranked by g_i (x'_i - x_i), g the margin's gradient at the point of fewest changes known; the
    least of them return to x_i and stay there. Seven tenths of the changed entries are kept for the
    next round, or halfway to the largest number that failed, whichever is more (the paper puts back one
    entry a round), and the round ends at the first success; the l2 term of the paper's inner problem, which
    l0 does not count, is left out. A sample is done when one entry less has failed. Samples without a
    point first search from `start` (n, ...) with every entry free.
    Source: Carlini, Wagner 2017, 1608.04644, section VI.B.
    """
    failed, box = torch.zeros_like(best.distance), threat.box
    rows = (~best.found).nonzero()[:, 0]
    if len(rows):
        everywhere = (torch.full_like(start[rows], box.lower), torch.full_like(start[rows], box.upper))
        descent.search(model, batch, rows, threat, start[rows], everywhere, best)
    for _ in range(rounds):
        live = (best.found & (best.distance - failed > 1)).nonzero()[:, 0]
        if not len(live):
            break
        count = torch.maximum(FALL * best.distance, (failed + best.distance) / 2)[live].floor()
        x, free = batch.x[live], most_useful(model, batch, live, count, best)
        bounds = (torch.where(free, box.lower, x), torch.where(free, box.upper, x))
        success = descent.search(model, batch, live, threat, best.point[live], bounds, best)
        failed[live] = torch.where(success, failed[live], count)
    if not descent.confidence:
        closer(model, batch, torch.arange(len(batch), device=start.device), threat, best, HALVINGS)


def most_useful(model: GradientAccess, batch: Batch, rows: Tensor, count: Tensor, best: Best) -> Tensor:
    """The `count` (k,) changed entries of `best` whose changes gain most to first order: bool (k, ...)."""
    x, point = batch.x[rows], best.point[rows]
    _, _, slope = model.gradient(point, rows, against(margin_loss, batch.y[rows]))
    gain = (slope * (point - x)).masked_fill(point == x, -torch.inf).flatten(1)
    rank = gain.argsort(dim=1, stable=True, descending=True).argsort(dim=1)
    return (rank < count[:, None]).reshape(x.shape)
