"""Planes that are rearranged inputs, entry by entry: channels-last images, one of several inputs in a row."""

from __future__ import annotations

from torch import Tensor

from certify.bounds import Interval
from certify.graph import Graph, Node
from certify.relaxation import Relaxation
from certify.rules.arithmetic import ScaleShift
from certify.rules.placement import Placement
from certify.rules.shape import Identity, Reshape
from models.enclosure import Enclosure
from models.region import Region

# Each entry that these make follows one entry of their input, which no other follows, or none.
REARRANGING = (Reshape, Identity, Placement, ScaleShift)


def behind_rearrangement(relaxation: Relaxation, node: int) -> tuple[Relaxation, int] | None:
    """The relaxation from a plane (c, h, w) on through which alone `node` sees the inputs, and `node` there.

    Each entry of such a plane varies in an interval of its own, so that the plane may stand for the inputs:
    nothing is lost, and windows can begin there. What sees more than this plane has no meaning any more. None
    where there is no such plane, or the threat is no box.
    """
    threat = relaxation.threat
    if threat.norm != "linf" or isinstance(threat, Enclosure):
        return None
    base = root(relaxation.graph, relaxation.x, node)
    if base is None:
        return None
    x, box = relaxation.x, Interval(*threat.bounds(relaxation.x))
    for i in _way(relaxation.graph, base):
        operation = relaxation.graph.nodes[i].operation
        assert operation is not None
        x, box = operation.forward(x), operation.interval(box)
    region = Region(low=box.lower, high=box.upper)
    bounds = {i - base: part for i, part in relaxation.bounds.items() if i >= base}
    alpha = {i - base: part for i, part in relaxation.alpha.items() if i > base}
    return Relaxation(cut_before(relaxation.graph, relaxation.x, base), x, region, bounds, alpha), node - base


def root(graph: Graph, x: Tensor, node: int) -> int | None:
    """The last plane of rearranged inputs through which `node` sees all that it sees of them."""
    cone, shapes = _cone(graph, node), graph.shapes(x)
    for base in sorted(cone, reverse=True):
        if base in (0, node) or len(shapes[base]) != 3 or not (way := _way(graph, base)):
            continue
        hidden = {0, *way} - {base}
        if not any(hidden.intersection(graph.nodes[i].inputs) for i in cone if i not in way):
            return base
    return None


def cut_before(graph: Graph, x: Tensor, base: int) -> Graph:
    """The graph with node `base` as its input; x (n, ...) are inputs of the whole graph."""
    rest = (
        Node(node.operation, tuple(max(0, j - base) for j in node.inputs)) for node in graph.nodes[base + 1 :]
    )
    shapes = graph.shapes(x)[base:]
    tail = frozenset(i - base for i in graph.tail if i > base)
    return Graph((Node(None, ()), *rest), tail, {shapes[0]: shapes})


def _cone(graph: Graph, node: int) -> set[int]:
    """The nodes that `node` is made of, itself among them."""
    found = {node}
    for i in range(node, 0, -1):
        if i in found:
            found.update(graph.nodes[i].inputs)
    return found


def _way(graph: Graph, base: int) -> list[int]:
    """The nodes from behind the input to `base`, in order, where they rearrange it; else none."""
    found = [base]
    while found[0]:
        node = graph.nodes[found[0]]
        if not isinstance(node.operation, REARRANGING):
            return []
        found.insert(0, node.inputs[0])
    return found[1:]
