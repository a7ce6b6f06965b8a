"""A user's own images: every layout gives the same pixels, labels and hash rules, and mistakes are named."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bench.commands.evaluate import readable
from models.data import load_data
from models.datasets.encoded import CorruptImage
from models.errors import UserError

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (12, 3, 5, 4), dtype=np.uint8)
LABELS = np.array([2, 0, 1] * 4)
NAMES = ("ant", "bee", "cat")


def png(pixels: np.ndarray) -> bytes:
    """(c, h, w) as an encoded image without loss."""
    stream = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]).save(stream, "PNG")
    return stream.getvalue()


def parquet(path: Path, contents: list[bytes], labels: object, rows: int = 5) -> Path:
    """The Hugging Face layout, in small row groups."""
    images = [{"bytes": content, "path": f"{place}.png"} for place, content in enumerate(contents)]
    pq.write_table(pa.table({"image": images, "label": pa.array(labels)}), path, row_group_size=rows)
    return path


def written(kind: str, folder: Path) -> str:
    """The same twelve images in a layout."""
    if kind == "npz":
        np.savez(folder / "a.npz", images=PIXELS, labels=LABELS)
        return f"npz:{folder}/a.npz"
    if kind == "npz channels last":
        np.savez(folder / "a.npz", x=PIXELS.transpose(0, 2, 3, 1), y=LABELS)
        return f"npz:{folder}/a.npz"
    if kind == "npz floats":
        np.savez(folder / "a.npz", x_test=PIXELS / 255, y_test=LABELS)
        return f"npz:{folder}/a.npz"
    if kind == "pt":
        torch.save((torch.from_numpy(PIXELS), torch.from_numpy(LABELS)), folder / "a.pt")
        return f"pt:{folder}/a.pt"
    if kind == "pt by keys":
        torch.save({"data": torch.from_numpy(PIXELS), "targets": torch.from_numpy(LABELS)}, folder / "a.pt")
        return f"pt:{folder}/a.pt"
    contents = [png(image) for image in PIXELS]
    if kind == "parquet":
        return f"parquet:{parquet(folder / 'a.parquet', contents, LABELS)}"
    if kind == "parquet shards":
        for shard in range(3):
            part = slice(4 * shard, 4 * shard + 4)
            parquet(folder / f"{shard}.parquet", contents[part], LABELS[part], rows=3)
        return f"parquet:{folder}"
    return f"parquet:{parquet(folder / 'a.parquet', contents, [NAMES[label] for label in LABELS])}"


KINDS = (
    "npz",
    "npz channels last",
    "npz floats",
    "pt",
    "pt by keys",
    "parquet",
    "parquet shards",
    "parquet of names",
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_gives_the_same_batch(kind: str, tmp_path: Path) -> None:
    data = load_data(written(kind, tmp_path))
    assert (len(data), data.num_classes, data.shape) == (12, 3, (3, 5, 4))
    index = torch.tensor([11, 0, 7, 7, 3])
    batch = data.batch(index)
    assert torch.allclose(batch.x, torch.from_numpy(PIXELS)[index].float() / 255, atol=1e-7)
    assert batch.y.tolist() == LABELS[index].tolist()
    assert torch.bincount(data.labels[data.panel(6)]).tolist() == [2, 2, 2]
    assert data.classes == (NAMES if "names" in kind else ())


def test_what_else_an_npz_holds_is_not_read(tmp_path: Path) -> None:
    """Training images beside the test images, or a table of objects that would need pickle."""
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS, notes=np.array([None] * 12))
    assert len(load_data(f"npz:{tmp_path}/a.npz")) == len(LABELS)


def test_a_folder_has_its_classes_in_name_order(tmp_path: Path) -> None:
    for place, label in enumerate(LABELS):
        (tmp_path / NAMES[label]).mkdir(exist_ok=True)
        (tmp_path / NAMES[label] / f"{place:02}.png").write_bytes(png(PIXELS[place]))
    (tmp_path / "ant" / "notes.txt").write_text("no image", encoding="utf-8")
    (tmp_path / ".cache").mkdir()
    data = load_data(f"folder:{tmp_path}")
    assert (len(data), data.classes) == (12, NAMES)
    order = np.argsort(LABELS, kind="stable")
    assert torch.allclose(data.batch(torch.arange(12)).x, torch.from_numpy(PIXELS[order]).float() / 255)
    assert data.labels.tolist() == LABELS[order].tolist()


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_the_hash_in_a_name_must_be_that_of_the_content(kind: str, tmp_path: Path) -> None:
    name = written(kind, tmp_path)
    mark = load_data(name).sha256[:16]
    assert load_data(f"{name}@{mark}").sha256[:16] == mark
    changed = PIXELS.copy()
    changed[3, 0, 0, 0] ^= 1
    if kind == "npz":
        np.savez(tmp_path / "a.npz", images=changed, labels=LABELS)
    else:
        parquet(tmp_path / "a.parquet", [png(image) for image in changed], LABELS)
    with pytest.raises(UserError, match="has changed since"):
        load_data(f"{name}@{mark}")


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    contents = [png(image[:1]) for image in PIXELS]
    data = load_data(f"parquet:{parquet(tmp_path / 'a.parquet', contents, LABELS)}")
    assert data.shape == (1, 5, 4)
    assert torch.equal(
        (data.batch(torch.arange(12)).x * 255).round().to(torch.uint8), torch.from_numpy(PIXELS[:, :1])
    )


def test_images_of_all_sizes_are_brought_to_one(tmp_path: Path) -> None:
    wide = np.zeros((3, 8, 12), dtype=np.uint8)
    wide[:, :, 2:10] = 200
    flat = np.full((3, 40, 20), 90, dtype=np.uint8)
    path = parquet(tmp_path / "a.parquet", [png(wide), png(flat)], [0, 1])
    data = load_data(f"parquet:{path}@size=8")
    assert data.name.endswith("@size=8")
    x = data.batch(torch.arange(2)).x
    assert x.shape == (2, 3, 8, 8)
    assert torch.equal(x[0], torch.full((3, 8, 8), 200 / 255))
    assert torch.equal(x[1], torch.full((3, 8, 8), 90 / 255))
    mark = data.sha256[:16]
    assert load_data(f"parquet:{path}@size=8@{mark}").shape == (3, 8, 8)


def test_corrupt_images_are_left_out_and_counted_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = [png(image) for image in PIXELS]
    contents[0], contents[1], contents[7] = b"", contents[1][:40], b"not an image"
    data = load_data(f"parquet:{parquet(tmp_path / 'a.parquet', contents, LABELS)}")
    batch = readable(data, 12, strict=False)
    assert sorted(batch.index.tolist()) == [2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert torch.allclose(batch.x, torch.from_numpy(PIXELS)[batch.index].float() / 255, atol=1e-7)
    assert "left out, as they cannot be decoded: 3 images" in capsys.readouterr().err
    assert len(readable(data, 5, strict=False)) == 5
    with pytest.raises(CorruptImage, match=r"image \d+ \(\d+.png\) cannot be decoded"):
        readable(data, 12, strict=True)


def test_a_panel_is_read_without_the_rest(tmp_path: Path) -> None:
    """4,000 images of 3 x 64 x 64 are 49 MB decoded: a batch of ten takes a small part of that."""
    content = png(RANDOM.integers(0, 256, (3, 64, 64), dtype=np.uint8))
    path = parquet(tmp_path / "a.parquet", [content] * 4000, [0, 1] * 2000, rows=200)
    pq.read_metadata(path)
    tracemalloc.start()
    data = load_data(f"parquet:{path}")
    assert data.batch(data.panel(10)).x.shape == (10, 3, 64, 64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12e6


def npy(folder: Path, source: str) -> str:
    np.save(folder / "a.npy", PIXELS)
    return f"{source}{folder}/a.npy"


def pt(folder: Path, content: object) -> str:
    torch.save(content, folder / "a.pt")
    return f"pt:{folder}/a.pt"


def npz(folder: Path, **arrays: np.ndarray) -> str:
    np.savez(folder / "a.npz", **arrays)
    return f"npz:{folder}/a.npz"


def table(folder: Path, **columns: object) -> str:
    pq.write_table(pa.table(columns), folder / "a.parquet")
    return f"parquet:{folder}/a.parquet"


def no_archive(folder: Path) -> str:
    (folder / "a.npz").write_text("x", encoding="utf-8")
    return f"npz:{folder}/a.npz"


def whole(name: str) -> None:
    data = load_data(name)
    data.batch(torch.arange(len(data)))


def two_sizes(folder: Path) -> str:
    contents = [png(PIXELS[0]), png(PIXELS[1][:, :4])]
    return f"parquet:{parquet(folder / 'a.parquet', contents, [0, 1])}"


MISTAKES = {
    "source": (lambda folder: f"npx:{folder}/a.npz", "unknown data source 'npx': did you mean npz"),
    "absent npz": (lambda folder: f"npz:{folder}/a.npz", "no file"),
    "no archive": (no_archive, "cannot be read"),
    "names": (lambda folder: npz(folder, pictures=PIXELS), "holds pictures: name them images and labels"),
    "lengths": (lambda folder: npz(folder, images=PIXELS, labels=LABELS[:5]), "give one label an image"),
    "text labels": (
        lambda folder: npz(folder, images=PIXELS, labels=np.array(["a"] * 12)),
        "labels must be int",
    ),
    "negative npz labels": (lambda folder: npz(folder, images=PIXELS, labels=LABELS - 9), "from 0, not -9"),
    "empty npz": (lambda folder: npz(folder, images=PIXELS[:0], labels=LABELS[:0]), "holds no images"),
    "no source": (lambda folder: f"{folder}/a.npz", "write npz:"),
    "range": (
        lambda folder: npz(folder, images=PIXELS * 1.0, labels=LABELS),
        "save bytes, or floats in [0, 1]",
    ),
    "one array": (lambda folder: npy(folder, "npz:"), "holds one array: save both, np.savez"),
    "one array by its path": (lambda folder: npy(folder, ""), "holds no labels: np.savez"),
    "a folder by its path": (str, "write folder:"),
    "tensors by their path": (lambda folder: f"{folder}/a.pt", "write pt:"),
    "absent pt": (lambda folder: f"pt:{folder}/a.pt", "no file"),
    "a network": (lambda folder: pt(folder, torch.nn.Linear(2, 2)), "holds more than tensors"),
    "one tensor": (lambda folder: pt(folder, torch.zeros(3)), "holds no images and labels: save the pair"),
    "pt names": (lambda folder: pt(folder, {"a": torch.zeros(3)}), "holds a: name them images and labels"),
    "no pt": (lambda folder: f"pt:{npz(folder, images=PIXELS).partition(':')[2]}", "cannot be read"),
    "pt normalised": (
        lambda folder: pt(folder, (torch.randn(12, 3, 5, 4), torch.zeros(12).long())),
        "belongs to the model, as @mean and @std",
    ),
    "objects": (lambda folder: npz(folder, images=np.array([None] * 12), labels=LABELS), "cannot be read"),
    "absent folder": (lambda folder: f"folder:{folder}/absent", "no folder"),
    "no classes": (lambda folder: f"folder:{folder}", "has no class folders with images"),
    "absent parquet": (lambda folder: f"parquet:{folder}/a.parquet", "no parquet file"),
    "no shards": (lambda folder: f"parquet:{folder}", "no parquet file"),
    "columns": (
        lambda folder: table(folder, picture=[1], label=[0]),
        "has no column 'image': it has picture, label",
    ),
    "null labels": (lambda folder: table(folder, image=[b"", b""], label=[0, None]), "1 rows have no label"),
    "float labels": (
        lambda folder: table(folder, image=[b""], label=[0.5]),
        "labels must be integers or text",
    ),
    "negative labels": (lambda folder: table(folder, image=[b""], label=[-1]), "integers from 0, not -1"),
    "no rows": (
        lambda folder: table(folder, image=pa.array([], pa.binary()), label=pa.array([], pa.int64())),
        "rows",
    ),
    "size of npz": (
        lambda folder: f"{npz(folder, images=PIXELS, labels=LABELS)}@size=4",
        "leave out @size=4",
    ),
    "sizes": (two_sizes, "is 4x4, the first 5x4: add @size=N to PATH"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case: str, tmp_path: Path) -> None:
    write, message = MISTAKES[case]
    name = write(tmp_path)
    with pytest.raises(UserError) as mistake:
        whole(name)
    assert message in str(mistake.value)
    assert "\n" not in str(mistake.value)
