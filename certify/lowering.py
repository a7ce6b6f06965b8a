"""Maxima rewritten as ReLUs, so that what is exact for the ReLU family is exact for it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.backward import Slope, relax
from certify.bounds import Interval, entries
from certify.graph import Graph, Node
from certify.relaxation import Relaxation
from certify.rivals import Rivals, members, rivals
from certify.rules.activation import ReLU
from certify.rules.arithmetic import Sum
from certify.rules.concatenation import Concatenate
from certify.rules.operation import Affine
from certify.rules.selection import Largest
from certify.rules.shape import Reshape

FLAT = Reshape(lambda values: values.flatten(1))


@dataclass(frozen=True, eq=False)
class Pick(Affine):
    """out = in.flatten()[index]: the input's entries at places `index`, in its shape; repeats allowed."""

    index: Tensor
    copies = True

    def forward(self, *values: Tensor) -> Tensor:
        return values[0].flatten(1)[:, self.index.to(values[0].device)]

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.forward(inputs[0].lower), self.forward(inputs[0].upper))

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        most = int(torch.bincount(self.index.flatten()).max())
        return constants[0] * (1.0 if norm == "linf" else most**0.5)

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        back = rows.new_zeros(*rows.shape[:2], shapes[0].numel())
        back.index_add_(2, self.index.flatten().to(rows.device), entries(rows, 2))
        return (back.reshape(*rows.shape[:2], *shapes[0]),)

    def constant(self, rows: Tensor) -> Tensor | float:
        return 0.0


def without_maxima(graph: Graph, x: Tensor, relaxation: Relaxation | None = None) -> Graph:
    """The same function for inputs like x (n, ...), with every maximum made of ReLUs.

    max(a, b) = a + relu(b - a): a group of k entries takes k - 1 ReLUs, one after the other. With the graph's
    relaxation around one sample, entries that it rules out take none, the others come the largest first, so
    that most ReLUs are all but decided, and the function is the same on that sample's threat set alone.
    """
    return _rewritten(graph, x, relaxation)[0] if has_maxima(graph) else graph


def relaxed_without_maxima(relaxation: Relaxation, *slopes: Slope, deadline: float = torch.inf) -> Relaxation:
    """The relaxation of one sample with its maxima made of ReLUs, under no looser bounds on what both have.

    Lines over a chain of ReLUs are looser than those over the maximum itself, whose bounds are kept.
    `deadline` as in `relax`.
    """
    graph, moved, idle = _rewritten(relaxation.graph, relaxation.x, relaxation, deadline)
    known = {moved[j]: _known(relaxation, j) for j in relaxation.bounds}
    for j, through in idle.items():
        unknown = relaxation.x.new_full((1, *through.shape), torch.inf).masked_fill(through, 0.0)
        known[j] = Interval(-unknown, unknown)
    return relax(graph, relaxation.x, relaxation.threat, *slopes, known=known, deadline=deadline)


def _known(relaxation: Relaxation, node: int) -> Interval:
    """What is known of a node, and holds of what stands for it: below zero that may be less than it."""
    bounds = relaxation.bounds[node]
    if not isinstance(relaxation.graph.nodes[node].operation, Largest):
        return bounds
    return Interval(bounds.lower.masked_fill(bounds.lower <= 0, -torch.inf), bounds.upper)


def _rewritten(
    graph: Graph, x: Tensor, relaxation: Relaxation | None, deadline: float = torch.inf
) -> tuple[Graph, dict[int, int], dict[int, Tensor]]:
    """The graph without maxima, where each node is found in it, and where new nodes are zero."""
    shapes, nodes, moved, idle = graph.shapes(x), [Node(None, ())], {0: 0}, dict[int, Tensor]()
    for i, node in enumerate(graph.nodes[1:], start=1):
        inputs = tuple(moved[j] for j in node.inputs)
        if isinstance(node.operation, Largest):
            shape = shapes[node.inputs[0]]
            some = (
                rivals(relaxation, i, deadline) if relaxation is not None else members(node.operation, shape)
            )
            moved[i] = _challenged(nodes, inputs[0], some, shapes[i], idle)
        else:
            nodes.append(Node(node.operation, inputs))
            moved[i] = len(nodes) - 1
    return Graph(tuple(nodes), frozenset(moved[i] for i in graph.tail)), moved, idle


def has_maxima(graph: Graph) -> bool:
    """Whether the graph has an operation that is the largest entry of groups."""
    return any(isinstance(node.operation, Largest) for node in graph.nodes)


def _challenged(
    nodes: list[Node], source: int, some: Rivals, out: torch.Size, idle: dict[int, Tensor]
) -> int:
    """Appends the turns of one maximum to `nodes`; returns the place of its result.

    A group that is through meets its own value: a difference of zero, noted in `idle` (groups,).
    """

    def append(operation: Affine | ReLU, *inputs: int) -> int:
        nodes.append(Node(operation, inputs))
        return len(nodes) - 1

    groups = some.places.shape[1]
    own = torch.arange(groups)
    value, flat = append(Pick(some.places[0]), source), append(FLAT, source)
    for turn in range(1, len(some.places)):
        next_ = torch.where(turn < some.count, groups + some.places[turn], own)
        challenger = append(Pick(next_), append(Concatenate(1), value, flat))
        difference = append(Sum(-1.0), challenger, value)
        idle[difference] = turn >= some.count
        gain = append(ReLU(), difference)
        value = append(Sum(1.0), value, gain)
    return append(Pick(own.reshape(out)), value)
