"""Common corruptions: closed forms, moments, severities in order, and nothing of the batch in them."""

from __future__ import annotations

import colorsys

import pytest
import torch

from models.corruption import CHANCE, Corruption, families, fits
from models.corruptions.light import plasma
from models.corruptions.noise import poisson
from models.data import load_data
from models.errors import NotApplicable, UserError
from models.randomness import Randomness
from models.threat import UNIT_BOX, Box
from tests.builders import images

GREY, COLOUR = images(6, (1, 16, 20)), images(6, (3, 16, 20), seed=2)
INDEX = torch.arange(6)


def corrupted(x, name, severity, index=INDEX, box=UNIT_BOX):
    return Corruption("corruption", severity, box).corrupted(x, name, severity, index)


def test_fifteen_families():
    assert len(families()) == 15
    assert [name for name in families() if not fits(name, GREY)] == ["saturate"]
    with pytest.raises(NotApplicable, match="'saturate' needs 3 channels, the images have 1"):
        corrupted(GREY, "saturate", 1)


@pytest.mark.parametrize("name", families())
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_a_sample_is_corrupted_the_same_in_any_batch(name, severity):
    whole = corrupted(COLOUR, name, severity)
    assert whole.shape == COLOUR.shape
    assert bool(UNIT_BOX.contains(whole).all())
    alone = torch.cat([corrupted(COLOUR[i : i + 1], name, severity, INDEX[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=0)
    assert not torch.equal(whole, COLOUR) or "blur" in name


@pytest.mark.parametrize("name", families())
def test_the_box_is_a_unit(name):
    box = Box(-3.0, 7.0)
    scaled = corrupted(10 * COLOUR - 3, name, 4, box=box)
    torch.testing.assert_close(scaled, 10 * corrupted(COLOUR, name, 4) - 3, atol=5e-3, rtol=0)


@pytest.mark.parametrize("name", sorted(set(families()) - {"saturate", "elastic", "jpeg", "pixelate"}))
def test_severities_are_in_order(name):
    """The mean squared change of real images grows; elastic changes its kind at 3, and the squares of
    pixelate may fall on the strokes or between them."""
    data = load_data("mnist5k")
    x, index = data.batch(data.panel(40)).x, torch.arange(40)
    change = [float((corrupted(x, name, severity, index) - x).square().mean()) for severity in range(1, 6)]
    assert change == sorted(change)
    assert change[4] > change[0]


def test_a_severity_is_a_whole_number():
    threat = Corruption("corruption", 3)
    sizes = threat.size(torch.tensor([[0.0, 3], [14, 1], [15, 1], [0, 1.5], [0.5, 1], [-1, 1], [0, -1]]))
    assert sizes.tolist() == [3, 1, *[torch.inf] * 5]
    assert torch.equal(threat.carry_out(GREY, torch.zeros(6, 2), INDEX), GREY)
    with pytest.raises(UserError, match="need images"):
        threat.carry_out(images(2, (12,)), torch.ones(2, 2), INDEX[:2])


def test_poisson_draws_have_the_right_moments():
    rate = torch.tensor([0.0, 0.5, 3.0, 12.0, 60.0]).repeat_interleave(20000)[:, None]
    draws = poisson(rate, 60, torch.arange(100000), Randomness(1)).reshape(5, -1).double()
    for mean, some in zip([0, 0.5, 3, 12, 60], draws, strict=True):
        assert float(some.mean()) == pytest.approx(mean, abs=4 * (mean / 20000) ** 0.5 + 1e-12)
        assert float(some.var()) == pytest.approx(mean, rel=0.06, abs=1e-12)


def test_noise_has_the_stated_width():
    flat = torch.full((50, 1, 32, 32), 0.5)
    index = torch.arange(50)
    gaussian = corrupted(flat, "gaussian-noise", 1, index) - 0.5
    assert float(gaussian.std()) == pytest.approx(0.08, rel=0.02)
    speckle = corrupted(flat, "speckle-noise", 1, index) - 0.5
    assert float(speckle.std()) == pytest.approx(0.5 * 0.15, rel=0.02)
    impulse = corrupted(flat, "impulse-noise", 5, index)
    assert float((impulse == 1).double().mean()) == pytest.approx(0.135, rel=0.05)
    assert float((impulse == 0).double().mean()) == pytest.approx(0.135, rel=0.05)
    shot = corrupted(flat, "shot-noise", 1, index)
    assert float(shot.std()) == pytest.approx((0.5 / 60) ** 0.5, rel=0.03)


@pytest.mark.parametrize("name", [name for name in families() if "blur" in name or name == "pixelate"])
def test_blurs_leave_a_flat_image_and_spread_a_point(name):
    flat = torch.full((2, 1, 64, 64), 0.7)
    torch.testing.assert_close(corrupted(flat, name, 5, INDEX[:2]), flat, atol=1e-5, rtol=0)
    point = torch.zeros(1, 1, 64, 64)
    point[0, 0, 12, 45] = 1.0
    spread = corrupted(point, name, 5, INDEX[:1])
    assert int((spread > 0).sum()) > 4
    assert 0 < float(spread.max()) < 0.6


def test_the_gaussian_blur_has_the_stated_width_scaled_to_the_image():
    point = torch.zeros(1, 1, 448, 448)
    point[0, 0, 224, 224] = 1.0
    spread = corrupted(point, "gaussian-blur", 1, INDEX[:1])[0, 0].double()
    away = torch.arange(448).double() - 224
    assert float((spread.sum(1) * away.square()).sum() / spread.sum()) == pytest.approx(4.0, rel=0.01)


def test_the_defocus_is_a_disk():
    point = torch.zeros(1, 1, 448, 448)
    point[0, 0, 224, 224] = 1.0
    spread = corrupted(point, "defocus-blur", 5, INDEX[:1])[0, 0].double()
    radius = 20
    assert float(spread[224, 224]) == pytest.approx(1 / (torch.pi * radius**2), rel=0.01)
    assert float(spread[224, 224 + radius + 2]) == 0.0


@pytest.mark.parametrize("severity", [1, 3, 4, 5])
def test_colours_are_those_of_colorsys(severity):
    x = torch.cat([COLOUR[:1, :, :4, :5], torch.full((1, 3, 4, 5), 0.4), torch.zeros(1, 3, 4, 5)])
    factor, offset = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))[severity - 1]
    lifted = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    saturated, bright = corrupted(x, "saturate", severity, INDEX[:3]), corrupted(x, "brightness", severity)
    for n in range(3):
        for i in range(4):
            for j in range(5):
                hue, saturation, value = colorsys.rgb_to_hsv(*x[n, :, i, j].double().tolist())
                more = colorsys.hsv_to_rgb(hue, min(max(saturation * factor + offset, 0), 1), value)
                assert saturated[n, :, i, j].tolist() == pytest.approx(more, abs=1e-4)
                lighter = colorsys.hsv_to_rgb(hue, saturation, min(value + lifted, 1))
                assert bright[n, :, i, j].tolist() == pytest.approx(lighter, abs=1e-4)


def test_contrast_shrinks_about_each_channels_mean():
    found = corrupted(COLOUR, "contrast", 4)
    torch.testing.assert_close(found.mean((2, 3)), COLOUR.mean((2, 3)))
    torch.testing.assert_close(found.std((2, 3)), 0.1 * COLOUR.std((2, 3)))


def test_fog_is_a_cloud_over_the_whole_range():
    cloud = plasma(64, 2.0, torch.arange(4), CHANCE)
    assert torch.equal(cloud.amin((1, 2)), torch.zeros(4))
    assert torch.equal(cloud.amax((1, 2)), torch.ones(4))
    assert not torch.equal(cloud[0], cloud[1])
    near = (cloud[:, 1:] - cloud[:, :-1]).square().mean()
    far = (cloud[:, 32:] - cloud[:, :-32]).square().mean()
    assert float(near) < 0.2 * float(far)
    dark = torch.zeros(2, 1, 16, 16)
    assert torch.equal(corrupted(dark, "fog", 5, INDEX[:2]), dark)


@pytest.mark.parametrize("severity", [1, 2])
def test_elastic_moves_are_in_proportion_to_the_image(severity):
    """A ramp read at moved places changes by the moves: as a share of the side, alike at both sizes."""

    def share(side: int) -> float:
        ramp = torch.linspace(0.25, 0.75, side)[None, None, :, None].expand(20, 1, side, side).contiguous()
        moved = corrupted(ramp, "elastic", severity, torch.arange(20))
        inner = slice(side // 4, -side // 4)
        return float((moved - ramp)[:, :, inner, inner].square().mean().sqrt())

    assert share(112) == pytest.approx(share(56), rel=0.35)
    assert 0.01 < share(112) < 0.15
