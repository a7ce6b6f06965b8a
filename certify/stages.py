"""Lower bounds on margins in two stages: intervals, then lines where these leave a sample open."""

from __future__ import annotations

import torch
from torch import Tensor

from certify.backward import adaptive_slope, margins, parallel_slope, relax
from certify.graph import Graph
from certify.ibp import interval_margins
from models.threat import ThreatModel


def others(lower: Tensor, y: Tensor) -> Tensor:
    """The least bound (n,) of lower (n, classes) over the classes that are not the label y (n,)."""
    return lower.scatter(1, y[:, None], torch.inf).amin(1)


def staged_margins(graph: Graph, x: Tensor, y: Tensor, threat: ThreatModel, needed: float) -> Tensor:
    """Lower bounds (n, classes) on z_y - z_j: ibp's, and crown's and polytope's where these are too low."""
    lower = first_margins(graph, x, y, threat)
    open_ = (others(lower, y) <= needed).nonzero()[:, 0]
    if len(open_):
        lower[open_] = line_margins(graph, x[open_], y[open_], threat.select(open_), lower[open_])
    return lower


def first_margins(graph: Graph, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """ibp's lower bounds (n, classes) on z_y - z_j."""
    with torch.no_grad():
        return _proved(interval_margins(graph, x, y, threat))


def line_margins(graph: Graph, x: Tensor, y: Tensor, threat: ThreatModel, known: Tensor) -> Tensor:
    """The largest of crown's, polytope's and the `known` lower bounds (n, classes) on z_y - z_j."""
    with torch.no_grad():
        relaxation = relax(graph, x, threat, parallel_slope, adaptive_slope)
        both = margins(relaxation, y), margins(relaxation.with_alpha({}), y)
        return torch.maximum(known, _proved(torch.maximum(*both)))


def _proved(lower: Tensor) -> Tensor:
    """Bounds of which none is more than was proved: where a pass overflows, what comes out proves nothing."""
    return lower.masked_fill(~lower.isfinite(), -torch.inf)
