"""Pictures of the images that a run judges, kept once beside its records for the report."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from bench.record import panel_name
from bench.work import Settings, dataset
from models.atomic import write_atomically
from models.data import Dataset
from models.errors import UserError

BYTES = 2**23
"""More than this is not kept of a data set: the first 10,699 digits, or 55 images of 224 x 224 in colour."""


def panel_pictures(data: Dataset, count: int) -> dict[str, Tensor]:
    """The first `count` images of the panel: image (k, c, h, w) uint8, the box as 0 to 255, and index (k,).

    What cannot be decoded and what is no image is left out; empty where nothing remains.
    """
    kept: list[tuple[int, Tensor]] = []
    for place in data.panel(count)[:, None]:
        try:
            x = data.batch(place).x[0]
        except UserError:
            continue
        if x.dim() != 3 or (len(kept) + 1) * x.numel() > BYTES:
            break
        levels = 255 * (x - data.box.lower) / data.box.width
        kept.append((int(place), levels.round().clamp(0, 255).to(torch.uint8)))
    if not kept:
        return {}
    return {
        "index": torch.tensor([place for place, _ in kept]),
        "image": torch.stack([image for _, image in kept]),
    }


def keep_panel(what: tuple[str, int], settings: Settings) -> None:
    """Keeps pictures of the first images of a data set's panel under OUT/artifacts, unless they are there."""
    name, count = what
    data = dataset(name, settings.data_root, settings.download)
    path = settings.out / "artifacts" / f"{panel_name(data.sha256)}.safetensors"
    try:
        there = len(load_file(path)["index"])
    except (OSError, SafetensorError, KeyError):
        there = 0
    pictures = panel_pictures(data, count) if there < count else {}
    if pictures and len(pictures["index"]) > there:
        write_atomically(path, safetensors_bytes(pictures))
