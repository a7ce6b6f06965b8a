"""The pictures that a run keeps of its images: the panel's first ones, the box as 0 to 255, once."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from bench.panel import keep_panel, panel_pictures
from bench.work import Settings
from models.data import load_data


def test_they_are_the_panels_images_rounded() -> None:
    data = load_data("mnist5k")
    kept = panel_pictures(data, 12)
    assert kept["index"].tolist() == data.panel(12).tolist()
    assert kept["image"].dtype == torch.uint8
    assert (kept["image"].float() / 255 - data.batch(data.panel(12)).x).abs().max() <= 0.5 / 255 + 1e-6


def test_more_images_replace_fewer_and_fewer_change_nothing(tmp_path: Path) -> None:
    settings = Settings(out=tmp_path)
    keep_panel(("mnist5k", 3), settings)
    (path,) = (tmp_path / "artifacts").iterdir()
    assert len(load_file(path)["index"]) == 3
    keep_panel(("mnist5k", 20), settings)
    assert len(load_file(path)["index"]) == 20
    before = path.stat().st_mtime_ns
    keep_panel(("mnist5k", 7), settings)
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"damaged")
    keep_panel(("mnist5k", 2), settings)
    assert len(load_file(path)["index"]) == 2
