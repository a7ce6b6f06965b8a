"""Total variation: the image that is flatter than the input, and yet near it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from defenses.inputs import Clamped, InputDefense, StraightThrough, register_input_defense
from models.architecture import Architecture


def _divergence(down: Tensor, across: Tensor) -> Tensor:
    """minus the adjoint of the forward differences: (n, c, h, w) of (n, c, h - 1, w) and (n, c, h, w - 1)."""
    rows = torch.zeros_like(down[..., :1, :])
    columns = torch.zeros_like(across[..., :1])
    return (torch.cat([down, rows], -2) - torch.cat([rows, down], -2)) + (
        torch.cat([across, columns], -1) - torch.cat([columns, across], -1)
    )


class Flattened(nn.Module):
    """argmin_u 1/2 ||u - x||^2 + weight TV(u) in each channel, TV the sum of |u_p - u_q| over neighbours.

    `steps` accelerated projected gradient steps on the dual, all of them differentiable.
    Source: Chambolle 2004, section 3 (the dual); Beck, Teboulle 2009, algorithm FGP.
    """

    def __init__(self, weight: float, steps: int) -> None:
        super().__init__()
        self.weight, self.steps = weight, steps

    def forward(self, x: Tensor) -> Tensor:
        down, across = torch.zeros_like(x[..., 1:, :]), torch.zeros_like(x[..., 1:])
        ahead, momentum = (down, across), 1.0
        for _ in range(self.steps):
            flat = x + _divergence(*ahead)
            # 1 / 8 is one over the squared norm of the forward differences, at most.
            fresh = (
                (ahead[0] + flat.diff(dim=-2) / 8).clamp(-self.weight, self.weight),
                (ahead[1] + flat.diff(dim=-1) / 8).clamp(-self.weight, self.weight),
            )
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            push = (momentum - 1) / following
            ahead = (fresh[0] + push * (fresh[0] - down), fresh[1] + push * (fresh[1] - across))
            (down, across), momentum = fresh, following
        return x + _divergence(down, across)


@register_input_defense("total-variation")
@dataclass(frozen=True, kw_only=True)
class TotalVariation(InputDefense):
    """Replaces each image by the one of least total variation near it.

    min_u 1/2 ||u - x||^2 + weight TV(u) in the anisotropic form, by `steps` steps that have a gradient:
    adversaries follow it, past the clamp to [0, 1] that ends it. No pixels are dropped at random, as Guo et
    al. do.
    Source: Rudin, Osher, Fatemi 1992; Guo, Rana, Cisse, van der Maaten 2018, 1711.00117.
    """

    paper = "Guo, Rana, Cisse, van der Maaten 2018, 1711.00117"

    weight: float = 0.1
    steps: int = 30

    def front(self, architecture: Architecture) -> nn.Module:
        return nn.Sequential(Flattened(self.weight, self.steps), Clamped())

    def surrogate(self, front: nn.Module) -> nn.Module:
        assert isinstance(front, nn.Sequential)
        return nn.Sequential(front[0], StraightThrough(front[1]))

    def refuses(self, architecture: Architecture) -> str | None:
        return None if len(architecture.input_shape) == 3 else "its inputs are no images"
