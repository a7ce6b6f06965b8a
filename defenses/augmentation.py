"""Images as training may see them: each sample's own draw of a mirror image and a shift."""

from __future__ import annotations

import torch
from torch.nn import functional

from models.base import Batch
from models.randomness import Randomness
from models.recipe import Augmentation

# The largest shift, in pixels, of images of 32 pixels a side.
SHIFT = 4


def augmented(batch: Batch, kind: Augmentation, randomness: Randomness) -> Batch:
    """`batch` of images (n, c, h, w) as `kind` lets training see them; labels and places stay.

    "flip-and-shift": mirrored left to right in every second draw, then moved by up to SHIFT pixels each way,
    black coming in at the edge. A sample's draw depends on its index alone.
    Source: He et al. 2016, 1512.03385, section 4.2.
    """
    if kind == "none":
        return batch
    draws = randomness.child("augmentation").uniform(batch.index, (3,)).to(batch.x.device)
    height, width = batch.x.shape[2:]
    down, right = (draws[:, 1:] * (2 * SHIFT + 1)).long().unbind(1)
    rows = torch.arange(height, device=draws.device) + down[:, None]
    columns = torch.arange(width, device=draws.device) + right[:, None]
    columns = torch.where(draws[:, :1] < 0.5, columns.flip(1), columns)
    padded = functional.pad(batch.x, (SHIFT,) * 4)
    every = torch.arange(len(batch.x), device=draws.device)[:, None, None]
    x = padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return Batch(x.contiguous(), batch.y, batch.index)
