"""The least value over ball and box: never above the truth, and equal to it by other solvers."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize_scalar

from certify.input_set import InputSet
from models.region import Region
from models.threat import ThreatModel

D = 9
EPS = {"linf": 0.2, "l2": 0.7, "l1": 0.9}


def an_input_set(norm, seed=0, eps=None):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(1, D, generator=generator, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)
    return InputSet.of(x, ThreatModel(norm, EPS[norm] if eps is None else eps))


def some_rows(seed=0, k=12):
    rows = torch.randn(k, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows[0], rows[1] = 0.0, 1.0
    rows[2] = torch.where(rows[2] > 0, 2.0, -2.0)
    rows[3, 1:] = 0.0
    rows[4] *= 1e-9
    rows[5] *= 1e9
    return rows


def truth(inputs, row):
    """By a linear program (linf, l1), or by a scalar maximisation of the Lagrangian (l2)."""
    lower, upper, centre = inputs.lower.numpy(), inputs.upper.numpy(), inputs.centre.numpy()
    if inputs.norm == "l2":
        low, high, scale = lower - centre, upper - centre, max(np.linalg.norm(row), 1e-300)

        def lagrangian(level):
            m = np.exp(level) * scale
            v = np.clip(-row / (2 * m), low, high)
            return -(row @ v + m * (v @ v - inputs.eps**2))

        found = minimize_scalar(lagrangian, bounds=(-30, 10), method="bounded", options={"xatol": 1e-12})
        free = np.where(row > 0, low, np.where(row < 0, high, 0.0))
        return row @ centre + (row @ free if np.linalg.norm(free) <= inputs.eps else -found.fun)
    scale = max(np.abs(row).max(), 1e-300)
    # x = centre + p - q with sum(p + q) <= eps.
    cost = np.concatenate([row, -row]) / scale
    bounds = [*((0, end) for end in upper - centre), *((0, end) for end in centre - lower)]
    ball = {"A_ub": np.ones((1, 2 * D)), "b_ub": [inputs.eps]} if inputs.norm == "l1" else {}
    return row @ centre + scale * linprog(cost, bounds=bounds, **ball).fun


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("norm", EPS)
def test_the_least_value_is_the_solvers(norm, seed):
    inputs, rows = an_input_set(norm, seed), some_rows(seed)
    value, _ = inputs.least(rows)
    size = rows.abs().amax(1).clamp(min=1e-300)
    wanted = torch.tensor([truth(inputs, row) for row in rows.numpy()])
    assert ((value - wanted).abs() / size).max() <= 1e-7


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("norm", EPS)
def test_the_points_are_in_the_set_and_nearly_reach_the_value(norm, seed):
    inputs, rows = an_input_set(norm, seed), some_rows(seed)
    value, points = inputs.least(rows)
    assert ((points >= inputs.lower) & (points <= inputs.upper)).all()
    if norm != "linf":
        order = 2 if norm == "l2" else 1
        assert (points - inputs.centre).norm(p=order, dim=1).max() <= inputs.eps * (1 + 1e-12)
    reached = (rows * points).sum(1)
    size = rows.abs().amax(1)
    assert (reached - value >= -1e-12 * (1 + size)).all()
    assert (reached - value <= 1e-5 * size).all()


@pytest.mark.parametrize("norm", EPS)
def test_no_legal_point_is_lower(norm):
    threat, rows = ThreatModel(norm, EPS[norm]), some_rows(3)
    x = torch.rand(1, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    value, _ = InputSet.of(x, threat).least(rows)
    many = x.expand(2000, -1)
    noise = torch.randn(many.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    points = threat.project(many, many + 3 * EPS[norm] * noise)
    assert threat.contains(many, points).all()
    assert ((points @ rows.T).amin(0) - value >= -1e-12 * (1 + rows.abs().amax(1))).all()


@pytest.mark.parametrize("norm", EPS)
def test_a_ball_of_radius_zero_is_its_centre(norm):
    inputs, rows = an_input_set(norm, eps=0.0), some_rows()
    value, points = inputs.least(rows)
    wanted = rows @ inputs.centre
    assert ((value - wanted).abs() / rows.abs().amax(1).clamp(min=1.0)).max() <= 1e-8
    assert (value <= wanted + 1e-12 * rows.abs().sum(1)).all()
    assert (points - inputs.centre).abs().max() <= 1e-12


@pytest.mark.parametrize("norm", EPS)
def test_projected_points_are_in_the_set_and_members_stay(norm):
    inputs = an_input_set(norm)
    generator = torch.Generator().manual_seed(1)
    points = inputs.project(inputs.centre + torch.randn(200, D, generator=generator, dtype=torch.float64))
    assert ((points >= inputs.lower) & (points <= inputs.upper)).all()
    if norm != "linf":
        order = 2 if norm == "l2" else 1
        assert (points - inputs.centre).norm(p=order, dim=1).max() <= inputs.eps * (1 + 1e-12)
    assert (inputs.project(points) - points).abs().max() <= 1e-12


@pytest.mark.parametrize("norm", EPS)
def test_the_step_goes_down(norm):
    inputs, rows = an_input_set(norm), some_rows()
    assert ((inputs.steepest(rows, inputs.centre.expand(len(rows), -1)) * rows).sum(1)[1:] < 0).all()
    assert (inputs.steepest(rows, inputs.centre.expand(len(rows), -1))[0] == 0).all()


def test_a_region_is_its_box():
    low = torch.tensor([[0.1, -3.0]], dtype=torch.float64)
    high = torch.tensor([[0.4, 5.0]], dtype=torch.float64)
    region = Region(low=low, high=high)
    inputs = InputSet.of(region.centre, region)
    value, points = inputs.least(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    assert inputs.norm == "linf"
    assert value.item() == pytest.approx(0.1 - 10)
    assert points.tolist() == [[0.1, 5.0]]
