"""Affine forms: what few varying inputs do to every value of a network, in one pass forwards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certify.bounds import Interval
from certify.graph import Graph
from certify.ibp import IntervalPass
from certify.rules.activation import Activation
from certify.rules.operation import Affine, Operation
from certify.rules.selection import Largest
from certify.rules.shape import Identity
from models.threat import ThreatModel

# Two ways to compute the same number differ by less, relative to 1 + |number|, in double precision.
ROUNDING = 1e-11


@dataclass(frozen=True)
class Form:
    """One sample's value as c + sum_k e_k g_k + [-r, r] with every e_k in [-1, 1].

    parts (1 + k, ...) are c and the g_k, radius (1, ...) is r >= 0.
    """

    parts: Tensor
    radius: Tensor

    @property
    def bounds(self) -> Interval:
        """What follows for each entry, widened by rounding."""
        reach = self.parts[1:].abs().sum(0, keepdim=True) + self.radius
        return Interval.around(self.parts[:1], reach).widened(ROUNDING)

    def least(self, rows: Tensor) -> Tensor:
        """Lower bounds (m,) on rows (m, entries) . value."""
        found = self.parts.flatten(1) @ rows.T
        return found[0] - found[1:].abs().sum(0) - self.radius.flatten() @ rows.abs().T


def affine_forms(graph: Graph, x: Tensor, threat: ThreatModel) -> tuple[dict[int, Interval], Form]:
    """Bounds on every node around one sample x (1, ...), and the last node's form.

    One generator g_k for each input that varies, so that values keep their relation to these through affine
    operations; a function of single entries adds the gap between two parallel lines to the radius (zonotopes
    with one box: Singh et al. 2018, DeepZ), a maximum follows the entry that wins everywhere. What else there
    is, and maxima that nobody wins, keep their interval alone. As dear as 2 + k passes of the network.
    """
    passes = IntervalPass(graph, x, threat)
    box = passes.found[0]
    varying = (box.upper > box.lower).flatten().nonzero()[:, 0]
    generators = x.new_zeros(len(varying), x[0].numel())
    generators[torch.arange(len(varying)), varying] = box.radius.flatten()[varying]
    parts = torch.cat([box.centre, generators.reshape(-1, *x.shape[1:])])
    forms, bounds = {0: Form(parts, torch.zeros_like(x))}, {0: box}
    last = {j: i for i, node in enumerate(graph.nodes) for j in node.inputs}
    for i in range(1, len(graph.nodes)):
        node = graph.nodes[i]
        assert node.operation is not None
        interval = passes.step(i)
        form = _passed(node.operation, [forms[j] for j in node.inputs], [bounds[j] for j in node.inputs])
        forms[i] = form if form is not None else _alone(interval, len(varying))
        bounds[i] = passes.found[i] = interval.intersect(forms[i].bounds)
        for j in node.inputs:
            if last[j] == i:
                forms.pop(j, None)
    return bounds, forms[len(graph.nodes) - 1]


def _passed(operation: Operation, forms: list[Form], bounds: list[Interval]) -> Form | None:
    """The form behind an operation, or None where only its interval is known."""
    if isinstance(operation, Identity):
        # Its interval may say more than that of a matrix.
        return forms[0]
    if isinstance(operation, Affine):
        zero = operation.forward(*(torch.zeros_like(form.radius) for form in forms))
        moved = operation.forward(*(form.parts for form in forms))
        spread = operation.interval(*(Interval(-form.radius, form.radius) for form in forms))
        return Form(torch.cat([moved[:1], moved[1:] - zero]), (spread.upper - spread.lower) / 2)
    if isinstance(operation, Activation):
        lines = operation.lines(bounds[0], None)
        if not torch.equal(lines.lower_slope, lines.upper_slope):
            return None
        low = torch.zeros_like(forms[0].radius) if lines.lower_intercept is None else lines.lower_intercept
        parts = lines.lower_slope * forms[0].parts
        parts[:1] += (low + lines.upper_intercept) / 2
        gap = (lines.upper_intercept - low) / 2
        return Form(parts, lines.lower_slope.abs() * forms[0].radius + gap)
    return _won(operation, forms[0], bounds[0]) if isinstance(operation, Largest) else None


def _won(largest: Largest, form: Form, bounds: Interval) -> Form:
    """Each maximum's form: that of the entry that is largest everywhere, else its interval."""
    lower, upper = (largest.groups(end, -torch.inf) for end in (bounds.lower, bounds.upper))
    floor, winner = lower.max(1, keepdim=True)
    rest = upper.scatter(1, winner, -torch.inf).amax(1)
    decided = floor[:, 0] >= rest
    groups = largest.groups(form.parts, 0.0)
    parts = groups.gather(1, winner.expand(len(groups), *winner.shape[1:]))[:, 0]
    radius = largest.groups(form.radius, 0.0).gather(1, winner)[:, 0]
    whole = largest.interval(bounds)
    parts = torch.where(decided, parts, torch.zeros_like(parts))
    parts[:1] = torch.where(decided, parts[:1], whole.centre)
    return Form(parts, torch.where(decided, radius, whole.radius))


def _alone(interval: Interval, generators: int) -> Form:
    none = interval.lower.new_zeros(generators, *interval.lower.shape[1:])
    return Form(torch.cat([interval.centre, none]), interval.radius)
