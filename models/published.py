"""Published data sets, read by torchvision from --data-root, and downloaded whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.data import DATA, Dataset, load_data
from models.datasets.folder import FolderImages
from models.errors import UserError
from models.torchvision_operators import import_torchvision

ARCHIVES = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_val.tar")


def _mnist_test(root: Path | None, download: bool) -> Dataset:
    """MNIST's 10,000 test images, read by torchvision from --data-root."""
    return _whole("mnist", "MNIST", root, download, train=False)


def _mnist_train(root: Path | None, download: bool) -> Dataset:
    """MNIST's 60,000 training images, read by torchvision from --data-root."""
    return _whole("mnist-train", "MNIST", root, download, train=True)


def _fashion_mnist(root: Path | None, download: bool) -> Dataset:
    """Fashion-MNIST's 10,000 test images, read by torchvision from --data-root."""
    return _whole("fashion-mnist", "FashionMNIST", root, download, train=False)


def _cifar10(root: Path | None, download: bool) -> Dataset:
    """CIFAR-10's 10,000 test images, read by torchvision from --data-root."""
    return _whole("cifar10", "CIFAR10", root, download, train=False)


def _cifar10_train(root: Path | None, download: bool) -> Dataset:
    """CIFAR-10's 50,000 training images, read by torchvision from --data-root."""
    return _whole("cifar10-train", "CIFAR10", root, download, train=True)


def _cifar10_jpeg(root: Path | None, download: bool) -> Dataset:
    """CIFAR-10's 10,000 test images after JPEG compression, from cifar10-jpeg/test.parquet in --data-root."""
    return _decoded("cifar10-jpeg", "cifar10-jpeg/test.parquet", root)


def _cifar10_jpeg_train(root: Path | None, download: bool) -> Dataset:
    """CIFAR-10's 50,000 training images after JPEG compression, from cifar10-jpeg/train.parquet."""
    return _decoded("cifar10-jpeg-train", "cifar10-jpeg/train.parquet", root)


def _svhn(root: Path | None, download: bool) -> Dataset:
    """SVHN's 26,032 test images, read by torchvision from --data-root."""
    return _whole("svhn", "SVHN", root, download, split="test")


def _gtsrb(root: Path | None, download: bool) -> Dataset:
    """The 12,630 test images of German traffic signs at 32 x 32, read by torchvision from --data-root."""
    return _signs("gtsrb", "test", root, download)


def _gtsrb_train(root: Path | None, download: bool) -> Dataset:
    """The 26,640 training images of German traffic signs at 32 x 32, read by torchvision from --data-root."""
    return _signs("gtsrb-train", "train", root, download)


def _imagenet(root: Path | None, download: bool) -> Dataset:
    """ImageNet's 50,000 validation images at 224 x 224, decoded one by one from imagenet/val in --data-root.

    The middle of each, after the shorter side is brought to 256. Nobody may download it: torchvision
    unpacks the two archives of image-net.org where val is absent, whole or not at all.
    """
    place = _place("imagenet", "imagenet/val", root) / "imagenet"
    kind = import_torchvision("torchvision.datasets").ImageNet
    have = [name for name in ARCHIVES if (place / name).is_file()]
    if not ((place / "val").is_dir() and (place / "meta.bin").is_file()):
        if len(have) < len(ARCHIVES):
            raise UserError(
                f"no imagenet under {place}, and it cannot be downloaded: put {' and '.join(ARCHIVES)} of "
                "image-net.org there, or name class folders as folder:PATH@size=224"
            )
        _fetched("imagenet", place, lambda folder: kind(str(folder), split="val"), ARCHIVES)
    try:
        raw = kind(str(place), split="val")
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"imagenet under {place} cannot be read ({_reason(error)}): remove val") from None
    images = FolderImages(place / "val", [Path(path) for path, _ in raw.samples], 224, border=1 / 16)
    return Dataset("imagenet", images, torch.tensor(raw.targets), len(raw.classes))


def _decoded(name: str, path: str, root: Path | None) -> Dataset:
    """A parquet file of images as a tensor, for training, which sees each image many times."""
    data = load_data(f"parquet:{_place(name, path, root) / path}")
    everything = torch.cat([data.pixels[part] for part in torch.arange(len(data)).split(5000)])
    return Dataset(name, everything, data.labels, data.num_classes, classes=data.classes)


def _signs(name: str, split: str, root: Path | None, download: bool) -> Dataset:
    raw = _read("GTSRB", _place(name, "gtsrb", root), download, split=split)
    try:
        rows = [
            (image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR), label) for image, label in raw
        ]
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{name} cannot be read ({_reason(error)}): remove it and --download") from None
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image, _ in rows])).permute(0, 3, 1, 2)
    return Dataset(name, pixels.contiguous(), torch.tensor([label for _, label in rows]), 43)


def _whole(name: str, kind: str, root: Path | None, download: bool, **which: Any) -> Dataset:
    holds = {"CIFAR10": "cifar-10-batches-py", "SVHN": "test_32x32.mat"}.get(kind, f"{kind}/raw")
    raw = _read(kind, _place(name, holds, root), download, **which)
    pixels = torch.as_tensor(raw.data)
    if pixels.dim() == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    labels = torch.as_tensor(raw.labels if kind == "SVHN" else raw.targets).long()
    return Dataset(name, pixels.contiguous(), labels, 10)


def _read(kind: str, place: Path, download: bool, **which: Any) -> Any:
    """torchvision's data set under `place`, fetched first where it is absent and `download` is asked for."""
    make = getattr(import_torchvision("torchvision.datasets"), kind)
    try:
        return make(str(place), **which)
    except (RuntimeError, FileNotFoundError):
        if not download:
            raise UserError(
                f"no complete {kind} under {place}: add --download, or point --data-root at it"
            ) from None
    except (AssertionError, OSError, ValueError, KeyError, EOFError) as error:
        # torchvision asserts that a file begins as its format does.
        raise UserError(
            f"{kind} under {place} cannot be read ({_reason(error)}): remove it and --download"
        ) from None
    _fetched(kind, place, lambda folder: make(str(folder), download=True, **which))
    return make(str(place), **which)


def _fetched(name: str, place: Path, fetch: Callable[[Path], Any], needs: tuple[str, ...] = ()) -> None:
    """Lets `fetch` fill a folder of its own, which sees the files `needs` of place, and then moves it there.

    Where it fails or is killed nothing of it is under a name that a later run reads.
    """
    new = not place.exists()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=place) as folder:
            for file in needs:
                (Path(folder) / file).symlink_to((place / file).resolve())
            fetch(Path(folder))
            _moved(Path(folder), place)
    except Exception as error:
        # Servers, archives and disks fail in many ways.
        if new:
            with contextlib.suppress(OSError):
                place.rmdir()
        raise UserError(
            f"{name} cannot be fetched ({_reason(error)}): nothing of it was kept, try again"
        ) from None


def _moved(source: Path, target: Path) -> None:
    """Moves files and folders from source to target, each at once; what is a link stays."""
    for child in sorted(source.iterdir()):
        goal = target / child.name
        if child.is_dir() and goal.is_dir():
            _moved(child, goal)
        elif not child.is_symlink():
            os.replace(child, goal)


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(":")


def _place(name: str, holds: str, root: Path | None) -> Path:
    place = root or (Path(os.environ["RHOBUST_DATA"]) if "RHOBUST_DATA" in os.environ else None)
    if place is None:
        raise UserError(
            f"data set '{name}' needs --data-root DIR (or RHOBUST_DATA), the folder that holds {holds}"
        )
    return place


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
DATA.add("imagenet", _imagenet)
