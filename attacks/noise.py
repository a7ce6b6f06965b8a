"""Noise as large as the adversary's moves: it measures how far activations move, and breaks what it can."""

from __future__ import annotations

import torch
from torch import Tensor

from models.base import Batch
from models.randomness import Randomness
from models.threat import ThreatModel

COPIES = 8


def noisy(batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
    """x and COPIES perturbations of it of the size that the adversary has: ((COPIES + 1) * n, ...).

    linf: corners of the ball. l2 and l1: 8 times as many entries as the radius pays for, moved by a quarter,
    half or all of the box each: there a sparse move is what opens a threshold. All samples share them.
    """
    x, stream, versions = batch.x, randomness.child("noise"), [batch.x]
    entries = x[0].numel()
    for copy in range(COPIES):
        place = torch.tensor([copy], device=x.device)
        signs = stream.sign(place, x.shape[1:]).to(x)
        if threat.norm == "linf":
            versions.append(threat.project(x, x + threat.radius * signs))
            continue
        amplitude = threat.box.width * (0.25, 0.5, 1.0)[copy % 3]
        paid = (threat.radius / amplitude) ** (2 if threat.norm == "l2" else 1)
        chosen = stream.child("chosen").uniform(place, x.shape[1:]).to(x) < 8 * max(paid, 1.0) / entries
        versions.append(threat.box.clamp(x + amplitude * signs * chosen))
    return torch.cat(versions)
