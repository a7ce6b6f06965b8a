"""Noise: Gaussian, shot, impulse and speckle."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.corruptions.base import family
from models.randomness import Randomness


def poisson(rate: Tensor, most: float, keys: Tensor, randomness: Randomness) -> Tensor:
    """Poisson draws of the given rates (n, ...) <= most, by inversion of the distribution function."""
    draw = randomness.uniform(keys, rate.shape[1:]).double().to(rate.device)
    mass = torch.exp(-rate.double())
    below, count = mass.clone(), torch.zeros_like(rate)
    for step in range(1, math.ceil(most + 10 * math.sqrt(most) + 10)):
        count += draw > below
        mass = mass * rate.double() / step
        below += mass
    return count


@family("gaussian-noise")
def gaussian_noise(x: Tensor, severity: int, keys: Tensor, randomness: Randomness) -> Tensor:
    """x + c N(0, 1)."""
    width = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return x + width * randomness.normal(keys, x.shape[1:]).to(x)


@family("shot-noise")
def shot_noise(x: Tensor, severity: int, keys: Tensor, randomness: Randomness) -> Tensor:
    """Poisson(c x) / c: c photons at full light."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return poisson(photons * x, photons, keys, randomness) / photons


@family("impulse-noise")
def impulse_noise(x: Tensor, severity: int, keys: Tensor, randomness: Randomness) -> Tensor:
    """The share c of the entries becomes black or white."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    draw = randomness.uniform(keys, x.shape[1:]).to(x)
    return torch.where(draw < share / 2, 0.0, torch.where(draw < share, 1.0, x))


@family("speckle-noise")
def speckle_noise(x: Tensor, severity: int, keys: Tensor, randomness: Randomness) -> Tensor:
    """x + c x N(0, 1)."""
    width = (0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1]
    return x + width * x * randomness.normal(keys, x.shape[1:]).to(x)
