"""A few broken images of a cell as an artifact: the pictures that a report shows."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.base import AdversarialBatch, Attack
from attacks.eot import EOT, keys_of, survival
from attacks.rp2 import RP2
from attacks.transforms import Transform
from attacks.turtle import Turtle
from models.base import Batch, Classifier, frozen
from models.randomness import Randomness

COUNT = 4
VIEWS = 6
DRAWS = 16


def gallery(
    model: Classifier, batch: Batch, result: AdversarialBatch, count: int = COUNT
) -> dict[str, Tensor]:
    """The first `count` images that were classified correctly and then broken, with what the model says.

    Keys, all float32 or int64 with k <= count rows: gallery.x and gallery.x_adv (k, c, h, w) in input
    units, gallery.index and gallery.label (k,), gallery.clean and gallery.predicted (k,) the classes
    predicted before and after, gallery.clean_confidence and gallery.confidence (k,) their softmax
    probabilities. Empty where nothing was broken. The keys may stand beside an attack's own artifacts.
    """
    broken = _shown(result, count)
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


def held_out(
    model: Classifier,
    batch: Batch,
    result: AdversarialBatch,
    attack: Attack,
    randomness: Randomness,
    count: int = COUNT,
) -> dict[str, Tensor]:
    """The gallery's images under views that the attack has not seen, where it was made for views at all.

    views.x (k, v, c, h, w), views.predicted and views.confidence (k, v) belong to the rows of `gallery`;
    views.error (2,) is the share of wrong answers on DRAWS views each of all correctly classified samples:
    of the attack's images, and of the clean ones. Empty for other attacks and where nothing was right.
    """
    views = _views(attack)
    if views is None or not bool(result.clean.any()):
        return {}
    right, points, stream = batch[result.clean], result.x_adv[result.clean], randomness.child("held out")
    pair = (points.to(batch.x), right.x)
    errors = [survival(model, right, x, views, stream, DRAWS).mean() for x in pair]
    kept = {"views.error": torch.stack(errors).float().cpu()}
    broken = _shown(result, count)
    if not len(broken):
        return kept
    x, keys = result.x_adv[broken].to(batch.x), keys_of(batch.index[broken], VIEWS)
    with frozen(model), torch.no_grad():
        seen = views(x.repeat_interleave(VIEWS, 0), keys.flatten(), stream, model.box)
        sure = model.logits(seen).softmax(1).max(1)
    return kept | {
        "views.x": seen.reshape(len(broken), VIEWS, *x.shape[1:]).float().cpu(),
        "views.predicted": sure.indices.reshape(-1, VIEWS).cpu(),
        "views.confidence": sure.values.reshape(-1, VIEWS).float().cpu(),
    }


def _views(attack: Attack) -> Transform | None:
    """What an attack takes its expectation over, or None."""
    if isinstance(attack, Turtle):
        return attack.scene
    return attack.transform if isinstance(attack, EOT | RP2) else None


def _shown(result: AdversarialBatch, count: int) -> Tensor:
    """Which samples (k,) the gallery shows."""
    return (result.clean & result.success).nonzero().flatten()[:count]
