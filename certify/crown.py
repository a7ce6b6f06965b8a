"""CROWN: linear bounds whose lower slope is 0 or 1, whichever leaves the smaller triangle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certify.backward import adaptive_slope, margins
from certify.base import Certifier, register_certifier
from certify.few import ANYWHERE
from certify.prepare import prepare
from certify.questions import relaxations
from models.base import Batch, Classifier
from models.cost import Cost
from models.randomness import Randomness
from models.threat import ThreatModel


@register_certifier("crown")
@dataclass(frozen=True, kw_only=True)
class Crown(Certifier):
    """Backward linear bounds with adaptive lower slopes; linf, l2 and l1.

    Intermediate bounds are intersected with interval bounds, and maxima that channels share are taken once
    (`certify.shared_maxima`), which the paper does not do.
    Source: Zhang et al. 2018, 1811.00866, Theorem 3.2 and section 3.3 (CROWN-Ada).
    """

    paper = "Zhang et al. 2018, 1811.00866"
    norms = ("linf", "l2", "l1", *ANYWHERE)
    wide_cost = Cost.EXTREME

    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        graph, x = prepare(model, batch.x)
        lower = x.new_empty(len(x), graph.num_classes(x))
        with torch.no_grad():
            for samples, relaxation in relaxations(graph, x, threat, adaptive_slope):
                lower[samples] = margins(relaxation, batch.y[samples])
        return lower
