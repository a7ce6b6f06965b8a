"""How a network is trained: plain data, stored in every model card."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict

Augmentation = Literal["none", "flip-and-shift"]


class Recipe(BaseModel):
    """Adam with a linear warm-up and a decay, by a cosine to zero or by a fifth at each of the `drops`.

    learning_rate is the peak; warmup is the fraction of training spent on the rise, drops are such
    fractions too. Where `average` is above 0 the weights that are kept are a running mean of the
    trained ones, w <- average w + (1 - average) w_t after every step t. With precision "bfloat16" the
    products of the loss and of its gradient are rounded to 8 bits (weights and steps are not).
    augmentation says how training images are varied from epoch to epoch (defenses.augmentation).
    """

    model_config = ConfigDict(frozen=True)

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.02
    drops: tuple[float, ...] = ()
    average: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    augmentation: Augmentation = "none"

    def rate(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1]."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        if self.drops:
            return self.learning_rate * 0.2 ** sum(progress >= drop for drop in self.drops)
        decay = (progress - self.warmup) / (1 - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * decay))
