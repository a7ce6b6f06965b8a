"""Threats that are no ball: what is allowed, measured by brute force and to the bit."""

from __future__ import annotations

import itertools

import pytest
import torch

from models.corruption import Corruption
from models.errors import UserError
from models.flow import Flow
from models.lighting import Lighting
from models.norms import BALLS, NORMS, check_size, described
from models.pixels import FreePixels
from models.poses import Spatial
from models.threat import Box, ThreatModel
from models.threats import threat_named
from tests.builders import images


def test_every_name_has_its_threat():
    kinds = {norm: type(threat_named(norm, 1)) for norm in NORMS}
    assert {norm for norm, kind in kinds.items() if kind is ThreatModel} == set(BALLS)
    assert {norm for norm, kind in kinds.items() if kind is Spatial} == {"spatial", "rotation", "translation"}
    assert {norm for norm, kind in kinds.items() if kind is Lighting} == {
        "lighting",
        "brightness",
        "contrast",
    }
    assert kinds["corruption"] is Corruption
    assert kinds["flow"] is Flow
    assert kinds["patch"] is kinds["mask"] is FreePixels


@pytest.mark.parametrize(
    ("norm", "eps", "message"),
    [
        ("Linf", 1, "unknown norm 'Linf': write 'linf'"),
        ("L-2", 1, "write 'l2'"),
        ("1", 1, "write 'l1'"),
        ("l∞", 1, "write 'linf'"),
        ("l7", 1, "unknown norm 'l7': known are linf, .*spatial"),
        ("spatial", None, "needs an eps"),
        ("corruption", 6, "severity, 1 to 5, not 6"),
        ("corruption", 2.5, "severity, 1 to 5, not 2.5"),
        ("corruption", 0, "severity"),
        ("patch", 1.5, r"share of the picture, in \(0, 1\], not 1.5"),
        ("mask", 0, "share of the picture"),
        ("lighting", 1.5, r"share of the range of values, in \[0, 1\], not 1.5"),
        ("contrast", None, "needs an eps"),
        ("flow", None, "needs an eps"),
    ],
)
def test_sizes_without_a_meaning_are_refused(norm, eps, message):
    with pytest.raises(UserError, match=message):
        check_size(norm, eps)


def test_threats_in_words():
    assert described("linf", 0.1) == "linf eps = 0.1"
    assert described("spatial", 1.0) == "rotation <= 30 degrees, translation <= 10 % of a side"
    assert described("rotation", 20.0) == "rotation <= 20 degrees"
    assert described("translation", 0.1) == "translation <= 10 % of a side"
    assert described("corruption", 3) == "common corruptions, severity <= 3"
    assert described("patch", 0.05) == "one square of 5 % of the picture"
    assert described("lighting", 0.2) == "brightness within 20 %, contrast within 20 %"
    assert described("flow", 0.5) == "flow <= 0.5 px"
    assert described("contrast", 0.1) == "contrast within 10 %"


@pytest.mark.parametrize(
    ("norm", "quarter", "size"),
    [("rotation", [90.0, 0, 0], 90), ("spatial", [3.0, 0, 0], 3), ("spatial", [3.0, 4, 0], 4)],
)
def test_a_move_is_measured_and_carried_out(norm, quarter, size):
    x, move = images(2, (1, 5, 5)), torch.tensor([quarter, quarter]).double()
    threat = threat_named(norm, size)
    assert threat.size(move).tolist() == [size, size]
    move, moved, away, legal = threat.settled(x, move, torch.arange(2))
    assert bool(legal.all())
    assert away.tolist() == [size, size]
    if not any(quarter[1:]):
        torch.testing.assert_close(moved, torch.rot90(x, 1, (2, 3)), atol=1e-5, rtol=0)
    _, still, away, legal = threat.at(size - 1e-9).settled(x, move, torch.arange(2))
    assert torch.equal(still, x)
    assert not bool(legal.any())


