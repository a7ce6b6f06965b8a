"""Light and colour: fog, brightness, contrast and saturation."""

from __future__ import annotations

import torch
from torch import Tensor

from models.corruptions.base import family
from models.randomness import Randomness


def plasma(side: int, decay: float, keys: Tensor, randomness: Randomness) -> Tensor:
    """Height maps (n, side, side) in [0, 1] by the diamond-square algorithm; side is a power of two.

    Each level halves the distance of the points and divides their random part by `decay`.
    """
    field = torch.zeros(len(keys), side, side, device=keys.device)
    step, width = side, 100.0
    while step >= 2:
        half = step // 2
        shape = (side // step, side // step)

        def between(total: Tensor, part: str, step: int = step, width: float = width) -> Tensor:
            draw = 2 * randomness.child(part, step).uniform(keys, total.shape[1:]) - 1
            return total / 4 + width * width * draw

        corner = field[:, ::step, ::step]
        square = corner + corner.roll(-1, 1)
        square = square + square.roll(-1, 2)
        field[:, half::step, half::step] = between(square.reshape(-1, *shape), "square")
        middle, corner = field[:, half::step, half::step], field[:, ::step, ::step]
        across = middle + middle.roll(1, 1) + corner + corner.roll(-1, 2)
        along = middle + middle.roll(1, 2) + corner + corner.roll(-1, 1)
        field[:, ::step, half::step] = between(across, "across")
        field[:, half::step, ::step] = between(along, "along")
        step, width = half, width / decay
    low, high = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
    return (field - low) / (high - low)


@family("fog")
def fog(x: Tensor, severity: int, keys: Tensor, randomness: Randomness) -> Tensor:
    """(x + c plasma) max x / (max x + c)."""
    thickness, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    h, w = x.shape[2:]
    side = 2 ** max(1, (max(h, w) - 1).bit_length())
    cloud = plasma(side, decay, keys, randomness)[:, None, :h, :w].to(x)
    most = x.amax((1, 2, 3), keepdim=True)
    return (x + thickness * cloud) * most / (most + thickness)


@family("brightness")
def brightness(x: Tensor, severity: int, keys: Tensor, randomness: Randomness) -> Tensor:
    """The value of the HSV colour plus c; hue and saturation stay. One channel is its own value."""
    value = x.amax(1, keepdim=True)
    raised = (value + (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]).clamp(max=1)
    # Black has no hue: it becomes grey.
    return torch.where(value > 0, x * raised / value.clamp(min=1e-12), raised)


@family("contrast")
def contrast(x: Tensor, severity: int, keys: Tensor, randomness: Randomness) -> Tensor:
    """Each channel's distance from its mean, times c."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] + mean


@family("saturate", channels=3)
def saturate(x: Tensor, severity: int, keys: Tensor, randomness: Randomness) -> Tensor:
    """The saturation of the HSV colour times a plus b; hue and value stay. Grey has hue 0, red."""
    factor, offset = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))[severity - 1]
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    before = (value - least) / value.clamp(min=1e-12)
    after = (factor * before + offset).clamp(0, 1)
    coloured = value - (value - x) * after / before.clamp(min=1e-12)
    reddish = torch.cat([value, value * (1 - after), value * (1 - after)], 1)
    return torch.where(before > 0, coloured, reddish)
