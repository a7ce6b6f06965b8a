"""Linear bounds passed back from rows over a node to rows over the input, many samples and rows at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from certify.bounds import Interval, entries, range_over_threat
from certify.graph import Graph
from certify.ibp import IntervalPass, margin_rows
from certify.rules.activation import Activation
from certify.rules.operation import Affine, Pulled, Relaxed, pull_overlap
from certify.view import View, views
from certify.windows import Windows
from models.threat import ThreatModel

# Small enough for the rows of one chunk to stay near the cache, and far below any memory limit.
MEMORY = 16 * 2**20
COPIES = 6

Pick = Callable[[Tensor], tuple[int, Tensor, Tensor | float]]
Slope = Callable[[Relaxed, Interval], Tensor | None]


def parallel_slope(operation: Relaxed, bounds: Interval) -> None:
    """The lower line has the upper one's slope, in a triangle u/(u - l): no free slope."""
    return


def adaptive_slope(operation: Relaxed, bounds: Interval) -> Tensor:
    """The operation's own choice: the smaller triangle, the tangent nearest to the middle."""
    return operation.adaptive(bounds)


@dataclass(frozen=True)
class Relaxation:
    """A network around x (n, ...) with bounds on the input of every relaxed operation.

    bounds: by the index of the bounded node. alpha: by the index of the relaxed node, the place
    of its lower slope in [0, 1], (n, *shape) or (n, k, *shape); absent means parallel lines.
    overlap: by the same index and in the same shapes, a weight >= 0 on both lines at once, which uses that
    z keeps to its bounds. Any alpha and any overlap give valid bounds.
    """

    graph: Graph
    x: Tensor
    threat: ThreatModel
    bounds: Mapping[int, Interval]
    alpha: Mapping[int, Tensor]
    overlap: Mapping[int, Tensor] = field(default_factory=dict)

    def with_alpha(
        self, alpha: Mapping[int, Tensor], overlap: Mapping[int, Tensor] | None = None
    ) -> Relaxation:
        """The same bounds under other lower slopes, and other weights on both lines."""
        return Relaxation(self.graph, self.x, self.threat, self.bounds, alpha, overlap or {})

    def select(self, samples: slice | Tensor) -> Relaxation:
        """The same for some of the samples."""
        bounds = {i: Interval(b.lower[samples], b.upper[samples]) for i, b in self.bounds.items()}
        alpha, overlap = (
            {i: value[samples] for i, value in part.items()} for part in (self.alpha, self.overlap)
        )
        return Relaxation(self.graph, self.x[samples], self.threat.select(samples), bounds, alpha, overlap)

    def lower(self, node: int, rows: Tensor) -> Tensor:
        """Lower bounds (n, k) on rows . value(node) over the threat set; rows (n, k, *shape of node)."""
        return self._pass(node, rows, both=False).lower

    def lower_sum(self, starts: Mapping[int, Tensor]) -> Tensor:
        """Lower bounds (n, k) on the sum of rows (n, k, *shape) . value over several nodes."""
        plane, below, _ = self._to_input(starts, both=False)
        return range_over_threat(plane, self.x, self.threat).lower + below

    def range(self, node: int, rows: Tensor) -> Interval:
        """Bounds (n, k) on rows . value(node) from both sides."""
        if self.antisymmetric(node):
            return self._pass(node, rows, both=True)
        lower = self._pass(node, torch.cat([rows, -rows], 1), both=False).lower
        below, above = lower.chunk(2, 1)
        return Interval(below, -above)

    def antisymmetric(self, node: int) -> bool:
        """Whether rows and -rows over `node` pull back to rows of opposite sign."""
        operations = ((i, self.graph.nodes[i].operation) for i in range(1, node + 1))
        relaxed = [(i, operation) for i, operation in operations if isinstance(operation, Relaxed)]
        free = {*self.alpha, *self.overlap}
        return all(operation.antisymmetric and i not in free for i, operation in relaxed)

    def planes(self, node: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Functions p . x' + c nowhere above rows . value(node): p (n, k, *shape of x) and c (n, k)."""
        plane, below, _ = self._to_input({node: rows}, both=False)
        return plane, torch.as_tensor(below).to(rows).expand(rows.shape[:2])

    def _pass(self, node: int, rows: Tensor, both: bool) -> Interval:
        plane, below, above = self._to_input({node: rows}, both)
        ends = range_over_threat(plane, self.x, self.threat)
        return Interval(ends.lower + below, ends.upper + above)

    def _to_input(
        self, starts: Mapping[int, Tensor], both: bool
    ) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Rows over the input, and what is added to them below and above; `starts` are rows by node."""
        shapes, rows = self.graph.shapes(self.x), next(iter(starts.values()))
        pending = dict(starts)
        below: Tensor | float = 0.0
        above: Tensor | float = 0.0
        for i in range(max(starts), 0, -1):
            if i not in pending:
                continue
            here = pending.pop(i)
            operation, inputs = self.graph.nodes[i].operation, self.graph.nodes[i].inputs
            if isinstance(operation, Affine):
                constant = operation.constant(here)
                below, above = below + constant, above + constant
                parts = operation.transpose(here, *(shapes[j] for j in inputs))
            else:
                pulled = self.pull(i, here, both)
                below, parts = below + pulled.constant, (pulled.rows,)
                above = above if pulled.opposite is None else above - pulled.opposite
            for j, part in zip(inputs, parts, strict=True):
                pending[j] = pending[j] + part if j in pending else part
        none = rows.new_zeros(*rows.shape[:2], *self.x.shape[1:])
        return pending.get(0, none), below, above

    def pull(self, i: int, rows: Tensor, both: bool) -> Pulled:
        """Rows (n, k, *output) on relaxed node i as rows on its input; `both` asks for their opposite too."""
        operation = self.graph.nodes[i].operation
        assert isinstance(operation, Relaxed)
        bounds = self.bounds[self.graph.nodes[i].inputs[0]]
        pulled = operation.pull(rows, bounds, self.alpha.get(i), both)
        if i not in self.overlap:
            return pulled
        assert isinstance(operation, Activation)
        return pull_overlap(pulled, operation.lines(bounds, self.alpha.get(i)), self.overlap[i])


def relax(
    graph: Graph,
    x: Tensor,
    threat: ThreatModel,
    *slopes: Slope,
    intervals: bool = True,
    slack: float = 0.0,
    known: Mapping[int, Interval] | None = None,
    deadline: float = torch.inf,
) -> Relaxation:
    """Bounds every relaxed operation's input, layer by layer, and sets lower slopes by the last of `slopes`.

    Each layer starts from its interval bounds; only the entries that these leave undecided get a
    linear bound, by each of `slopes` in turn, intersected with what is known; without `slopes` the
    interval bounds stay as they are and every lower line is parallel. With intervals=False
    every entry's bound is the linear one alone. Each bound is widened by slack (1 + |bound|), and what
    follows from it with it. What is `known` of nodes already is made use of. Entries whose turn comes after
    time.monotonic() has passed `deadline` keep their intervals. Differentiable in the network's parameters.
    """
    passes = IntervalPass(graph, x, threat)
    alphas: list[dict[int, Tensor]] = [{} for _ in slopes]
    bounds: dict[int, Interval] = {}
    for i in range(1, len(graph.nodes)):
        if i in graph.tail:
            continue
        operation, inputs = graph.nodes[i].operation, graph.nodes[i].inputs
        if isinstance(operation, Relaxed):
            source = inputs[0]
            found = passes.found[source]
            if known and source in known:
                found = found.intersect(known[source])
            if source not in passes.exact:
                wanted = operation.undecided(found) if intervals else torch.ones_like(found.lower).bool()
                for alpha in alphas:
                    relaxation = Relaxation(graph, x, threat, bounds, alpha)
                    until = deadline if intervals else torch.inf
                    linear = _bound_entries(relaxation, source, wanted, found if intervals else None, until)
                    found = found.intersect(linear) if intervals else linear
            if slack:
                found = found.widened(slack)
            passes.found[source] = bounds[source] = found
            for slope, alpha in zip(slopes, alphas, strict=True):
                value = slope(operation, found) if operation.free_slope else None
                if value is not None:
                    alpha[i] = value.detach()
        passes.step(i)
    return Relaxation(graph, x, threat, bounds, alphas[-1] if alphas else {})


def _bound_entries(
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
        size = _rows_at_once(relaxation.graph, relaxation.x, len(piece))
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
    """`_bound_entries` for a node whose entries see a small part of the input each."""
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
        return node, rows.scatter_(2, places.unsqueeze(2), 1.0).unflatten(2, shape), 0.0

    return pick


def _rows_at_once(graph: Graph, x: Tensor, samples: int) -> int:
    widest = max(shape.numel() for shape in graph.shapes(x))
    return max(1, MEMORY // (8 * COPIES * widest * samples))


def _sample_chunks(relaxation: Relaxation, mask: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Groups of samples, each with the places (samples, k) of at least their marked entries.

    A sample with fewer marked entries than its group's largest count gets others besides.
    """
    counts = mask.sum(1)
    room = _rows_at_once(relaxation.graph, relaxation.x, 1)
    size = max(1, room // max(1, int(counts.max())))
    for start in range(0, len(mask), size):
        samples = slice(start, start + size)
        order = torch.argsort(mask[samples].to(torch.int8), dim=1, descending=True, stable=True)
        yield samples, order[:, : int(counts[samples].max())]


def margins(relaxation: Relaxation, y: Tensor) -> Tensor:
    """Lower bounds (n, classes) on z_y - z_j, 0 in column y."""
    classes = relaxation.graph.num_classes(relaxation.x)
    rows = margin_rows(y, classes, relaxation.x.dtype)
    size = max(1, _rows_at_once(relaxation.graph, relaxation.x, 1) // classes)
    last = len(relaxation.graph.nodes) - 1
    return torch.cat(
        [
            relaxation.select(slice(start, start + size)).lower(last, rows[start : start + size])
            for start in range(0, len(rows), size)
        ]
    )
