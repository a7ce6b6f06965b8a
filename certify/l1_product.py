"""The linf margin from the product of the layers' largest l1 row norms: the textbook bound."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certify.base import Certifier, register_certifier
from certify.prepare import prepare
from certify.product import product_margins
from models.base import Batch, Classifier
from models.randomness import Randomness
from models.threat import ThreatModel


@register_certifier("l1-product")
@dataclass(frozen=True, kw_only=True)
class L1Product(Certifier):
    """The margin at x less eps times the product of the layers' largest row l1 norms.

    z_y - z_j - eps ||w_y - w_j||_1 prod gamma_l, gamma_l = max_i ||w_i||_1 of layer l.
    The last layer enters by its difference rows; the box is not used.
    Source: Gopalakrishnan et al. 2018, 1810.10625v1, Theorem 2.
    """

    paper = "Gopalakrishnan et al. 2018, 1810.10625v1"
    norms = ("linf",)

    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        graph, x = prepare(model, batch.x)
        with torch.no_grad():
            return product_margins(graph, x, batch.y, "linf", threat.radius)
