"""CROWN: linear bounds whose lower slope is 0 or 1, whichever leaves the smaller triangle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certify.backward import adaptive_slope, margins, relax
from certify.base import Certifier, register_certifier
from certify.prepare import prepare
from models.base import Batch, Classifier
from models.cost import Cost
from models.randomness import Randomness
from models.threat import ThreatModel


@register_certifier("crown")
@dataclass(frozen=True, kw_only=True)
class Crown(Certifier):
    """Backward linear bounds with adaptive lower slopes; linf, l2 and l1.

    Intermediate bounds are intersected with interval bounds, which the paper does not do.
    Source: Zhang et al. 2018, 1811.00866, Theorem 3.2 and section 3.3 (CROWN-Ada).
    """

    paper = "Zhang et al. 2018, 1811.00866"
    wide_cost = Cost.EXTREME

    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        graph, x = prepare(model, batch.x)
        with torch.no_grad():
            return margins(relax(graph, x, threat, adaptive_slope), batch.y)
