"""Maxima of neurons that read one input each, but for crumbs, become maxima of inputs that channels share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from certify.graph import Graph, Node
from certify.lowering import Pick
from certify.rivals import Rivals, members
from certify.rules.activation import Activation
from certify.rules.arithmetic import Concatenate, ScaleShift, Sum
from certify.rules.operation import Affine, Operation
from certify.rules.selection import Largest, LargestOver
from certify.view import views
from certify.windows import Windows
from models.region import Region
from models.threat import ThreatModel

# What a group's entries read beside one input each may move them by such a part of what that input does.
CRUMBS = 3e-2

# Groups that move by less than such a part of what others do are no functions of any input, but crumbs.
SMALL = 1e-2

# The part of the groups that have to be of this kind.
MOST = 0.5

# The slopes of a group's entries may differ by such a part, which is rounding.
SAME = 1e-12

# Groups that are looked at first.
FIRST = 64


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


@dataclass(frozen=True)
class _Singles:
    """Entries (k,) or (m, k) of an affine function of a box, each with the input that moves it most.

    An entry is slope (x[place] - the middle of that input's range) + middle, up to `crumbs`; `moves` is what
    the one input adds at most.
    """

    place: Tensor
    slope: Tensor
    middle: Tensor
    moves: Tensor
    crumbs: Tensor

    def at(self, places: Tensor) -> _Singles:
        """Some of the entries, with repeats."""
        return _Singles(*(getattr(self, part.name)[places] for part in fields(self)))


@dataclass(frozen=True)
class _Shared:
    """Groups (s,) that are slope u[keys[key]].max() + constant, up to `crumbs`.

    u are the d inputs and a zero, which is what padding adds, and then their negatives. keys (m, k) are
    places among these 2 (d + 1); one may stand in a column more than once.
    """

    groups: Tensor
    keys: Tensor
    key: Tensor
    slope: Tensor
    constant: Tensor
    crumbs: Tensor


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
            some = members(node.operation, graph.shapes(x)[source])
            shared = _shared(graph, x, threat, source, some)
            if shared is None or shared.keys.shape[1] == len(shared.groups):
                return None
            return _asked(graph, x, threat, place, source, between, some, shared)
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


def _singles(windows: Windows, source: int, entries: Tensor) -> _Singles:
    """The entries (k,) of an affine node, flat places in a sample."""
    shape = windows.graph.shapes(windows.x)[source]
    where = torch.stack(torch.unravel_index(entries, shape), 1)
    rows, places, constant = windows.rows(torch.cat([torch.zeros_like(where[:, :1]), where], 1))
    middle, radius = _box(windows)
    # Inputs that cannot move count a little, so that a group may read one of them as it reads others.
    own = (rows.abs() * radius.clamp(min=SMALL * float(radius.amax()))[places]).argmax(1, keepdim=True)
    place, slope = places.gather(1, own)[:, 0], rows.gather(1, own)[:, 0]
    moves = slope.abs() * radius[place]
    crumbs = (rows.abs() * radius[places]).sum(1) - moves
    return _Singles(place, slope, constant + (rows * middle[places]).sum(1), moves, crumbs)


def _box(windows: Windows) -> tuple[Tensor, Tensor]:
    lower, upper = (end.flatten() for end in windows.threat.bounds(windows.x))
    return (upper + lower) / 2, (upper - lower) / 2


def _shared(graph: Graph, x: Tensor, threat: ThreatModel, source: int, some: Rivals) -> _Shared | None:
    """The groups whose entries read one input each in the same way; None where these are few."""
    seen = views(graph, x, source)
    if seen is None:
        return None
    windows, size = Windows(graph, x, threat, {}, {}, seen, symmetric=True), x[0].numel()
    width, groups = some.places.shape
    step = max(1, groups // FIRST)
    for chosen in (torch.arange(0, groups, step), torch.arange(groups)):
        own = torch.arange(width)[:, None] < some.count[chosen]
        entries, inverse = torch.where(own, some.places[:, chosen], some.places[:1, chosen]).unique(
            return_inverse=True
        )
        found = _with_padding(_singles(windows, source, entries).at(inverse), size)
        constant = found.middle - found.slope * pad(_box(windows)[0], (0, 1))[found.place]
        shared = _grouped(found, constant, size + 1)
        if len(shared.groups) < MOST * len(chosen) or not bool(shared.slope.any()):
            return None
    return shared


def _with_padding(found: _Singles, zero: int) -> _Singles:
    """The same where entries (m, g) that read crumbs alone are functions of an input that is zero."""
    lead = found.slope.gather(0, found.slope.abs().argmax(0, keepdim=True))
    empty = found.slope.abs() <= CRUMBS * lead.abs()
    return replace(
        found,
        slope=torch.where(empty, lead, found.slope),
        place=found.place.masked_fill(empty, zero),
        crumbs=found.crumbs + torch.where(empty, found.moves, 0.0),
        moves=found.moves.masked_fill(empty, 0.0),
    )


def _grouped(found: _Singles, constants: Tensor, size: int) -> _Shared:
    """The groups (g,) that read one of `size` inputs all alike, and those that hardly move, as constants."""
    constant = (constants.amin(0) + constants.amax(0)) / 2
    crumbs = found.crumbs.amax(0) + (constants - constant).abs().amax(0)
    same = (found.slope - found.slope[0]).abs().amax(0) <= SAME * found.slope[0].abs()
    single = same & (crumbs <= CRUMBS * found.moves.amax(0))
    moves = found.moves + found.crumbs
    low, high = (found.middle - moves).amax(0), (found.middle + moves).amax(0)
    still = ~single & (high - low <= SMALL * found.moves.amax())
    constant, crumbs = (
        torch.where(still, (low + high) / 2, constant),
        torch.where(still, (high - low) / 2, crumbs),
    )
    groups = (single | still).nonzero()[:, 0]
    slope = torch.where(still, 0.0, found.slope[0])[groups]
    signed = torch.where(still, 0, found.place)[:, groups] + (slope < 0) * size
    keys, key = signed.sort(0).values.unique(dim=1, return_inverse=True)
    return _Shared(groups, keys, key, slope.abs(), constant[groups], crumbs[groups])


def _asked(
    graph: Graph, x: Tensor, threat: ThreatModel, place: int, source: int, between: list[Operation],
    some: Rivals, shared: _Shared,
) -> Question:  # fmt: skip
    """The graph with the groups of the maximum at `place` shared, over the inputs and the crumbs."""
    size, shapes = x[0].numel(), graph.shapes(x)
    nodes = [Node(None, ())]

    def append(operation: Operation, *inputs: int) -> int:
        nodes.append(Node(operation, inputs))
        return len(nodes) - 1

    moved = {0: append(Pick(torch.arange(size).reshape(x.shape[1:])), 0)}
    for i, node in enumerate(graph.nodes[1:], start=1):
        if i == place:
            own = _largest(append, size, shared)
            rest, order = _rest(some, shared)
            if rest is not None:
                other = append(LargestOver((1,), False), append(Pick(rest), moved[source]))
                own = append(Concatenate(1), own, other)
            moved[i] = append(Pick(order.reshape(shapes[i])), own)
            for operation in between:
                moved[i] = append(operation, moved[i])
        else:
            assert node.operation is not None
            moved[i] = append(node.operation, *(moved[j] for j in node.inputs))
    tail = frozenset(moved[i] for i in graph.tail)
    question = replace(Graph(tuple(nodes), tail), shifted=graph.shifted)
    crumbs = shared.crumbs[shared.crumbs > 0]
    lower, upper = (end.flatten() for end in threat.bounds(x))
    zero = lower.new_zeros(1)
    region = Region(low=torch.cat([lower, zero, -crumbs])[None], high=torch.cat([upper, zero, crumbs])[None])
    centre = torch.cat([x.flatten(), zero, 0 * crumbs])[None]
    return Question(question, centre, region, lambda points: points.flatten(1)[:, :size])


def _largest(append: Callable[..., int], size: int, shared: _Shared) -> int:
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


def _rest(some: Rivals, shared: _Shared) -> tuple[Tensor | None, Tensor]:
    """The members (k, r) of the groups that are not shared, if any, and where each group (m,) is then."""
    width, groups = some.places.shape
    own = torch.ones(groups, dtype=torch.bool).index_fill(0, shared.groups, False).nonzero()[:, 0]
    order = torch.cat([shared.groups, own]).argsort()
    if not len(own):
        return None, order
    real = torch.arange(width)[:, None] < some.count[own]
    return torch.where(real, some.places[:, own], some.places[:1, own]), order
