"""Many properties of one network: those that one pass of linear bounds proves are taken out at once."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from certify.backward import adaptive_slope, parallel_slope, relax
from certify.exact import SLACK
from certify.graph import Graph, trace
from certify.input_splitting import row_bounds
from certify.prepare import check_agreement, check_finite
from certify.property import Property
from models.errors import NotApplicable
from models.region import Region

# Fewer properties are settled one by one in no more time.
MANY = 8

# Entries of the rows of all properties that one pass bounds, over the widest values.
ENTRIES = 2**22


def still_open(
    network: nn.Module, properties: Sequence[Property], deadline: float = torch.inf
) -> list[Property]:
    """The properties that linear bounds do not prove of `network`, in order; all where they are few.

    What is left out is certified as by `settle`: each clause has a row whose lower bound over the
    property's box is above rounding. Those not come to when time.monotonic() passes `deadline` stay open.
    Raises UserError as `settle` does.
    """
    if len(properties) < MANY:
        return list(properties)
    double = copy.deepcopy(network).double().eval().requires_grad_(False)
    check_finite(double, "the network")
    graph = trace(double, like=properties[0].lower.double()[None])
    with torch.no_grad():
        widest = max(shape.numel() for shape in graph.shapes(properties[0].lower.double()[None]))
        most = max(sum(len(clause.offsets) for clause in one.clauses) for one in properties)
        size = max(1, ENTRIES // (widest * most))
        left: list[Property] = []
        for start in range(0, len(properties), size):
            part = properties[start : start + size]
            if time.monotonic() > deadline:
                left += part
                continue
            try:
                proved = _proved(graph, double, part, deadline)
            except NotApplicable:
                # What goes beyond these bounds, `settle` says property by property.
                return left + list(properties[start:])
            left += [one for one, done in zip(part, proved.tolist(), strict=True) if not done]
    return left


def _proved(graph: Graph, double: nn.Module, properties: Sequence[Property], deadline: float) -> Tensor:
    """Whether each property is proved: bool (n,)."""
    low, high = (
        torch.stack([getattr(one, end).double() for one in properties]) for end in ("lower", "upper")
    )
    region = Region(low=low, high=high)
    x = region.centre
    outputs = graph.values(x)[-1]
    check_agreement(outputs, double(x), "the network")
    relaxation = relax(graph, x, region, parallel_slope, adaptive_slope, deadline=deadline)
    rows, offsets, clause = _padded(properties)
    best = row_bounds(relaxation, rows)[1] + offsets
    best = best.masked_fill(~best.isfinite(), -torch.inf)
    # A clause is as safe as its safest row, a property as its least safe clause; none is padded with -inf.
    each = torch.full_like(best, -torch.inf).scatter_reduce(1, clause, best, "amax")
    real = torch.arange(each.shape[1]) <= clause.amax(1, keepdim=True)
    least = each.masked_fill(~real, torch.inf).amin(1)
    return least > SLACK * outputs.abs().amax(1).clamp(min=1.0)


def _padded(properties: Sequence[Property]) -> tuple[Tensor, Tensor, Tensor]:
    """Every property's rows (n, k, outputs), offsets (n, k), and the clause (n, k) of each.

    The first row is repeated where a property has fewer than k.
    """
    rows = [torch.cat([clause.rows for clause in one.clauses]) for one in properties]
    offsets = [torch.cat([clause.offsets for clause in one.clauses]) for one in properties]
    numbers = [
        torch.repeat_interleave(torch.tensor([len(clause.offsets) for clause in one.clauses]))
        for one in properties
    ]
    most = max(len(part) for part in offsets)
    places = [torch.arange(most).where(torch.arange(most) < len(part), 0) for part in offsets]
    found = (
        torch.stack([part[place] for part, place in zip(parts, places, strict=True)])
        for parts in (rows, offsets, numbers)
    )
    stacked, shifts, clause = found
    return stacked, shifts, clause
