"""Tighter ranges for the inputs of any activation: both ends climb with lines of their own."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from certify.bounds import Interval
from certify.graph import Graph
from certify.relaxation import Relaxation
from certify.rules.operation import Relaxed
from certify.slopes import climbed

# Slopes and entries of rows that climb together: each row has its own for every activation before it.
CELLS = 4_000_000


def tightened_ranges(
    relaxation: Relaxation, deadline: float = torch.inf, *, steps: int = 20, rate: float = 0.25
) -> Relaxation:
    """The relaxation of one sample after ascending both ends of every range, node by node.

    Lines are drawn anew over the tighter ranges. Stops between two chunks of rows when time.monotonic()
    passes `deadline`: every end kept is proved.
    """
    bounds, alpha = dict(relaxation.bounds), dict(relaxation.alpha)
    tight: set[int] = set()
    for i, node in enumerate(relaxation.graph.nodes):
        if not isinstance(node.operation, Relaxed):
            continue
        source = node.inputs[0]
        if source not in tight and _relaxed_before(relaxation.graph, source):
            now = replace(relaxation, bounds=bounds, alpha={j: part for j, part in alpha.items() if j < i})
            wanted = node.operation.undecided(bounds[source])
            bounds[source] = _climbed_ends(now, source, wanted, deadline, steps, rate)
        tight.add(source)
        if i in alpha:
            alpha[i] = node.operation.adaptive(bounds[source])
    return replace(relaxation, bounds=bounds, alpha=alpha)


def _relaxed_before(graph: Graph, node: int) -> bool:
    """Whether the value at `node` depends on a relaxed operation: interval bounds are exact otherwise."""
    pending = [node]
    while pending:
        here = graph.nodes[pending.pop()]
        if isinstance(here.operation, Relaxed):
            return True
        pending += here.inputs
    return False


def _climbed_ends(
    relaxation: Relaxation, node: int, wanted: Tensor, deadline: float, steps: int, rate: float
) -> Interval:
    """The range (1, *shape) of a node after a climb of its `wanted` entries' ends."""
    known = relaxation.bounds[node]
    lower, upper = known.lower.flatten().clone(), known.upper.flatten().clone()
    slopes = sum(part.numel() for part in relaxation.alpha.values())
    widest = max(shape.numel() for shape in relaxation.graph.shapes(relaxation.x)[: node + 1])
    for places in wanted.flatten().nonzero()[:, 0].split(max(1, CELLS // (2 * max(slopes, widest)))):
        if time.monotonic() > deadline:
            break
        rows = lower.new_zeros(len(places), len(lower))
        rows[torch.arange(len(places)), places] = 1.0
        rows = torch.cat([rows, -rows]).reshape(1, -1, *known.lower.shape[1:])
        ends = climbed(
            relaxation, node, rows, steps, rate,
            lambda samples, best: torch.full_like(samples, time.monotonic() > deadline, dtype=torch.bool),
        )[0]  # fmt: skip
        below, above = ends.nan_to_num(-torch.inf, torch.inf, -torch.inf).chunk(2)
        lower[places] = torch.maximum(lower[places], below)
        upper[places] = torch.minimum(upper[places], -above)
    # Rounding may let the ends of a range that is a point cross.
    low, high = torch.minimum(lower, upper), torch.maximum(lower, upper)
    return Interval(low.reshape(known.lower.shape), high.reshape(known.upper.shape))
