"""Which entries of a group can be its largest anywhere in the threat set: the others need not be compared."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.bounds import Interval, entries
from certify.entry_bounds import rows_at_once
from certify.graph import Graph
from certify.relaxation import Relaxation
from certify.rules.activation import ReLU
from certify.rules.selection import Largest

# Beyond this many pairs of one maximum only the entries' own bounds are compared.
PAIRS = 4096


@dataclass(frozen=True)
class Rivals:
    """The flat places (k, m) of m groups' entries to compare: the first `count` (m,) >= 1 of each column."""

    places: Tensor
    count: Tensor

    def to(self, device: torch.device) -> Rivals:
        """The same on another device."""
        return Rivals(self.places.to(device), self.count.to(device))


def members(largest: Largest, shape: torch.Size) -> Rivals:
    """Every entry of every group."""
    places = entries(largest.members(shape), 1)
    return _kept(places, places >= 0, torch.zeros_like(places, dtype=torch.float64))


def rivals(relaxation: Relaxation, node: int, deadline: float = torch.inf) -> Rivals:
    """The entries of the maximum `node` that no other entry always exceeds, largest first; for one sample.

    Where ReLUs alone read it, entries that are never positive are exceeded by zero: one of a group is kept.
    Pairs whose turn comes after time.monotonic() has passed `deadline` are not compared.
    """
    largest, source = relaxation.graph.nodes[node].operation, relaxation.graph.nodes[node].inputs[0]
    assert isinstance(largest, Largest)
    bounds = Interval(*(end.flatten() for end in _ends(relaxation.bounds[source])))
    places = entries(largest.members(relaxation.graph.shapes(relaxation.x)[source]), 1)
    real = places >= 0
    lower = torch.where(real, bounds.lower[places], -torch.inf)
    upper = torch.where(real, bounds.upper[places], -torch.inf)
    floor, winner = lower.max(0)
    seen = floor.clamp(min=0) if _read_by_relus(relaxation.graph, node) else floor
    kept = (upper > seen) & real
    needed = (seen <= floor) | ~kept.any(0)
    kept[winner[needed], needed.nonzero()[:, 0]] = True
    centre = bounds.centre[places]
    first, second = torch.triu_indices(len(places), len(places), 1)
    open_ = (kept[first] & kept[second]).nonzero()
    if len(open_) > PAIRS:
        return _kept(places, kept, centre)
    pair, group = open_.T
    a, b = first[pair], second[pair]
    gaps = _differences(relaxation, source, places[a, group], places[b, group], deadline)
    # Of two that are always equal the first is kept, so that one of each group always is.
    kept[b[gaps.lower >= 0], group[gaps.lower >= 0]] = False
    below = (gaps.upper <= 0) & ~(gaps.lower >= 0)
    kept[a[below], group[below]] = False
    return _kept(places, kept, centre)


def _read_by_relus(graph: Graph, node: int) -> bool:
    users = [user.operation for user in graph.nodes if node in user.inputs]
    return bool(users) and all(isinstance(user, ReLU) and not user.leak for user in users)


def _ends(bounds: Interval) -> tuple[Tensor, Tensor]:
    return bounds.lower[0], bounds.upper[0]


def _kept(places: Tensor, kept: Tensor, size: Tensor) -> Rivals:
    """The marked places first in each column, the largest sizes before."""
    order = size.masked_fill(~kept, -torch.inf).argsort(dim=0, descending=True, stable=True)
    count = kept.sum(0)
    return Rivals(places.gather(0, order)[: int(count.max())], count)


def _differences(
    relaxation: Relaxation, node: int, first: Tensor, second: Tensor, deadline: float
) -> Interval:
    """Bounds (p,) on the entries `first` less the entries `second` (p,) of a node of one sample.

    Infinite where it is too late.
    """
    shape, dtype = relaxation.graph.shapes(relaxation.x)[node], relaxation.x.dtype
    size = rows_at_once(relaxation.graph, relaxation.x, 1)
    upper = torch.full((len(first),), torch.inf, dtype=dtype)
    found = Interval(-upper, upper)
    for start in range(0, len(first), size):
        if time.monotonic() > deadline:
            break
        some = slice(start, start + size)
        a, b = first[some], second[some]
        rows = torch.zeros(len(a), shape.numel(), dtype=dtype)
        rows.scatter_(1, a[:, None], 1.0).scatter_add_(1, b[:, None], rows.new_full((len(b), 1), -1.0))
        part = relaxation.range(node, rows.reshape(1, -1, *shape))
        found.lower[some], found.upper[some] = part.lower[0], part.upper[0]
    return found
