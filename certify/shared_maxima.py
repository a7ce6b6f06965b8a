"""Maxima of neurons that read one input each, but for crumbs, become maxima of inputs that channels share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certify.graph import Graph, Node
from certify.lowering import Pick
from certify.rivals import Rivals, members
from certify.rules.activation import Activation
from certify.rules.arithmetic import ScaleShift, Sum
from certify.rules.concatenation import Concatenate
from certify.rules.operation import Affine, Operation
from certify.rules.selection import Largest, LargestOver
from certify.single_inputs import Entries, Shared, filled, shared_groups
from certify.view import views
from certify.windows import Windows
from models.region import Region
from models.threat import ThreatModel


@dataclass(frozen=True)
class Question:
    """A network around one sample x (1, d); lift takes points (b, d) to those of the network asked about."""

    graph: Graph
    x: Tensor
    threat: ThreatModel
    lift: Callable[[Tensor], Tensor]

    @property
    def parts(self) -> tuple[Graph, Tensor, ThreatModel]:
        """What bounds are asked over."""
        return self.graph, self.x, self.threat


def with_shared_maxima(graph: Graph, x: Tensor, threat: ThreatModel) -> Question | None:
    """The same question of one sample, or a slightly harder one, where maxima are over inputs themselves.

    Where max pooling follows thresholds of single pixels, as in networks trained against linf attacks, all
    channels of one sign ask which pixel of a window is the largest. Asked once for the window, the lines
    and phases of these maxima are the same for all channels, and the thresholds read one entry each. The
    weights beside an entry's largest one are left out where they hardly move it; the most that they may
    change is a new input of each group, behind the old ones. So a proof there is one here. None where few
    groups are of this kind, or none shares its maximum with another; linf only.
    """
    if threat.norm != "linf":
        return None
    for place, node in enumerate(graph.nodes):
        if isinstance(node.operation, Largest):
            source, between = _before(graph, node.inputs[0])
            if source is None:
                return None
            seen = views(graph, x, source)
            if seen is None:
                return None
            entries = Entries(Windows(graph, x, threat, {}, {}, seen, symmetric=True), source)
            some = members(node.operation, graph.shapes(x)[source]).to(x.device)
            shared = shared_groups(entries, some)
            if shared is None or shared.keys.shape[1] == len(shared.groups):
                return None
            return _asked(entries, place, between, some, shared)
    return None


def _before(graph: Graph, place: int) -> tuple[int | None, list[Operation]]:
    """The affine function of the inputs that `place` is a non-decreasing function of, and that function."""
    between = list[Operation]()
    while isinstance(operation := graph.nodes[place].operation, Activation):
        between.insert(0, operation)
        (place,) = graph.nodes[place].inputs
    todo = [place]
    while todo:
        node = graph.nodes[todo.pop()]
        if node.operation is not None and not isinstance(node.operation, Affine):
            return None, between
        todo.extend(node.inputs)
    return place, between


def _asked(of: Entries, place: int, between: list[Operation], some: Rivals, shared: Shared) -> Question:
    """The graph with the groups of the maximum at `place` shared, over the inputs and the crumbs."""
    graph, x = of.windows.graph, of.windows.x
    size, shapes, needed = x[0].numel(), graph.shapes(x), _needed(graph, place)
    nodes = [Node(None, ())]

    def append(operation: Operation, *inputs: int) -> int:
        nodes.append(Node(operation, inputs))
        return len(nodes) - 1

    moved = {0: append(Pick(torch.arange(size).reshape(x.shape[1:])), 0)}
    for i, node in enumerate(graph.nodes[1:], start=1):
        if i == place:
            groups = append(Pick(_order(some, shared).reshape(shapes[i])), _groups(append, of, some, shared))
            for operation in between:
                groups = append(operation, groups)
            moved[i] = groups
        elif i in needed:
            assert node.operation is not None
            moved[i] = append(node.operation, *(moved[j] for j in node.inputs))
    tail = frozenset(moved[i] for i in graph.tail)
    question = replace(Graph(tuple(nodes), tail), shifted=graph.shifted)
    crumbs = shared.crumbs[shared.crumbs > 0]
    lower, upper = (end.flatten() for end in of.windows.threat.bounds(x))
    zero = lower.new_zeros(1)
    region = Region(low=torch.cat([lower, zero, -crumbs])[None], high=torch.cat([upper, zero, crumbs])[None])
    centre = torch.cat([x.flatten(), zero, 0 * crumbs])[None]
    return Question(question, centre, region, lambda points: points.flatten(1)[:, :size])


def _needed(graph: Graph, place: int) -> set[int]:
    """The nodes that the outputs depend on where that at `place` is given."""
    needed, todo = set[int](), [len(graph.nodes) - 1, *graph.tail]
    while todo:
        i = todo.pop()
        if i not in needed and i != place:
            needed.add(i)
            todo.extend(graph.nodes[i].inputs)
    return needed


def _groups(append: Callable[..., int], of: Entries, some: Rivals, shared: Shared) -> int:
    """Appends the shared groups and those that are not, one after the other; returns their place."""
    size = of.windows.x[0].numel()
    own, rest = _largest(append, size, shared), _others(some, shared)
    if not len(rest):
        return own
    places, inverse = filled(some, rest).unique(return_inverse=True)
    layer = append(of.layer(places), append(Pick(torch.arange(size)), 0))
    return append(Concatenate(1), own, append(LargestOver((1,), False), append(Pick(inverse), layer)))


def _largest(append: Callable[..., int], size: int, shared: Shared) -> int:
    """Appends the shared maxima and the groups' functions of them; returns the place of the groups (s,)."""
    inputs = append(Pick(torch.arange(size + 1)), 0)
    signed = append(Concatenate(1), inputs, append(ScaleShift(scale=lambda: -1.0), inputs))
    largest = append(LargestOver((1,), False), append(Pick(shared.keys), signed))
    own = append(
        ScaleShift(scale=lambda: shared.slope, shift=lambda: shared.constant),
        append(Pick(shared.key), largest),
    )
    moved = shared.crumbs > 0
    # Groups without crumbs read the input behind the old ones, which is always zero.
    crumbs = size + torch.where(moved, moved.cumsum(0), 0)
    return append(Sum(1.0), own, append(Pick(crumbs), 0))


def _others(some: Rivals, shared: Shared) -> Tensor:
    """The groups (r,) that are not shared."""
    return torch.ones_like(some.count).index_fill(0, shared.groups, 0).nonzero()[:, 0]


def _order(some: Rivals, shared: Shared) -> Tensor:
    """Where each group (m,) is among the shared ones and then the others."""
    return torch.cat([shared.groups, _others(some, shared)]).argsort()
