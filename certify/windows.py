"""Linear bounds on single entries of a convolutional layer, each through the window that it sees."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from certify.bounds import Interval, range_over_ball, range_over_threat
from certify.few import Few
from certify.graph import Graph
from certify.rules.activation import Activation
from certify.rules.arithmetic import ScaleShift
from certify.rules.convolution import Conv2d
from certify.rules.operation import Affine, Lines, Pulled, folded, pull_lines
from certify.rules.pooling import AveragePool, MaxPool
from certify.rules.selection import Choice, pull_choice
from certify.view import View
from models.enclosure import Enclosure
from models.threat import ThreatModel

# Rows of one chunk stay near the cache.
CHUNK = 2 * 2**20

# A convolution over windows this small is faster as one matrix of this many entries at most.
TABLE = 2**18


@dataclass(frozen=True)
class Windows:
    """A network around x as single entries see it: `seen` says where, bounds and alpha are as in Relaxation.

    `symmetric` says that a row's bound from above is its negative's from below, pulled alike.
    """

    graph: Graph
    x: Tensor
    threat: ThreatModel
    bounds: Mapping[int, Interval]
    alpha: Mapping[int, Tensor]
    seen: Mapping[int, View]
    symmetric: bool
    _tables: dict[int, Tensor] = field(default_factory=dict, repr=False)
    _known: dict[int, Lines] = field(default_factory=dict, repr=False)
    _chosen: dict[int, Choice] = field(default_factory=dict, repr=False)

    def range(self, wanted: Tensor, deadline: float = torch.inf, above: Tensor | None = None) -> Interval:
        """Bounds (m,) on the wanted entries (n, c, h, w) of the last node seen, in `nonzero` order.

        What is left once time.monotonic() has passed `deadline` is unbounded, as is one end of each entry
        where `above` (n, c, h, w) asks for the other: the upper one where it holds.
        """
        entries = wanted.nonzero()
        sides = None if above is None else above[wanted]
        shapes = self.graph.shapes(self.x)
        widest = max(shapes[i][0] * view.size[0] * view.size[1] for i, view in self.seen.items())
        unbounded = self.x.new_full((len(entries),), torch.inf)
        pieces = [Interval(unbounded[:0], unbounded[:0])]
        for places in torch.arange(len(entries), device=entries.device).split(max(1, CHUNK // (8 * widest))):
            if time.monotonic() > deadline:
                break
            pieces.append(self._range(entries[places], None if sides is None else sides[places]))
        done = sum(len(piece.lower) for piece in pieces)
        return Interval(
            torch.cat([*(piece.lower for piece in pieces), -unbounded[done:]]),
            torch.cat([*(piece.upper for piece in pieces), unbounded[done:]]),
        )

    def rows(self, entries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Entries (m, 4) of an affine node as rows (m, w) over places (m, w) of an input, and constants (m,).

        Places outside the plane are its nearest ones, and their rows zero.
        """
        plane, constant, _ = self._to_input(entries)
        shape, places = self.graph.shapes(self.x)[0], self._places(entries)
        channel = torch.arange(shape[0], device=places.device)[:, None] * (shape[1] * shape[2])
        constants = torch.as_tensor(constant).to(plane).expand(len(entries), 1)
        return plane[:, 0].flatten(1), (channel + places[:, None]).flatten(1), constants[:, 0]

    def _range(self, entries: Tensor, sides: Tensor | None) -> Interval:
        plane, below, above = self._to_input(entries, sides)
        ends = self._over_threat(plane, entries)
        lower, upper = ends.lower + below, ends.upper + above
        if sides is not None:
            return Interval.one_end(lower[:, 0], sides)
        if self.symmetric:
            return Interval(lower[:, 0], upper[:, 0])
        return Interval(lower[:, 0], -lower[:, 1])

    def _to_input(
        self, entries: Tensor, sides: Tensor | None = None
    ) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Rows over the input's windows (m, k, c, h, w), and what is added to them below and above."""
        last, rows, constant = self._start(entries, sides)
        pending = {last: rows}
        below: Tensor | float = constant
        above: Tensor | float = constant
        for i in range(last, 0, -1):
            if i not in pending:
                continue
            rows = self._inside(i, pending.pop(i), entries)
            operation, inputs = self.graph.nodes[i].operation, self.graph.nodes[i].inputs
            if isinstance(operation, Affine):
                constant = operation.constant(rows)
                below, above = below + constant, above + constant
                parts = self._back(i, rows)
            else:
                pulled = self._pull(i, rows, entries)
                below, parts = below + pulled.constant, (pulled.rows,)
                above = above if pulled.opposite is None else above - pulled.opposite
            seen = self.seen[i].before(operation)
            for j, part in zip(inputs, parts, strict=True):
                part = _padded(part, seen, self.seen[j])
                pending[j] = pending[j] + part if j in pending else part
        return self._inside(0, pending[0], entries), below, above

    def _start(self, entries: Tensor, sides: Tensor | None) -> tuple[int, Tensor, Tensor | float]:
        """The node that rows start over, the rows (m, k, c, h, w), and their constant; `sides` (m,) negate.

        They start behind the affine operations that come first, whose rows depend on the channel alone.
        """
        last, channels = max(self.seen), self.graph.shapes(self.x)[max(self.seen)][0]
        rows = torch.eye(channels, dtype=self.x.dtype, device=self.x.device)
        rows = rows.reshape(channels, 1, channels, 1, 1)
        rows = rows if self.symmetric else torch.cat([rows, -rows], 1)
        constant: Tensor | float = 0.0
        # A padded kernel of one entry may look beyond the plane, where the planes before add nothing.
        while last and (self.seen[last].size, self.seen[last].shift) == ((1, 1), (0, 0)):
            operation, inputs = self.graph.nodes[last].operation, self.graph.nodes[last].inputs
            if not isinstance(operation, Conv2d | ScaleShift) or self._sees_apart(last, inputs[0]):
                break
            constant = constant + operation.constant(rows)
            (rows,) = _transposed(operation, rows)
            last = inputs[0]
        channel = entries[:, 1]
        some = (channel,) if sides is None else (channel[:, None], sides.long()[:, None])
        return last, rows[some], constant[some] if isinstance(constant, Tensor) else constant

    def _back(self, node: int, rows: Tensor) -> tuple[Tensor, ...]:
        """`_transposed`, a convolution of small windows by its matrix."""
        operation, shape = self.graph.nodes[node].operation, rows.shape[2:]
        assert isinstance(operation, Affine)
        if not isinstance(operation, Conv2d):
            return _transposed(operation, rows)
        seen = self.seen[node].before(operation).size
        behind = (operation.weight().shape[1] * operation.groups, *seen)
        if shape.numel() * torch.Size(behind).numel() > TABLE:
            return _transposed(operation, rows)
        if node not in self._tables:
            everything = torch.eye(shape.numel(), dtype=rows.dtype, device=rows.device)
            self._tables[node] = _transposed(operation, everything.reshape(-1, 1, *shape))[0].flatten(1)
        return ((rows.flatten(2) @ self._tables[node]).unflatten(2, behind),)

    def _sees_apart(self, node: int, source: int) -> bool:
        """Whether `source` is seen along another way than through `node` too."""
        users = [i for i in self.seen if source in self.graph.nodes[i].inputs]
        return users != [node]

    def _inside(self, node: int, rows: Tensor, entries: Tensor) -> Tensor:
        """The same without what lies outside the node's plane."""
        for axis in range(2):
            length = self.graph.shapes(self.x)[node][1 + axis]
            places = self.seen[node].indices(axis, entries[:, 2 + axis])
            within = (places >= 0) & (places < length)
            if not bool(within.all()):
                shape = (len(entries), 1, 1, -1, 1) if axis == 0 else (len(entries), 1, 1, 1, -1)
                rows = rows * within.reshape(shape)
        return rows

    def _gather(self, node: int, values: Tensor, entries: Tensor) -> Tensor:
        """The windows (m, c, h, w) of values (n, c, H, W) at a node, zero outside the plane."""
        places = [self.seen[node].indices(axis, entries[:, 2 + axis]) for axis in range(2)]
        margin = [
            (max(0, -int(part.min())), max(0, int(part.max()) + 1 - length))
            for part, length in zip(places, values.shape[2:], strict=True)
        ]
        padded = F.pad(values, (*margin[1], *margin[0]))
        size = self.seen[node].size
        table = padded.unfold(2, size[0], 1).unfold(3, size[1], 1)
        top, left = (part[:, 0] + before for part, (before, _) in zip(places, margin, strict=True))
        return table.permute(0, 2, 3, 1, 4, 5)[entries[:, 0], top, left]

    def _pull(self, node: int, rows: Tensor, entries: Tensor) -> Pulled:
        """`Relaxed.pull` in the windows."""
        operation, source = self.graph.nodes[node].operation, self.graph.nodes[node].inputs[0]
        if isinstance(operation, Activation):
            return pull_lines(rows, self._lines(node, entries), both=self.symmetric)
        assert isinstance(operation, MaxPool)
        if node not in self._chosen:
            self._chosen[node] = operation.chosen(self.bounds[source])
        whole, before = self._chosen[node], self.seen[source]
        winner, top = (self._local(source, part, node, entries) for part in (whole.winner, whole.top))
        slope, intercept = (self._gather(node, part, entries) for part in (whole.slope, whole.intercept))
        shape = torch.Size((rows.shape[2], *before.size))
        return pull_choice(rows, Choice(winner, top, slope, intercept), shape)

    def _local(self, source: int, place: Tensor, node: int, entries: Tensor) -> Tensor:
        """Flat places (n, c, H, W) in the planes of `source` as flat places (m, c, h, w) in its windows."""
        before, shape = self.seen[source], self.graph.shapes(self.x)[source]
        local = self._gather(node, place, entries) % (shape[1] * shape[2])
        top, left = (before.indices(axis, entries[:, 2 + axis])[:, :1, None, None] for axis in range(2))
        local = (local // shape[2] - top) * before.size[1] + local % shape[2] - left
        # Beyond the plane there is no winner, and no row to pass on.
        size = before.size[0] * before.size[1]
        channel = torch.arange(shape[0], device=local.device).reshape(-1, 1, 1)
        return local.clamp(0, size - 1) + channel * size

    def _lines(self, node: int, entries: Tensor) -> Lines:
        """An activation's lines in the windows."""
        operation, source = self.graph.nodes[node].operation, self.graph.nodes[node].inputs[0]
        assert isinstance(operation, Activation)
        if node not in self._known:
            self._known[node] = operation.lines(self.bounds[source], self.alpha.get(node))
        whole = self._known[node]
        upper = self._gather(source, whole.upper_slope, entries)
        return Lines(
            upper if whole.parallel else self._gather(source, whole.lower_slope, entries),
            None if whole.lower_intercept is None else self._gather(source, whole.lower_intercept, entries),
            upper,
            self._gather(source, whole.upper_intercept, entries),
            whole.parallel,
        )

    def _over_threat(self, plane: Tensor, entries: Tensor) -> Interval:
        """`range_over_threat` of rows over windows."""
        if isinstance(self.threat, Enclosure):
            samples = entries[:, 0]
            return range_over_threat(
                self._whole(plane, entries), self.x[samples], self.threat.select(samples)
            )
        lower, upper, x = (self._gather(0, part, entries) for part in (*self.threat.bounds(self.x), self.x))
        few = Few.of(self.threat, self.x.shape[1:])
        return range_over_ball(plane, x, Interval(lower, upper), self.threat, few)

    def _whole(self, plane: Tensor, entries: Tensor) -> Tensor:
        """Rows over windows as rows over the whole input."""
        shape, flat = self.graph.shapes(self.x)[0], self._places(entries)
        rows = plane.new_zeros(*plane.shape[:2], shape[0], shape[1] * shape[2])
        index = flat[:, None, None, :].expand(*plane.shape[:3], -1)
        return rows.scatter_add(3, index, plane.flatten(3)).unflatten(3, shape[1:])

    def _places(self, entries: Tensor) -> Tensor:
        """The flat places (m, h w) in the input's planes that entries see, moved into them."""
        shape = self.graph.shapes(self.x)[0]
        places = [
            self.seen[0].indices(axis, entries[:, 2 + axis]).clamp(0, shape[1 + axis] - 1)
            for axis in range(2)
        ]
        return (places[0][:, :, None] * shape[2] + places[1][:, None, :]).flatten(1)


def _transposed(operation: Affine, rows: Tensor) -> tuple[Tensor, ...]:
    """Rows over an operation's windows as rows over its inputs' windows."""
    if isinstance(operation, AveragePool):
        size = View(size=(rows.shape[3], rows.shape[4])).before(operation).size
        return replace(operation, padding=(0, 0)).transpose(rows, torch.Size((rows.shape[2], *size)))
    if not isinstance(operation, Conv2d):
        # All that is summed has the window of the sum.
        return operation.transpose(rows, rows.shape[2:], rows.shape[2:])
    back = F.conv_transpose2d(
        folded(rows), operation.weight(), None, operation.stride, 0, 0, operation.groups, operation.dilation
    )
    return (back.unflatten(0, rows.shape[:2]),)


def _padded(rows: Tensor, seen: View, wanted: View) -> Tensor:
    """Rows over the windows of one view as rows over those of a larger one."""
    if seen == wanted:
        return rows
    before = [seen.shift[a] - wanted.shift[a] for a in range(2)]
    after = [wanted.size[a] - seen.size[a] - before[a] for a in range(2)]
    return F.pad(rows, (before[1], after[1], before[0], after[0]))
