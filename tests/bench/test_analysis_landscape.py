"""The loss landscape is the grid attack's own; local maxima are counted as brute force does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from attacks.rotation_translation import RotationTranslation, spatial_worst_case
from bench.analysis.landscape import landscape, local_maxima
from models.base import Batch, Classifier
from models.errors import UserError
from models.poses import Poses
from tests.builders import images, labelled, random_linear

ANGLES, SHIFTS = 5, 3


def conv(seed: int = 0) -> Classifier:
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.25, generator=generator)
    return Classifier(network, num_classes=4, name="conv")


def batch_of(model: Classifier, n: int = 20) -> Batch:
    """Smooth images: noise would change its label at every move."""
    return labelled(model, nn.functional.interpolate(images(n, (1, 3, 3)), size=(8, 8), mode="bilinear"))


def test_the_greatest_loss_is_where_the_grid_attack_settles() -> None:
    model, held = conv(), 0
    batch = batch_of(model)
    search = RotationTranslation(search="grid", angles=ANGLES, shifts=SHIFTS)
    attack = spatial_worst_case(model, batch, search)
    for row in range(len(batch)):
        found = landscape([model], batch[row : row + 1], angles=ANGLES, shifts=SHIFTS)
        (surface,) = found.surfaces
        loss = np.array(surface.loss)
        assert loss.shape == (ANGLES, SHIFTS, SHIFTS)
        assert loss[surface.worst] == loss.max()
        turn, down, right = surface.chosen
        pose = [found.angles[turn] / 30, found.down[down] / 0.8, found.right[right] / 0.8]
        assert pose == pytest.approx(attack.pose[row].tolist())
        assert surface.broken == bool(attack.success[row]) == bool(loss.max() > 0)
        if surface.broken:
            assert loss[surface.chosen] > 0
        else:
            held += 1
            assert surface.worst == surface.chosen
    assert 0 < held < len(batch)


def test_losses_stand_at_their_poses() -> None:
    model = conv()
    batch = batch_of(model, 1)
    found = landscape([model], batch, angles=ANGLES, shifts=SHIFTS)
    loss = np.array(found.surfaces[0].loss)
    for i, j, k in itertools.product(range(ANGLES), range(SHIFTS), range(SHIFTS)):
        pose = torch.tensor([[found.angles[i] / 30, found.down[j] / 0.8, found.right[k] / 0.8]])
        with torch.no_grad():
            logits = model.logits(Poses().apply(batch.x, pose.double(), model.box))[0]
        label = int(batch.y[0])
        rest = torch.cat([logits[:label], logits[label + 1 :]]).max()
        assert loss[i, j, k] == pytest.approx(float(rest - logits[label]), abs=1e-4)


def by_hand(values: np.ndarray) -> int:
    """Plateaus by flood fill, each looked at from outside."""
    left, count = set(np.ndindex(values.shape)), 0

    def around(place: tuple[int, ...]) -> list[tuple[int, ...]]:
        moves = itertools.product((-1, 0, 1), repeat=values.ndim)
        found = (tuple(p + m for p, m in zip(place, move, strict=True)) for move in moves)
        return [
            near
            for near in found
            if near != place and all(0 <= p < n for p, n in zip(near, values.shape, strict=True))
        ]

    while left:
        plateau, waiting = set(), [left.pop()]
        while waiting:
            place = waiting.pop()
            plateau.add(place)
            for near in around(place):
                if values[near] == values[place] and near in left:
                    left.remove(near)
                    waiting.append(near)
        height = values[next(iter(plateau))]
        count += all(values[near] <= height for place in plateau for near in around(place))
    return count


@pytest.mark.parametrize("shape", [(7,), (6, 5), (5, 4, 3), (4, 1, 6), (1, 1, 1)])
@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_local_maxima_equal_brute_force(shape: tuple[int, ...], levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(20):
        values = rng.integers(levels, size=shape).astype(float)
        assert local_maxima(values) == by_hand(values)


def test_local_maxima_of_planted_surfaces() -> None:
    x, y = np.meshgrid(np.linspace(-1, 1, 21), np.linspace(-1, 1, 21), indexing="ij")
    assert local_maxima(-(x**2) - y**2) == 1
    assert local_maxima(np.zeros((4, 5))) == 1
    assert local_maxima(np.cos(4 * np.pi * x) + np.cos(4 * np.pi * y)) == 25
    # A terrace on the way up is no maximum, however flat.
    assert local_maxima(np.array([0.0, 1, 1, 1, 2, 1])) == 1


def test_flat_inputs_are_refused() -> None:
    model = random_linear(3, 24)
    with pytest.raises(UserError, match="images"):
        landscape([model], labelled(model, images(1, (24,))))
