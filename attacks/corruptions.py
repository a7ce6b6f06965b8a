"""Common corruptions: blur, noise, weather and compression instead of an adversary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.access import ScoreAccess
from attacks.base import Attack, register_attack
from attacks.losses import clearly_wrong, margin_loss
from models.base import Batch
from models.corruption import Corruption, families, fits
from models.errors import NotApplicable
from models.randomness import Randomness
from models.registry import suggest
from models.threat import ThreatModel

WORST = "worst"


@register_attack("corruptions")
@dataclass(frozen=True, kw_only=True)
class Corruptions(Attack):
    """Puts each image through a common corruption `family` at the threat's severity, or through the worst.

    "worst" tries every family that fits the images, in order, each on those that still hold, and keeps the
    first that breaks an image or the one of least margin. A matrix runs the families one by one: accuracy a
    family and severity, and the mean corruption error, stand in the table `corruptions`. Raises
    UserError for an unknown family, NotApplicable for one that needs other channels.
    Source: Hendrycks, Dietterich 2019, 1903.12261.
    """

    paper = "Hendrycks, Dietterich 2019, 1903.12261"
    norms = ("corruption",)
    access = "scores"
    sweeps: ClassVar[dict[str, tuple[str, ...]]] = {"family": tuple(families())}

    family: str = WORST

    def __post_init__(self) -> None:
        if self.family != WORST and self.family not in families():
            raise suggest("corruption family", self.family, [WORST, *families()])

    def propose(
        self, model: ScoreAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        assert isinstance(threat, Corruption)
        x, rows = batch.x, torch.arange(len(batch), device=batch.x.device)
        chosen = [name for name in families() if fits(name, x)] if self.family == WORST else [self.family]
        if not all(fits(name, x) for name in chosen):
            raise NotApplicable(
                f"corruption '{self.family}' needs a number of channels other than {x.shape[1]}"
            )
        best = torch.zeros(len(batch), 2, dtype=torch.float64, device=x.device)
        highest = torch.full((len(batch),), -torch.inf, device=x.device)
        for name in chosen:
            move = torch.tensor([[families().index(name), threat.radius]], dtype=torch.float64).to(x.device)
            move = move.expand(len(rows), 2)
            logits = model.logits(threat.carry_out(x[rows], move, batch.index[rows]), rows)
            value = margin_loss(logits, batch.y[rows])
            better = value > highest[rows]
            best[rows[better]], highest[rows[better]] = move[better], value[better].to(highest)
            rows = rows[~clearly_wrong(logits, batch.y[rows])]
            if not len(rows):
                break
        return best
