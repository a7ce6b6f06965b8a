"""Flows: shifts to the bit, bilinear readings by hand, and what their size allows."""

from __future__ import annotations

import itertools

import pytest
import torch

from models.errors import UserError
from models.flow import displaced
from models.threat import UNIT_BOX, Box
from models.threats import threat_named
from tests.builders import images


def field(n, h, w, reach=2.0, seed=5):
    """Random vectors (n, 2, h, w) of up to `reach` pixels a direction."""
    generator = torch.Generator().manual_seed(seed)
    return reach * (2 * torch.rand(n, 2, h, w, generator=generator, dtype=torch.float64) - 1)


def constant(down, right, n, h, w):
    return torch.tensor([down, right], dtype=torch.float64)[None, :, None, None].expand(n, 2, h, w)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (1, 0), (0, -1), (-2, 3), (9, -9)])
def test_a_constant_flow_of_whole_pixels_is_the_shifted_picture(down, right):
    """To the bit, with the border repeated."""
    x = images(3, (2, 6, 5))
    rows = (torch.arange(6) + down).clamp(0, 5)
    columns = (torch.arange(5) + right).clamp(0, 4)
    moved = displaced(x, constant(float(down), float(right), 3, 6, 5), UNIT_BOX)
    assert torch.equal(moved, x[:, :, rows][:, :, :, columns])


def test_no_flow_is_the_identity_to_the_bit():
    for x in (images(4, (3, 5, 7)), (images(4, (1, 1, 9)) > 0.5).float(), images(2, (1, 1, 1)).double()):
        threat = threat_named("flow", 0)
        still = torch.zeros(len(x), threat.parameters(x), dtype=torch.float64)
        _, moved, size, legal = threat.settled(x, still, torch.arange(len(x)))
        assert torch.equal(moved, x)
        assert moved.dtype == x.dtype
        assert bool(legal.all())
        assert bool((size == 0).all())


def test_readings_are_those_by_hand():
    x, flow = images(2, (2, 5, 4)).double(), field(2, 5, 4)
    wanted = torch.zeros_like(x)
    for n, c, i, j in itertools.product(range(2), range(2), range(5), range(4)):
        row = min(max(i + float(flow[n, 0, i, j]), 0.0), 4.0)
        column = min(max(j + float(flow[n, 1, i, j]), 0.0), 3.0)
        for a, b in itertools.product(range(5), range(4)):
            near = max(0.0, 1 - abs(row - a)) * max(0.0, 1 - abs(column - b))
            wanted[n, c, i, j] += near * x[n, c, a, b]
    torch.testing.assert_close(displaced(x, flow, UNIT_BOX), wanted, atol=1e-12, rtol=0)


def test_a_picture_of_one_value_stays_and_no_reading_leaves_the_box():
    box, flow = Box(-3.0, 5.0), field(4, 6, 6)
    plain = torch.full((4, 1, 6, 6), -2.3)
    torch.testing.assert_close(displaced(plain, flow, box), plain)
    ends = torch.where(images(4, (1, 6, 6)) > 0.5, 5.0, -3.0)
    assert bool(box.contains(displaced(ends, flow, box)).all())


def test_derivatives_are_those_of_the_reading():
    x, flow = images(1, (2, 4, 4)).double(), field(1, 4, 4, reach=0.9)
    assert torch.autograd.gradcheck(lambda f: displaced(x, f, UNIT_BOX), flow.requires_grad_(True))


def test_the_size_is_the_longest_vector():
    flow = torch.zeros(2, 2, 3, 4, dtype=torch.float64)
    flow[0, :, 1, 2] = torch.tensor([0.3, -0.4], dtype=torch.float64)
    flow[0, 0, 0, 0] = 0.45
    flow[1, 1, 2, 3] = -2.0
    threat = threat_named("flow", 0.6)
    assert threat.size(flow.flatten(1)).tolist() == pytest.approx([0.5, 2.0])
    move, moved, size, legal = threat.settled(images(2, (1, 3, 4)), flow.flatten(1), torch.arange(2))
    assert legal.tolist() == [True, False]
    assert size.tolist() == pytest.approx([0.5, 0.0])
    assert torch.equal(moved[1], images(2, (1, 3, 4))[1])
    assert bool((move[1] == 0).all())


@pytest.mark.parametrize("eps", [0.0, 0.3, 1.0, 2.5])
def test_projection_is_the_nearest_field_and_allowed_to_the_bit(eps):
    threat, flow = threat_named("flow", eps), field(50, 6, 5)
    near = threat.within(flow.flatten(1))
    assert bool((threat.size(near) <= eps).all())
    long = flow.norm(dim=1) > eps
    vectors = near.unflatten(1, (2, 6, 5))
    assert torch.equal(vectors.transpose(0, 1)[:, ~long], flow.transpose(0, 1)[:, ~long])
    angle = torch.linspace(0, 2 * torch.pi, 721, dtype=torch.float64)
    circle = eps * torch.stack([angle.sin(), angle.cos()])
    for v, u in zip(flow.transpose(0, 1)[:, long].T[:200], vectors.transpose(0, 1)[:, long].T, strict=False):
        least = float((circle - v[:, None]).norm(dim=0).min())
        assert float((u - v).norm()) <= least + 1e-9


def test_steepest_vectors_have_length_one():
    gradient = field(3, 4, 4)
    gradient[:, :, 1, 1] = 0.0
    unit = threat_named("flow", 1.0).steepest(gradient.flatten(1)).unflatten(1, (2, 4, 4))
    assert bool((unit[:, :, 1, 1] == 0).all())
    length = unit.norm(dim=1)
    length[:, 1, 1] = 1.0
    torch.testing.assert_close(length, torch.ones_like(length))
    torch.testing.assert_close(unit * gradient.norm(dim=1, keepdim=True), gradient)


def test_what_is_no_picture_does_not_flow():
    with pytest.raises(UserError, match=r"flows need images \(n, c, h, w\), not inputs of shape \(2, 12\)"):
        threat_named("flow", 1).parameters(torch.zeros(2, 12))
