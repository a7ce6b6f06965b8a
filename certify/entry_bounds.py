"""Linear bounds on the entries of a node, in chunks that stay near the cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from certify.bounds import Interval, entries
from certify.graph import Graph
from certify.ibp import IntervalPass
from certify.relaxation import Relaxation
from certify.rules.activation import Activation
from certify.rules.operation import Affine
from certify.view import View, views
from certify.windows import Windows

# Small enough for the rows of one chunk to stay near the cache, and far below any memory limit.
MEMORY = 16 * 2**20
COPIES = 6

Pick = Callable[[Tensor], tuple[int, Tensor, Tensor | float]]


@dataclass(frozen=True)
class EntryBounds:
    """Linear bounds over one relaxation under way, on top of interval bounds, or alone (`intervals` False).

    What only copies entries of other nodes is bounded where these come from, each entry once. Entries whose
    turn comes after time.monotonic() has passed `deadline` keep what is known of them.
    """

    passes: IntervalPass
    intervals: bool
    deadline: float
    _bounded: dict[int, Tensor] = field(default_factory=dict)
    _alone: dict[int, Interval] = field(default_factory=dict)

    def of(self, relaxation: Relaxation, node: int, wanted: Tensor) -> Interval:
        """Bounds on a node, of which the `wanted` entries (n, *shape) are sought."""
        operation, inputs = relaxation.graph.nodes[node].operation, relaxation.graph.nodes[node].inputs
        of_bounded = isinstance(operation, Activation) and inputs[0] in relaxation.bounds
        if node in self.passes.exact or (of_bounded and self.intervals):
            # The interval of a function of single, bounded entries is no looser than its lines.
            return self.passes.found[node]
        if not isinstance(operation, Affine) or not operation.copies:
            return self._linear(relaxation, node, wanted)
        shapes = relaxation.graph.shapes(relaxation.x)
        rows = wanted.to(relaxation.x.dtype).unsqueeze(1)
        masks = operation.transpose(rows, *(shapes[j] for j in inputs))
        parts = [self.of(relaxation, j, mask[:, 0] != 0) for j, mask in zip(inputs, masks, strict=True)]
        found = operation.interval(*parts)
        return found.intersect(self.passes.found[node]) if self.intervals else found

    def _linear(self, relaxation: Relaxation, node: int, wanted: Tensor) -> Interval:
        known = self.passes.found[node]
        if not self.intervals:
            unknown = torch.full_like(known.lower, torch.inf)
            known = self._alone.get(node, Interval(-unknown, unknown))
        if node in self._bounded:
            wanted = wanted & ~self._bounded[node]
        operation, sought = relaxation.graph.nodes[node].operation, wanted
        if isinstance(operation, Affine):
            sought = operation.distinct(wanted)
        found = bound_entries(relaxation, node, sought, known, self.deadline)
        if isinstance(operation, Affine):
            found = operation.mirrored(found)
        if self.intervals:
            self.passes.found[node] = found = known.intersect(found)
        else:
            self._alone[node] = found
        self._bounded[node] = wanted | self._bounded.get(node, wanted)
        return found


def bound_entries(
    relaxation: Relaxation, node: int, wanted: Tensor, known: Interval | None, deadline: float
) -> Interval:
    """Linear bounds on the wanted entries (n, *shape) of a node; others, and late ones, stay as known."""
    if known is not None and (not bool(wanted.any()) or time.monotonic() > deadline):
        return known
    seen = views(relaxation.graph, relaxation.x, node)
    if seen is not None:
        return _through_windows(relaxation, node, wanted, known, seen, deadline)
    mask = entries(wanted, 1)
    lower = mask.new_full(mask.shape, -torch.inf, dtype=relaxation.x.dtype)
    upper = -lower
    if known is not None:
        lower, upper = entries(known.lower, 1), entries(known.upper, 1)
    pick = _entry_rows(relaxation, node)
    pieces = []
    for samples, piece in _sample_chunks(relaxation, mask):
        part = relaxation.select(samples)
        below, above = lower[samples], upper[samples]
        size = rows_at_once(relaxation.graph, relaxation.x, len(piece))
        for places in piece.split(size, 1) if piece.shape[1] else ():
            if time.monotonic() > deadline:
                break
            start, rows, constant = pick(places)
            found = part.range(start, rows)
            below = below.scatter(1, places, found.lower + constant)
            above = above.scatter(1, places, found.upper + constant)
        pieces.append((below, above))
    below, above = (torch.cat(part).reshape(wanted.shape) for part in zip(*pieces, strict=True))
    return Interval(below, above)


def _through_windows(
    relaxation: Relaxation, node: int, wanted: Tensor, known: Interval | None, seen: Mapping[int, View],
    deadline: float,
) -> Interval:  # fmt: skip
    """`bound_entries` for a node whose entries see a small part of the input each."""
    windows = Windows(
        relaxation.graph, relaxation.x, relaxation.threat, relaxation.bounds, relaxation.alpha, seen,
        symmetric=relaxation.antisymmetric(node),
    )  # fmt: skip
    found = windows.range(wanted, deadline)
    if known is None:
        return Interval(found.lower.reshape(wanted.shape), found.upper.reshape(wanted.shape))
    return Interval(
        known.lower.masked_scatter(wanted, found.lower), known.upper.masked_scatter(wanted, found.upper)
    )


def _entry_rows(relaxation: Relaxation, node: int) -> Pick:
    """Rows for single entries (n, k) of a node: the node they are over, the rows, and their constant.

    They start behind the node's own affine operation where that tells its rows.
    """
    shapes, operation = relaxation.graph.shapes(relaxation.x), relaxation.graph.nodes[node].operation
    inputs, shape, dtype = relaxation.graph.nodes[node].inputs, shapes[node], relaxation.x.dtype

    def pick(places: Tensor) -> tuple[int, Tensor, Tensor | float]:
        if isinstance(operation, Affine):
            found = operation.single(places, shape, shapes[inputs[0]])
            if found is not None:
                return inputs[0], found.rows, found.constant
        rows = torch.zeros(*places.shape, shape.numel(), dtype=dtype, device=places.device)
        return node, rows.scatter_(2, places.unsqueeze(2), 1.0).reshape(*places.shape, *shape), 0.0

    return pick


def rows_at_once(graph: Graph, x: Tensor, samples: int) -> int:
    """How many rows of each of so many samples pass back together: no more than MEMORY for their COPIES."""
    widest = max(shape.numel() for shape in graph.shapes(x))
    return max(1, MEMORY // (8 * COPIES * widest * samples))


def _sample_chunks(relaxation: Relaxation, mask: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Groups of samples, each with the places (samples, k) of at least their marked entries.

    A sample with fewer marked entries than its group's largest count gets others besides.
    """
    counts = mask.sum(1)
    room = rows_at_once(relaxation.graph, relaxation.x, 1)
    size = max(1, room // max(1, int(counts.max())))
    for start in range(0, len(mask), size):
        samples = slice(start, start + size)
        order = torch.argsort(mask[samples].to(torch.int8), dim=1, descending=True, stable=True)
        yield samples, order[:, : int(counts[samples].max())]
