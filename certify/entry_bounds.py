"""Linear bounds on the entries of a node, in chunks that stay near the cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from certify.bounds import Interval, entries
from certify.graph import Graph
from certify.ibp import IntervalPass
from certify.rearranged import behind_rearrangement
from certify.relaxation import Relaxation
from certify.rules.activation import Activation
from certify.rules.operation import Affine
from certify.view import views
from certify.windows import Windows

# Small enough for the rows of one chunk to stay near the cache, and far below any memory limit.
MEMORY = 16 * 2**20
COPIES = 6

# Up to this share of a sample's entries both ends are sought in one pass.
FEW = 0.2

# Of the wanted entries, and from which side alone: what is not asked for is infinite.
Bound = Callable[[Tensor, Tensor | None], Interval]
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

    def of(self, relaxation: Relaxation, node: int, wanted: Tensor, signs: bool = False) -> Interval:
        """Bounds on a node, of which the `wanted` entries (n, *shape) are sought.

        With `signs` an entry's sign is all that counts: one whose first end tells it keeps the other.
        """
        operation, inputs = relaxation.graph.nodes[node].operation, relaxation.graph.nodes[node].inputs
        of_bounded = isinstance(operation, Activation) and inputs[0] in relaxation.bounds
        if node in self.passes.exact or (of_bounded and self.intervals):
            # The interval of a function of single, bounded entries is no looser than its lines.
            return self.passes.found[node]
        if not isinstance(operation, Affine) or not operation.copies:
            return self._linear(relaxation, node, wanted, signs)
        shapes = relaxation.graph.shapes(relaxation.x)
        rows = wanted.to(relaxation.x.dtype).unsqueeze(1)
        masks = operation.transpose(rows, *(shapes[j] for j in inputs))
        parts = [
            self.of(relaxation, j, mask[:, 0] != 0, signs) for j, mask in zip(inputs, masks, strict=True)
        ]
        found = operation.interval(*parts)
        return found.intersect(self.passes.found[node]) if self.intervals else found

    def _linear(self, relaxation: Relaxation, node: int, wanted: Tensor, signs: bool) -> Interval:
        known = self.passes.found[node]
        if not self.intervals:
            unknown = torch.full_like(known.lower, torch.inf)
            known = self._alone.get(node, Interval(-unknown, unknown))
        if node in self._bounded:
            wanted = wanted & ~self._bounded[node]
        operation, sought = relaxation.graph.nodes[node].operation, wanted
        if isinstance(operation, Affine):
            sought = operation.distinct(wanted)
        signs = signs and self.intervals
        found = bound_entries(relaxation, node, sought, known, self.deadline, signs)
        if signs:
            wanted = wanted & (found.lower < 0) & (found.upper > 0)
        if isinstance(operation, Affine):
            found = operation.mirrored(found)
        if self.intervals:
            self.passes.found[node] = found = known.intersect(found)
        else:
            self._alone[node] = found
        self._bounded[node] = wanted | self._bounded.get(node, wanted)
        return found


def bound_entries(
    relaxation: Relaxation, node: int, wanted: Tensor, known: Interval | None, deadline: float,
    signs: bool = False,
) -> Interval:  # fmt: skip
    """Linear bounds on the wanted entries (n, *shape) of a node; others, and late ones, stay as known.

    With `signs` the end nearer to zero comes first, and an entry whose sign it tells keeps the other; but
    where intervals leave few of a sample's entries open, lines rarely tell more, and both come at once.
    """
    if known is not None and (not bool(wanted.any()) or time.monotonic() > deadline):
        return known
    bound = _windows(relaxation, node, deadline) or _rows(relaxation, node, deadline)
    if known is None:
        return bound(wanted, None)
    if not signs or relaxation.antisymmetric(node):
        return known.intersect(bound(wanted, None))
    shares = entries(wanted, 1).double().mean(1).reshape(-1, *[1] * (wanted.dim() - 1))
    above, turns = known.upper < -known.lower, wanted & (shares > FEW)
    found = known.intersect(bound(turns, above)) if bool(turns.any()) else known
    still = turns & (found.lower < 0) & (found.upper > 0)
    for some, side in ((still, ~above), (wanted & ~turns, None)):
        if bool(some.any()):
            found = found.intersect(bound(some, side))
    return found


def _windows(relaxation: Relaxation, node: int, deadline: float) -> Bound | None:
    """Bounds on entries that see a small part each of the input, or of its rearrangement; else none."""
    seen = views(relaxation.graph, relaxation.x, node)
    if seen is None:
        behind = behind_rearrangement(relaxation, node)
        if behind is None:
            return None
        relaxation, node = behind
        seen = views(relaxation.graph, relaxation.x, node)
    if seen is None:
        return None
    windows = Windows(
        relaxation.graph, relaxation.x, relaxation.threat, relaxation.bounds, relaxation.alpha, seen,
        symmetric=relaxation.antisymmetric(node),
    )  # fmt: skip

    def bound(wanted: Tensor, above: Tensor | None) -> Interval:
        unknown = torch.full_like(wanted, torch.inf, dtype=relaxation.x.dtype)
        found = windows.range(wanted, deadline, above)
        return Interval(
            (-unknown).masked_scatter(wanted, found.lower), unknown.masked_scatter(wanted, found.upper)
        )

    return bound


def _rows(relaxation: Relaxation, node: int, deadline: float) -> Bound:
    """Bounds on entries by rows over everything before the node."""
    pick = _entry_rows(relaxation, node)

    def bound(wanted: Tensor, above: Tensor | None) -> Interval:
        pieces, side = [], None if above is None else entries(above, 1)
        for samples, piece in _sample_chunks(relaxation, entries(wanted, 1)):
            part = relaxation.select(samples)
            upper = torch.full_like(entries(wanted, 1)[samples], torch.inf, dtype=relaxation.x.dtype)
            lower = -upper
            size = rows_at_once(relaxation.graph, relaxation.x, len(piece))
            for places in piece.split(size, 1) if piece.shape[1] else ():
                if time.monotonic() > deadline:
                    break
                start, rows, constant = pick(places)
                found = _ends(part, start, rows, None if side is None else side[samples].gather(1, places))
                lower = lower.scatter(1, places, found.lower + constant)
                upper = upper.scatter(1, places, found.upper + constant)
            pieces.append((lower, upper))
        lower, upper = (torch.cat(part).reshape(wanted.shape) for part in zip(*pieces, strict=True))
        return Interval(lower.masked_fill(~wanted, -torch.inf), upper.masked_fill(~wanted, torch.inf))

    return bound


def _ends(relaxation: Relaxation, node: int, rows: Tensor, above: Tensor | None) -> Interval:
    """Bounds (n, k) on rows . value(node); from one side where `above` (n, k) says which, else infinite."""
    if above is None:
        return relaxation.range(node, rows)
    turned = torch.where(above, -1.0, 1.0).to(rows).reshape(*above.shape, *[1] * (rows.dim() - 2))
    return Interval.one_end(relaxation.lower(node, rows * turned), above)


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
