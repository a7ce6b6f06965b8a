"""Sets that are a linear image of a few parameters, and a small error of each entry beside."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.errors import UserError
from models.threat import Box, ThreatModel


def _empty() -> Tensor:
    return torch.zeros(0)


@dataclass(frozen=True, eq=False)
class Enclosure(ThreatModel):
    """{centre + sum_i t_i generators_i + e : |t_i| <= 1, |e| <= slack} for each of n samples, float64.

    centre and slack (n, ...), generators (n, k, ...). `effect` (n, p) says how far each of a map's p
    parameters moves the entries in all, generators and slack together. Stands wherever a ThreatModel does:
    bounds are those of the smallest box around it, in `box`, which holds every point that it is meant for.
    Raises UserError for shapes that do not fit, and for slack below 0.
    """

    norm: str = "linf"
    eps: float | None = None
    box: Box = field(default_factory=lambda: Box(-math.inf, math.inf))
    centre: Tensor = field(default_factory=_empty)
    generators: Tensor = field(default_factory=_empty)
    slack: Tensor = field(default_factory=_empty)
    effect: Tensor = field(default_factory=_empty)

    def __post_init__(self) -> None:
        n, shape = len(self.centre), self.centre.shape[1:]
        if self.generators.shape[:1] + self.generators.shape[2:] != self.centre.shape:
            raise UserError(f"generators of shape {tuple(self.generators.shape)} do not fit {(n, *shape)}")
        if self.slack.shape != self.centre.shape or not bool((self.slack >= 0).all()):
            raise UserError("an enclosure needs a slack >= 0 for every entry")

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest box around the set, in x's dtype."""
        reach = self.slack + self.generators.abs().sum(1)
        return self.box.clamp(self.centre - reach).to(x), self.box.clamp(self.centre + reach).to(x)

    def reach(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The middle of rows . x' over the set and how far it may go either way: rows (n, k, ...), (n, k)."""
        flat = rows.flatten(2)
        moved = flat @ self.generators.flatten(2).transpose(1, 2)
        away = moved.abs().sum(2) + (flat.abs() @ self.slack.flatten(1).unsqueeze(2)).squeeze(2)
        return (flat @ self.centre.flatten(1).unsqueeze(2)).squeeze(2), away

    def select(self, samples: slice | Tensor) -> Enclosure:
        """The sets of some of the samples."""
        parts = (self.centre, self.generators, self.slack, self.effect)
        centre, generators, slack, effect = (part[samples] for part in parts)
        return Enclosure(box=self.box, centre=centre, generators=generators, slack=slack, effect=effect)
