"""What the steps of an iterated FGSM follow in place of the gradient at the iterate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from attacks.access import GradientAccess
from models.threat import per_sample, vector_norm


@dataclass(frozen=True)
class Iterate:
    """Where an ascent stands before its step number `step`: points z (k, ...) of the samples `rows`.

    index (k,) names the samples' random streams, `values` maps logits to the loss, gradient is the loss's at
    z (zeros where the direction looks elsewhere), velocity the decayed sum that the last step followed.
    """

    model: GradientAccess
    z: Tensor
    rows: Tensor
    index: Tensor
    step: int
    values: Callable[[Tensor], Tensor]
    gradient: Tensor
    velocity: Tensor

    def gradient_at(self, points: Tensor) -> Tensor:
        """Each sample's gradient of the loss at another point (k, ...): one forward and one backward pass."""
        return self.model.gradient(points, self.rows, self.values)[2]


class Direction(Protocol):
    """Maps an iterate to what takes the place of the gradient there (k, ...).

    elsewhere: it takes its gradients at other points alone, and the iterate itself needs only logits.
    """

    @property
    def elsewhere(self) -> bool: ...

    def __call__(self, at: Iterate) -> Tensor: ...


class Plain:
    """The gradient at the iterate itself."""

    elsewhere = False

    def __call__(self, at: Iterate) -> Tensor:
        return at.gradient


PLAIN = Plain()


def accumulated(velocity: Tensor, gradient: Tensor, decay: float) -> Tensor:
    """decay v + g / ||g||_1, sample by sample."""
    length = vector_norm(gradient, "l1").clamp(min=1e-30)
    return decay * velocity + gradient / per_sample(length, gradient)
