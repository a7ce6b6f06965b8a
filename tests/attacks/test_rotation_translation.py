"""Spatial worst cases: brute force on small images, the order of the searches, one pose a sample."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from attacks.rotation_translation import Poses, RotationTranslation, landscape, spatial_worst_case
from attacks.transforms import warp
from defenses.zoo import ModelName, load
from models.base import Batch, Classifier
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import UNIT_BOX
from models.threats import threat_named
from tests.builders import Counting, images, labelled, mlp

SMALL = {"angles": 5, "shifts": 3}


def conv(seed: int = 0, classes: int = 4) -> Classifier:
    """A small convolutional network on images (n, 1, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.25, generator=generator)
    return Classifier(network, num_classes=classes, name="conv")


def batch_of(model: Classifier, n: int = 40) -> Batch:
    """Smooth images: noise would change its label at every move."""
    return labelled(model, nn.functional.interpolate(images(n, (1, 3, 3)), size=(8, 8), mode="bilinear"))


def by_hand(x, angle, down, right):
    """One image (h, w) turned and moved, pixel by pixel, by bilinear interpolation on black."""
    h, w = x.shape
    turned, radians = torch.zeros(h, w), torch.deg2rad(torch.tensor(float(angle)))
    cos, sin = float(torch.cos(radians)), float(torch.sin(radians))
    for i, j in itertools.product(range(h), range(w)):
        d, r = i - (h - 1) / 2 - down, j - (w - 1) / 2 - right
        row, column = cos * d + sin * r + (h - 1) / 2, cos * r - sin * d + (w - 1) / 2
        for a, b in itertools.product(range(h), range(w)):
            turned[i, j] += max(0, 1 - abs(row - a)) * max(0, 1 - abs(column - b)) * x[a, b]
    return turned


@pytest.mark.parametrize("pose", [(0, 0, 0), (30, 0.8, -0.8), (-17, 0, 0.5), (90, 0, 0), (0, 1, -2)])
def test_the_warp_is_the_rotation_done_by_hand(pose):
    x = images(1, (1, 6, 6))
    expected = by_hand(x[0, 0], *pose)
    angle, shift = torch.tensor([float(pose[0])]), torch.tensor([[float(pose[1]), float(pose[2])]])
    torch.testing.assert_close(
        warp(x, angle, shift, torch.ones(1), UNIT_BOX)[0, 0], expected, atol=1e-5, rtol=0
    )


def test_a_quarter_turn_is_counter_clockwise_and_a_shift_goes_down_and_right():
    x = images(1, (1, 5, 5))
    turned = warp(x, torch.tensor([90.0]), torch.zeros(1, 2), torch.ones(1), UNIT_BOX)
    torch.testing.assert_close(turned, torch.rot90(x, 1, (2, 3)), atol=1e-5, rtol=0)
    moved = warp(x, torch.zeros(1), torch.tensor([[1.0, 2.0]]), torch.ones(1), UNIT_BOX)
    torch.testing.assert_close(moved[:, :, 1:, 2:], x[:, :, :-1, :-2], atol=1e-5, rtol=0)
    assert float(moved[:, :, 0].max()) < 1e-5


def test_the_identity_is_exact():
    x = images(3, (2, 7, 5))
    assert torch.equal(warp(x, torch.zeros(3), torch.zeros(3, 2), torch.ones(3), UNIT_BOX), x)


def test_the_grid_has_all_poses_and_the_identity():
    grid = Poses().grid(31, 5)
    assert grid.shape == (775, 3)
    assert len({tuple(row) for row in grid.tolist()}) == 775
    assert float(grid.abs().max()) == 1.0
    assert grid[-1].tolist() == [0, 0, 0]
    assert {tuple(row) for row in grid[:8].tolist()} == set(itertools.product((-1, 1), repeat=3))


