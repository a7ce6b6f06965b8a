"""Opens a user's model on some of the images it is meant for, and says what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.base import Batch, Classifier, check_logits
from models.discover import import_modules
from models.errors import UserError
from models.sources.base import ModelLine, Prepared

IMAGES = 100
# How much more of the images another scaling must get right before it is worth a remark.
CLEARLY = 0.2
MODES = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True)
class Opened:
    """A classifier ready to be judged, and what its user should know about it."""

    classifier: Classifier
    notes: tuple[str, ...]


def open_model(text: str, batch: Batch, num_classes: int) -> Opened:
    """The model of a line `SOURCE:PLACE...`, tried out on up to 100 images x (n, ...) in [0, 1].

    Raises UserError where it cannot judge such images, or returns no logits of their classes.
    """
    import_modules("models.sources")
    line = ModelLine.parse(text)
    batch = batch[:IMAGES]
    network = line.build()
    with torch.no_grad():
        logits = _first(network, batch.x, text)
        _check_classes(line, logits.shape[1], num_classes)
        check_logits(logits, text)
        notes = _train_mode(network, text)
        again = network(batch.x)
        stochastic = not torch.equal(logits, again)
        if stochastic:
            notes.append(f"'{text}' answers differently when asked again: judged as stochastic")
        else:
            _check_alone(network, batch.x, logits, text)
            notes += _scaling(network, batch, logits, text)
    classes = logits.shape[1]
    return Opened(
        Classifier(network, num_classes=classes, name=text, stochastic=stochastic).eval(), tuple(notes)
    )


def _first(network: nn.Module, x: Tensor, text: str) -> Tensor:
    try:
        logits = network(x)
    except Exception as error:
        # The user's own forward may fail in any way.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"'{text}' fails on images of shape {tuple(x.shape[1:])}: {_hint(network, x) or reason}"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"'{text}' returned {got} for {len(x)} images: return logits (n, classes)")
    return logits


def _hint(network: nn.Module, x: Tensor) -> str | None:
    first = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)), None)
    if isinstance(first, nn.Conv2d) and x.dim() == 4 and first.in_channels != x.shape[1]:
        return f"its first layer needs {first.in_channels} channels, the images have {x.shape[1]}"
    if isinstance(first, nn.Linear) and first.in_features not in (x.shape[-1], x[0].numel()):
        return f"its first layer needs {first.in_features} inputs, the images have {x[0].numel()}"
    return None


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


def _train_mode(network: nn.Module, text: str) -> list[str]:
    stuck = [module for module in network.modules() if module.training and isinstance(module, MODES)]
    return [f"'{text}' keeps a layer in train mode: {type(stuck[0]).__name__}"] if stuck else []


def _check_alone(network: nn.Module, x: Tensor, logits: Tensor, text: str) -> None:
    """A sample's logits must not depend on the batch it is in."""
    alone = network(x[:1])
    error = float((alone - logits[:1]).abs().max())
    if error > 1e-3 * max(1.0, float(logits[:1].abs().max())):
        raise UserError(
            f"'{text}' gives an image other logits alone than in a batch (by {error:.2g}): "
            "batch normalisation must use its running statistics, and samples must not mix"
        )


def _scaling(network: nn.Module, batch: Batch, logits: Tensor, text: str) -> list[str]:
    """Whether the network does clearly better on images normalised by their statistics, or in 0..255."""
    inner = network.network if isinstance(network, Prepared) else network
    axes = [0, *range(2, batch.x.dim())] if batch.x.dim() == 4 else list(range(batch.x.dim()))
    mean, std = batch.x.mean(axes, keepdim=True), batch.x.std(axes, keepdim=True).clamp(min=1e-6)
    numbers = [",".join(f"{value:.3f}" for value in part.flatten().tolist()) for part in (mean, std)]
    others = {f"normalised: add @mean={numbers[0]}@std={numbers[1]}": (batch.x - mean) / std}
    others["scaled to 0..255: add @box=0,255"] = 255 * batch.x
    if inner is not network:
        others = {"not normalised: leave out mean, std and box": batch.x}
    right = float((logits.argmax(1) == batch.y).double().mean())
    notes = []
    for what, x in others.items():
        try:
            share = float((inner(x).argmax(1) == batch.y).double().mean())
        except (RuntimeError, ValueError):
            continue
        if share > right + CLEARLY:
            notes.append(
                f"'{text}' is right on {100 * right:.0f} % of {len(batch)} images, "
                f"but on {100 * share:.0f} % of them {what}"
            )
    return notes
