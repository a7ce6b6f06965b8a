"""ACG: projected ascent along conjugate directions, with APGD's rule for the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attacks.apgd import APGD, Ascent
from attacks.base import register_attack
from models.threat import ThreatModel, per_sample

# Of a sum that cancels, what is left below this share of a part is rounding.
ROUNDING = 1e-5


def conjugate(gradient: Tensor, past: Tensor, way: Tensor) -> Tensor:
    """s = g + max(beta, 0) `way` (k, ...), its largest entry 1; `past` is the gradient before g.

    beta = -g . y / (way . y), y = past - g, so that s . y = 0 where beta >= 0. Just g where it is no number,
    and where the sum cancels but for rounding, as it does along one line.
    """
    g, before, old = (part.double().flatten(1) for part in (gradient, past, way))
    # Of length 1 no product underflows, and any multiple of a direction is as good.
    size = g.abs().amax(1, keepdim=True).clamp(min=1e-300)
    g, y = g / size, (before - g) / size
    beta = -(g * y).sum(1, keepdim=True) / (old * y).sum(1, keepdim=True)
    added = torch.where(beta.isfinite(), beta.clamp(min=0), 0.0) * old
    left = (g + added).abs().amax(1, keepdim=True)
    cancels = left <= ROUNDING * added.abs().amax(1, keepdim=True)
    return torch.where(cancels, g, (g + added) / left.clamp(min=1e-300)).to(gradient).reshape(gradient.shape)


@dataclass
class Conjugate(Ascent):
    """An ascent that keeps its last gradient and direction, and those that led to its best point."""

    past: Tensor = field(init=False)
    way: Tensor = field(init=False)
    past_best: Tensor = field(init=False)
    way_best: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.past, self.way, self.past_best, self.way_best = (torch.zeros_like(self.z) for _ in range(4))

    def see(self, value: Tensor, gradient: Tensor) -> None:
        better = per_sample(value > self.highest, self.z)
        self.past_best = torch.where(better, self.past, self.past_best)
        self.way_best = torch.where(better, self.way, self.way_best)
        super().see(value, gradient)

    def restart(self, where: Tensor, gradient: Tensor) -> Tensor:
        shaped = per_sample(where, self.z)
        self.past = torch.where(shaped, self.past_best, self.past)
        self.way = torch.where(shaped, self.way_best, self.way)
        return super().restart(where, gradient)

    def move(
        self, threat: ThreatModel, project: Callable[[Tensor], Tensor], gradient: Tensor, heavy: bool
    ) -> None:
        """One projected step along the conjugate direction, without momentum."""
        self.past, self.way = gradient, conjugate(gradient, self.past, self.way)
        goal = project(self.z + per_sample(self.size, self.z) * threat.steepest(self.way))
        self.before, self.z = self.z, goal


@register_attack("acg")
@dataclass(frozen=True, kw_only=True)
class ConjugateGradient(APGD):
    """Projected ascent along conjugate directions, which wander farther, with APGD's rule for the step.

    x_{t+1} = Proj(x_t + a_t steepest(s_t)),  s_t = grad J(x_t) + beta_t s_{t-1},  s_0 = grad J(x_0), with
    beta_t = -grad J(x_t) . y / (s_{t-1} . y), y = grad J(x_{t-1}) - grad J(x_t) (Hestenes and Stiefel), and 0
    where that is negative, as in the authors' settings: otherwise fewer samples fall than to `apgd`. Steps,
    checkpoints, restarts, losses and targets are those of `apgd`; a sample whose step is halved goes on from
    its best point with the gradient and direction that led there. The first run starts at random like the
    others, not in the middle of the ball, which broke no more. Published for linf; l2 takes s_t / ||s_t||_2.
    Source: Yamamura et al. 2022, 2206.09628, algorithm 1.
    """

    paper = "Yamamura et al. 2022, 2206.09628"
    norms = ("linf", "l2")
    kind = Conjugate

    loss: str = "margin"
