"""Digital: pixelation, JPEG, and an elastic deformation."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from models.corruptions.base import family, pixels, places, sampled
from models.randomness import Randomness


@family("pixelate")
def pixelate(x: Tensor, severity: int, keys: Tensor, randomness: Randomness) -> Tensor:
    """Shrunk to the part c of each side and back, by the box filter."""
    part = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    h, w = x.shape[2:]
    small = (max(int(w * part), 1), max(int(h * part), 1))
    planes = []
    for plane in x.reshape(-1, h, w).float().cpu().numpy():
        shrunk = Image.fromarray(plane).resize(small, Image.Resampling.BOX)
        planes.append(np.asarray(shrunk.resize((w, h), Image.Resampling.BOX)))
    return torch.from_numpy(np.stack(planes)).reshape(x.shape).to(x)


@family("jpeg")
def jpeg(x: Tensor, severity: int, keys: Tensor, randomness: Randomness) -> Tensor:
    """Stored as JPEG at quality c and read again; channels each for itself unless there are three."""
    quality = (25, 18, 15, 10, 7)[severity - 1]
    levels = (x * 255).round().clamp(0, 255).to(torch.uint8).cpu()
    if x.shape[1] == 3:
        pictures = [levels[i].permute(1, 2, 0).contiguous().numpy() for i in range(len(x))]
    else:
        pictures = list(levels.flatten(0, 1).numpy())
    read = np.stack([_stored(picture, quality) for picture in pictures])
    back = torch.from_numpy(read).to(x) / 255
    return back.permute(0, 3, 1, 2).contiguous() if x.shape[1] == 3 else back.reshape(x.shape)


def _stored(picture: np.ndarray, quality: int) -> np.ndarray:
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))


@family("elastic")
def elastic(x: Tensor, severity: int, keys: Tensor, randomness: Randomness) -> Tensor:
    """A random affine map, then smoothed random shifts of every pixel; edges are mirrored.

    The shifts' factor is scaled by the square of the size: the mean of the fewer pixels that they are
    smoothed over is larger in the same proportion.
    """
    amount, smooth, corners = (
        (488.0, 170.8, 24.4),
        (488.0, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    )[severity - 1]
    scale, (h, w) = pixels(x), x.shape[2:]
    moved = _affine(x, scale * corners, keys, randomness.child("affine"))
    draws = 2 * randomness.child("shifts").uniform(keys, (2, h, w)).double().cpu().numpy() - 1
    widths = (0, 0, scale * smooth, scale * smooth)
    shifts = torch.from_numpy(scale**2 * amount * gaussian_filter(draws, widths, mode="reflect", truncate=3))
    rows, columns = places(x)
    return sampled(moved, rows + shifts[:, 0].to(x), columns + shifts[:, 1].to(x), "reflection")


def _affine(x: Tensor, reach: float, keys: Tensor, randomness: Randomness) -> Tensor:
    """The map that carries three points about the centre to where each lands within `reach` of itself."""
    h, w = x.shape[2:]
    middle, arm = (h // 2, w // 2), max(min(h, w) // 3, 1)
    corners = [(1, 1), (1, -1), (-1, -1)]
    start = torch.tensor([[middle[0] + a * arm, middle[1] + b * arm] for a, b in corners]).to(x)
    end = start + reach * (2 * randomness.uniform(keys, (3, 2)).to(x) - 1)
    one = torch.ones(len(x), 3, 1).to(x)
    # Rows are points: [end, 1] @ back = start, the place that each pixel of the result is read from.
    back = torch.linalg.lstsq(torch.cat([end, one], 2).double(), start.double().expand(len(x), 3, 2)).solution
    rows, columns = places(x)
    grid = torch.stack([rows.expand(h, w), columns.expand(h, w), torch.ones_like(rows + columns)], 2).double()
    source = torch.einsum("hwk,nkd->nhwd", grid, back).to(x)
    return sampled(x, source[..., 0], source[..., 1], "reflection")
