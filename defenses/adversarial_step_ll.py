"""Adversarial training on single steps towards the least likely class."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from attacks.losses import cross_entropy, least_likely
from attacks.steps import ascend
from defenses.base import Defense, check_radius, check_share, register_defense
from models.architecture import Architecture
from models.base import Batch, frozen
from models.randomness import Randomness
from models.recipe import Recipe
from models.threat import ThreatModel


@register_defense("adversarial-step-ll")
@dataclass(frozen=True, kw_only=True)
class AdversarialStepLL(Defense):
    """Trains on clean images and on single steps towards their least likely class, half and half.

    x' = x - eps sign grad_x L(f(x), y_LL), y_LL the class of smallest logit: the label takes no part in the
    step, so it cannot leak. Like every single-step training it may learn to hide its gradient.
    Source: Kurakin, Goodfellow, Bengio 2017, 1611.01236, sections 2 and 3.
    """

    paper = "Kurakin, Goodfellow, Bengio 2017, 1611.01236"

    eps: float = 0.3
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_radius(self.name, self.eps)
        check_share(self.name, alpha=self.alpha)

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        clean = network(batch.x)
        towards = least_likely(clean.detach())
        with frozen(network):
            x_adv = ascend(
                lambda x: -cross_entropy(network(x), towards),
                batch.x,
                batch.x,
                ThreatModel("linf", self.eps),
                steps=1,
                step_size=self.eps,
            )
        adversarial = functional.cross_entropy(network(x_adv), batch.y)
        return self.alpha * functional.cross_entropy(clean, batch.y) + (1 - self.alpha) * adversarial

    def recipe(self, architecture: Architecture) -> Recipe:
        return Recipe(epochs=20, batch_size=128, learning_rate=1e-3)
