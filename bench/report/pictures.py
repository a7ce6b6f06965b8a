"""Pictures of a judge's page: galleries and universal perturbations, from the artifacts of a run."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from bench.record import Record, panel_name
from bench.report.grid import Picture, percent, slug

Array = np.ndarray


@dataclass(frozen=True)
class Example:
    """Pictures that belong together, with a caption; `index` is the sample's, None where there is none.

    views: the same image as the attack has not seen it, where it was made for views.
    """

    pictures: tuple[Picture, ...]
    caption: str
    index: int | None = None
    views: tuple[Picture, ...] = ()


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


def panel(folders: tuple[Path, ...], data_sha256: str) -> dict[int, Array]:
    """The images (c, h, w) in [0, 1] that the runs kept of a data set, by their place in it."""
    found: dict[int, Array] = {}
    for folder in folders:
        path = folder / "artifacts" / f"{panel_name(data_sha256)}.safetensors"
        try:
            kept = load_file(path)
            found |= dict(zip(map(int, kept["index"]), kept["image"] / 255, strict=True))
        except (SafetensorError, OSError, KeyError, ValueError):
            continue
    return found


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
        said = f"Universal perturbation of {title}"
        picture = Picture(f"{where}-universal.png", png(shown), said, f"{factor:.3g} times")
        found.append(Example((picture,), f"{title}, around grey; {_extent(kept['perturbation'][0])}"))
    # Inputs that are no images have no pictures.
    if "gallery.x" in kept and kept["gallery.x"].ndim == 4:
        found += [_example(kept, row, f"{where}-{row}", title) for row in range(len(kept["gallery.x"]))]
    return found


def _example(kept: dict[str, Array], row: int, where: str, title: str) -> Example:
    """Original, perturbation and adversarial image of a sample; both rescaled alike beyond [0, 1]."""
    x, x_adv = kept["gallery.x"][row], kept["gallery.x_adv"][row]
    low, high = min(0.0, float(min(x.min(), x_adv.min()))), max(1.0, float(max(x.max(), x_adv.max())))
    change = x_adv - x
    shown, factor = magnified(change)
    index, label = int(kept["gallery.index"][row]), int(kept["gallery.label"][row])
    before, after = (
        f"{int(kept[f'gallery.{name}'][row])}, {percent(float(kept[f'gallery.{sure}'][row]))}"
        for name, sure in (("clean", "clean_confidence"), ("predicted", "confidence"))
    )
    span = f"{factor:.3g} times"
    pictures = (
        Picture(
            f"{where}-original.png",
            png((x - low) / (high - low)),
            f"Sample {index}, class {label}, taken for {before}",
            before,
        ),
        Picture(f"{where}-change.png", png(shown), f"Its perturbation, magnified {factor:.3g} times", span),
        Picture(
            f"{where}-adversarial.png",
            png((x_adv - low) / (high - low)),
            f"Sample {index} after the attack, taken for {after}",
            after,
        ),
    )
    caption = f"{title}, sample {index}, class {label}; {_extent(change)}"
    return Example(pictures, caption, index, _views(kept, row, where, (low, high)))


def _extent(change: Array) -> str:
    """How many pixels (h, w) of a change (c, h, w) moved, and by how much at most."""
    moved = np.abs(change).max(0) > 0
    return f"{moved.sum()} of {moved.size} pixels changed, by at most {np.abs(change).max():.3g}"


def _views(kept: dict[str, Array], row: int, where: str, span: tuple[float, float]) -> tuple[Picture, ...]:
    """The views of a row that the attack has not seen, with what the model takes each for."""
    if "views.x" not in kept or row >= len(kept["views.x"]):
        return ()
    low, high = span
    found = []
    for place, image in enumerate(kept["views.x"][row]):
        sure = percent(float(kept["views.confidence"][row][place]), 0)
        taken = f"{int(kept['views.predicted'][row][place])}, {sure}"
        said = f"Held-out view {place + 1}, taken for {taken}"
        found.append(Picture(f"{where}-view{place}.png", png((image - low) / (high - low)), said, taken))
    return tuple(found)


def held_out_error(record: Record, folders: tuple[Path, ...]) -> tuple[float, float] | None:
    """The share of wrong answers on held-out views of the attack's images and of the clean ones, or None."""
    kept = artifact(record, folders)
    if "views.error" not in kept:
        return None
    attacked, clean = map(float, kept["views.error"])
    return attacked, clean
