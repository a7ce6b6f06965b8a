"""Sets in which few entries or pixels move, anywhere in the box: what a linear function gains over them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.pixels import FreePixels
from models.threat import ThreatModel

NORMS = ("l0", "mask", "patch")


@dataclass(frozen=True)
class Few:
    """At most `count` entries ("l0") or pixels ("mask") move, or those of one `window` of pixels ("patch")."""

    norm: str
    count: int
    window: tuple[int, int]

    @staticmethod
    def of(threat: ThreatModel, shape: torch.Size) -> Few | None:
        """What `threat` lets move of inputs of this shape (c, h, w) or (d,); None where it is no such set."""
        if threat.norm not in NORMS:
            return None
        if not isinstance(threat, FreePixels):
            return Few("l0", int(min(threat.radius, shape.numel())), (0, 0))
        height, width = (shape[1], shape[2]) if len(shape) == 3 else (1, shape.numel())
        return Few(threat.norm, threat.count(height * width), threat.window(height, width))

    def most(self, gains: Tensor) -> Tensor:
        """The largest sum (n, k) of what may move at once, of gains (n, k, c, h, w) or (n, k, d), all >= 0."""
        if self.norm == "l0":
            return self._largest(gains)
        pixels = gains.sum(2) if gains.dim() == 5 else gains.flatten(2)[:, :, None]
        if self.norm == "mask":
            return self._largest(pixels)
        height, width = self.window
        if not height or not width:
            return pixels.new_zeros(pixels.shape[:2])
        # Windows may reach beyond the picture, or beyond the part of it that a row sees.
        padded = F.pad(pixels, (width - 1, width - 1, height - 1, height - 1))
        return height * width * F.avg_pool2d(padded, (height, width), 1).flatten(2).amax(2)

    def _largest(self, gains: Tensor) -> Tensor:
        flat = gains.flatten(2)
        return flat.topk(min(self.count, flat.shape[2]), dim=2).values.sum(2)
