"""Defensive distillation: a student of soft labels, whose gradients vanish and whose errors stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from defenses.base import Defense, register_defense
from defenses.static import misfit, need_weights, static_network
from defenses.temperature import check_temperature
from models.architecture import Architecture
from models.base import Batch
from models.randomness import Randomness
from models.recipe import Recipe


@register_defense("distillation")
@dataclass(frozen=True, kw_only=True)
class Distillation(Defense):
    """Trains on a teacher's soft labels, both at a high temperature, and is tested at temperature 1.

    min_theta E[-sum_j softmax(g(x) / T)_j ln softmax(f(x) / T)_j], g the `teacher`: a zoo name, trained at
    the same temperature before. Known to be masked: at T = 1 the student's softmax is 0 or 1 in single
    precision, attacks on the cross-entropy find a gradient of zero, and attacks on logit differences break it
    like an undefended network (Carlini, Wagner 2016, 1607.04311). It stands here so that an audit shows it.
    Raises UserError for a temperature <= 0, an unknown teacher, or (when training begins) one that has no
    weights.
    Source: Papernot, McDaniel, Wu, Jha, Swami 2016, 1511.04508, section 4.2.
    """

    paper = "Papernot, McDaniel, Wu, Jha, Swami 2016, 1511.04508"

    temperature: float = 100.0
    teacher: str = "conv-small+temperature"
    epochs: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.name, self.temperature)

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        with torch.no_grad():
            teacher = static_network(self.teacher, batch.x.device)
            labels = (teacher(batch.x) / self.temperature).softmax(1)
        said = (network(batch.x) / self.temperature).log_softmax(1)
        return -(labels * said).sum(1).mean()

    def recipe(self, architecture: Architecture) -> Recipe:
        need_weights(self.name, (self.teacher,))
        return Recipe(epochs=self.epochs, batch_size=128, learning_rate=1e-3)

    def refuses(self, architecture: Architecture) -> str | None:
        return misfit(self.teacher, architecture)