def test_the_grid_search_equals_brute_force():
    model = conv()
    batch, poses = batch_of(model), Poses()
    result = spatial_worst_case(model, batch, RotationTranslation(**SMALL))
    grid, losses = landscape(model, batch, poses, **SMALL)
    assert torch.equal(result.success, (losses > 0).any(1))
    assert 5 < int(result.success.sum()) < 38
    held = ~result.success
    assert torch.equal(result.pose[held], grid[losses[held].argmax(1)])
    for i in range(len(batch)):
        angle, down, right = result.pose[i].tolist()
        image = by_hand(batch.x[i, 0], 30 * angle, 0.8 * down, 0.8 * right)
        torch.testing.assert_close(result.x_adv[i, 0], image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("view", [None, (6, 5)])
def test_the_grid_search_equals_brute_force_on_colour_images(view):
    h, w = view or (8, 8)
    generator = torch.Generator().manual_seed(3)
    layer = nn.utils.skip_init(nn.Linear, 3 * h * w, 4)
    nn.init.normal_(layer.weight, std=0.3, generator=generator)
    nn.init.zeros_(layer.bias)
    model = Classifier(nn.Sequential(nn.Flatten(), layer), num_classes=4)
    x = nn.functional.interpolate(images(30, (3, 3, 3)), size=(8, 8), mode="bilinear")
    poses = Poses(10.0, 0.03, view)
    y = model.logits(poses.apply(x, torch.zeros(30, 3), model.box)).argmax(1)
    result = spatial_worst_case(model, Batch.of(x, y), RotationTranslation(**SMALL), poses=poses)
    grid, losses = landscape(model, Batch.of(x, y), poses, **SMALL)
    assert torch.equal(result.success, (losses > 0).any(1))
    held = ~result.success
    assert 3 < int(held.sum()) < 27
    assert torch.equal(result.pose[held], grid[losses[held].argmax(1)])


def test_nothing_is_asked_once_all_are_broken():
    """The network always errs but for the identity, so that the first ten poses break every image."""

    class Asked(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return torch.stack([x[:, 0, 0, 0], torch.full((len(x),), 0.4)], 1)

    model = Classifier(Asked(), num_classes=2)
    bright = Batch.of(0.5 + 0.5 * images(10, (1, 8, 8)), torch.zeros(10, dtype=torch.int64))
    result = spatial_worst_case(model, bright, RotationTranslation())
    assert bool(result.success.all())
    assert model.network.calls <= 4


def test_the_searches_are_ordered():
    """identity <= worst of 3 <= worst of 10, whose draws begin with those 3; the grid breaks more in all."""
    model = conv()
    batch = batch_of(model, 80)
    y = torch.where(torch.arange(80) % 8 == 0, (batch.y + 1) % 4, batch.y)
    batch = Batch(batch.x, y, batch.index)
    chain = [~(model.logits(batch.x).argmax(1) == batch.y)]
    for draws in (3, 10):
        search = RotationTranslation(search="random", draws=draws, **SMALL)
        chain.append(spatial_worst_case(model, batch, search).success)
    grid = spatial_worst_case(model, batch, RotationTranslation(**SMALL)).success
    assert bool((grid | ~chain[0]).all())
    assert int(grid.sum()) > int(chain[-1].sum())
    for weaker, stronger in itertools.pairwise(chain):
        assert bool((stronger | ~weaker).all())
        assert int(stronger.sum()) > int(weaker.sum())


@pytest.mark.parametrize("search", ["grid", "random", "first-order"])
def test_it_is_worse_than_any_single_transform_and_poses_differ(search):
    """One transform for the whole set, as ART has it, is no worst case."""
    model = conv()
    batch = batch_of(model)
    result = spatial_worst_case(model, batch, RotationTranslation(search=search, **SMALL))
    assert len({tuple(pose) for pose in result.pose[result.success].tolist()}) > 3
    assert float(result.pose.abs().max()) <= 1
    _, losses = landscape(model, batch, Poses(), **SMALL)
    single = int((losses > 0).sum(0).max())
    if search == "grid":
        assert int(result.success.sum()) > single


def test_first_order_is_no_stronger_than_the_grid_on_a_trained_network():
    data = load_data("mnist5k")
    model, batch = load(ModelName.parse("conv-small")), data.batch(data.panel(40))
    grid = spatial_worst_case(model, batch, RotationTranslation(angles=11, shifts=5))
    first = spatial_worst_case(model, batch, RotationTranslation(search="first-order"))
    ten = spatial_worst_case(model, batch, RotationTranslation(search="random", angles=11, shifts=5))
    assert int(first.success.sum()) <= int(grid.success.sum())
    assert int(ten.success.sum()) <= int(grid.success.sum())
    assert int(grid.success.sum()) > int((~grid.clean).sum())


def test_first_order_follows_the_loss_uphill():
    """From the same starts, 20 steps end at a greater loss than none on most samples."""
    model = conv()
    batch = batch_of(model)
    still = RotationTranslation(search="first-order", steps=1, step_size=1e-9)
    moving = RotationTranslation(search="first-order", steps=20)
    before, after = (spatial_worst_case(model, batch, search) for search in (still, moving))
    assert float((after.margin <= before.margin + 1e-6).float().mean()) == 1.0
    assert int(after.success.sum()) > int(before.success.sum())


@pytest.mark.parametrize("search", ["grid", "random", "first-order"])
def test_batch_size_and_order_change_nothing(search):
    model = conv()
    batch, setting = batch_of(model), RotationTranslation(search=search, **SMALL)
    whole = spatial_worst_case(model, batch, setting)
    for size in (1, 7):
        parts = spatial_worst_case(model, batch, setting, batch_size=size)
        assert torch.equal(whole.success, parts.success)
        assert torch.equal(whole.forward, parts.forward)
        torch.testing.assert_close(whole.pose, parts.pose, atol=1e-4, rtol=0)
    turned = spatial_worst_case(model, batch[torch.arange(39, -1, -1)], setting)
    assert torch.equal(whole.success.flip(0), turned.success)


@pytest.mark.parametrize("search", ["grid", "random", "first-order"])
def test_the_bill_is_exact(search):
    model = conv()
    counter = Counting(model.network)
    model.network = counter
    batch = batch_of(model)
    counter.forward_samples = counter.backward_samples = 0
    result = spatial_worst_case(model, batch, RotationTranslation(search=search, **SMALL))
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == int(result.backward.sum())
    full = {"grid": 45, "random": 10, "first-order": 21}[search]
    assert set(result.forward[~result.success].tolist()) == {full}
    assert int(result.forward[result.success].min()) < full or search == "random"


def test_misclassified_samples_are_left_alone():
    model = conv()
    batch = batch_of(model, 5)
    wrong = Batch(batch.x, (batch.y + 1) % 4, batch.index)
    result = spatial_worst_case(model, wrong)
    assert bool(result.success.all())
    assert not bool(result.clean.any())
    assert torch.equal(result.x_adv, batch.x)
    assert int(result.forward.sum()) == 0


def test_a_view_of_images_with_a_border_lets_no_black_in():
    class Darkest(nn.Module):
        def forward(self, x):
            return torch.stack([x.flatten(1).amin(1), torch.full((len(x),), 0.25)], 1)

    model = Classifier(Darkest(), num_classes=2)
    light = Batch.of(0.5 + 0.5 * images(10, (1, 16, 16)), torch.zeros(10, dtype=torch.int64))
    seen = spatial_worst_case(model, light, RotationTranslation(**SMALL), poses=Poses(view=(6, 6)))
    assert seen.x_adv.shape == (10, 1, 6, 6)
    assert not bool(seen.success.any())
    assert bool(spatial_worst_case(model, light, RotationTranslation(**SMALL)).success.all())


def test_no_room_to_move_is_the_identity():
    model = conv()
    still = Poses(rotation=0.0, translation=0.0)
    result = spatial_worst_case(model, batch_of(model), RotationTranslation(**SMALL), poses=still)
    assert not bool(result.success.any())


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="no spatial search 'greed': choose grid"):
        RotationTranslation(search="greed")
    with pytest.raises(UserError, match="at least 1"):
        RotationTranslation(draws=0)
    with pytest.raises(UserError, match="need images"):
        spatial_worst_case(mlp(), Batch.of(images(2, (12,)), torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(UserError, match="larger than the images"):
        spatial_worst_case(conv(), batch_of(conv()), poses=Poses(view=(9, 9)))


@pytest.mark.parametrize("search", ["grid", "random", "first-order"])
def test_the_registered_attack_finds_the_same_and_says_the_move_in_its_unit(search):
    model = conv()
    batch, setting = batch_of(model), RotationTranslation(search=search, **SMALL)
    whole = spatial_worst_case(model, batch, setting)
    result = setting.run(model, batch, threat_named("spatial", 1), Randomness(0))
    assert torch.equal(result.success, whole.success)
    torch.testing.assert_close(result.x_adv, whole.x_adv)
    torch.testing.assert_close(result.move, whole.pose)
    reached = result.success
    torch.testing.assert_close(result.distance[reached], whole.pose[reached].abs().amax(1))


def test_rotations_alone_are_a_grid_of_angles():
    model = conv()
    batch = batch_of(model)
    result = RotationTranslation().run(model, batch, threat_named("rotation", 40), Randomness(0))
    degrees = torch.linspace(-40, 40, 31)
    turned = torch.stack(
        [
            model.logits(
                warp(batch.x, angle.expand(len(batch)), torch.zeros(40, 2), torch.ones(40), UNIT_BOX)
            ).argmax(1)
            for angle in degrees
        ]
    )
    assert torch.equal(result.success, (turned != batch.y).any(0))
    assert 3 < int(result.success.sum()) < 40
    assert int(result.forward.max()) == 31
    assert bool((result.move[:, 1:] == 0).all())


def test_a_larger_threat_breaks_no_less():
    """Grids of 2k + 1 angles over k times the range contain one another."""
    model = conv()
    batch = batch_of(model)
    runs = [
        RotationTranslation(angles=4 * k + 1, shifts=1).run(
            model, batch, threat_named("rotation", 15.0 * k), Randomness(0)
        )
        for k in (1, 2, 4)
    ]
    for smaller, larger in itertools.pairwise(run.success for run in runs):
        assert bool((larger | ~smaller).all())
    assert int(runs[2].success.sum()) > int(runs[0].success.sum())
