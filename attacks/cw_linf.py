"""Carlini and Wagner's linf attack: descent within a threshold on every entry, and the threshold falls."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.nearest import Best
from attacks.unbounded import FirstSuccess
from models.base import Batch
from models.threat import ThreatModel, per_sample

FALL = 0.9


def lower_threshold(
    model: GradientAccess,
    batch: Batch,
    threat: ThreatModel,
    start: Tensor,
    best: Best,
    *,
    rounds: int,
    descent: FirstSuccess,
) -> None:
    """Minimises max(margin + confidence, 0) over |x'_i - x_i| <= tau, for ever smaller tau, into `best`.

    The paper charges sum_i max(|x'_i - x_i| - tau, 0) against c times the hinge; here the charge is infinite,
    by tanh between the bounds of ball and box, so that no c is searched. tau is each sample's own. A round
    starts at the nearest point known (`start` (n, ...) before there is one, with the whole box free) and ends
    at the first success. Then tau becomes 0.9 of that point's distance, or lies halfway to the
    largest tau that failed, whichever is greater; a sample is done when the two are 1 % apart.
    Source: Carlini, Wagner 2017, 1608.04644, section VI.C.
    """
    failed, width = torch.zeros_like(best.distance), threat.box.width
    for _ in range(rounds):
        nearest = best.distance.clamp(max=width)
        live = (failed < 0.99 * nearest).nonzero()[:, 0]
        if not len(live):
            return
        tau = torch.where(best.found, torch.maximum(FALL * nearest, (failed + nearest) / 2), width)[live]
        x, point = batch.x[live], torch.where(per_sample(best.found, start), best.point, start)[live]
        lower = threat.shrink(x, torch.full_like(x, threat.box.lower), tau)
        upper = threat.shrink(x, torch.full_like(x, threat.box.upper), tau)
        success = descent.search(model, batch, live, threat, point, (lower, upper), best)
        failed[live] = torch.where(success, failed[live], tau)
