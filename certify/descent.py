"""Descent on a folded network's targets from given points: looks for a witness inside open branches."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from certify.folded import Folded, Targets


def descend(folded: Folded, targets: Targets, x: Tensor, group: Tensor, *, steps: int = 25) -> Tensor:
    """The points of least excess met by `steps` shrinking steepest steps from x (b, d), a group each."""
    inputs = folded.inputs
    x = inputs.project(x)
    best, least = x.clone(), torch.full_like(x[:, 0], torch.inf)
    input_rows, neuron_rows, constant = (
        part[group] for part in (targets.input_rows, targets.neuron_rows, targets.constant)
    )
    hidden = ~targets.real[group]
    for step in range(steps + 1):
        z, a = folded.outputs(x)
        value = (input_rows @ x.unsqueeze(2))[..., 0] + (neuron_rows @ a.unsqueeze(2))[..., 0] + constant
        excess, worst = value.masked_fill(hidden, -torch.inf).max(1)
        better = excess < least
        best[better], least[better] = x[better], excess[better]
        if step == steps:
            break
        rows = torch.arange(len(x))
        slopes = torch.where(z > 0, 1.0, folded.leak)
        _, t = folded.backward(neuron_rows[rows, worst], partial(_scaled, slopes))
        slope = input_rows[rows, worst] + t @ folded.input_rows
        size = 2.0 * (1 - step / steps) ** 2 + 0.01
        x = inputs.project(x + size * inputs.steepest(slope, x))
    return best


def _scaled(slopes: Tensor, layer: slice, q: Tensor) -> Tensor:
    return slopes[:, layer] * q
