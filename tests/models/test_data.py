"""The data sets: what is embedded, the panel, and that training never sees the images that are judged."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch

from defenses.zoo import training_data
from models.data import DATA, Dataset, load_data, without
from models.errors import UserError
from models.families import FAMILIES


@pytest.fixture(scope="module")
def embedded() -> Dataset:
    return load_data("mnist5k")


@pytest.fixture
def root() -> Path:
    """The folder that holds MNIST, from RHOBUST_DATA alone."""
    place = os.environ.get("RHOBUST_DATA")
    if place is None or not (Path(place) / "MNIST" / "raw").exists():
        pytest.skip("RHOBUST_DATA names no folder that holds MNIST/raw")
    return Path(place)


def test_the_embedded_images(embedded: Dataset) -> None:
    assert len(embedded) == 5000
    assert embedded.shape == (1, 28, 28)
    assert torch.bincount(embedded.labels).tolist() == [500] * 10
    batch = embedded.batch(torch.arange(5000))
    assert batch.x.dtype == torch.float32
    assert batch.y.dtype == torch.int64
    assert (float(batch.x.min()), float(batch.x.max())) == (0.0, 1.0)
    assert bool(embedded.box.contains(batch.x).all())
    assert torch.equal((batch.x * 255).round().to(torch.uint8), embedded.pixels)
    assert len({row.numpy().tobytes() for row in embedded.pixels}) == 5000


def test_the_embedded_images_are_always_the_same(embedded: Dataset) -> None:
    """Every record and model card rests on this hash."""
    digest = hashlib.sha256(embedded.pixels.numpy().tobytes())
    digest.update(embedded.labels.numpy().tobytes())
    assert embedded.sha256 == digest.hexdigest()
    assert embedded.sha256[:16] == "1f75c140503b3082"


def test_the_hash_sees_one_pixel_and_one_label(embedded: Dataset) -> None:
    pixels, labels = embedded.pixels.clone(), embedded.labels.clone()
    pixels[4999, 0, 27, 27] += 1
    labels[0] = 9 - labels[0]
    changed = [
        Dataset("mnist5k", *pair, 10) for pair in ((pixels, embedded.labels), (embedded.pixels, labels))
    ]
    assert len({embedded.sha256, *(one.sha256 for one in changed)}) == 3


def test_a_batch_keeps_the_places_of_its_samples(embedded: Dataset) -> None:
    index = torch.tensor([4321, 7, 7, 0])
    batch = embedded.batch(index)
    assert torch.equal(batch.index, index)
    assert torch.equal(batch.y, embedded.labels[index])
    for row, place in enumerate(index):
        assert torch.equal(batch.x[row], embedded.pixels[place].float() / 255)


def test_the_panel_is_balanced_and_nested(embedded: Dataset) -> None:
    whole = embedded.panel(None)
    assert torch.equal(whole.sort().values, torch.arange(5000))
    for limit in (1, 10, 50, 200, 1000, 4990):
        panel = embedded.panel(limit)
        assert torch.equal(panel, whole[:limit])
        counts = torch.bincount(embedded.labels[panel], minlength=10)
        assert int(counts.max() - counts.min()) <= 1
    assert embedded.panel(9999).tolist() == whole.tolist()


def test_the_panel_of_unequal_classes_takes_each_in_turn() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    data = Dataset("toy", torch.zeros(6, 1, 1, 1, dtype=torch.uint8), labels, 3)
    assert data.panel(None).tolist() == [0, 3, 4, 1, 5, 2]


def test_without_drops_exactly_the_shared_images() -> None:
    pixels = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1)
    whole = Dataset("toy", pixels, torch.arange(6) % 2, 2)
    some = Dataset("some", pixels[[4, 1]], torch.tensor([1, 0]), 2)
    left = without(whole, some)
    assert left.pixels.flatten().tolist() == [0, 2, 3, 5]
    assert left.labels.tolist() == [0, 0, 1, 1]


def test_mnist_without_a_root_says_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RHOBUST_DATA", raising=False)
    for name in ("mnist", "mnist-train"):
        with pytest.raises(UserError, match=f"'{name}' needs --data-root DIR"):
            load_data(name)


def test_mnist_that_is_not_there_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add --download") as refusal:
        load_data("mnist", tmp_path)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "MNIST").exists()


def test_mnist_that_is_damaged_is_one_line(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (raw / name).write_bytes(b"\0\0\x08\x03\0\0")
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (raw / name).write_bytes(b"")
    with pytest.raises(UserError, match=str(tmp_path)) as refusal:
        load_data("mnist", tmp_path)
    assert "\n" not in str(refusal.value)


def test_unknown_data_suggests() -> None:
    assert {"mnist5k", "mnist"} <= set(DATA.names())
    with pytest.raises(UserError, match="did you mean mnist"):
        load_data("minst")


def test_training_shares_no_image_with_the_embedded_ones(embedded: Dataset, root: Path) -> None:
    training = training_data(FAMILIES["mnist"], root)
    assert len(training) == 55_000
    judged = {row.numpy().tobytes() for row in embedded.pixels}
    assert not any(row.numpy().tobytes() in judged for row in training.pixels)
    # Nothing else was lost, and every embedded image is one of MNIST's training images.
    whole = load_data("mnist-train", root)
    assert len(whole) == 60_000
    assert judged <= {row.numpy().tobytes() for row in whole.pixels}


def test_the_test_images_are_the_ten_thousand(root: Path) -> None:
    test = load_data("mnist", root)
    assert len(test) == 10_000
    assert torch.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
