"""Linear bounds passed back from rows over a node to rows over the input, many samples and rows at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from certify.bounds import Interval, range_over_threat
from certify.graph import Graph
from certify.rules.activation import Activation
from certify.rules.operation import Affine, Pulled, Relaxed, pull_overlap
from models.threat import ThreatModel


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
        if 0 not in pending:
            pending[0] = rows.new_zeros(*rows.shape[:2], *self.x.shape[1:])
        return pending[0], below, above

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
