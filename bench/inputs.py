"""A user's model and arrays, as the classifier and the batch that judges take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.base import Batch, Classifier, check_inputs
from models.errors import UserError
from models.threat import UNIT_BOX, Box
from models.trial import tried, unwrapped

Arrays = Tensor | np.ndarray | Sequence[Any]
TRIED = 50


def read_inputs(
    model: nn.Module, images: Arrays, labels: Arrays, box: Box, *, lenient: bool = False
) -> tuple[Classifier, Batch]:
    """The model as a classifier and the arrays as a batch on its device.

    images (n, ...) in the box, or bytes, which become [0, 1] where that is the box; labels (n,) whole
    numbers. Raises UserError for what is neither, and for a model that cannot judge such images; lenient, as
    an audit is, lets one pass whose answers depend on the batch.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is a {type(model).__name__}: pass a torch.nn.Module that returns logits")
    batch = Batch.of(_images(images, box), _labels(labels))
    if len(batch.x) != len(batch.y):
        raise UserError(f"{len(batch.x)} inputs but {len(batch.y)} labels: pass one label per input")
    judged = model if isinstance(model, Classifier) else _classifier(model, batch.x, box, lenient)
    batch = batch.to(judged.device)
    check_inputs(batch, judged)
    return judged, batch


def read_box(box: Any) -> Box:
    """The two numbers between which the images lie; raises UserError for anything else."""
    try:
        lower, upper = (float(end) for end in box)
    except (TypeError, ValueError):
        raise UserError(f"box is two numbers, like (0, 1), not {box!r}") from None
    return Box(lower, upper)


def _classifier(model: nn.Module, x: Tensor, box: Box, lenient: bool) -> Classifier:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    model = unwrapped(model)
    trial = tried(model, x[:TRIED].to(device), type(model).__name__, lenient=lenient)
    return Classifier(
        trial.network,
        num_classes=trial.classes,
        box=box,
        name=type(model).__name__,
        stochastic=trial.stochastic,
    )


def _tensor(values: Arrays, what: str) -> Tensor:
    """A tensor, an array, or a list of either as one tensor of its own on the CPU."""
    if isinstance(values, Tensor):
        return _plain(values, what)
    try:
        if isinstance(values, Sequence) and any(isinstance(part, Tensor) for part in values):
            return torch.stack([_plain(torch.as_tensor(part), what) for part in values])
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError):
        raise UserError(f"the {what} have no common shape: bring them to one") from None
    if array.dtype.kind not in "biuf":
        raise UserError(f"the {what} are no numbers, but of type {array.dtype}")
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))


def _plain(values: Tensor, what: str) -> Tensor:
    """A dense tensor of real numbers on the CPU, free of inference mode; raises UserError for any other."""
    if values.is_complex() or values.is_meta or values.layout != torch.strided:
        kind = "on the meta device" if values.is_meta else f"{values.dtype} in layout {values.layout}"
        raise UserError(f"the {what} are {kind}: pass a dense tensor of real numbers")
    values = values.detach().cpu()
    return values.clone() if values.is_inference() else values


def _images(values: Arrays, box: Box) -> Tensor:
    images = _tensor(values, "images")
    if not len(images):
        raise UserError("no images to evaluate: pass at least one")
    if images.dim() < 2:
        raise UserError(f"images of shape {tuple(images.shape)}: pass a batch (n, ...), one image as x[None]")
    if images.dtype == torch.uint8 and box == UNIT_BOX and bool((images > 1).any()):
        return images.contiguous().float() / 255
    return images.contiguous().float()


def _labels(values: Arrays) -> Tensor:
    labels = _tensor(values, "labels")
    if labels.dim() != 1:
        one_hot = labels.dim() == 2 and labels.shape[1] > 1
        remedy = "labels.argmax(1)" if one_hot else "labels.reshape(-1)"
        raise UserError(f"labels of shape {tuple(labels.shape)}: pass one class number an image, {remedy}")
    if labels.is_floating_point() and not bool((labels.remainder(1) == 0).all()):
        raise UserError("labels must be whole numbers, the place of each image's class among the logits")
    if labels.is_floating_point() and bool((labels.abs() > 2**31).any()):
        raise UserError(f"labels reach {float(labels.abs().max()):g}: pass the number of each image's class")
    return labels.long()
