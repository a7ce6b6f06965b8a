"""A user's model and arrays, as the classifier and the batch that judges take."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.base import Batch, Classifier, check_inputs, frozen
from models.errors import UserError
from models.threat import Box


def read_inputs(
    model: nn.Module, images: Tensor | np.ndarray, labels: Tensor | np.ndarray, box: Box
) -> tuple[Classifier, Batch]:
    """The model as a classifier and the arrays as a batch on its device; raises UserError for bad inputs."""
    batch = Batch.of(torch.as_tensor(images).float(), torch.as_tensor(labels).long())
    if not len(batch):
        raise UserError("no images to evaluate: pass at least one")
    if isinstance(model, Classifier):
        judged = model
    else:
        with frozen(model), torch.no_grad():
            classes = int(model(batch.x[:1]).shape[-1])
        judged = Classifier(model, num_classes=classes, box=box)
    batch = batch.to(judged.device)
    check_inputs(batch, judged)
    return judged, batch
