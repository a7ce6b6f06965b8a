"""Virtual adversarial direction: where the network's output moves most, found without a label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.losses import clearly_wrong
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample


def divergence(clean: Tensor) -> Callable[[Tensor], Tensor]:
    """KL(softmax(clean) || softmax(z)) (n,) as a function of logits z, both (n, classes).

    In float64: near x it is a difference of what float32 holds to be the same.
    """
    before = clean.double().log_softmax(1)
    return lambda logits: (before.exp() * (before - logits.double().log_softmax(1))).sum(1)


def unit(direction: Tensor) -> Tensor:
    """Each sample's direction at l2 norm 1, however small it is; zero where it is zero."""
    flat = direction.double().flatten(1)
    flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=1e-300)
    return (flat / flat.norm(dim=1, keepdim=True).clamp(min=1.0)).to(direction).reshape(direction.shape)


@register_attack("virtual-adversarial")
@dataclass(frozen=True, kw_only=True)
class VirtualAdversarial(Attack):
    """Goes eps along the direction in which the output's divergence from the clean one curves most.

    d <- grad_r KL(p(x) || p(x + r)) / ||.||_2 at r = xi d, from a random unit vector d, `steps` times (the
    paper: once): power iteration on the Hessian of the divergence, which has neither value nor slope at x. No
    label is used. The divergence is as large on both sides to second order: x + eps d is asked about, then
    x - eps d, and the one with another prediction, else of larger divergence, is handed over, where the paper
    takes the first. xi is `width` box widths; the paper's 1e-6 drowns in the rounding of float32. Points
    are clipped to the box, which the paper leaves out, and what it blocks of the last step is spent on the
    other entries.
    Source: Miyato, Maeda, Koyama, Nakae, Ishii 2016, 1507.00677, algorithm 1.
    """

    paper = "Miyato et al. 2016, 1507.00677"
    norms = ("l2",)

    steps: int = 10
    width: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.width <= 0:
            raise UserError(
                f"virtual-adversarial needs steps >= 1 and width > 0, not {self.steps} and {self.width}"
            )

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        x, rows = batch.x, torch.arange(len(batch), device=batch.x.device)
        clean = model.logits(x, rows)
        away = unit(randomness.normal(batch.index, x.shape[1:]).to(x))
        for _ in range(self.steps):
            near = threat.box.clamp(x + self.width * threat.box.width * away)
            _, _, slope = model.gradient(near, rows, divergence(clean))
            still = per_sample((slope == 0).flatten(1).all(1), x)
            away = torch.where(still, away, unit(slope))
        best = threat.furthest(x, away)
        logits = model.logits(best, rows)
        value, fools = divergence(clean)(logits), clearly_wrong(logits, clean.argmax(1))
        rows = rows[~fools]
        if len(rows):
            other = threat.select(rows).furthest(x[rows], -away[rows])
            logits = model.logits(other, rows)
            fools = clearly_wrong(logits, clean[rows].argmax(1))
            better = fools | (divergence(clean[rows])(logits) > value[rows])
            best[rows[better]] = other[better]
        return best
