"""`npz:PATH`: images and labels as NumPy arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from models.data import DATA_FILES, Dataset
from models.errors import UserError

NAMES = (("images", "labels"), ("x", "y"), ("x_test", "y_test"), ("data", "labels"), ("data", "targets"))

T = TypeVar("T")


def _npz(path: Path, size: int | None) -> Dataset:
    """Arrays `images` and `labels` (or x and y): bytes, or floats in [0, 1].

    Images are (n, c, h, w), (n, h, w, c) with 1 or 3 channels, (n, h, w) or (n, d).
    """
    if size is not None:
        raise UserError(f"npz:{path} has its size already: leave out @size={size}")
    try:
        arrays = np.load(path, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise UserError(f"{path} holds one array: save both, np.savez(FILE, images=..., labels=...)")
        with arrays:
            images, labels = named(path, arrays)
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    return of_arrays("npz", path, images, labels)


def named(path: Path, arrays: Mapping[str, T]) -> tuple[T, T]:
    """The images and labels among arrays by name; raises UserError where no pair of NAMES is there."""
    pair = next((pair for pair in NAMES if set(pair) <= set(arrays)), None)
    if pair is None:
        raise UserError(
            f"{path} holds {', '.join(map(str, arrays)) or 'nothing'}: name them images and labels"
        )
    return arrays[pair[0]], arrays[pair[1]]


def of_arrays(source: str, path: Path, images: np.ndarray, labels: np.ndarray) -> Dataset:
    """The data set of arrays that SOURCE:PATH holds; raises UserError where they are no images and labels."""
    if labels.ndim == 1 and len(images) == len(labels) == 0:
        raise UserError(f"{path} holds no images")
    if len(images) != len(labels) or labels.ndim != 1:
        raise UserError(
            f"{path} has images {images.shape} and labels {labels.shape}: give one label an image"
        )
    if labels.dtype.kind not in "iu":
        raise UserError(f"{path}: labels must be integers from 0, not {labels.dtype}")
    if labels.min() < 0:
        raise UserError(f"{path}: labels must be integers from 0, not {labels.min()}")
    if images.dtype != np.uint8:
        low, high = float(images.min()), float(images.max())
        if not (images.dtype.kind == "f" and low >= 0 and high <= 1):
            raise UserError(
                f"{path}: images span [{low:g}, {high:g}]: save bytes, or floats in [0, 1]; a normalisation "
                "belongs to the model, as @mean and @std"
            )
        images = images.astype(np.float32)
    pixels = torch.from_numpy(_channels_first(images))
    return Dataset(
        f"{source}:{path}", pixels, torch.from_numpy(labels.astype(np.int64)), int(labels.max()) + 1
    )


def _channels_first(images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images)


DATA_FILES.add("npz", _npz)
