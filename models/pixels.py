"""Threats that leave some pixels free and the others as they are, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.eps import parse_eps
from models.norms import check_size
from models.threat import ThreatModel, per_sample


def changed_pixels(x: Tensor, other: Tensor) -> Tensor:
    """Where a pixel (any of its channels) differs: bool (n, h, w); a vector is one row of pixels."""
    changed = x != other
    return changed.any(1) if x.dim() == 4 else changed.flatten(1)[:, None]


@dataclass(frozen=True)
class FreePixels(ThreatModel):
    """{x' in box : x' = x outside some pixels}, eps being their share of the picture.

    "mask": any pixels, at most eps of them. "patch": those of one square window, cut off by the picture's
    sides, that covers at most eps of it. All channels of a free pixel are free. The distance is the least
    eps that allows a change.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", parse_eps(self.eps))
        check_size(self.norm, self.eps)

    def distance(self, x: Tensor, other: Tensor) -> Tensor:
        changed = changed_pixels(x, other)
        h, w = changed.shape[1:]
        if self.norm == "mask":
            return changed.flatten(1).sum(1).double() / (h * w)
        side = torch.maximum(_span(changed.any(2)), _span(changed.any(1)))
        return (side.clamp(max=h) * side.clamp(max=w)).double() / (h * w)

    def count(self, places: int) -> int:
        """How many of so many pixels may change at once."""
        count = round(self.radius * places)
        return next(n for n in range(min(count + 1, places), -1, -1) if n / places <= self.radius)

    def window(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the largest window of a patch; (0, 0) where not even one pixel is allowed."""
        sides = range(max(height, width), 0, -1)
        allowed = ((min(side, height), min(side, width)) for side in sides)
        return next((size for size in allowed if size[0] * size[1] / (height * width) <= self.radius), (0, 0))

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(x, self.box.lower), torch.full_like(x, self.box.upper)

    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """`other` where it is allowed, else x: which pixels are free is the attack's to keep to."""

        def project(other: Tensor) -> Tensor:
            return torch.where(per_sample(self.contains(x, other), x), other, x)

        return project

    def project(self, x: Tensor, other: Tensor) -> Tensor:
        return self.projection(x)(other)

    def at(self, eps: float | None) -> FreePixels:
        return FreePixels(self.norm, eps, self.box)


def _span(changed: Tensor) -> Tensor:
    """From the first to the last True of each row (n, k), inclusive: (n,), 0 where there is none."""
    place = torch.arange(changed.shape[1], device=changed.device)
    first = torch.where(changed, place, changed.shape[1]).amin(1)
    last = torch.where(changed, place, -1).amax(1)
    return (last - first + 1).clamp(min=0)
