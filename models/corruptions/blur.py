"""Blurs: Gaussian, defocus, motion and zoom."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from models.corruptions.base import family, pixels, places, sampled
from models.randomness import Randomness

SUBPIXELS = 9


def convolved(x: Tensor, kernel: Tensor) -> Tensor:
    """Each channel of x (n, c, h, w) under `kernel` (odd, odd); edges are repeated."""
    n, channels, h, w = x.shape
    up, left = (side // 2 for side in kernel.shape)
    padded = functional.pad(x, (left, left, up, up), mode="replicate")
    flat = padded.reshape(n * channels, 1, h + 2 * up, w + 2 * left)
    return functional.conv2d(flat, kernel[None, None].to(x)).reshape(x.shape)


@family("gaussian-blur")
def gaussian_blur(x: Tensor, severity: int, keys: Tensor, randomness: Randomness) -> Tensor:
    """A Gaussian of standard deviation c, cut off at 4 of them."""
    width = (1, 2, 3, 4, 6)[severity - 1] * pixels(x)
    reach = math.ceil(4 * width)
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (offset / width).square())
    taps = taps / taps.sum()
    return convolved(convolved(x, taps[:, None]), taps[None])


@family("defocus-blur")
def defocus_blur(x: Tensor, severity: int, keys: Tensor, randomness: Randomness) -> Tensor:
    """The mean over a disk of radius c; each pixel counts by its part inside, in place of a smoothed edge."""
    radius = (3, 4, 6, 8, 10)[severity - 1] * pixels(x)
    reach = math.ceil(radius)
    fine = torch.arange(-(reach + 0.5) + 0.5 / SUBPIXELS, reach + 0.5, 1 / SUBPIXELS, dtype=torch.float64)
    inside = (fine[:, None].square() + fine.square() <= radius**2).double()
    kernel = functional.avg_pool2d(inside[None, None], SUBPIXELS)[0, 0]
    return convolved(x, kernel / kernel.sum())


@family("motion-blur")
def motion_blur(x: Tensor, severity: int, keys: Tensor, randomness: Randomness) -> Tensor:
    """A one-sided Gaussian trail of radius r and width s at an angle in +-45 degrees, as in ImageMagick."""
    radius, width = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    angle = torch.deg2rad(90 * randomness.uniform(keys, (1,)).to(x)[:, 0] - 45)[:, None, None]
    rows, columns = places(x)
    steps = range(2 * radius + 1)
    weights = [math.exp(-0.5 * (step / width) ** 2) for step in steps]
    total = torch.zeros_like(x)
    for step, weight in zip(steps, weights, strict=True):
        away = step * pixels(x)
        total += weight * sampled(x, rows + away * torch.sin(angle), columns + away * torch.cos(angle))
    return total / sum(weights)


@family("zoom-blur")
def zoom_blur(x: Tensor, severity: int, keys: Tensor, randomness: Randomness) -> Tensor:
    """The mean of the image and its enlargements by 1 to c."""
    last, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    rows, columns = places(x)
    middle = [(side - 1) / 2 for side in x.shape[2:]]
    total, count = x.clone(), math.ceil((last - 1) / step - 1e-9)
    for place in range(count):
        factor = 1 + place * step
        down = (rows - middle[0]) / factor + middle[0]
        total += sampled(x, down, (columns - middle[1]) / factor + middle[1])
    return total / (count + 1)
