"""Best linear moves in the box against scipy's solvers and enumeration."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from models.threat import UNIT_BOX, Box, ThreatModel, vector_norm
from tests.builders import images

NORMS = ["linf", "l2", "l1", "l0"]
EPS = {"linf": 0.3, "l2": 0.6, "l1": 0.9, "l0": 2}


def cases(n: int, d: int = 6, box: Box = UNIT_BOX) -> tuple[torch.Tensor, torch.Tensor]:
    """Points, half of them on corners of the box, and slopes with zeros and ties."""
    generator = torch.Generator().manual_seed(3)
    x = images(n, (d,), box=box).double()
    x[::2] = torch.where(x[::2] > (box.lower + box.upper) / 2, box.upper, box.lower).double()
    slope = torch.randn(n, d, generator=generator, dtype=torch.float64)
    slope[::3, 0], slope[1::4, 1] = 0.0, slope[1::4, 2]
    return x, slope


def least(x: np.ndarray, w: np.ndarray, gain: float, norm: str) -> float:
    """min ||m||_norm subject to w . m = gain (>= for l0) and 0 <= x + m <= 1, by a general solver."""
    d = len(x)
    if norm == "l0":
        room = np.abs(w) * np.where(w > 0, 1 - x, x)
        sets = (s for k in range(d + 1) for s in combinations(range(d), k))
        return next(len(s) for s in sets if room[list(s)].sum() >= gain)
    if norm == "l2":
        best = minimize(
            lambda m: float(m @ m),
            np.zeros(d),
            bounds=list(zip(-x, 1 - x, strict=True)),
            constraints=[{"type": "eq", "fun": lambda m: float(w @ m - gain)}],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        assert abs(float(w @ best.x) - gain) < 1e-6
        return float(np.sqrt(best.fun))
    ways = list(zip(np.zeros(2 * d), np.concatenate([1 - x, x]), strict=True))
    if norm == "l1":
        best = linprog(np.ones(2 * d), A_eq=[np.concatenate([w, -w])], b_eq=[gain], bounds=ways)
    else:
        below = np.hstack([np.eye(2 * d), -np.ones((2 * d, 1))])
        row = [np.concatenate([w, -w, [0]])]
        cost = np.append(np.zeros(2 * d), 1.0)
        best = linprog(cost, below, np.zeros(2 * d), row, [gain], [*ways, (0, None)])
    return float(best.fun)


@pytest.mark.parametrize("norm", NORMS)
def test_the_least_move_is_the_solvers(norm):
    x, slope = cases(40)
    room = (slope.clamp(min=0) * (1 - x) - slope.clamp(max=0) * x).sum(1)
    for share in (0.2, 0.7, 0.97):
        move, enough = ThreatModel(norm, None).nearest_gain(x, slope, share * room)
        assert bool(enough.all())
        assert bool(UNIT_BOX.contains((x + move).round(decimals=11)).all())
        gained = (slope * move).sum(1)
        assert bool((gained >= share * room - 1e-9).all())
        if norm != "l0":
            torch.testing.assert_close(gained, share * room)
        for a, w, g, m in zip(x, slope, share * room, move, strict=True):
            best = least(a.numpy(), w.numpy(), float(g), norm)
            assert float(vector_norm(m[None], norm)) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_what_the_box_forbids_is_said(norm):
    x, slope = cases(20)
    room = (slope.clamp(min=0) * (1 - x) - slope.clamp(max=0) * x).sum(1)
    move, enough = ThreatModel(norm, None).nearest_gain(x, slope, 1.1 * room + 0.1)
    assert not bool(enough.any())
    torch.testing.assert_close((slope * move).sum(1), room)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("box", [UNIT_BOX, Box(-3.0, 2.0)])
def test_no_point_of_the_set_gains_more(norm, box):
    """Duality: the least move that gains what the furthest point gains is as long as eps or fills the box."""
    eps = EPS[norm] * (1 if norm == "l0" else box.width)
    x, slope = cases(60, box=box)
    threat = ThreatModel(norm, eps, box)
    best = threat.furthest(x, slope)
    assert bool(threat.contains(x, best).all())
    gain = (slope * (best - x)).sum(1)
    many, noise = x.repeat(300, 1), torch.randn(18000, 6, generator=torch.Generator().manual_seed(5))
    others = threat.project(many, many + box.width * noise.double()) - many
    assert bool(((slope.repeat(300, 1) * others).sum(1) <= gain.repeat(300) + 1e-5 * box.width).all())
    room = (slope.clamp(min=0) * (box.upper - x) - slope.clamp(max=0) * (x - box.lower)).sum(1)
    inside = gain < room - 1e-6
    move, _ = threat.nearest_gain(x, slope, gain * (1 - 1e-9))
    assert int(inside.sum()) > 20
    torch.testing.assert_close(
        vector_norm(move, norm)[inside],
        torch.full((int(inside.sum()),), float(eps)).double(),
        rtol=1e-4,
        atol=0,
    )


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_slope_moves_nothing(norm):
    x = images(5, (6,)).double()
    zero = torch.zeros_like(x)
    assert torch.equal(ThreatModel(norm, EPS[norm]).furthest(x, zero), x)
    move, enough = ThreatModel(norm, None).nearest_gain(x, zero, torch.ones(5).double())
    assert not bool(move.any())
    assert not bool(enough.any())
