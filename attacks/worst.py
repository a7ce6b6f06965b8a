"""The worst move of each sample so far, for searches under threats that are transformations."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.losses import clearly_wrong, margin_loss
from models.base import Batch


class Worst:
    """The move (n, parameters) of greatest loss of each sample so far, and whether it is misclassified."""

    def __init__(self, batch: Batch, parameters: int) -> None:
        self.y, n = batch.y, len(batch)
        self.move = torch.zeros(n, parameters, dtype=torch.float64, device=batch.x.device)
        self.loss = torch.full((n,), -torch.inf, device=batch.x.device)
        self.broken = torch.zeros(n, dtype=torch.bool, device=batch.x.device)

    def live(self) -> Tensor:
        return (~self.broken).nonzero()[:, 0]

    def note(self, rows: Tensor, move: Tensor, logits: Tensor) -> None:
        """Takes in moves (k, g, parameters) of the samples `rows` (k,) and their logits (k * g, classes)."""
        group = move.shape[1]
        y = self.y[rows].repeat_interleave(group)
        loss, best = margin_loss(logits, y).reshape(-1, group).max(1)
        wrong = clearly_wrong(logits, y).reshape(-1, group).any(1)
        better = loss > self.loss[rows]
        place = torch.arange(len(rows), device=rows.device)
        self.move[rows[better]] = move[place, best][better]
        self.loss[rows[better]] = loss[better].to(self.loss)
        self.broken[rows] |= wrong
