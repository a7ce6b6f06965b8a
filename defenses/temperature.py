"""Training at a raised temperature: the first half of defensive distillation, and most of its effect."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Defense, register_defense
from models.architecture import Architecture
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.recipe import Recipe


@register_defense("temperature")
@dataclass(frozen=True, kw_only=True)
class Temperature(Defense):
    """Trains on the softmax of logits divided by `temperature`, and is tested at temperature 1.

    min_theta E[-ln softmax(f(x) / T)_y]. It makes the teacher of `distillation`, and masks by itself: the
    logits grow T times as large, so that at T = 1 the softmax is 0 or 1 in single precision and the
    cross-entropy has no gradient. An attack on logit differences sees through it (Carlini, Wagner 2016).
    Raises UserError for a temperature <= 0.
    Source: Papernot, McDaniel, Wu, Jha, Swami 2016, 1511.04508, section 4.2.
    """

    paper = "Papernot, McDaniel, Wu, Jha, Swami 2016, 1511.04508"

    temperature: float = 100.0
    epochs: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.name, self.temperature)

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        return functional.cross_entropy(network(batch.x) / self.temperature, batch.y)

    def recipe(self, architecture: Architecture) -> Recipe:
        return Recipe(epochs=self.epochs, batch_size=128, learning_rate=1e-3)


def check_temperature(name: str, temperature: float) -> None:
    """Raises UserError for a temperature that is not positive."""
    if not temperature > 0:
        raise UserError(f"{name} needs a temperature > 0, not {temperature:g}")
