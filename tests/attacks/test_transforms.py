"""Transforms: what each does to a pixel, its gradient, and that no sample sees another's draw."""

from __future__ import annotations

import pytest
import torch

from attacks.transforms import Blur, Brightness, Compose, Noise, Pose, blurred, warp
from models.randomness import Randomness
from models.threat import UNIT_BOX, Box
from tests.builders import images

ALL = {
    "pose": Pose(30.0, 0.2, 0.1),
    "blur": Blur(1.5),
    "brightness": Brightness(0.2),
    "noise": Noise(0.1),
    "all": Compose((Pose(30.0, 0.2, 0.1), Blur(1.0), Brightness(0.2), Noise(0.1))),
}
KEYS = torch.arange(6)


@pytest.mark.parametrize("name", ALL)
def test_it_stays_in_the_box_moves_the_image_and_repeats(name):
    x = images(6, (3, 9, 7))
    once, again = (ALL[name](x, KEYS, Randomness(1), UNIT_BOX) for _ in range(2))
    assert torch.equal(once, again)
    assert bool(UNIT_BOX.contains(once).all())
    # A blur or a noise of hardly any width is one of the draws.
    assert int((once != x).flatten(1).any(1).sum()) >= 5
    assert not torch.equal(once, ALL[name](x, KEYS, Randomness(2), UNIT_BOX))


@pytest.mark.parametrize("name", ALL)
def test_draws_belong_to_keys_not_to_places(name):
    x = images(1, (1, 9, 9)).expand(6, -1, -1, -1)
    seen = ALL[name](x, KEYS, Randomness(1), UNIT_BOX)
    order = torch.tensor([4, 0, 2])
    torch.testing.assert_close(seen[order], ALL[name](x[order], KEYS[order], Randomness(1), UNIT_BOX))
    assert len({tuple(image.flatten().tolist()) for image in seen}) == 6


@pytest.mark.parametrize("name", ALL)
def test_the_box_is_a_unit(name):
    x, box = images(6, (1, 9, 9)), Box(-3.0, 5.0)
    plain = ALL[name](x, KEYS, Randomness(1), UNIT_BOX)
    scaled = ALL[name](8 * x - 3, KEYS, Randomness(1), box)
    torch.testing.assert_close(8 * plain - 3, scaled, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_those_of_finite_differences(name):
    x = (0.4 + 0.2 * images(2, (1, 5, 5))).double()
    assert torch.autograd.gradcheck(
        lambda z: ALL[name](z, KEYS[:2], Randomness(1), UNIT_BOX), (x.requires_grad_(True),), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(12,), (2, 6), (1, 3, 4)])
def test_any_shape_goes_through(shape):
    assert ALL["all"](images(6, shape), KEYS, Randomness(0), UNIT_BOX).shape == (6, *shape)


def test_scale_two_shows_the_middle():
    x = torch.arange(16.0).reshape(1, 1, 4, 4) / 16
    seen = warp(x, torch.zeros(1), torch.zeros(1, 2), torch.full((1,), 3.0), UNIT_BOX)
    centre = x[:, :, 1:3, 1:3].mean()
    torch.testing.assert_close(seen.mean(), centre)
    assert float(seen.amax() - seen.amin()) < float(x.amax() - x.amin()) / 2


def test_blur_is_the_gaussian_and_keeps_flat_images():
    x = torch.zeros(2, 2, 15, 15)
    x[:, :, 7, 7] = 1
    widths = torch.tensor([1.0, 0.5])
    seen = blurred(x, widths)
    torch.testing.assert_close(seen.sum((2, 3)), torch.ones(2, 2))
    for image, width in zip(seen, widths.tolist(), strict=True):
        ratio = float(image[0, 7, 8] / image[0, 7, 7])
        assert ratio == pytest.approx(torch.exp(torch.tensor(-0.5 / width**2)).item(), rel=1e-4)
    torch.testing.assert_close(
        blurred(torch.full((1, 1, 5, 5), 0.3), torch.ones(1)), torch.full((1, 1, 5, 5), 0.3)
    )
    assert torch.equal(blurred(x, torch.zeros(2)), x)


def test_brightness_is_affine_in_the_pixel():
    x = torch.linspace(0.4, 0.6, 9).reshape(1, 1, 3, 3)
    seen = Brightness(0.1)(x, KEYS[:1], Randomness(0), UNIT_BOX).flatten()
    steps = seen.diff()
    torch.testing.assert_close(steps, steps[:1].expand(8), atol=1e-6, rtol=0)
    assert 0.9 * 0.025 <= float(steps[0]) <= 1.1 * 0.025


def test_noise_has_the_width_it_was_given():
    x = torch.full((400, 1, 10, 10), 0.5)
    spread = Noise(0.05)(x, torch.arange(400), Randomness(0), UNIT_BOX).flatten(1).std(1)
    assert float(spread.max()) < 0.05 * 1.3
    assert float(spread.mean()) == pytest.approx(0.025, rel=0.1)
