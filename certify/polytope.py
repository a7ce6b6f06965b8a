"""The dual of the convex outer polytope: linear bounds whose lower slope is the triangle's chord."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certify.backward import margins, parallel_slope, relax
from certify.base import Certifier, register_certifier
from certify.graph import Graph
from certify.prepare import prepare
from models.base import Batch, Classifier
from models.cost import Cost
from models.randomness import Randomness
from models.threat import Box, ThreatModel


def polytope_margins(graph: Graph, x: Tensor, y: Tensor, threat: ThreatModel, clipped: bool = True) -> Tensor:
    """Lower bounds (n, classes) on z_y - z_j over the threat set, 0 in column y, in x's dtype.

    Differentiable in the network's parameters. The objective of Wong & Kolter's dual at the
    feasible point alpha = u/(u - l), in every layer, also those that bound the intermediate ones.
    `clipped` uses the box and intersects the intermediate bounds with interval bounds; without it
    the result is the paper's own number. Source: Wong & Kolter 2018, 1711.00851, Algorithm 1.
    """
    if clipped:
        return margins(relax(graph, x, threat, parallel_slope), y)
    ball = ThreatModel(threat.norm, threat.eps, Box(-torch.inf, torch.inf))
    return margins(relax(graph, x, ball, parallel_slope, intervals=False), y)


@register_certifier("polytope")
@dataclass(frozen=True, kw_only=True)
class Polytope(Certifier):
    """The convex outer polytope's dual bound; linf, l2 and l1.

    `clipped=False` ignores the box and interval bounds, as Wong & Kolter do.
    """

    paper = "Wong & Kolter 2018, 1711.00851"
    wide_cost = Cost.EXTREME

    clipped: bool = True

    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        graph, x = prepare(model, batch.x)
        with torch.no_grad():
            return polytope_margins(graph, x, batch.y, threat, self.clipped)
