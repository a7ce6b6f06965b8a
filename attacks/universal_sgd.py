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
from models.threat import Box, ThreatModel

ANYWHERE = Box(-torch.inf, torch.inf)


@register_attack("universal-sgd")
@dataclass(frozen=True, kw_only=True)
class UniversalSGD(Attack):
    """One v with norm <= eps, fitted by steepest ascent on the clipped loss of one minibatch after another.

    v <- Proj(v + a steepest(grad_v mean_B min(J(x + v, k(x)), `clip`))), k(x) the predicted label: the
    clip keeps inputs that are fooled for good from ruling the sum; its 3 nats suit ten classes. a falls
    from `relative_step` eps to zero on half a cosine over `passes` passes through the images, which are
    never scored. steepest is the sign for linf, the unit gradient for l2. The rate is not measured while
    fitting, so that all passes go into v. v is added to every input; the sum is projected on ball and
    box.
    Source: Shafahi, Najibi, Xu, Dickerson, Davis, Goldstein 2018, 1811.11304, algorithm 1 and section 4.
    """

    paper = "Shafahi et al. 2018, 1811.11304"
    norms = ("linf", "l2")
    fitted = True

    passes: int = 8
    minibatch: int = 32
    relative_step: float = 0.2
    clip: float = 3.0

    def __post_init__(self) -> None:
        if self.minibatch < 1 or self.clip <= 0 or self.relative_step <= 0:
            raise UserError(
                "universal-sgd needs minibatch >= 1, clip > 0 and relative_step > 0, "
                f"not {self.minibatch}, {self.clip} and {self.relative_step}"
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
                gradient = self._gradient(model, threat.box.clamp(x[rows] + v), y[rows])
                rate = self.relative_step * (1 + math.cos(math.pi * step / steps)) / 2
                v, step = project(v + rate * threat.radius * threat.steepest(gradient)), step + 1
        return v

    def _gradient(self, model: GradientAccess, z: Tensor, y: Tensor) -> Tensor:
        """The gradient (1, ...) of the minibatch's mean clipped loss."""
        _, _, gradient = model.gradient(z, None, lambda logits: cross_entropy(logits, y).clamp(max=self.clip))
        return gradient.mean(0, keepdim=True)

    def artifacts(self, fitted: Tensor | None) -> dict[str, Tensor]:
        """The perturbation itself, (1, ...)."""
        return {} if fitted is None else {"perturbation": fitted}

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: Tensor
    ) -> Tensor:
        return threat.project(batch.x, batch.x + fitted)
