"""Adversarial training on the fast gradient sign method."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from attacks.losses import cross_entropy
from attacks.steps import ascend
from defenses.base import Defense, check_radius, check_share, register_defense
from models.architecture import Architecture
from models.base import Batch, frozen
from models.randomness import Randomness
from models.recipe import Recipe
from models.threat import ThreatModel


@register_defense("adversarial-fgsm")
@dataclass(frozen=True, kw_only=True)
class AdversarialFGSM(Defense):
    """Trains on clean images and on their FGSM examples, half and half.

    min_theta alpha L(x, y) + (1 - alpha) L(x + eps sign grad_x L(x, y'), y).
    The step is taken from the clean input against the predicted label y', which keeps the
    true label from leaking into the perturbation (Kurakin et al. 2017).
    """

    paper = "Goodfellow, Shlens, Szegedy 2015, 1412.6572, section 6"

    eps: float = 0.3
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_radius(self.name, self.eps)
        check_share(self.name, alpha=self.alpha)

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        threat = ThreatModel("linf", self.eps)
        clean = network(batch.x)
        predicted = clean.detach().argmax(1)
        with frozen(network):
            x_adv = ascend(
                lambda x: cross_entropy(network(x), predicted),
                batch.x,
                batch.x,
                threat,
                steps=1,
                step_size=self.eps,
            )
        adversarial = functional.cross_entropy(network(x_adv), batch.y)
        return self.alpha * functional.cross_entropy(clean, batch.y) + (1 - self.alpha) * adversarial

    def recipe(self, architecture: Architecture) -> Recipe:
        return Recipe(epochs=20, batch_size=128, learning_rate=1e-3)
