"""A few broken images of a cell as an artifact: the pictures that a report shows."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.base import AdversarialBatch
from models.base import Batch, Classifier, frozen

COUNT = 4


def gallery(
    model: Classifier, batch: Batch, result: AdversarialBatch, count: int = COUNT
) -> dict[str, Tensor]:
    """The first `count` images that were classified correctly and then broken, with what the model says.

    Keys, all float32 or int64 with k <= count rows: gallery.x and gallery.x_adv (k, c, h, w) in input
    units, gallery.index and gallery.label (k,), gallery.clean and gallery.predicted (k,) the classes
    predicted before and after, gallery.clean_confidence and gallery.confidence (k,) their softmax
    probabilities. Empty where nothing was broken. The keys may stand beside an attack's own artifacts.
    """
    broken = (result.clean & result.success).nonzero().flatten()[:count]
    if not len(broken):
        return {}
    chosen = batch.x[broken], result.x_adv[broken].to(batch.x)
    with frozen(model), torch.no_grad():
        before, after = (model.logits(images).softmax(1).max(1) for images in chosen)
    return {
        "gallery.x": chosen[0].float().cpu(),
        "gallery.x_adv": chosen[1].float().cpu(),
        "gallery.index": batch.index[broken].cpu(),
        "gallery.label": batch.y[broken].cpu(),
        "gallery.clean": before.indices.cpu(),
        "gallery.predicted": after.indices.cpu(),
        "gallery.clean_confidence": before.values.float().cpu(),
        "gallery.confidence": after.values.float().cpu(),
    }
