"""Opens a user's model on some of the images it is meant for, or says why it cannot judge them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from models.base import Batch, Classifier, check_logits
from models.discover import import_modules
from models.errors import UserError
from models.sources.base import ModelLine
from models.trial import tried

IMAGES = 100
# How often a network may be right, in units of a guess, for it to be asked whether it was trained.
GUESSED = 2.0


@dataclass(frozen=True)
class Opened:
    """A classifier ready to be judged, and what its user should know about it."""

    classifier: Classifier
    notes: tuple[str, ...]


def open_model(text: str, batch: Batch, num_classes: int, *, lenient: bool = False) -> Opened:
    """The model of a line `SOURCE:PLACE...`, tried out on up to 100 images x (n, ...) in [0, 1].

    Raises UserError where it cannot judge such images, or returns no logits of their classes. lenient: not
    for outputs that are probabilities or depend on the batch, which an audit is there to find.
    """
    import_modules("models.sources")
    line = ModelLine.parse(text)
    batch = batch[:IMAGES]
    shape = tuple(batch.x.shape[1:])
    network = line.build(shape)
    trial = tried(network, batch.x, text, lenient=lenient)
    _check_classes(line, trial.classes, num_classes)
    classifier = Classifier(
        trial.network, num_classes=trial.classes, name=text, stochastic=trial.stochastic
    ).eval()
    logits = classifier.logits(batch.x).detach()
    check_logits(logits, text, lenient=lenient)
    right = float((logits.argmax(1) == batch.y).double().mean())
    drawn = _drawn(line, network, shape) if right <= GUESSED / trial.classes else ()
    return Opened(classifier, (*_resized(line, batch), *trial.notes, *drawn))


def _resized(line: ModelLine, batch: Batch) -> tuple[str, ...]:
    size, given = line.size, tuple(batch.x.shape[2:])
    if size is None or len(given) != 2 or size == given:
        return ()
    sides = [f"{height} x {width}" for height, width in (given, size)]
    return (f"'{line.text}' resizes {sides[0]} images to {sides[1]}: perturbations come before that",)


def _drawn(line: ModelLine, network: nn.Module, shape: tuple[int, ...]) -> tuple[str, ...]:
    """A note where the weights are other ones whenever the network is built, so that none were trained."""
    if line.source not in ("file", "python") or line.place.weights is not None:
        return ()
    again = dict(line.build(shape).named_parameters())
    if all(
        torch.equal(weights, again[name]) for name, weights in network.named_parameters() if name in again
    ):
        return ()
    return (f"'{line.text}' has new random weights whenever it is built: name trained ones, --weights FILE",)


def _check_classes(line: ModelLine, classes: int, num_classes: int) -> None:
    declared = line.settings.get("classes")
    if declared is not None and declared != classes:
        raise UserError(f"'{line.text}' returns {classes} logits, not the {declared} declared by classes")
    if classes < num_classes:
        raise UserError(f"'{line.text}' returns {classes} logits, but the labels have {num_classes} classes")
    if classes > num_classes and declared is None:
        raise UserError(
            f"'{line.text}' returns {classes} logits, but the labels have {num_classes} classes: add "
            f"@classes={classes} if the labels are the first of them"
        )
