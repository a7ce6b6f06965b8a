"""Rotations and translations of pictures, as a warp and as a threat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.enclosure import Enclosure
from models.norms import POSES
from models.pose_enclosure import enclose_warp
from models.threat import Box, per_sample
from models.transformation import Transformation, need_images


def warp(x: Tensor, angle: Tensor, shift: Tensor, scale: Tensor, box: Box) -> Tensor:
    """Images x (k, c, h, w) turned by `angle` degrees, enlarged by `scale` (k,) and moved by `shift` (k, 2).

    All about the image's centre, counter-clockwise, then down and to the right, in pixels; bilinear, in one
    interpolation. What lies outside the picture is black: box.lower. The identity is exact.
    """
    h, w = x.shape[2:]
    radians = torch.deg2rad(angle)[:, None, None]
    cos, sin = torch.cos(radians), torch.sin(radians)
    rows = torch.arange(h, device=x.device, dtype=x.dtype) - (h - 1) / 2
    columns = torch.arange(w, device=x.device, dtype=x.dtype) - (w - 1) / 2
    # Where each pixel of the result comes from: the inverse motion, in pixels from the centre.
    down = (rows[None, :, None] - shift[:, 0, None, None]) / scale[:, None, None]
    right = (columns[None, None, :] - shift[:, 1, None, None]) / scale[:, None, None]
    source = torch.stack([(cos * right - sin * down) * 2 / w, (sin * right + cos * down) * 2 / h], dim=3)
    moved = functional.grid_sample(x - box.lower, source, align_corners=False) + box.lower
    still = (angle == 0) & (shift == 0).all(1) & (scale == 1)
    return torch.where(per_sample(still, x), x, box.clamp(moved))


@dataclass(frozen=True)
class Poses:
    """The allowed moves: up to `rotation` degrees and the share `translation` of a side, each way.

    A pose (k, 3) is (angle, down, right) in parts of these limits, [-1, 1] each, (0, 0, 0) the identity.
    view = (h, w) shows the network the centre of the moved image, for images with a border to spare: no
    black then moves in. Without it what moves in is black (box.lower).
    """

    rotation: float = 30.0
    translation: float = 0.1
    view: tuple[int, int] | None = None

    def apply(self, x: Tensor, pose: Tensor, box: Box) -> Tensor:
        """The images x (k, c, h, w), each in its own pose, as the network sees them."""
        need_images(x, "rotations and translations")
        sides = torch.tensor(x.shape[2:], device=x.device, dtype=x.dtype)
        pose = pose.to(x)
        moved = warp(
            x,
            self.rotation * pose[:, 0],
            self.translation * sides * pose[:, 1:],
            torch.ones_like(pose[:, 0]),
            box,
        )
        if self.view is None:
            return moved
        top, left = ((side - seen) // 2 for side, seen in zip(x.shape[2:], self.view, strict=True))
        return moved[:, :, top : top + self.view[0], left : left + self.view[1]]

    def grid(self, angles: int, shifts: int) -> Tensor:
        """angles x shifts x shifts poses (g, 3) at equal distances, the largest moves first.

        A limit of 0 takes one value.
        """
        angles, shifts = angles if self.rotation else 1, shifts if self.translation else 1
        turn, move = ((2 * torch.arange(n).double() - n + 1) / max(n - 1, 1) for n in (angles, shifts))
        poses = torch.cartesian_prod(turn, move, move)
        return poses[poses.square().sum(1).argsort(stable=True, descending=True)]


@dataclass(frozen=True)
class Spatial(Transformation):
    """Rotations and translations of each picture on a black canvas, eps in units of the norm's limits.

    "spatial": (30 degrees, 10 % of a side) at eps = 1, the limits of Engstrom et al. 2019, 1712.02779;
    "rotation": eps degrees; "translation": eps is a share of a side. A move (angle, down, right) is in the
    same units, and its size is the largest of the three. Inputs are images (n, c, h, w).
    """

    def parameters(self, x: Tensor) -> int:
        return 3

    @property
    def unit(self) -> Poses:
        """The poses at eps = 1."""
        return Poses(*POSES[self.norm])

    @property
    def poses(self) -> Poses:
        """The allowed poses."""
        rotation, translation = POSES[self.norm]
        return Poses(self.radius * rotation, self.radius * translation)

    def size(self, move: Tensor) -> Tensor:
        return move.double().abs().amax(1)

    def carry_out(self, x: Tensor, move: Tensor, index: Tensor) -> Tensor:
        return self.unit.apply(x, move, self.box)

    def limits(self) -> Tensor:
        rotation, translation = POSES[self.norm]
        return self.radius * torch.tensor([rotation, translation, translation], dtype=torch.float64).sign()

    def enclose(self, x: Tensor, low: Tensor, high: Tensor) -> Enclosure:
        need_images(x, "rotations and translations")
        rotation, translation = POSES[self.norm]
        units = torch.tensor([rotation, *(translation * side for side in x.shape[2:])], dtype=torch.float64)
        return enclose_warp(x, units.to(x.device) * low, units.to(x.device) * high, self.box)
