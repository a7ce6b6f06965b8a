"""Descent on a traced network's properties: finds the counterexamples that are easy to find."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from certify.graph import Graph
from certify.input_set import InputSet
from certify.property import Clause, Property
from models.randomness import Randomness

# Entries of all samples' values that a step takes at once: more clauses wait, and do not hold up the nearest.
ENTRIES = 4_000_000


def search(
    graph: Graph,
    inputs: InputSet,
    prop: Property,
    randomness: Randomness,
    *,
    steps: int,
    starts: int,
    deadline: float = torch.inf,
    briefly: bool = False,
) -> Tensor | None:
    """An input (1, ...) of the set whose outputs are unsafe, or None; for one sample in float64.

    Each clause is descended on from the centre and from `starts` - 1 random corners, by `steps` shrinking
    steepest steps on its excess; the search ends at the first unsafe point. Of many clauses those nearest to
    unsafe at the starts come first, and those not come to when time.monotonic() passes `deadline` are left
    out; `briefly`, all but the first that go together are.
    """
    corners = randomness.uniform(torch.arange(starts - 1), tuple(inputs.lower.shape)).to(inputs.lower)
    ends = torch.where(corners < 0.5, inputs.lower, inputs.upper)
    x = torch.cat([inputs.centre[None], inputs.project(ends)])
    clauses = prop.clauses
    images = x.reshape(-1, *prop.lower.shape)
    together = max(1, ENTRIES // (len(x) * sum(shape.numel() for shape in graph.shapes(images))))
    if len(clauses) > together:
        with torch.no_grad():
            outputs = graph.values(images)[-1]
        nearest = torch.stack([clause.excess(outputs).amin() for clause in clauses]).argsort()
        clauses = tuple(clauses[place] for place in nearest.tolist())
    for first in range(0, len(clauses), together):
        some = clauses[first : first + together]
        found = _descend(graph, inputs, prop, some, x.repeat_interleave(len(some), 0), steps, deadline)
        if found is not None or briefly or time.monotonic() > deadline:
            return found
    return None


def _descend(
    graph: Graph, inputs: InputSet, prop: Property, clauses: tuple[Clause, ...], x: Tensor, steps: int,
    deadline: float,
) -> Tensor | None:  # fmt: skip
    """The first unsafe input (1, ...) on the ways down the clauses from x (starts * clauses, d)."""
    shape = prop.lower.shape
    for step in range(steps + 1):
        x = x.detach().requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            outputs = graph.values(x.reshape(-1, *shape))[-1]
            spread = outputs.unflatten(0, (-1, len(clauses)))
            excess = torch.stack([clause.excess(spread[:, i]) for i, clause in enumerate(clauses)], 1)
            unsafe = prop.excess(outputs) <= 0
            if bool(unsafe.any()):
                return x.detach()[unsafe][:1].reshape(1, *shape)
            if step == steps or time.monotonic() > deadline:
                return None
            (slope,) = torch.autograd.grad(excess.sum(), x)
        size = 1.5 * (1 - step / steps) ** 2 + 0.02
        x = inputs.project(x.detach() + size * inputs.steepest(slope, x))
    return None
