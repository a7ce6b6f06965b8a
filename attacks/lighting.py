"""Brightness and contrast as an attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.access import ScoreAccess
from attacks.base import Attack, register_attack
from attacks.losses import clearly_wrong, margin_loss
from models.base import Batch
from models.errors import UserError
from models.lighting import Lighting
from models.norms import LIGHTS
from models.randomness import Randomness
from models.threat import ThreatModel


@register_attack("lighting")
@dataclass(frozen=True, kw_only=True)
class LightingGrid(Attack):
    """Tries `levels` x `levels` changes of brightness and contrast, the largest first, until one fools.

    Each is spaced evenly between its limits; a limit of 0 takes one value. A sample leaves once it is
    misclassified; else the change of greatest margin loss is proposed.
    Source: Pei, Cao, Yang, Jana 2017, 1712.01785, section 3: the changes are few enough to enumerate.
    """

    paper = "Pei, Cao, Yang, Jana 2017, 1712.01785"
    norms: ClassVar[tuple[str, ...]] = tuple(LIGHTS)
    access = "scores"

    levels: int = 21

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise UserError(f"levels must be at least 2, not {self.levels}")

    def grid(self, limits: Tensor) -> Tensor:
        """The moves (g, 2) within the limits (2,), the largest first."""
        line = torch.linspace(-1, 1, self.levels, dtype=torch.float64)
        sides = [limit * (line if limit > 0 else line[:1] * 0) for limit in limits]
        moves = torch.cartesian_prod(*sides)
        return moves[moves.abs().amax(1).argsort(stable=True, descending=True)]

    def propose(
        self, model: ScoreAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        assert isinstance(threat, Lighting)
        best = torch.zeros(len(batch), 2, dtype=torch.float64, device=batch.x.device)
        highest = torch.full((len(batch),), -torch.inf, device=batch.x.device)
        rows = torch.arange(len(batch), device=batch.x.device)
        for move in self.grid(threat.limits()).to(batch.x.device):
            if not len(rows):
                break
            every = move.expand(len(rows), 2)
            logits = model.logits(threat.carry_out(batch.x[rows], every, batch.index[rows]), rows)
            value = margin_loss(logits, batch.y[rows])
            better = value > highest[rows]
            best[rows[better]], highest[rows[better]] = move, value[better].to(highest)
            rows = rows[~clearly_wrong(logits, batch.y[rows])]
        return best
