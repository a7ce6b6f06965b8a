"""Adversarial training on the smallest perturbations that DeepFool finds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from attacks.access import GradientAccess
from attacks.deepfool import walk
from defenses.base import Defense, check_share, register_defense
from models.architecture import Architecture
from models.base import Batch, Classifier, frozen
from models.errors import UserError
from models.randomness import Randomness
from models.recipe import Recipe
from models.threat import ThreatModel


@register_defense("adversarial-deepfool")
@dataclass(frozen=True, kw_only=True)
class AdversarialDeepFool(Defense):
    """Trains on clean images first, then on these and DeepFool's smallest perturbations, half and half.

    min_theta alpha L(x, y) + (1 - alpha) L(x + (1 + overshoot) r, y), r the l2 DeepFool perturbation of x
    against y within the box, made anew for every batch; it has no radius. An image that is misclassified
    already stays as it is. The first `clean_part` of training is ordinary: the source fine-tunes a trained
    network for 5 epochs at half the learning rate, here the decaying rate does the same in one run. It
    fine-tunes on perturbed images alone (alpha = 0), which here may end in a constant answer: every such
    point lies on a boundary, so none can be learnt well. `steps` and `classes` are DeepFool's own, small
    because its walk is part of every step. Boundaries move away by little: expect nothing at large radii.
    Raises UserError for a negative overshoot, a share outside [0, 1], fewer than 2 classes or no steps.
    Source: Moosavi-Dezfooli, Fawzi, Frossard 2016, 1511.04599, section 4.2 (fine-tuning);
    alpha is that of Goodfellow, Shlens, Szegedy 2015, 1412.6572, section 6.
    """

    paper = "Moosavi-Dezfooli, Fawzi, Frossard 2016, 1511.04599, section 4.2"

    alpha: float = 0.5
    overshoot: float = 0.02
    steps: int = 5
    classes: int = 3
    clean_part: float = 0.5
    epochs: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.name, alpha=self.alpha, clean_part=self.clean_part)
        if self.classes < 2:
            raise UserError(f"{self.name} needs at least 2 classes, not {self.classes}")

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        clean = functional.cross_entropy(network(batch.x), batch.y)
        if progress < self.clean_part:
            return clean
        x_adv = deepfooled(network, batch, self.overshoot, self.steps, self.classes)
        return self.alpha * clean + (1 - self.alpha) * functional.cross_entropy(network(x_adv), batch.y)

    def recipe(self, architecture: Architecture) -> Recipe:
        return Recipe(epochs=self.epochs, batch_size=128, learning_rate=1e-3)


def deepfooled(network: nn.Module, batch: Batch, overshoot: float, steps: int, classes: int) -> Tensor:
    """The batch's images (n, ...) in [0, 1], each at the end of its l2 walk on the frozen `network`."""
    with frozen(network):
        model = Classifier(network, num_classes=network(batch.x[:1]).shape[1])
        point, _ = walk(
            GradientAccess(model, len(batch)),
            batch.x,
            batch.y,
            None,
            ThreatModel("l2", None),
            steps=steps,
            overshoot=overshoot,
            classes=classes,
            tangent=False,
        )
    return point.detach()
