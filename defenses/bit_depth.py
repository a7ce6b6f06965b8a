"""Fewer grey levels: the cheapest way to squeeze an input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from defenses.inputs import InputDefense, StraightThrough, register_input_defense
from models.architecture import Architecture
from models.errors import UserError


class Rounded(nn.Module):
    """Rounds every entry of images in [0, 1] to one of `levels` values, evenly spaced from 0 to 1."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * (self.levels - 1)) / (self.levels - 1)


@register_input_defense("bit-depth")
@dataclass(frozen=True, kw_only=True)
class BitDepth(InputDefense):
    """Rounds every pixel to `bits` bits, so that small perturbations vanish, and with them the gradient.

    The vanished gradient is no robustness: adversaries are handed the identity in its place (BPDA).
    Raises UserError for bits outside 1..8.
    Source: Xu, Evans, Qi 2018, 1704.01155, section 2.1.
    """

    paper = "Xu, Evans, Qi 2018, 1704.01155"

    bits: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.bits <= 8:
            raise UserError(f"bit-depth needs bits between 1 and 8, not {self.bits}")

    def front(self, architecture: Architecture) -> nn.Module:
        return Rounded(2**self.bits)

    def surrogate(self, front: nn.Module) -> nn.Module:
        return StraightThrough(front)
