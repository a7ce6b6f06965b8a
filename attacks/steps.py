"""Steps of first-order ascent inside a threat model, shared by attacks and adversarial training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.threat import ThreatModel


def input_gradient(values: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Values (n,) at x (n, ...) and the gradient of each sample's own value, shape of x.

    The values are summed, never averaged: a mean would scale gradients by the batch size.
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        value = values(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def ascend(
    values: Callable[[Tensor], Tensor],
    x: Tensor,
    start: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    step_size: float,
) -> Tensor:
    """`steps` projected steepest-ascent steps of length `step_size` from `start`: the last iterate."""
    z, project = start, threat.projection(x)
    for _ in range(steps):
        _, gradient = input_gradient(values, z)
        z = project(z + step_size * threat.steepest(gradient))
    return z.detach()
