"""Flows: every pixel is read from a place of its own, as a warp and as a threat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.threat import Box
from models.transformation import Transformation, need_images

# Far above what rounding adds to the length of a vector, far below what anybody could see.
INSIDE = 1 - 1e-12


def displaced(x: Tensor, flow: Tensor, box: Box) -> Tensor:
    """Images x (k, c, h, w) read at `flow` (k, 2, h, w) pixels down and to the right of each pixel.

    Bilinear; beyond the picture its border goes on. Whole numbers of pixels are exact, and so is none.
    Derivatives in the flow at a whole number are those of the cell down and to the right.
    """
    h, w = x.shape[2:]
    flow = flow.double()
    down = (torch.arange(h, device=x.device)[:, None] + flow[:, 0]).clamp(0, h - 1)
    right = (torch.arange(w, device=x.device) + flow[:, 1]).clamp(0, w - 1)
    row, column = down.detach().floor().long(), right.detach().floor().long()
    low, far = (row + 1).clamp(max=h - 1), (column + 1).clamp(max=w - 1)
    share, part = (down - row).to(x)[:, None], (right - column).to(x)[:, None]

    def read(row: Tensor, column: Tensor) -> Tensor:
        place = (row * w + column).flatten(1)[:, None].expand(-1, x.shape[1], -1)
        return x.flatten(2).gather(2, place).reshape(x.shape)

    upper = (1 - part) * read(row, column) + part * read(row, far)
    lower = (1 - part) * read(low, column) + part * read(low, far)
    return box.clamp((1 - share) * upper + share * lower)


@dataclass(frozen=True)
class Flow(Transformation):
    """Every pixel of a picture is read from up to eps pixels away, each from its own place.

    A move is a vector field: how far down each pixel's source lies, row by row, then how far to the right.
    Its size is the length in pixels of its longest vector. Inputs are images (n, c, h, w).
    Source: Xiao et al. 2018, 1801.02612, eq. 1; the size is that of Alaifari, Alberti, Gauksson 2019,
    1804.07729. Both leave open what lies beyond the picture: here its border goes on.
    """

    def parameters(self, x: Tensor) -> int:
        need_images(x, "flows")
        return 2 * x.shape[2] * x.shape[3]

    def size(self, move: Tensor) -> Tensor:
        return _lengths(move).amax(1)

    def within(self, move: Tensor) -> Tensor:
        """The nearest moves of size at most eps: vectors that are too long keep their direction."""
        length = _lengths(move)
        scale = torch.where(length > self.radius, INSIDE * self.radius / length.clamp(min=1e-300), 1.0)
        return move * scale.repeat(1, 2)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The move of size 1 that gains most: each vector of `gradient` (n, 2 p) at length 1, or 0."""
        length = _lengths(gradient)
        return gradient / torch.where(length > 0, length, 1.0).repeat(1, 2)

    def carry_out(self, x: Tensor, move: Tensor, index: Tensor) -> Tensor:
        return displaced(x, move.reshape(len(x), 2, *x.shape[2:]), self.box)


def _lengths(move: Tensor) -> Tensor:
    """How long each vector of the moves (n, 2 p) is: (n, p) float64."""
    return move.double().unflatten(1, (2, -1)).norm(dim=1)
