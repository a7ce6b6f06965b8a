"""Descent on a traced network's properties: finds the counterexamples that are easy to find."""

from __future__ import annotations

import torch
from torch import Tensor

from certify.graph import Graph
from certify.input_set import InputSet
from certify.property import Property
from models.randomness import Randomness


def search(
    graph: Graph,
    inputs: InputSet,
    prop: Property,
    randomness: Randomness,
    *,
    steps: int,
    starts: int,
) -> Tensor | None:
    """An input (1, ...) of the set whose outputs are unsafe, or None; for one sample in float64.

    Each clause is descended on from the centre and from `starts` - 1 random corners, by `steps` shrinking
    steepest steps on its excess; the search ends at the first unsafe point.
    """
    shape, clauses = prop.lower.shape, prop.clauses
    corners = randomness.uniform(torch.arange(starts - 1), tuple(inputs.lower.shape)).to(inputs.lower)
    ends = torch.where(corners < 0.5, inputs.lower, inputs.upper)
    x = torch.cat([inputs.centre[None], inputs.project(ends)]).repeat_interleave(len(clauses), 0)
    for step in range(steps + 1):
        x = x.detach().requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            outputs = graph.values(x.reshape(-1, *shape))[-1]
            spread = outputs.unflatten(0, (starts, len(clauses)))
            excess = torch.stack([clause.excess(spread[:, i]) for i, clause in enumerate(clauses)], 1)
            unsafe = prop.excess(outputs) <= 0
            if bool(unsafe.any()):
                return x.detach()[unsafe][:1].reshape(1, *shape)
            if step == steps:
                return None
            (slope,) = torch.autograd.grad(excess.sum(), x)
        size = 1.5 * (1 - step / steps) ** 2 + 0.02
        x = inputs.project(x.detach() + size * inputs.steepest(slope))
    return None
