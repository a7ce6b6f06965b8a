"""What a corruption family is, and the registry of families.

Formulas and parameters are those of Hendrycks, Dietterich 2019, 1903.12261 (their ImageNet-C generator), made
for images of 224 x 224: every length in pixels is multiplied by the shorter side / 224 here, so that a
corruption looks alike at any size. Numbers therefore compare with each other, not with published CIFAR-10-C
or ImageNet-C columns. Frost, snow and spatter are left out: they need photographs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.randomness import Randomness
from models.registry import Registry

REFERENCE_SIDE = 224

Corrupt = Callable[[Tensor, int, Tensor, Randomness], Tensor]
"""(images (n, c, h, w) in [0, 1], severity 1 to 5, keys (n,) of their streams, randomness) -> as images."""


@dataclass(frozen=True)
class Family:
    """A corruption, and the number of channels that it needs (None: any)."""

    corrupt: Corrupt
    channels: int | None = None


FAMILIES: Registry[Family] = Registry("corruption family")


def family(name: str, channels: int | None = None) -> Callable[[Corrupt], Corrupt]:
    """Registers the decorated function under `name`."""

    def decorate(function: Corrupt) -> Corrupt:
        FAMILIES.add(name, Family(function, channels))
        return function

    return decorate


def pixels(x: Tensor) -> float:
    """What one pixel of an image of the reference size measures in x (n, c, h, w)."""
    return min(x.shape[2:]) / REFERENCE_SIDE


def sampled(x: Tensor, down: Tensor, right: Tensor, edges: str = "border") -> Tensor:
    """Images x (n, c, h, w) read at the pixels `down`, `right`, which expand to (n, h, w), bilinearly."""
    n, _, h, w = x.shape
    down, right = down.expand(n, h, w), right.expand(n, h, w)
    place = torch.stack([(2 * right + 1) / w - 1, (2 * down + 1) / h - 1], dim=3).to(x.dtype)
    return functional.grid_sample(x, place, padding_mode=edges, align_corners=False)


def places(x: Tensor) -> tuple[Tensor, Tensor]:
    """The row and the column of every pixel of x (n, c, h, w): (h, 1) and (1, w)."""
    h, w = x.shape[2:]
    return torch.arange(h, device=x.device)[:, None].to(x), torch.arange(w, device=x.device)[None].to(x)
