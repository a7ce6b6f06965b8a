"""The nearest misclassified point a search has met, and ways to bring one nearer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.losses import against, clearly_wrong, margin_loss
from models.base import Batch
from models.threat import ThreatModel, per_sample


@dataclass
class Best:
    """The misclassified point of least distance seen so far of each sample; distance is infinite for none."""

    point: Tensor
    distance: Tensor

    @staticmethod
    def none(x: Tensor) -> Best:
        """No point of any sample of x (n, ...) yet."""
        return Best(x.clone(), torch.full((len(x),), torch.inf, device=x.device))

    @property
    def found(self) -> Tensor:
        return torch.isfinite(self.distance)

    def offer(self, rows: Tensor, point: Tensor, distance: Tensor, success: Tensor) -> None:
        """Takes over each `point` (k, ...) of the samples `rows` (k,) that succeeds and is nearer."""
        better = success & (distance < self.distance[rows])
        self.point[rows[better]] = point[better]
        self.distance[rows[better]] = distance[better].to(self.distance.dtype)


def closer(
    model: GradientAccess,
    batch: Batch,
    rows: Tensor,
    threat: ThreatModel,
    best: Best,
    halvings: int,
    *,
    span: float = 1.0,
) -> None:
    """Improves the found points of `best` by `halvings` forward passes (and one backward pass for l0).

    Each norm but l0 bisects the last part `span` of the segment from x. For l0 the entries are ranked by
    what their change gains to first order, and the number of the least useful ones that can be taken
    back is bisected.
    """
    found = best.found[rows]
    rows = rows[found]
    if not len(rows) or not halvings:
        return
    x, y, point = batch.x[rows], batch.y[rows], best.point[rows]
    if threat.norm == "l0":
        _, _, slope = model.gradient(point, rows, against(margin_loss, y))
        gain = (slope * (point - x)).flatten(1)
        gain = gain.masked_fill((point == x).flatten(1), torch.inf)
        rank = gain.argsort(dim=1, stable=True).argsort(dim=1).reshape(x.shape)
    low = torch.full((len(rows),), 0.0 if threat.norm == "l0" else 1 - span, device=x.device)
    high = threat.distance(x, point).to(low) if threat.norm == "l0" else torch.ones_like(low)
    total = high
    for _ in range(halvings):
        middle = (low + high) / 2
        if threat.norm == "l0":
            middle = middle.floor()
            trial = torch.where(rank < per_sample(total - middle, x), x, point)
        else:
            trial = x + per_sample(middle, x) * (point - x)
        wrong = clearly_wrong(model.logits(trial, rows), y)
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
        best.offer(rows, trial, threat.distance(x, trial).to(best.distance), wrong)
