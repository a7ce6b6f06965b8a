"""Features from which nobody can tell how an image was perturbed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.losses import cross_entropy
from attacks.steps import ascend
from defenses.adversarial_deepfool import deepfooled
from defenses.base import Defense, check_radius, register_defense
from models.architecture import Architecture
from models.base import Batch, frozen
from models.poses import Poses
from models.randomness import Randomness
from models.recipe import Recipe
from models.threat import UNIT_BOX, ThreatModel

Perturb = Callable[[nn.Module, Batch, float, Randomness], Tensor]

# Keeps the probe's weights finite where a batch can be told apart without error.
RIDGE = 1e-3


@register_defense("noise-blind")
@dataclass(frozen=True, kw_only=True)
class NoiseBlind(Defense):
    """Trains on perturbed images with last hidden features that hide the kind of the perturbation.

    Each image gets one of five kinds, anew in every epoch: clean, FGSM at eps, DeepFool, Gaussian noise of
    deviation eps, a rotation of up to 30 degrees. With s the kind, y the label and h the features before the
    last linear layer, min_theta L(f(x'), y) - lambda min_w L(w(h(x')), s): the network's loss less that of an
    adversary, a linear one solved on each batch to convergence, so that the gradient that reaches h is the
    converged adversary's, reversed. lambda rises from 0 to `weight` as 2 / (1 + e^(-10 p)) - 1. The adversary
    is held at ln 5, what guessing costs; a deeper one may still see a little. No paper promises robustness
    from this.
    Raises UserError for a radius outside [0, 1] or a negative weight.
    Source: Ganin et al. 2016, 1505.07818, equations 9 and 14 (gradient reversal, the rise of lambda).
    """

    paper = "Ganin et al. 2016, 1505.07818"

    eps: float = 0.1
    weight: float = 1.0
    epochs: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_radius(self.name, self.eps)

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        x, kinds = perturbed(network, batch, self.eps, randomness)
        logits, hidden = with_features(network, x)
        task = functional.cross_entropy(logits, batch.y)
        reverse = self.weight * (2 / (1 + math.exp(-10 * progress)) - 1)
        return task - reverse * best_probe(hidden, kinds) if reverse else task

    def recipe(self, architecture: Architecture) -> Recipe:
        return Recipe(epochs=self.epochs, batch_size=500, learning_rate=2e-3)

    def refuses(self, architecture: Architecture) -> str | None:
        if len(architecture.input_shape) != 3:
            return "its inputs are no images"
        layers = [m for m in architecture.build().modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        if len(layers) < 2 or not isinstance(layers[-1], nn.Linear):
            return "it has no hidden features before a last linear layer"
        return None


def perturbed(network: nn.Module, batch: Batch, eps: float, randomness: Randomness) -> tuple[Tensor, Tensor]:
    """The images (n, c, h, w) in [0, 1], each under a perturbation of its own kind, and the kinds (n,)."""
    kinds = (len(KINDS) * randomness.child("kind").uniform(batch.index, ())).long()
    x = batch.x.clone()
    for number, perturb in enumerate(KINDS.values()):
        mine = kinds == number
        if bool(mine.any()):
            x[mine] = perturb(network, batch[mine], eps, randomness)
    return x, kinds


def _clean(network: nn.Module, batch: Batch, eps: float, randomness: Randomness) -> Tensor:
    return batch.x


def _fgsm(network: nn.Module, batch: Batch, eps: float, randomness: Randomness) -> Tensor:
    threat = ThreatModel("linf", eps)
    with frozen(network):
        predicted = network(batch.x).argmax(1)
        return ascend(
            lambda x: cross_entropy(network(x), predicted), batch.x, batch.x, threat, steps=1, step_size=eps
        )


def _deepfool(network: nn.Module, batch: Batch, eps: float, randomness: Randomness) -> Tensor:
    return deepfooled(network, batch, overshoot=0.02, steps=3, classes=3)


def _noise(network: nn.Module, batch: Batch, eps: float, randomness: Randomness) -> Tensor:
    noise = randomness.child("noise").normal(batch.index, batch.x.shape[1:]).to(batch.x)
    return UNIT_BOX.clamp(batch.x + eps * noise)


def _rotation(network: nn.Module, batch: Batch, eps: float, randomness: Randomness) -> Tensor:
    pose = 2 * randomness.child("pose").uniform(batch.index, (3,)).to(batch.x) - 1
    return Poses(rotation=30.0, translation=0.0).apply(batch.x, pose, UNIT_BOX)


KINDS: dict[str, Perturb] = {
    "clean": _clean,
    "fgsm": _fgsm,
    "deepfool": _deepfool,
    "noise": _noise,
    "rotation": _rotation,
}


def with_features(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (n, classes) and what the last linear layer reads (n, d)."""
    (*_, last) = (module for module in network.modules() if isinstance(module, nn.Linear))
    read: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    try:
        logits = network(x)
    finally:
        handle.remove()
    return logits, read[-1].flatten(1)


def best_probe(hidden: Tensor, kinds: Tensor) -> Tensor:
    """The least mean cross-entropy at which a linear probe tells the kinds (n,) from features (n, d).

    Features are brought to mean 0 and variance 1 first. The probe is solved for on detached features
    (L-BFGS, convex); by the envelope theorem the result's gradient in `hidden` is that of the minimum. At
    most ln(number of kinds) but for the ridge.
    """
    mean, deviation = hidden.detach().mean(0), hidden.detach().std(0).clamp(min=1e-6)
    scaled = (hidden - mean) / deviation
    weight = hidden.new_zeros(hidden.shape[1], len(KINDS)).requires_grad_(True)
    shift = hidden.new_zeros(len(KINDS)).requires_grad_(True)
    optimizer = torch.optim.LBFGS([weight, shift], max_iter=60, line_search_fn="strong_wolfe")

    def value(features: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
        fit = functional.cross_entropy(features @ matrix + offset, kinds)
        return fit + RIDGE / 2 * matrix.square().sum()

    def closure() -> Tensor:
        optimizer.zero_grad()
        current = value(scaled.detach(), weight, shift)
        current.backward()
        return current

    optimizer.step(closure)
    return value(scaled, weight.detach(), shift.detach())
