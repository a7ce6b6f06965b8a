"""Bounds on what every relaxed operation reads, layer by layer, and on margins, by one backward pass each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from certify.bounds import Interval
from certify.entry_bounds import EntryBounds, rows_at_once
from certify.graph import Graph
from certify.ibp import IntervalPass, margin_rows
from certify.relaxation import Relaxation
from certify.rules.activation import ReLU
from certify.rules.operation import Affine, Relaxed
from models.threat import ThreatModel

Slope = Callable[[Relaxed, Interval], Tensor | None]


def parallel_slope(operation: Relaxed, bounds: Interval) -> None:
    """The lower line has the upper one's slope, in a triangle u/(u - l): no free slope."""
    return


def adaptive_slope(operation: Relaxed, bounds: Interval) -> Tensor:
    """The operation's own choice: the smaller triangle, the tangent nearest to the middle."""
    return operation.adaptive(bounds)


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
    linear bound, by each of `slopes` in turn while they are undecided, intersected with what is known;
    without `slopes` the interval bounds stay as they are and every lower line is parallel. With
    intervals=False every entry's bound is the linear one alone. Each bound is widened by slack (1 + |bound|),
    and what follows from it with it. What is `known` of nodes already is made use of. Entries whose turn
    comes after time.monotonic() has passed `deadline` keep their intervals. Differentiable in the network's
    parameters.
    """
    passes = IntervalPass(graph, x, threat)
    alphas: list[dict[int, Tensor]] = [{} for _ in slopes]
    until = deadline if intervals else torch.inf
    linear = [EntryBounds(passes, intervals, until) for _ in slopes]
    bounds: dict[int, Interval] = {}
    for i in range(1, len(graph.nodes)):
        if i in graph.tail:
            continue
        operation, inputs = graph.nodes[i].operation, graph.nodes[i].inputs
        if isinstance(operation, Relaxed):
            source = inputs[0]
            found = passes.found[source]
            if known and source in known:
                passes.found[source] = found = found.intersect(known[source])
            wanted = operation.undecided(found) if intervals else torch.ones_like(found.lower).bool()
            for alpha, entry_bounds in zip(alphas, linear, strict=True):
                relaxation = Relaxation(graph, x, threat, bounds, alpha)
                found = entry_bounds.of(relaxation, source, wanted, _only_signs(graph, i))
                if intervals:
                    # What the lines so far decide has no line to gain from others.
                    wanted = wanted & operation.undecided(found)
            if slack:
                found = found.widened(slack)
            passes.found[source] = bounds[source] = found
            for slope, alpha in zip(slopes, alphas, strict=True):
                value = slope(operation, found) if operation.free_slope else None
                if value is not None:
                    alpha[i] = value.detach()
        passes.step(i)
    return Relaxation(graph, x, threat, bounds, alphas[-1] if alphas else {})


def _only_signs(graph: Graph, node: int) -> bool:
    """Whether a sign is all that counts of an entry that has one: so for a ReLU that only affine nodes read.

    A maximum over it, for one, takes its lines from both ends.
    """
    if not isinstance(graph.nodes[node].operation, ReLU):
        return False
    copies = {node}
    for i in range(node + 1, len(graph.nodes)):
        if copies.isdisjoint(graph.nodes[i].inputs):
            continue
        operation = graph.nodes[i].operation
        if isinstance(operation, Relaxed):
            return False
        if isinstance(operation, Affine) and operation.copies:
            copies.add(i)
    return True


def margins(relaxation: Relaxation, y: Tensor) -> Tensor:
    """Lower bounds (n, classes) on z_y - z_j, 0 in column y."""
    classes = relaxation.graph.num_classes(relaxation.x)
    rows = margin_rows(y, classes, relaxation.x.dtype)
    room = rows_at_once(relaxation.graph, relaxation.x, 1)
    size, last, found = max(1, room // classes), len(relaxation.graph.nodes) - 1, []
    for start in range(0, len(rows), size):
        some = slice(start, start + size)
        parts = rows[some].split(max(room // size, 1), 1)
        found.append(torch.cat([relaxation.select(some).lower(last, part) for part in parts], 1))
    return torch.cat(found)
