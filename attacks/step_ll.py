"""One step towards the least likely class, which leaks no label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.losses import cross_entropy, least_likely
from models.base import Batch
from models.randomness import Randomness
from models.threat import ThreatModel


@register_attack("step-ll")
@dataclass(frozen=True, kw_only=True)
class StepLL(Attack):
    """One step of length eps that makes the least likely class likelier.

    x' = clip(x - eps sign(grad_x J(x, y_LL))), y_LL = argmin_j p(j | x), for linf; the steepest direction
    of -J for l2 and l1. The class is read off the same forward pass as the gradient. The true label
    takes no part, so a network trained on these examples cannot read it off them (label leaking).
    Success is judged as misclassification, into y_LL or any other class.
    Source: Kurakin, Goodfellow, Bengio 2017, 1611.01236, section 2.2.
    """

    paper = "Kurakin, Goodfellow, Bengio 2017, 1611.01236"
    norms = ("linf", "l2", "l1")

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        rows = torch.arange(len(batch), device=batch.x.device)
        _, _, gradient = model.gradient(
            batch.x, rows, lambda logits: -cross_entropy(logits, least_likely(logits))
        )
        return threat.project(batch.x, batch.x + threat.radius * threat.steepest(gradient))
