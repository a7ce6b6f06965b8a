"""JPEG: what an eye does not miss is thrown away, and small perturbations with it."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from defenses.inputs import InputDefense, StraightThrough, register_input_defense
from models.architecture import Architecture
from models.errors import UserError


class Compressed(nn.Module):
    """Writes every image (c, h, w) in [0, 1], c 1 or 3, as a JPEG file of `quality` and reads it back."""

    def __init__(self, quality: int) -> None:
        super().__init__()
        self.quality = quality

    def forward(self, x: Tensor) -> Tensor:
        levels = (x.detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        read = [self._through_a_file(image) for image in levels]
        if not read:
            return x
        return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).to(x) / 255

    def _through_a_file(self, image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(
            file, "JPEG", quality=self.quality
        )
        return np.asarray(Image.open(file)).reshape(image.shape)


@register_input_defense("jpeg")
@dataclass(frozen=True, kw_only=True)
class JPEG(InputDefense):
    """Compresses every image as a JPEG file of `quality` and opens it again.

    A file has no gradient: adversaries are handed the identity in its place (BPDA). Inputs are rounded to
    256 levels on the way. Raises UserError for quality outside 1..95; refuses images that are neither grey
    nor of three colours.
    Source: Das et al. 2017, 1705.02900; Guo, Rana, Cisse, van der Maaten 2018, 1711.00117.
    """

    paper = "Das et al. 2017, 1705.02900"

    quality: int = 75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.quality <= 95:
            raise UserError(f"jpeg needs a quality between 1 and 95, not {self.quality}")

    def front(self, architecture: Architecture) -> nn.Module:
        return Compressed(self.quality)

    def surrogate(self, front: nn.Module) -> nn.Module:
        return StraightThrough(front)

    def refuses(self, architecture: Architecture) -> str | None:
        shape = architecture.input_shape
        fits = len(shape) == 3 and shape[0] in (1, 3)
        return None if fits else "its inputs are neither grey nor RGB images"
