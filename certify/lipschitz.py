"""The l2 margin from the layers' true operator norms."""

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


@register_certifier("lipschitz")
@dataclass(frozen=True, kw_only=True)
class Lipschitz(Certifier):
    """The margin at x less eps times the product of the layers' spectral norms.

    z_y - z_j - eps ||w_y - w_j||_2 prod ||W_l||_2.
    A convolution counts with an upper bound on its operator norm, not with the norm of its reshaped
    kernel, which torch's spectral_norm divides by and which may be smaller. The box is not used.
    Source: Tsuzuku, Sato, Sugiyama 2018, 1802.04034; Miyato et al. 2018, 1802.05957, section 2.1.
    """

    paper = "Miyato et al. 2018, 1802.05957"
    norms = ("l2",)

    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        graph, x = prepare(model, batch.x)
        with torch.no_grad():
            return product_margins(graph, x, batch.y, "l2", threat.radius)
