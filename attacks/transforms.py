"""Differentiable transforms of images: pose, brightness, blur and noise, alone or one after another.

Images are (n, c, h, w); a vector is one row of pixels. Every draw is per sample, so that the result does
not depend on the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from attacks.images import as_images
from models import poses
from models.randomness import Randomness
from models.threat import Box, per_sample

BLUR_REACH = 3


class Transform(Protocol):
    """A random map of images (k, ...) in `box`, differentiable in the images.

    keys (k,) name the streams of `randomness`: the same key draws the same transform.
    """

    def __call__(self, x: Tensor, keys: Tensor, randomness: Randomness, box: Box) -> Tensor: ...


def warp(x: Tensor, angle: Tensor, shift: Tensor, scale: Tensor, box: Box) -> Tensor:
    """x (k, ...) turned, enlarged and moved as in `models.poses.warp`; a vector is one row of pixels."""
    return poses.warp(as_images(x), angle, shift, scale, box).reshape(x.shape)


def blurred(x: Tensor, width: Tensor) -> Tensor:
    """x (k, ...) under a Gaussian of standard deviation `width` (k,) >= 0 in pixels, cut off at 3 pixels."""
    image = as_images(x)
    k, channels, h, w = image.shape
    offset = torch.arange(-BLUR_REACH, BLUR_REACH + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offset / width.clamp(min=1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    edges = (BLUR_REACH,) * 4
    padded = functional.pad(image, edges, mode="replicate").reshape(1, k * channels, *(s + 6 for s in (h, w)))
    taps = kernel.repeat_interleave(channels, 0)
    once = functional.conv2d(padded, taps[:, None, :, None], groups=k * channels)
    return functional.conv2d(once, taps[:, None, None, :], groups=k * channels).reshape(x.shape)


def _between(low: float, high: float, draw: Tensor) -> Tensor:
    return low + (high - low) * draw


@dataclass(frozen=True)
class Pose:
    """Turns by up to `rotate` degrees, scales by 1 +- `scale`, shifts by up to the part `shift` of a side."""

    rotate: float = 0.0
    scale: float = 0.0
    shift: float = 0.0

    def __call__(self, x: Tensor, keys: Tensor, randomness: Randomness, box: Box) -> Tensor:
        draws = _between(-1, 1, randomness.child("pose").uniform(keys, (4,)).to(x))
        sides = torch.tensor(as_images(x).shape[2:], device=x.device, dtype=x.dtype)
        shift = self.shift * sides * draws[:, 2:]
        return warp(x, self.rotate * draws[:, 0], shift, 1 + self.scale * draws[:, 1], box)


@dataclass(frozen=True)
class Brightness:
    """Contrast times 1 +- `strength`, then a level of up to +- `strength` box widths on all pixels."""

    strength: float

    def __call__(self, x: Tensor, keys: Tensor, randomness: Randomness, box: Box) -> Tensor:
        draws = _between(-self.strength, self.strength, randomness.child("light").uniform(keys, (2,)).to(x))
        level = box.lower + per_sample(draws[:, 1], x) * box.width
        return box.clamp((x - box.lower) * per_sample(1 + draws[:, 0], x) + level)


@dataclass(frozen=True)
class Blur:
    """A Gaussian blur of up to `width` pixels."""

    width: float

    def __call__(self, x: Tensor, keys: Tensor, randomness: Randomness, box: Box) -> Tensor:
        return box.clamp(blurred(x, self.width * randomness.child("blur").uniform(keys, (1,))[:, 0].to(x)))


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of up to `width` box widths, each pixel its own."""

    width: float

    def __call__(self, x: Tensor, keys: Tensor, randomness: Randomness, box: Box) -> Tensor:
        width = self.width * box.width * randomness.child("width").uniform(keys, (1,))[:, 0].to(x)
        noise = randomness.child("noise").normal(keys, x.shape[1:]).to(x)
        return box.clamp(x + per_sample(width, x) * noise)


@dataclass(frozen=True)
class Compose:
    """Transforms one after another, each on draws of its own; none is the identity."""

    parts: tuple[Transform, ...]

    def __call__(self, x: Tensor, keys: Tensor, randomness: Randomness, box: Box) -> Tensor:
        for place, part in enumerate(self.parts):
            x = part(x, keys, randomness.child("part", place), box)
        return x
