"""Counter-based random numbers: a sample's draws depend on the seed and its index, never on its batch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014), on int64 with wrap-around."""
    value = (value ^ _shift(value, 30)) * _FIRST
    value = (value ^ _shift(value, 27)) * _SECOND
    return value ^ _shift(value, 31)


@dataclass(frozen=True)
class Randomness:
    """A seed from which every sample draws its own stream.

    Two samples in one batch, or the same sample in two batches of different size, get
    draws that depend only on (seed, index, shape). `child` opens an independent stream
    for another purpose, so that adding a draw in one place never shifts another.
    """

    seed: int

    def child(self, *path: str | int) -> Randomness:
        """An independent stream named by `path`."""
        text = "/".join([str(self.seed), *map(str, path)])
        return Randomness(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))

    def generator(self) -> torch.Generator:
        """A torch generator on this seed, for draws that belong to no sample (training)."""
        return torch.Generator().manual_seed(self.seed & ((1 << 63) - 1))

    def uniform(self, index: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Uniform float32 draws in [0, 1), shape (n, *shape), one stream per entry of `index` (n,)."""
        count = int(torch.Size(shape).numel())
        counter = torch.arange(1, count + 1, device=index.device, dtype=torch.int64)
        key = _mix(index.to(torch.int64) * _GAMMA + _signed(self.seed))
        bits = _mix(_mix(key[:, None] + counter * _GAMMA) ^ key[:, None])
        return (_shift(bits, 40).to(torch.float32) / (1 << 24)).reshape(len(index), *shape)

    def normal(self, index: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Standard normal float32 draws of shape (n, *shape) (Box and Muller)."""
        first = self.child("radius").uniform(index, shape)
        second = self.child("angle").uniform(index, shape)
        return torch.sqrt(-2 * torch.log1p(-first)) * torch.cos(2 * torch.pi * second)

    def sign(self, index: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Draws from {-1, +1}, shape (n, *shape)."""
        return torch.where(self.uniform(index, shape) < 0.5, -1.0, 1.0)
