"""Any box of inputs as a threat set: per-pixel radii, patch masks, the input bounds of a property."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.errors import UserError
from models.threat import Box, ThreatModel


@dataclass(frozen=True, eq=False)
class Region(ThreatModel):
    """{x' : lower <= x' <= upper} for each of n samples: low and high (n, ...), float64.

    Stands wherever a ThreatModel does; the centre of the box is its sample. Raises UserError for
    bounds that cross.
    """

    norm: str = "linf"
    eps: float | None = None
    box: Box = field(default_factory=lambda: Box(-math.inf, math.inf))
    low: Tensor = field(default_factory=lambda: torch.zeros(0))
    high: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        if self.low.shape != self.high.shape or not bool((self.low <= self.high).all()):
            raise UserError("a region needs lower <= upper for every input")

    @property
    def centre(self) -> Tensor:
        """The middle of each sample's box (n, ...)."""
        return (self.low + self.high) / 2

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The region itself, in x's dtype, rounded inwards where x's dtype has a number inside."""
        lower, upper = self.low.to(x), self.high.to(x)
        up = torch.full_like(lower, math.inf)
        above = torch.where(lower.double() < self.low, torch.nextafter(lower, up), lower)
        below = torch.where(upper.double() > self.high, torch.nextafter(upper, -up), upper)
        crossed = above > below
        return torch.where(crossed, lower, above), torch.where(crossed, upper, below)

    def contains(self, x: Tensor, other: Tensor) -> Tensor:
        """Whether each `other` (n, ...) lies in its sample's box: bool (n,)."""
        point = other.double()
        return ((point >= self.low) & (point <= self.high)).flatten(1).all(1)

    def select(self, samples: slice | Tensor) -> Region:
        """The boxes of some of the samples."""
        return Region(low=self.low[samples], high=self.high[samples])
