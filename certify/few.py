"""Sets in which few entries or pixels move, anywhere in the box: what a linear function gains over them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.threat import ThreatModel

ANYWHERE = ("l0", "mask")
"""Threats that let entries or pixels move wherever they are; a patch keeps to a window."""


@dataclass(frozen=True)
class Few:
    """At most `count` entries ("l0") or pixels ("mask") move, all channels of a pixel at once."""

    norm: str
    count: int

    @staticmethod
    def of(threat: ThreatModel, shape: torch.Size) -> Few | None:
        """What `threat` lets move of inputs of this shape (c, h, w) or (d,); None where it is no such set."""
        if threat.norm not in ANYWHERE:
            return None
        pixels = threat.norm == "mask" and len(shape) == 3
        return Few(threat.norm, threat.count(math.prod(shape[1:] if pixels else shape)))

    def most(self, gains: Tensor) -> Tensor:
        """The largest sum (n, k) of what may move at once of gains >= 0, (n, k, c, h, w) or (n, k, d)."""
        places = gains.sum(2) if self.norm == "mask" and gains.dim() == 5 else gains
        flat = places.flatten(2)
        return flat.topk(min(self.count, flat.shape[2]), dim=2).values.sum(2)
