"""CROWN with lower slopes optimised for every sample and class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certify.backward import adaptive_slope, parallel_slope
from certify.base import Certifier, register_certifier
from certify.few import ANYWHERE
from certify.ibp import margin_rows
from certify.prepare import prepare
from certify.questions import relaxations
from certify.range_tightening import tightened_ranges
from certify.relaxation import Relaxation
from certify.slopes import climbed
from models.base import Batch, Classifier
from models.cost import Cost
from models.randomness import Randomness
from models.threat import ThreatModel


def climbed_margins(relaxation: Relaxation, y: Tensor, classes: int, steps: int, rate: float) -> Tensor:
    """The best lower bounds (n, classes) on the margins met by the climb; proved samples leave."""
    last = len(relaxation.graph.nodes) - 1
    rows = margin_rows(y, classes, relaxation.x.dtype)
    label = torch.nn.functional.one_hot(y, classes).bool()
    return climbed(
        relaxation, last, rows, steps, rate, lambda samples, best: ((best > 0) | label[samples]).all(1)
    )


@register_certifier("alpha-crown")
@dataclass(frozen=True, kw_only=True)
class AlphaCrown(Certifier):
    """CROWN with its lower slopes optimised, per sample and class.

    max over alpha in [0, 1] of the bound, by `steps` steps of Adam of size `rate`.
    The slopes of the final pass are optimised, one set per sample and class, and so are the weights of the
    entries that bound a maximum from below; intermediate bounds are crown's and polytope's, intersected.
    With `intermediate` the bounds of every activation's input climb first in the same way, on samples that
    would stay open: tighter, and as many times slower as there are activations. The best value met is kept,
    so that the result is never below either.
    Source: Xu et al. 2021, 2011.13824, section 3.1.
    """

    paper = "Xu et al. 2021, 2011.13824"
    cost = Cost.EXPENSIVE
    norms = ("linf", "l2", "l1", *ANYWHERE)
    wide_cost = Cost.EXTREME

    steps: int = 20
    rate: float = 0.25
    intermediate: bool = False

    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        graph, x = prepare(model, batch.x)
        lower = x.new_empty(len(x), graph.num_classes(x))
        with torch.no_grad():
            found = list(relaxations(graph, x, threat, parallel_slope, adaptive_slope))
        for samples, relaxation in found:
            lower[samples] = self._climbed(relaxation, batch.y[samples], lower.shape[1])
        return lower

    def _climbed(self, relaxation: Relaxation, y: Tensor, classes: int) -> Tensor:
        """Bounds (n, classes) on the margins after the climb of a few samples at a time."""
        groups = [slice(start, start + 8) for start in range(0, len(y), 8)]
        with torch.enable_grad():
            lower = torch.cat(
                [
                    climbed_margins(relaxation.select(group), y[group], classes, self.steps, self.rate)
                    for group in groups
                ]
            )
        return self._climbed_throughout(relaxation, y, lower) if self.intermediate else lower

    def _climbed_throughout(self, relaxation: Relaxation, y: Tensor, lower: Tensor) -> Tensor:
        """The same bounds (n, classes), on what they leave open over tighter ranges."""
        others = lower.scatter(1, y[:, None], torch.inf)
        for i in (others.amin(1) <= 0).nonzero()[:, 0].tolist():
            one = slice(i, i + 1)
            tight = tightened_ranges(relaxation.select(one), steps=self.steps, rate=self.rate)
            with torch.enable_grad():
                found = climbed_margins(tight, y[one], lower.shape[1], self.steps, self.rate)
            lower[one] = torch.maximum(lower[one], found)
        return lower
