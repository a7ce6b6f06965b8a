"""Pictures of a judge's page: galleries and universal perturbations, from the artifacts of a run."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from bench.record import Record
from bench.report.grid import percent, slug

Array = np.ndarray


@dataclass(frozen=True)
class Picture:
    """One image file of the site: its place, its bytes and what it shows."""

    path: str
    content: bytes
    alt: str


@dataclass(frozen=True)
class Example:
    """Pictures that belong together, with a caption; `index` is the sample's, None where there is none."""

    pictures: tuple[Picture, ...]
    caption: str
    index: int | None = None


def artifact(record: Record, folders: tuple[Path, ...]) -> dict[str, Array]:
    """The arrays that were kept beside a record, empty where there are none or they cannot be read."""
    for folder in folders:
        path = folder / "artifacts" / f"{record.cell.id}.safetensors"
        if path.is_file():
            try:
                return load_file(path)
            except (SafetensorError, OSError):
                return {}
    return {}


def png(image: Array) -> bytes:
    """An image (c, h, w) in [0, 1] as PNG; grey for one channel, the first three for more."""
    levels = np.clip(np.rint(255 * image), 0, 255).astype(np.uint8)
    shown = Image.fromarray(levels[0]) if len(levels) < 3 else Image.fromarray(levels[:3].transpose(1, 2, 0))
    out = io.BytesIO()
    shown.save(out, "PNG", optimize=True)
    return out.getvalue()


def magnified(perturbation: Array) -> tuple[Array, float]:
    """A perturbation in [0, 1] around grey, and the factor by which it was magnified to fill the range."""
    largest = float(np.abs(perturbation).max())
    factor = 0.5 / largest if largest > 0 else 1.0
    return 0.5 + factor * perturbation, factor


def examples(record: Record, folders: tuple[Path, ...], folder: str = "images") -> list[Example]:
    """The universal perturbation and the gallery of a record, as far as they were kept; files in `folder`."""
    kept, found = artifact(record, folders), []
    where = f"{folder}/{slug(record.cell.id)}"
    title = f"{record.cell.defended}, {record.cell.threat.label}"
    if "perturbation" in kept and kept["perturbation"].ndim == 4:
        shown, factor = magnified(kept["perturbation"][0])
        said = f"Universal perturbation of {title}, magnified {factor:.3g} times around grey"
        found.append(Example((Picture(f"{where}-universal.png", png(shown), said),), said))
    if "gallery.x" in kept:
        found += [_example(kept, row, f"{where}-{row}", title) for row in range(len(kept["gallery.x"]))]
    return found


def _example(kept: dict[str, Array], row: int, where: str, title: str) -> Example:
    """Original, perturbation and adversarial image of a sample; both rescaled alike beyond [0, 1]."""
    x, x_adv = kept["gallery.x"][row], kept["gallery.x_adv"][row]
    low, high = min(0.0, float(min(x.min(), x_adv.min()))), max(1.0, float(max(x.max(), x_adv.max())))
    shown, factor = magnified(x_adv - x)
    before, after = int(kept["gallery.clean"][row]), int(kept["gallery.predicted"][row])
    sure, now = (
        percent(float(kept["gallery.clean_confidence"][row])),
        percent(float(kept["gallery.confidence"][row])),
    )
    index, label = int(kept["gallery.index"][row]), int(kept["gallery.label"][row])
    pictures = (
        Picture(f"{where}-original.png", png((x - low) / (high - low)), f"Sample {index}, class {label}"),
        Picture(f"{where}-change.png", png(shown), f"Its perturbation, magnified {factor:.3g} times"),
        Picture(
            f"{where}-adversarial.png", png((x_adv - low) / (high - low)), f"Sample {index} after the attack"
        ),
    )
    caption = f"{title}, sample {index}: {before} ({sure}) becomes {after} ({now})"
    caption += f"; change magnified {factor:.3g} times"
    return Example(pictures, caption, index)
