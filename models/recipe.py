"""How a network is trained: plain data, stored in every model card."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict


class Recipe(BaseModel):
    """Adam with a linear warm-up and a cosine decay to zero.

    learning_rate is the peak; warmup is the fraction of training spent on the rise.
    """

    model_config = ConfigDict(frozen=True)

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.02

    def rate(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1]."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        decay = (progress - self.warmup) / (1 - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * decay))
