"""Interval bound propagation, with the last affine layers folded into the margins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.base import Certifier, register_certifier
from certify.bounds import Interval, least_over_interval, range_over_threat
from certify.few import ANYWHERE
from certify.graph import Graph
from certify.prepare import prepare
from certify.rules.operation import Affine
from models.base import Batch, Classifier
from models.enclosure import Enclosure
from models.randomness import Randomness
from models.threat import ThreatModel


def margin_rows(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Rows e_y - e_j over the logits: (n, classes, classes), zero in row y."""
    identity = torch.eye(classes, dtype=dtype, device=y.device)
    return identity[y].unsqueeze(1) - identity


class IntervalPass:
    """Interval bounds node by node, in x's dtype; a caller may tighten `found` between two steps.

    The input's interval is the smallest box around ball and box. Up to the first layer that is
    not diagonal, l2 and l1 balls also bound each entry by its row's dual norm:
    W x + b -+ eps ||W_i||_q, which the intervals are intersected with. `exact` holds the nodes
    affine in the input, whose interval a linear bound need not improve on: only the input itself in an
    enclosure, or where few entries may move.
    """

    def __init__(self, graph: Graph, x: Tensor, threat: ThreatModel) -> None:
        self.graph = graph
        self.threat = threat
        self.found: dict[int, Interval] = {0: Interval(*threat.bounds(x))}
        self.exact = {0}
        loose = isinstance(threat, Enclosure) or threat.norm in ANYWHERE
        self._gains = {} if loose else {0: torch.ones_like(x[:1])}
        self._centres = {0: x}

    def run(self, known: Mapping[int, Interval] | None = None) -> IntervalPass:
        """Bounds every node before the tail, cut by what is `known` of some; returns itself."""
        for i in range(1, len(self.graph.nodes)):
            if i not in self.graph.tail:
                found = self.step(i)
                self.found[i] = found.intersect(known[i]) if known and i in known else found
        return self

    def step(self, i: int) -> Interval:
        """Bounds node i from its inputs' bounds, and keeps them in `found`."""
        node = self.graph.nodes[i]
        operation = node.operation
        assert operation is not None
        interval = operation.interval(*(self.found[j] for j in node.inputs))
        source = node.inputs[0]
        if source in self._gains and len(node.inputs) == 1 and isinstance(operation, Affine):
            interval = self._first(i, operation, source, interval)
        self.found[i] = interval
        return interval

    def _first(self, i: int, operation: Affine, source: int, interval: Interval) -> Interval:
        """Node i is affine in the input: its interval cut by the dual norm of its rows."""
        gain = self._gains[source]
        if self.threat.norm != "linf":
            found = operation.gain(gain, self.threat.dual_norm)
            if found is None:
                return interval
            gain, centre = found, operation.forward(self._centres[source])
            interval = interval.intersect(Interval.around(centre, self.threat.radius * gain))
            self._centres[i] = centre
        self.exact.add(i)
        if operation.diagonal:
            self._gains[i] = gain
        return interval


def interval_margins(graph: Graph, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Lower bounds (n, classes) on z_y - z_j over the threat set, 0 in column y, in x's dtype.

    Differentiable in the network's parameters; `graph = trace(network)` is made once. The affine
    layers before the logits are folded into the rows e_y - e_j, which is never looser than the
    difference of two logits' intervals.
    Source: Gowal et al. 2018, 1810.12715, sections 3.1 and 3.2 (the elided last layer).
    """
    rows = margin_rows(y, graph.num_classes(x), x.dtype)
    return interval_rows(IntervalPass(graph, x, threat).run(), x, rows)


def interval_rows(intervals: IntervalPass, x: Tensor, rows: Tensor) -> Tensor:
    """Lower bounds (n, k) on rows (n, k, logits) . logits around x, by `intervals` that were run.

    The rows pass back through the tail to the intervals before it.
    """
    graph, threat = intervals.graph, intervals.threat
    shapes = graph.shapes(x)
    pending = {len(graph.nodes) - 1: rows}
    total: Tensor | float = 0.0
    for i in reversed(range(len(graph.nodes))):
        if i not in pending:
            continue
        here = pending.pop(i)
        operation, inputs = graph.nodes[i].operation, graph.nodes[i].inputs
        if i == 0:
            total = total + range_over_threat(here, x, threat).lower
        elif i in graph.tail and isinstance(operation, Affine):
            total = total + operation.constant(here)
            for j, part in zip(inputs, operation.transpose(here, *(shapes[j] for j in inputs)), strict=True):
                pending[j] = pending[j] + part if j in pending else part
        else:
            total = total + least_over_interval(here, intervals.found[i])
    assert isinstance(total, Tensor)
    return total


@register_certifier("ibp")
@dataclass(frozen=True, kw_only=True)
class IntervalBounds(Certifier):
    """Bounds every neuron alone, layer by layer: the cheapest proof."""

    paper = "Gowal et al. 2018, 1810.12715"

    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        graph, x = prepare(model, batch.x)
        return interval_margins(graph, x, batch.y, threat)
