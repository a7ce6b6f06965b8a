"""What images and labels must be before a network is trained on them."""

from __future__ import annotations

import torch
from torch import Tensor

from models.architecture import Architecture
from models.base import Batch
from models.data import Dataset
from models.errors import UserError
from models.threat import UNIT_BOX

# Images that are looked at together.
CHUNK = 1000


def check_training(data: Dataset, test: Dataset, architecture: Architecture) -> None:
    """Raises UserError, before anything is computed, where `data` cannot train it or `test` test it."""
    for part in (data, test):
        if part.shape != architecture.input_shape:
            takes = f"{architecture.name} takes {architecture.input_shape}"
            raise UserError(f"{takes}, {part.name} has {part.shape}")
    missing = set(range(architecture.num_classes)) - set(data.labels.unique().tolist())
    if missing:
        raise UserError(f"{data.name} has no image of class {min(missing)}: complete it before training")
    if isinstance(data.pixels, Tensor) and not bool(torch.isfinite(data.pixels).all()):
        raise UserError(f"{data.name} contains NaN or infinity: clean it before training")


def check_asked(dataset: Dataset, epochs: int) -> None:
    """Raises UserError for no epochs, labels that are no class number each, or images that leave [0, 1].

    Images that are decoded when they are wanted are looked at batch by batch (`inside`).
    """
    if epochs < 1:
        raise UserError(f"a network is trained for 1 epoch or more, not {epochs}")
    labels, images = dataset.labels, dataset.pixels.shape[0]
    if len(labels) != images:
        raise UserError(f"{dataset.name} has {images} images but {len(labels)} labels: one label per image")
    if not images:
        raise UserError(f"{dataset.name} has no images to train on")
    if labels.dtype not in (torch.int64, torch.uint8):
        raise UserError(f"{dataset.name} has labels of type {labels.dtype}: pass labels.long()")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= dataset.num_classes:
        classes = f"{dataset.num_classes} classes"
        raise UserError(f"{dataset.name} has labels that span {low}..{high}: count its {classes} from 0")
    if isinstance(dataset.pixels, Tensor) and dataset.pixels.dtype != torch.uint8:
        for part in torch.arange(images).split(CHUNK):
            inside(dataset.batch(part), dataset.name)


def inside(batch: Batch, name: str) -> Batch:
    """`batch`; raises UserError where its images leave [0, 1], in which every defence perturbs them."""
    if not bool(UNIT_BOX.contains(batch.x).all()):
        low, high = float(batch.x.min()), float(batch.x.max())
        raise UserError(
            f"{name} has values outside [0, 1], or NaN (a batch spans [{low:g}, {high:g}]): bring the images "
            "to [0, 1], and normalise inside the network"
        )
    return batch
