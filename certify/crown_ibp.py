"""CROWN-IBP: interval bounds on every neuron, and one backward pass for the margins."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certify.alpha_crown import climbed_margins
from certify.backward import margins, relax
from certify.base import Certifier, register_certifier
from certify.ibp import interval_margins
from certify.prepare import prepare
from certify.relaxation import Relaxation
from certify.rules.operation import Relaxed
from models.base import Batch, Classifier
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel


def adaptive_alpha(relaxation: Relaxation) -> dict[int, Tensor]:
    """The adaptive lower slope of every relaxed operation over bounds that are there already, by its node."""
    alpha = {}
    for i, node in enumerate(relaxation.graph.nodes):
        if (
            isinstance(node.operation, Relaxed)
            and node.operation.free_slope
            and i not in relaxation.graph.tail
        ):
            alpha[i] = node.operation.adaptive(relaxation.bounds[node.inputs[0]])
    return alpha


@register_certifier("crown-ibp")
@dataclass(frozen=True, kw_only=True)
class CrownIBP(Certifier):
    """Interval bounds on every neuron, and one backward pass for the margins: for networks of any width.

    Costs two dozen forward passes, where `crown` bounds every neuron by a pass of its own, and is looser:
    intervals widen from layer to layer, unless a network was trained on them. The best of ibp's margins and
    of backward bounds with parallel and with adaptive lower slopes, which the paper does not intersect. With
    `steps` the slopes of the pass climb by so many steps of Adam of size `rate`, as in `alpha-crown`.
    Source: Zhang et al. 2020, 1906.06316, section 3.2.
    """

    paper = "Zhang et al. 2020, 1906.06316"
    per_class = True

    steps: int = 0
    rate: float = 0.25

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UserError(f"crown-ibp has steps = {self.steps}: give a number from 0 up")

    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        graph, x = prepare(model, batch.x)
        with torch.no_grad():
            lower = interval_margins(graph, x, batch.y, threat)
            parallel = relax(graph, x, threat)
            adaptive = parallel.with_alpha(adaptive_alpha(parallel))
            for relaxation in (parallel, adaptive):
                lower = torch.maximum(lower, margins(relaxation, batch.y))
        return torch.maximum(lower, self._climbed(adaptive, batch.y, lower)) if self.steps else lower

    def _climbed(self, relaxation: Relaxation, y: Tensor, known: Tensor) -> Tensor:
        """Bounds (n, classes) after the climb of each sample that the `known` ones leave open."""
        found = known.clone()
        others = known.scatter(1, y[:, None], torch.inf)
        for i in (others.amin(1) <= 0).nonzero()[:, 0].tolist():
            one = slice(i, i + 1)
            with torch.enable_grad():
                found[one] = climbed_margins(
                    relaxation.select(one), y[one], known.shape[1], self.steps, self.rate
                )
        return found
