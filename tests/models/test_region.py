"""Any box as a threat set: what it holds, and what it refuses."""

import pytest
import torch

from models.errors import UserError
from models.region import Region

LOW = torch.tensor([[0.1, -1.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
HIGH = torch.tensor([[0.3, 1.0, 2.0], [0.7, 0.1, 9.0]], dtype=torch.float64)


def test_it_holds_its_corners_and_nothing_beyond():
    region = Region(low=LOW, high=HIGH)
    for point in (LOW, HIGH, region.centre):
        assert region.contains(region.centre, point).tolist() == [True, True]
    beyond = HIGH.clone()
    beyond[0, 1] += 1e-12
    assert region.contains(region.centre, beyond).tolist() == [False, True]
    beyond[1, 2] = torch.nan
    assert region.contains(region.centre, beyond).tolist() == [False, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_projection_is_inside_and_moves_no_member(dtype):
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(500, 4, generator=generator, dtype=torch.float64)
    region = Region(low=low, high=low + 0.01 + torch.rand(500, 4, generator=generator, dtype=torch.float64))
    x = region.centre.to(dtype)
    points = torch.randn(500, 4, generator=generator).to(dtype)
    inside = region.project(x, points)
    assert inside.dtype == dtype
    assert region.contains(x, inside).all()
    assert torch.equal(region.project(x, inside), inside)


def test_a_point_that_the_dtype_lacks_is_rounded_to_the_nearest():
    end = torch.tensor([[0.1]], dtype=torch.float64)
    lower, upper = Region(low=end, high=end).bounds(end.float())
    assert lower.item() == upper.item() == end.float().item()


def test_a_selection_keeps_each_samples_own_box():
    region = Region(low=LOW, high=HIGH)
    assert torch.equal(region.select(slice(1, 2)).low, LOW[1:])
    assert torch.equal(region.select(torch.tensor([1, 0])).high, HIGH[[1, 0]])


@pytest.mark.parametrize("bad", [-1.0, torch.nan])
def test_bounds_that_cross_or_are_no_numbers_are_refused(bad):
    high = HIGH.clone()
    high[1, 1] = bad
    with pytest.raises(UserError, match="lower <= upper"):
        Region(low=LOW, high=high)
    with pytest.raises(UserError, match="lower <= upper"):
        Region(low=LOW, high=HIGH[:, :2])
