"""`folder:PATH`: one folder of image files a class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from models.data import DATA_FILES, Dataset
from models.datasets.encoded import EncodedImages
from models.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


class FolderImages(EncodedImages):
    """Image files in a fixed order."""

    def __init__(self, root: Path, files: list[Path], size: int | None, border: float = 0.0) -> None:
        super().__init__(len(files), size, border)
        self.root, self.files = root, files

    def contents(self, places: Sequence[int]) -> list[tuple[bytes, str]]:
        return [(self.files[place].read_bytes(), str(self.files[place])) for place in places]

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(f"{path.relative_to(self.root)}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def _folder(path: Path, size: int | None) -> Dataset:
    """Class folders in name order; a class's images in name order."""
    if not path.is_dir():
        raise UserError(f"no folder {path}")
    classes = sorted(place for place in path.iterdir() if place.is_dir() and not place.name.startswith("."))
    found = [(label, file) for label, place in enumerate(classes) for file in sorted(place.rglob("*"))]
    found = [(label, file) for label, file in found if file.suffix.lower() in SUFFIXES]
    if not found:
        raise UserError(f"{path} has no class folders with images: make one folder a class (PATH/cat/1.png)")
    labels = torch.tensor([label for label, _ in found])
    names = tuple(place.name for place in classes)
    images = FolderImages(path, [file for _, file in found], size)
    return Dataset(f"folder:{path}", images, labels, len(classes), classes=names)


DATA_FILES.add("folder", _folder)
