"""Augmented images are mirror images and shifts of the originals, each sample's own, whatever the batch."""

import torch
from torch import Tensor
from torch.nn import functional

from defenses.augmentation import SHIFT, augmented
from models.base import Batch
from models.randomness import Randomness


def _batch(count: int) -> Batch:
    x = torch.rand((count, 3, 8, 6), generator=torch.Generator().manual_seed(3))
    return Batch(x, torch.arange(count) % 10, torch.arange(count) * 7)


def _poses(image: Tensor) -> Tensor:
    """Every mirrored and shifted image (162, c, h, w) of one (c, h, w), by slices of a padded copy."""
    height, width = image.shape[1:]
    found = []
    for picture in (image, image.flip(2)):
        padded = functional.pad(picture, (SHIFT,) * 4)
        for down in range(2 * SHIFT + 1):
            for right in range(2 * SHIFT + 1):
                found.append(padded[:, down : down + height, right : right + width])
    return torch.stack(found)


def test_every_image_is_one_of_its_own_poses_and_all_poses_occur() -> None:
    batch = _batch(1)
    poses, seen = _poses(batch.x[0]), set()
    for epoch in range(2500):
        image = augmented(batch, "flip-and-shift", Randomness(0).child("epoch", epoch)).x[0]
        which = (poses == image).flatten(1).all(1).nonzero()[:, 0]
        assert len(which) == 1
        seen.add(int(which))
    assert len(seen) == len(poses) == 162


def test_a_draw_depends_on_seed_and_place_alone() -> None:
    batch, randomness = _batch(64), Randomness(5)
    whole = augmented(batch, "flip-and-shift", randomness)
    for size in (1, 7):
        parts = [
            augmented(Batch(batch.x[i], batch.y[i], batch.index[i]), "flip-and-shift", randomness).x
            for i in torch.arange(64).split(size)
        ]
        assert torch.equal(torch.cat(parts), whole.x)
    assert not torch.equal(augmented(batch, "flip-and-shift", Randomness(6)).x, whole.x)
    assert torch.equal(whole.y, batch.y)
    assert torch.equal(whole.index, batch.index)


def test_where_nothing_is_asked_nothing_changes() -> None:
    batch = _batch(4)
    assert augmented(batch, "none", Randomness(0)) is batch
