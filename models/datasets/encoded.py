"""Images that stay encoded in their files and are decoded when they are asked for."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from models.errors import UserError


class CorruptImage(UserError):
    """An image that cannot be decoded; `place` is its index in the data set."""

    def __init__(self, place: int, what: str) -> None:
        super().__init__(f"image {place} ({what}) cannot be decoded: remove it from the data")
        self.place = place


class EncodedImages(ABC):
    """Stands where a tensor (n, c, h, w) uint8 does: indexed by a tensor of places, it decodes those.

    The first image decides whether there is one channel or three, and the size where none is given; an
    image of another size then raises UserError. With a `size`, the shorter side is brought to it and
    the middle cut out, less a share of each side that is `border`. Memory holds what is asked for alone.
    """

    def __init__(self, count: int, size: int | None, border: float = 0.0) -> None:
        self.count, self.size, self.border = count, size, border
        self._shape: tuple[int, ...] | None = None

    @abstractmethod
    def contents(self, places: Sequence[int]) -> list[tuple[bytes, str]]:
        """Encoded bytes and a name for people, of each place in order."""

    @abstractmethod
    def sha256(self) -> str:
        """The content hash of images and labels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, c, h, w)."""
        if self._shape is None:
            for place in range(self.count):
                try:
                    self._shape = self._decoded(place, *self.contents([place])[0], mode=None).shape
                    break
                except CorruptImage:
                    continue
            else:
                raise UserError("no image can be decoded")
        return (self.count, *self._shape)

    def __getitem__(self, index: Tensor) -> Tensor:
        places = index.tolist()
        channels = self.shape[1]
        mode = "L" if channels == 1 else "RGB"
        images = torch.empty((len(places), *self.shape[1:]), dtype=torch.uint8)
        for row, (place, content) in enumerate(zip(places, self.contents(places), strict=True)):
            image = self._decoded(place, *content, mode=mode)
            if image.shape != self.shape[1:]:
                sizes = [f"{height}x{width}" for _, height, width in (image.shape, self.shape[1:])]
                raise UserError(
                    f"image {place} ({content[1]}) is {sizes[0]}, the first {sizes[1]}: add @size=N to PATH"
                )
            images[row] = torch.from_numpy(image)
        return images

    def _decoded(self, place: int, content: bytes, name: str, mode: str | None) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(content)) as opened:
                grey = opened.mode in ("1", "L", "I", "I;16")
                picture = opened.convert(mode or ("L" if grey else "RGB"))
                if self.size is not None:
                    square = (self.size, self.size)
                    picture = ImageOps.fit(picture, square, Image.Resampling.BILINEAR, self.border)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
            raise CorruptImage(place, name) from None
        values = np.array(picture)
        return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
