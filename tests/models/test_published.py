"""Published data sets in miniature: real layouts are read right, and half a download is never believed."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from models.data import Dataset, load_data
from models.errors import UserError
from models.torchvision_operators import import_torchvision

datasets = import_torchvision("torchvision.datasets")
RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
LABELS = [3, 0, 9, 9, 1, 5]


def idx(values: np.ndarray) -> bytes:
    """The format of MNIST's files: bytes of one to three axes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


def write_mnist(raw: Path) -> None:
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(BYTES[:, 0, :28, :28]))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(np.array(LABELS)))


def fashion(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(root / "FashionMNIST" / "raw")


def digest(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": BYTES.reshape(6, -1), "labels": LABELS}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", digest(folder / "test_batch")]])
    meta = datasets.CIFAR10.meta | {"md5": digest(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)


def svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir(parents=True, exist_ok=True)
    # SVHN counts the digit 0 as class 10.
    labels = np.array([[label or 10] for label in LABELS])
    savemat(root / "test_32x32.mat", {"X": BYTES.transpose(2, 3, 1, 0), "y": labels})
    files = {"test": ["-", "test_32x32.mat", digest(root / "test_32x32.mat")]}
    monkeypatch.setattr(datasets.SVHN, "split_list", files)


def gtsrb(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = root / "gtsrb"
    (base / "GTSRB" / "Final_Test" / "Images").mkdir(parents=True)
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for place, (image, label) in enumerate(zip(BYTES, LABELS, strict=True)):
        name = f"{place:05}.ppm"
        Image.fromarray(image.transpose(1, 2, 0)).save(base / "GTSRB" / "Final_Test" / "Images" / name)
        rows.append(f"{name};32;32;5;5;27;27;{label}")
    (base / "GT-final_test.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


MINIATURES: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "fashion-mnist": fashion,
    "cifar10": cifar10,
    "svhn": svhn,
    "gtsrb": gtsrb,
}


def same(data: Dataset, pixels: np.ndarray) -> None:
    batch = data.batch(torch.arange(6))
    assert torch.equal(
        (batch.x * 255).round().to(torch.uint8), torch.from_numpy(np.ascontiguousarray(pixels))
    )
    assert batch.x.is_contiguous()
    assert batch.y.tolist() == LABELS
    assert len(data) == 6


@pytest.mark.parametrize("name", MINIATURES)
def test_the_layout_of_torchvision_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MINIATURES[name](tmp_path, monkeypatch)
    same(load_data(name, tmp_path), BYTES[:, :1, :28, :28] if name == "fashion-mnist" else BYTES)


def test_traffic_signs_to_train_on_come_in_numbered_folders_of_any_size(tmp_path: Path) -> None:
    for label in range(3):
        folder = tmp_path / "gtsrb" / "GTSRB" / "Training" / f"{label:05}"
        folder.mkdir(parents=True)
        for place in range(2):
            grey = Image.new("RGB", (20 + 7 * place, 40), (50 * label, 100, 150))
            grey.save(folder / f"{place:05}_00000.ppm")
        (folder / f"GT-{label:05}.csv").write_text("Filename;Width\n", encoding="utf-8")
    data = load_data("gtsrb-train", tmp_path)
    assert (len(data), data.shape, data.num_classes) == (6, (3, 32, 32), 43)
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(data.pixels[4], torch.tensor([100, 100, 150]).byte()[:, None, None].expand(3, 32, 32))


def imagenet(root: Path) -> Path:
    """Three classes of two pictures that are grey in their middle 7/8 and red around it."""
    place = root / "imagenet"
    names = {f"n{number:08}": (f"thing {number}", "alias") for number in (7, 3, 5)}
    for number, wnid in enumerate(sorted(names)):
        (place / "val" / wnid).mkdir(parents=True)
        for size in ((512, 512), (1024, 512)):
            picture = Image.new("RGB", size, (255, 0, 0))
            left, top = (size[0] - 448) // 2, (size[1] - 448) // 2
            picture.paste((60 * number, 60 * number, 60 * number), (left, top, left + 448, top + 448))
            picture.save(place / "val" / wnid / f"ILSVRC2012_val_{size[0]}.JPEG", quality=100, subsampling=0)
    torch.save((names, sorted(names)), place / "meta.bin")
    return place


def test_imagenet_is_decoded_one_by_one_and_cut_as_its_networks_are_used_to(tmp_path: Path) -> None:
    imagenet(tmp_path)
    data = load_data("imagenet", tmp_path)
    assert (len(data), data.shape, data.num_classes) == (6, (3, 224, 224), 3)
    assert not isinstance(data.pixels, torch.Tensor)
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    x = data.batch(torch.tensor([5, 2])).x
    for image, level in zip(x, (120, 60), strict=True):
        assert torch.allclose(image[:, 4:-4, 4:-4], torch.full((3, 216, 216), level / 255), atol=0.02)


def test_imagenet_that_is_absent_says_what_to_put_where(tmp_path: Path) -> None:
    for download in (False, True):
        with pytest.raises(
            UserError, match=r"cannot be downloaded: put ILSVRC2012_devkit_t12\.tar\.gz"
        ) as no:
            load_data("imagenet", tmp_path, download)
        assert "\n" not in str(no.value)
    assert not (tmp_path / "imagenet").exists()


def test_archives_of_imagenet_that_are_cut_off_leave_nothing(tmp_path: Path) -> None:
    place = tmp_path / "imagenet"
    place.mkdir()
    names = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_val.tar")
    for name in names:
        (place / name).write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot be fetched") as no:
        load_data("imagenet", tmp_path)
    assert "\n" not in str(no.value)
    assert sorted(path.name for path in place.iterdir()) == sorted(names)


class Dying:
    """A download that writes some files, then ends as it is told; the second time it succeeds."""

    def __init__(self, error: BaseException) -> None:
        self.error: BaseException | None = error

    def __call__(self, dataset: Any) -> None:
        raw = Path(dataset.raw_folder)
        if self.error is None:
            write_mnist(raw)
            return
        raw.mkdir(parents=True)
        for name in ("train-images", "t10k-images"):
            (raw / f"{name}-idx3-ubyte").write_bytes(idx(BYTES[:, 0, :28, :28])[:1000])
        for name in ("train-labels", "t10k-labels"):
            (raw / f"{name}-idx1-ubyte").write_bytes(idx(np.array(LABELS)))
        error, self.error = self.error, None
        raise error


@pytest.mark.parametrize(
    "error", [ConnectionError("reset by peer"), RuntimeError("File not found or\ncorrupted"), EOFError()]
)
def test_half_a_download_leaves_nothing_that_a_later_run_believes(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = Dying(error)
    monkeypatch.setattr(datasets.FashionMNIST, "download", lambda self: dying(self))
    with pytest.raises(UserError, match="cannot be fetched") as no:
        load_data("fashion-mnist", tmp_path / "new", download=True)
    assert "\n" not in str(no.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="add --download"):
        load_data("fashion-mnist", tmp_path)
    same(load_data("fashion-mnist", tmp_path, download=True), BYTES[:, :1, :28, :28])
    assert [path.name for path in tmp_path.iterdir()] == ["FashionMNIST"]
    same(load_data("fashion-mnist", tmp_path), BYTES[:, :1, :28, :28])


def test_a_download_that_is_interrupted_or_killed_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = Dying(KeyboardInterrupt())
    monkeypatch.setattr(datasets.FashionMNIST, "download", lambda self: dying(self))
    with pytest.raises(KeyboardInterrupt):
        load_data("fashion-mnist", tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []
    # What a killed process leaves lies under a name that nothing reads.
    write_mnist(tmp_path / ".fetching-killed" / "FashionMNIST" / "raw")
    with pytest.raises(UserError, match="add --download"):
        load_data("fashion-mnist", tmp_path)


def test_a_download_keeps_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training signs stay when the test signs arrive in the same folders."""
    kept = tmp_path / "gtsrb" / "GTSRB" / "Training" / "00000" / "a.ppm"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"kept")

    def download(dataset: Any) -> None:
        gtsrb(Path(dataset.root), monkeypatch)

    monkeypatch.setattr(datasets.GTSRB, "download", download)
    same(load_data("gtsrb", tmp_path, download=True), BYTES)
    assert kept.read_bytes() == b"kept"


def test_damaged_files_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gtsrb(tmp_path, monkeypatch)
    image = tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / "00002.ppm"
    image.write_bytes(image.read_bytes()[:100])
    fashion(tmp_path, monkeypatch)
    path = tmp_path / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    for name, said in (("gtsrb", "cannot be read"), ("fashion-mnist", "no complete FashionMNIST")):
        with pytest.raises(UserError, match=said) as no:
            load_data(name, tmp_path)
        assert "\n" not in str(no.value)
