"""One perturbation for all inputs by stochastic ascent on minibatches, in a fraction of DeepFool's passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.losses import cross_entropy
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel, per_sample, vector_norm

ANYWHERE = Box(-torch.inf, torch.inf)


@register_attack("universal-sgd")
@dataclass(frozen=True, kw_only=True)
class UniversalSGD(Attack):
    """One v with norm <= eps, fitted by steepest ascent on the clipped loss of one minibatch after another.

    v <- Proj(v + a steepest(mean_B g / sqrt(||g||_2))), g the gradient of min(J(s z(x + v), k(x)), `clip`)
    and k(x) the predicted label: the clip keeps inputs that are fooled for good from ruling the sum; its 3
    nats suit ten classes. The factor s goes from where logits have the standard deviation `spread` to 1. The
    paper's loss (s = 1, g undivided) is flat where the network is sure, so that the few images near a
    boundary choose the direction; most networks are fooled less by it. a falls from `relative_step` eps to
    zero on half a cosine over `passes` passes through the images, which are never scored. steepest is the
    sign for linf, the unit gradient for l2. The rate is not measured while fitting, so that all passes go
    into v. v is added to every input; the sum is projected on ball and box.
    Source: Shafahi, Najibi, Xu, Dickerson, Davis, Goldstein 2018, 1811.11304, algorithm 1 and section 4.
    """

    paper = "Shafahi et al. 2018, 1811.11304"
    norms = ("linf", "l2")
    fitted = True

    passes: int = 8
    minibatch: int = 32
    relative_step: float = 0.2
    clip: float = 3.0
    spread: float = 2.0

    def __post_init__(self) -> None:
        if self.minibatch < 1 or min(self.clip, self.relative_step, self.spread) <= 0:
            raise UserError(
                "universal-sgd needs minibatch >= 1 and clip, relative_step and spread > 0, "
                f"not {self.minibatch}, {self.clip}, {self.relative_step} and {self.spread}"
            )

    def fit(self, model: GradientAccess, aside: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        """v (1, ...) with ||v|| <= eps."""
        x, place = aside.x, torch.arange(len(aside))
        y = torch.cat([model.logits(part.x, None).argmax(1) for part in aside.split(256)])
        origin = torch.zeros_like(x[:1])
        project = ThreatModel(threat.norm, threat.eps, ANYWHERE).projection(origin)
        v, step, steps = origin, 0, self.passes * -(-len(aside) // self.minibatch)
        for sweep in range(self.passes):
            order = randomness.child("order", sweep).uniform(place, (1,))[:, 0].argsort().to(x.device)
            for rows in order.split(self.minibatch):
                gradient = self._gradient(model, threat.box.clamp(x[rows] + v), y[rows], step / steps)
                rate = self.relative_step * (1 + math.cos(math.pi * step / steps)) / 2
                v, step = project(v + rate * threat.radius * threat.steepest(gradient)), step + 1
        return v

    def _gradient(self, model: GradientAccess, z: Tensor, y: Tensor, progress: float) -> Tensor:
        """The minibatch's mean direction (1, ...) when `progress` of the steps, 0 to 1, are done."""

        def values(logits: Tensor) -> Tensor:
            deviation = logits.detach().std(1).mean().clamp(min=1e-12)
            scale = progress + (1 - progress) * self.spread / deviation
            return cross_entropy(scale * logits, y).clamp(max=self.clip)

        _, _, gradient = model.gradient(z, None, values)
        length = vector_norm(gradient, "l2").clamp(min=1e-30)
        return (gradient / per_sample(length.sqrt(), gradient)).mean(0, keepdim=True)

    def artifacts(self, fitted: Tensor | None) -> dict[str, Tensor]:
        """The perturbation itself, (1, ...)."""
        return {} if fitted is None else {"perturbation": fitted}

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: Tensor
    ) -> Tensor:
        return threat.project(batch.x, batch.x + fitted)
