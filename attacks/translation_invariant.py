"""Translation invariance: momentum on gradients blurred by a Gaussian kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from attacks.base import register_attack
from attacks.directions import Direction, Iterate
from attacks.images import as_images
from attacks.momentum import Momentum
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel

# The paper's kernel has 15 pixels on images of 299. In proportion, one of 28 would get none; between the
# shipped networks 5 transfers best there.
PUBLISHED = 15 / 299
LEAST = 5


def gaussian(size: int, like: Tensor) -> Tensor:
    """Gaussian weights (size,) of sum 1 and deviation k / sqrt(3), for a reach of k pixels to both sides."""
    reach = size // 2
    offset = torch.arange(-reach, reach + 1, device=like.device, dtype=like.dtype)
    weight = torch.exp(-1.5 * (offset / max(1, reach)) ** 2)
    return weight / weight.sum()


def relative(side: int) -> int:
    """The odd kernel for images of `side` pixels on the shorter side: never more than these."""
    published = 2 * round((PUBLISHED * side - 1) / 2) + 1
    return min(max(LEAST, published), 2 * ((side - 1) // 2) + 1)


@dataclass(frozen=True)
class Blurred:
    """The gradient at the iterate under a Gaussian kernel of `size` pixels a side; 0 for the relative one."""

    size: int
    elsewhere = False

    def __call__(self, at: Iterate) -> Tensor:
        image = as_images(at.gradient)
        size = self.size or relative(min(image.shape[2:]))
        if size == 1:
            return at.gradient
        taps, planes = gaussian(size, image), image.flatten(0, 1)[:, None]
        for kernel in (taps[:, None], taps[None]):
            planes = functional.conv2d(planes, kernel[None, None], padding="same")
        return planes.reshape(at.z.shape)


@register_attack("translation-invariant")
@dataclass(frozen=True, kw_only=True)
class TranslationInvariant(Momentum):
    """Momentum on gradients blurred by a Gaussian kernel, so that points transfer better (TI-FGSM).

    g_{t+1} = decay g_t + G / ||G||_1 with G = W * grad J(x_t, y), then as `momentum`: to first order G is
    the gradient of the loss summed over shifted copies of x_t with the weights W, zero beyond the edges.
    W_ij ~ exp(-(i^2 + j^2) / (2 s^2)), s = k / sqrt(3) for |i|, |j| <= k, of sum 1 (the authors' code has s
    = k / 3). `kernel` = 2 k + 1 pixels; 0 takes the paper's 15 of 299 in proportion to the shorter side,
    but at least 5 and at most that side; 1 is momentum, and so is what 0 takes for a vector.
    Source: Dong, Pang, Su, Zhu 2019, 1904.02884, section 3, with momentum (TI-MI-FGSM).
    """

    paper = "Dong, Pang, Su, Zhu 2019, 1904.02884"

    kernel: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel < 0 or (self.kernel and self.kernel % 2 == 0):
            raise UserError(f"{self.name} needs an odd kernel, or 0 to fit the image, not {self.kernel}")

    def direction(self, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Direction:
        return Blurred(self.kernel)
