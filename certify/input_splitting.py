"""Branch and bound on the input: for networks of few inputs, whatever their activations."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.backward import Relaxation, adaptive_slope, parallel_slope, relax
from certify.graph import Graph
from certify.property import Property
from models.region import Region

BATCH = 256
MOST = 2_000_000


@dataclass(frozen=True)
class Split:
    """What the search ended with: a witness (1, ...), or lower (c,) bounds on each clause's excess."""

    witness: Tensor | None
    lower: Tensor
    open: int


def clause_bounds(relaxation: Relaxation, prop: Property) -> Tensor:
    """Lower bounds (n, c) on each clause's excess over each sample's threat set.

    The better of crown's and polytope's slopes for each row; a clause is as safe as its safest row.
    """
    last, n = len(relaxation.graph.nodes) - 1, len(relaxation.x)
    rows = torch.cat([clause.rows for clause in prop.clauses]).to(relaxation.x).expand(n, -1, -1)
    offsets = torch.cat([clause.offsets for clause in prop.clauses]).to(relaxation.x)
    both = (relaxation.lower(last, rows), relaxation.with_alpha({}).lower(last, rows))
    parts = (torch.maximum(*both) + offsets).split([len(clause.offsets) for clause in prop.clauses], dim=1)
    # Where a pass overflows, what comes out of it proves nothing.
    return torch.stack([part.masked_fill(~part.isfinite(), -torch.inf).amax(1) for part in parts], dim=1)


def split_inputs(
    graph: Graph,
    prop: Property,
    accept: Callable[[Tensor], Tensor | None],
    *,
    tolerance: float,
    deadline: float,
) -> Split:
    """Cuts the box of inputs into smaller ones until each is proved, or one holds a counterexample.

    The boxes of least bound go first, in batches, each cut in two halves across the input on
    which the least safe clause depends most: |gradient| times width. Ends when time.monotonic()
    passes `deadline`.
    Source: Wang et al. 2018, 1804.10829 (ReluVal), section 4.2, with linear bounds for intervals.
    """
    low, high = prop.lower.double()[None], prop.upper.double()[None]
    values = low.new_full((1,), -torch.inf)
    proved = low.new_full((len(prop.clauses),), torch.inf)
    pending = low.new_full((1, len(prop.clauses)), -torch.inf)
    while len(low) and time.monotonic() < deadline and len(low) < MOST:
        order = values.argsort()
        taken, rest = order[:BATCH], order[BATCH:]
        halves = _halved(graph, prop, low[taken], high[taken])
        low, high, values, pending = low[rest], high[rest], values[rest], pending[rest]
        found = _witness(graph, prop, *halves, accept)
        if found is not None:
            return Split(found, torch.full_like(proved, -torch.inf), len(low) + 1)
        region = Region(low=halves[0], high=halves[1])
        with torch.no_grad():
            bounds = clause_bounds(relax(graph, region.centre, region, parallel_slope, adaptive_slope), prop)
        least = bounds.amin(1)
        safe = least > tolerance
        if bool(safe.any()):
            proved = torch.minimum(proved, bounds[safe].amin(0))
        low, high = torch.cat([low, halves[0][~safe]]), torch.cat([high, halves[1][~safe]])
        values, pending = torch.cat([values, least[~safe]]), torch.cat([pending, bounds[~safe]])
    return Split(None, torch.cat([proved[None], pending]).amin(0), len(low))


def _halved(graph: Graph, prop: Property, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Both halves (2 n, ...) of each box."""
    centre, _, slope = _centre(graph, prop, low, high)
    width = (high - low).flatten(1)
    # A flat spot at the centre says nothing about the rest of the box: the width alone counts a little.
    steepness = slope.abs().flatten(1)
    score = width * (steepness + 0.1 * steepness.amax(1, keepdim=True) + 1e-12)
    cut = score.argmax(1, keepdim=True)
    middle = centre.flatten(1).gather(1, cut)
    left_high = high.flatten(1).scatter(1, cut, middle).reshape(high.shape)
    right_low = low.flatten(1).scatter(1, cut, middle).reshape(low.shape)
    return torch.cat([low, right_low]), torch.cat([left_high, high])


def _centre(graph: Graph, prop: Property, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes' centres, the excess (n,) there, and its gradient."""
    with torch.enable_grad():
        centre = ((low + high) / 2).requires_grad_(True)
        excess = prop.excess(graph.values(centre)[-1])
        (slope,) = torch.autograd.grad(excess.sum(), centre)
    return centre.detach(), excess.detach(), slope


def _witness(
    graph: Graph, prop: Property, low: Tensor, high: Tensor, accept: Callable[[Tensor], Tensor | None]
) -> Tensor | None:
    """An accepted unsafe point among the boxes' centres and their corners down the excess's gradient."""
    centre, excess, slope = _centre(graph, prop, low, high)
    corner = torch.where(slope > 0, low, high)
    points = torch.cat([centre, corner])
    unsafe = torch.cat([excess, prop.excess(graph.values(corner)[-1])]) <= 0
    for point in points[unsafe][:8]:
        found = accept(point[None])
        if found is not None:
            return found
    return None
