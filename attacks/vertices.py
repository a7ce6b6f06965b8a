"""Vertices of ball and box where a linearised network is worst: a linear one falls there or nowhere."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.losses import clearly_wrong, log_odds
from models.base import Batch
from models.threat import ThreatModel


def likeliest(model: GradientAccess, batch: Batch, count: int) -> Tensor:
    """Up to `count` likeliest wrong classes of each sample (n, m)."""
    logits = model.logits(batch.x, torch.arange(len(batch), device=batch.x.device))
    rivals = logits.scatter(1, batch.y[:, None], -torch.inf)
    return rivals.topk(min(count, model.num_classes - 1), dim=1).indices


def vertices(
    model: GradientAccess, batch: Batch, threat: ThreatModel, rivals: Tensor
) -> tuple[Tensor, Tensor]:
    """A misclassified vertex of ball and box where there is one (n, ...), else x; which it is (n,).

    For each of the `rivals` (n, m) in turn the point where z_rival - z_y, linearised at x, is highest.
    """
    found, broken = batch.x.clone(), torch.zeros(len(batch), dtype=torch.bool, device=batch.x.device)
    for column in rivals.T:
        rows = (~broken).nonzero()[:, 0]
        if not len(rows):
            break
        x, y, rival = batch.x[rows], batch.y[rows], column[rows]
        _, _, slope = model.gradient(x, rows, lambda z, y=y, rival=rival: log_odds(z, y, rival))  # type: ignore[misc]
        vertex = threat.furthest(x, slope.nan_to_num(0.0, 0.0, 0.0))
        wrong = clearly_wrong(model.logits(vertex, rows), y)
        found[rows[wrong]], broken[rows[wrong]] = vertex[wrong], True
    return found, broken
