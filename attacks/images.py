"""Any input seen as an image, for attacks that think in pixels and windows."""

from __future__ import annotations

from torch import Tensor

from models.errors import NotApplicable


def as_images(x: Tensor) -> Tensor:
    """x (n, ...) as images (n, c, h, w): a vector becomes one row of pixels."""
    shape = x.shape[1:]
    if len(shape) == 3:
        return x
    channels, width = (1, shape.numel()) if len(shape) == 1 else (shape[0], shape[-1])
    return x.reshape(len(x), channels, shape.numel() // channels // width, width)


def need_pictures(x: Tensor, attack: str) -> None:
    """Raises NotApplicable where inputs have no height and width that an attack's views could turn."""
    if x.dim() != 4:
        raise NotApplicable(f"{attack} needs images (n, c, h, w), not inputs of shape {tuple(x.shape)}")
