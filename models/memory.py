"""Whether a model remembers: what it answers must not depend on what else it was asked before."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from models.base import Batch, Classifier, frozen
from models.randomness import Randomness
from models.threat import ThreatModel

# What the audit calls it.
MEMORY = "memory"
IMAGES = 20
# How far from a point, in units of the ball, its neighbours are asked for: a detector's own reach is unknown.
NEAR = (0.01, 0.1, 1.0)
# Of the logits' size: rounding on other devices, and in batches that are put together otherwise.
SAME, ROUNDED = 1e-5, 1e-3


def changed(first: Tensor, second: Tensor, share: float) -> float:
    """The largest change between two answers (n, classes) where it is above `share` of their size, else 0."""
    if not len(first):
        return 0.0
    one, other = (answer.double().nan_to_num(0.0, 1e30, -1e30) for answer in (first, second))
    change = float((one - other).abs().max())
    return change if change > share * max(1.0, float(one.abs().max())) else 0.0


def by_order(model: Classifier, batch: Batch, threat: ThreatModel) -> float:
    """How much answers change, 0 where they do not, with the order in which copies of the model are asked.

    Points between two images each, which nobody has asked for yet, and their neighbours: one copy is asked
    for the points first, the other last. 0 too where the model cannot be copied.
    """
    try:
        copies = copy.deepcopy(model), copy.deepcopy(model)
    except Exception:
        # A model may hold anything: a connection, a file, a lock.
        return 0.0
    x = batch.x[:IMAGES]
    between = (x + x.roll(1, 0)) / 2
    noise = Randomness(0).child("memory").sign(batch.index[:IMAGES], x.shape[1:]).to(x)
    corner = threat.project(between, between + threat.box.width * noise) - between
    points = [between, *(threat.box.clamp(between + share * corner) for share in NEAR)]
    orders = list(range(len(points))), list(reversed(range(len(points))))
    answers: list[list[Tensor]] = []
    for one, order in zip(copies, orders, strict=True):
        with frozen(one), torch.no_grad():
            found = {place: one.logits(points[place]) for place in order}
        answers.append([found[place] for place in range(len(points))])
    return max(changed(first, second, SAME) for first, second in zip(*answers, strict=True))


def asked(model: Classifier, batch: Batch) -> Tensor:
    """The answers (k, classes) to the first images of the batch."""
    with frozen(model), torch.no_grad():
        return model.logits(batch.x[:IMAGES])


def since(model: Classifier, batch: Batch, first: Tensor, *, together: bool) -> float:
    """How much the answers to the same images have changed since the `first` (k, classes), 0 if not at all.

    They are asked for as before, and backwards unless answers depend on what is asked `together`.
    """
    change = changed(first, asked(model, batch), SAME)
    if change or together:
        return change
    backwards = torch.arange(len(first)).flip(0)
    return changed(first, asked(model, batch[backwards]).flip(0), ROUNDED)
