"""Diverse inputs: momentum on gradients taken through random resizes and padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.base import register_attack
from attacks.directions import Direction, Iterate
from attacks.images import as_images
from attacks.momentum import Momentum
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample


def resizing(side: int, size: Tensor, offset: Tensor, like: Tensor) -> Tensor:
    """Matrices (k, side, side) that shrink lines of `side` pixels to `size` (k,) and move them by `offset`.

    Bilinear, with pixels as squares and the outermost ones continued; zero beyond the shrunk line.
    """
    pixel = torch.arange(side, device=like.device, dtype=like.dtype)
    place, size = pixel - offset[:, None].to(like), size[:, None].to(like)
    source = ((place + 0.5) * side / size - 0.5).clamp(0, side - 1)
    weight = (1 - (source[:, :, None] - pixel).abs()).clamp(min=0)
    return weight * ((place >= 0) & (place < size))[:, :, None]


@dataclass(frozen=True)
class Diverse:
    """The gradient at T(z), pulled back to z; T is drawn anew for each sample and step."""

    randomness: Randomness
    probability: float
    resize_rate: float

    @property
    def elsewhere(self) -> bool:
        return self.probability > 0

    def __call__(self, at: Iterate) -> Tensor:
        if not self.elsewhere:
            return at.gradient
        stream, black = self.randomness.child("step", at.step), at.model.box.lower
        down, across = self._matrices(as_images(at.z), at.index, stream)
        moved = per_sample(stream.child("moved").uniform(at.index, ())[:, None] < self.probability, at.z)
        seen = (down @ (as_images(at.z) - black) @ across.mT + black).reshape(at.z.shape)
        slope = at.gradient_at(at.model.box.clamp(torch.where(moved, seen, at.z)))
        back = (down.mT @ as_images(slope) @ across).reshape(at.z.shape)
        return torch.where(moved, back, slope)

    def _matrices(self, image: Tensor, index: Tensor, stream: Randomness) -> list[Tensor]:
        """The maps of the columns and of the rows of image (k, c, h, w): (k, 1, side, side) each."""
        draws, made = stream.uniform(index, (3,)), []
        for side, place in zip(image.shape[2:], draws[:, 1:].unbind(1), strict=True):
            least = max(1, int(self.resize_rate * side))
            size = least + (draws[:, 0] * (side - least + 1)).floor()
            offset = (place * (side - size + 1)).floor()
            made.append(resizing(side, size, offset, image)[:, None])
        return made


@register_attack("diverse-inputs")
@dataclass(frozen=True, kw_only=True)
class DiverseInputs(Momentum):
    """Momentum on gradients through random resizes and padding, so that points transfer better (DI2-FGSM).

    g_{t+1} = decay g_t + G / ||G||_1 with G = grad J(T(x_t), y) in x_t, then as `momentum`. T is drawn for
    each sample and step: with probability `probability` it shrinks the image to a size between
    `resize_rate` of its side and all of it and pads it to the old size at a random place, else it is the
    identity. The paper enlarges images, from 299 to up to 330 pixels; here every network gets images of its
    own size. Padding is black, the box's lower end, as everywhere in the suite. A vector is one row of
    pixels. The verdict is on x_t itself, for one more forward pass a step. `probability` = 0 is momentum.
    Source: Xie et al. 2019, 1803.06978, section 3, with momentum (M-DI2-FGSM).
    """

    paper = "Xie et al. 2019, 1803.06978"

    probability: float = 0.5
    resize_rate: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.probability <= 1 and 0 < self.resize_rate <= 1):
            raise UserError(
                f"{self.name} needs 0 <= probability <= 1 and 0 < resize_rate <= 1, "
                f"not {self.probability} and {self.resize_rate}"
            )

    def direction(self, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Direction:
        return Diverse(randomness, self.probability, self.resize_rate)