def test_light_is_changed_and_measured():
    x, box = 4 * images(2, (2, 3, 3)) - 1, Box(-1, 3)
    move = torch.tensor([[0.2, 0.0], [-0.1, 0.5]], dtype=torch.float64)
    threat = threat_named("lighting", 0.5, box)
    assert threat.size(move).tolist() == [0.2, 0.5]
    _, moved, away, legal = threat.settled(x, move, torch.arange(2))
    assert bool(legal.all())
    assert away.tolist() == [0.2, 0.5]
    torch.testing.assert_close(moved[0], (x[0] + 0.8).clamp(max=3))
    torch.testing.assert_close(moved[1], (1.5 * (x[1] + 1) - 1.4).clamp(-1, 3))
    bright = threat_named("brightness", 0.5, box).carry_out(x, move, torch.arange(2))
    torch.testing.assert_close(bright[1], (x[1] - 0.4).clamp(min=-1))
    contrast = threat_named("contrast", 0.5, box).carry_out(x, move, torch.arange(2))
    torch.testing.assert_close(contrast[0], x[0])
    assert not bool(threat.at(0.49).settled(x, move, torch.arange(2))[3][1])


def test_a_translation_ignores_the_angle_and_a_rotation_the_shift():
    x, move = images(2, (1, 5, 5)), torch.tensor([[0.0, 0.2, -0.2]] * 2)
    shifted = threat_named("translation", 0.2).carry_out(x, move, torch.arange(2))
    torch.testing.assert_close(shifted[:, :, 1:, :-1], x[:, :, :-1, 1:], atol=1e-5, rtol=0)
    assert threat_named("translation", 0.2).poses.grid(31, 5).shape == (25, 3)
    assert threat_named("rotation", 30).poses.grid(31, 5).shape == (31, 3)


def least_window(changed: torch.Tensor) -> float:
    """The share of the smallest cut-off square window that covers all changed pixels, by trying them all."""
    h, w = changed.shape
    if not bool(changed.any()):
        return 0.0
    for side in range(1, max(h, w) + 1):
        high, wide = min(side, h), min(side, w)
        for top, left in itertools.product(range(h - high + 1), range(w - wide + 1)):
            rest = changed.clone()
            rest[top : top + high, left : left + wide] = False
            if not bool(rest.any()):
                return high * wide / (h * w)
    raise AssertionError


def test_free_pixels_are_counted_as_by_brute_force():
    x = images(60, (3, 4, 6))
    flip = torch.rand(60, 3, 4, 6, generator=torch.Generator().manual_seed(3))
    other = torch.where(flip < torch.linspace(0, 0.15, 60)[:, None, None, None], 1 - x, x)
    changed = (x != other).any(1)
    patch, mask = FreePixels("patch", 0.3), FreePixels("mask", 0.3)
    assert patch.distance(x, other).tolist() == pytest.approx([least_window(one) for one in changed])
    assert mask.distance(x, other).tolist() == pytest.approx((changed.flatten(1).sum(1) / 24).tolist())
    for threat in (patch, mask):
        inside = threat.contains(x, other)
        assert 5 < int(inside.sum()) < 55
        projected = threat.project(x, other)
        assert torch.equal(projected[inside], other[inside])
        assert torch.equal(projected[~inside], x[~inside])


@pytest.mark.parametrize("eps", [0.01, 0.05, 0.3, 0.5, 0.9, 1.0])
def test_the_window_of_a_patch_is_the_largest_allowed(eps):
    h, w = FreePixels("patch", eps).window(10, 14)
    assert h * w <= eps * 140
    bigger = min(max(h, w) + 1, 10) * min(max(h, w) + 1, 14)
    assert bigger > eps * 140 or (h, w) == (10, 14)
    x = torch.zeros(1, 1, 10, 14)
    other = x.clone()
    other[:, :, 10 - h :, :w] = 1.0
    assert bool(FreePixels("patch", eps).contains(x, other))


def test_pixels_outside_the_box_are_not_free():
    x = images(3, (1, 4, 4))
    other = x.clone()
    other[:, :, 0, 0] = 1.0 + 1e-6
    assert not bool(FreePixels("mask", 0.5).contains(x, other).any())
    assert bool(FreePixels("mask", 0.5, Box(0, 2)).contains(x, other).all())
