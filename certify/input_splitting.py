"""Branch and bound on the input: for networks of few inputs, whatever their activations."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.backward import adaptive_slope, parallel_slope, relax
from certify.bounds import Interval, range_over_threat
from certify.graph import Graph
from certify.property import Clause, Property
from certify.relaxation import Relaxation
from models.region import Region

BATCH = 256
MOST = 2_000_000

# Steps of the ascent that mixes a clause's rows.
MIXING = 12


@dataclass(frozen=True)
class Split:
    """What the search ended with: a witness (1, ...), or lower (c,) bounds on each clause's excess."""

    witness: Tensor | None
    lower: Tensor
    open: int


def clause_bounds(relaxation: Relaxation, prop: Property) -> Tensor:
    """Lower bounds (n, c) on each clause's excess over each sample's threat set.

    Every row is bounded with crown's and with polytope's slopes, and a clause is as safe as its safest row.
    Where that proves nothing, rows are mixed: a clause is unsafe only where all its rows are at once.
    """
    rows = torch.cat([clause.rows for clause in prop.clauses]).to(relaxation.x)
    offsets = torch.cat([clause.offsets for clause in prop.clauses]).to(relaxation.x)
    found, single = row_bounds(relaxation, rows.expand(len(relaxation.x), -1, -1))
    bounds, start = [], 0
    for clause in prop.clauses:
        part = slice(start, start + len(clause.offsets))
        start = part.stop
        value = _proved(single[:, part] + offsets[part]).amax(1)
        open_ = (value <= 0).nonzero()[:, 0]
        if len(clause.offsets) > 1 and len(open_):
            planes = torch.stack([plane[open_, part].flatten(2) for plane, _ in found], 1)
            shifts = torch.stack([shift[open_, part] + offsets[part] for _, shift in found], 1)
            mixed = _mixed_rows(relaxation.select(open_), clause, planes, shifts)
            value[open_] = torch.maximum(value[open_], mixed)
        bounds.append(value)
    return torch.stack(bounds, dim=1)


def row_bounds(relaxation: Relaxation, rows: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Planes below rows (n, k, outputs) by crown's and by polytope's slopes, and the better bound (n, k).

    Once where the relaxation has no slopes but polytope's.
    """
    last = len(relaxation.graph.nodes) - 1
    found = [part.planes(last, rows) for part in _with_parallel(relaxation)]
    ends = [range_over_threat(plane, relaxation.x, relaxation.threat).lower + shift for plane, shift in found]
    return found, torch.stack(ends).amax(0)


def _with_parallel(relaxation: Relaxation) -> tuple[Relaxation, ...]:
    """The relaxation as it is, and under parallel lines where it has others."""
    free = relaxation.alpha or relaxation.overlap
    return (relaxation, relaxation.with_alpha({})) if free else (relaxation,)


def _mixed_rows(relaxation: Relaxation, clause: Clause, planes: Tensor, shifts: Tensor) -> Tensor:
    """Lower bounds (n,) on a clause's excess by mixtures of its k rows: the mean, and the planes' best.

    planes (n, s, k, d) and shifts (n, s, k) bound each row with s sets of slopes. A mixture of rows is
    bounded anew: what its rows have in common cancels before anything is relaxed.
    """
    box = Interval(*(end.flatten(1) for end in relaxation.threat.bounds(relaxation.x)))
    best, weight = mixed_planes(planes.flatten(1, 2), shifts.flatten(1), box)
    weight = weight.unflatten(1, shifts.shape[1:]).sum(1)
    weights = torch.stack([torch.full_like(weight, 1 / weight.shape[1]), weight], 1)
    last, rows = len(relaxation.graph.nodes) - 1, weights @ clause.rows.to(weights)
    for part in _with_parallel(relaxation):
        value = part.lower(last, rows) + weights @ clause.offsets.to(weights)
        best = torch.maximum(best, _proved(value).amax(1))
    return best


def _proved(values: Tensor) -> Tensor:
    """Where a pass overflows, what comes out of it proves nothing."""
    return values.masked_fill(~values.isfinite(), -torch.inf)


def mixed_planes(planes: Tensor, shifts: Tensor, box: Interval) -> tuple[Tensor, Tensor]:
    """Lower bounds (n,) on max_k planes_k . x + shifts_k over each box, and their weights w (n, k).

    planes (n, k, d), shifts (n, k). max over w of the simplex of min over the box of
    sum_k w_k (planes_k . x + shifts_k) is that maximum's minimum (von Neumann); any w proves its own value,
    and the best met by exponentiated ascent is returned.
    """
    weight = torch.full_like(shifts, 1 / shifts.shape[1])
    best, kept = shifts.new_full((len(shifts),), -torch.inf), weight
    for turn in range(MIXING):
        mixed = (weight.unsqueeze(1) @ planes)[:, 0]
        value = (mixed * box.centre).sum(1) - (mixed.abs() * box.radius).sum(1) + (weight * shifts).sum(1)
        better = _proved(value) > best
        best, kept = torch.where(better, value, best), torch.where(better[:, None], weight, kept)
        if bool((best > 0).all()):
            break
        least = box.centre - box.radius * mixed.sign()
        slope = (planes @ least.unsqueeze(2))[..., 0] + shifts
        slope = torch.nan_to_num(slope - slope.amax(1, keepdim=True))
        scale = slope.abs().amax(1, keepdim=True).clamp(min=1e-300)
        weight = (weight.clamp(min=1e-30).log() + 3.0 / (1 + turn) ** 0.5 * slope / scale).softmax(1)
    return best, kept


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
