"""The geometry: projections against scipy, membership, random starts, steepest directions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import kstest

from models.errors import UserError
from models.randomness import Randomness
from models.threat import UNIT_BOX, Box, ThreatModel, parse_eps, vector_norm
from tests.builders import images

NORMS = ["linf", "l2", "l1"]
EPS = {"linf": 0.1, "l2": 0.4, "l1": 0.7}
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}


def points(n: int, d: int = 6, spread: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    x = images(n, (d,))
    x[::2] = (x[::2] > 0.5).float()
    return x, x + spread * torch.randn(n, d, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("box", [UNIT_BOX, Box(-3.0, 2.0), Box(0.0, 255.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_is_legal_exactly_and_idempotent(norm, box, dtype):
    x, other = points(300)
    x, other = (box.lower + box.width * t.to(dtype) for t in (x, other))
    for eps in (0.0, 1e-3, 8 / 255, EPS[norm], 100.0):
        threat = ThreatModel(norm, eps * box.width, box)
        once = threat.project(x, other)
        assert bool(threat.contains(x, once).all())
        assert torch.equal(threat.project(x, once), once)
        assert torch.equal(threat.projection(x)(other), once)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_projection_is_the_nearest_point(norm):
    """Against SLSQP on min ||z - other||_2 over ball and box; |z - x| = p + q makes l1 smooth."""
    x, other = points(12)
    threat = ThreatModel(norm, EPS[norm])
    ours = threat.project(x, other).double()
    for a, b, z in zip(x.double().numpy(), other.double().numpy(), ours.numpy(), strict=True):
        d = len(a)
        rise, fall = 1 - a, a
        if norm == "linf":
            rise, fall = np.minimum(rise, threat.eps), np.minimum(fall, threat.eps)
        best = minimize(
            lambda s, a=a, b=b, d=d: float(np.sum((a + s[:d] - s[d:] - b) ** 2)),
            np.zeros(2 * d),
            bounds=[(0, v) for v in np.concatenate([rise, fall])],
            constraints=[{"type": "ineq", "fun": lambda s: threat.eps - s.sum()}] if norm == "l1" else [],
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        assert best.success
        assert float(np.sum((z - b) ** 2)) <= best.fun + 1e-4


def bisected(x: torch.Tensor, other: torch.Tensor, radius: float) -> torch.Tensor:
    """The projection of one x (d,) on ball and unit box in l1, its multiplier halved in 200 times."""
    delta, low, high = other - x, 0.0, float((other - x).abs().amax())

    def moved(level: float) -> torch.Tensor:
        return torch.clamp(delta.sign() * (delta.abs() - level).clamp(min=0), -x, 1 - x)

    if float(moved(0.0).abs().sum()) <= radius:
        return x + moved(0.0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float(moved(middle).abs().sum()) > radius else (low, middle)
    return x + moved(high)


@pytest.mark.parametrize("radius", [0.0, 1e-6, 0.3, 2.0, 50.0])
def test_l1_projection_is_that_of_a_bisection_with_ties_and_blocked_entries(radius):
    x, other = points(60, 30, 2.0)
    x, other = x.double(), other.double()
    other[10:20] = (4 * other[10:20]).round() / 4
    other[20:30] = x[20:30] + 3 * (x[20:30] - 0.5).sign()
    other[30:35] = x[30:35]
    radii = torch.full((60,), radius, dtype=torch.float64)
    ours = ThreatModel("l1", None).shrink(x, other, radii)
    for i in range(60):
        torch.testing.assert_close(ours[i], bisected(x[i], other[i], radius), atol=1e-9, rtol=0)


def test_l2_projection_scales_then_clips():
    x, other = points(50)
    threat = ThreatModel("l2", 0.4)
    z = threat.project(x, other)
    for a, b, c in zip(x.double(), other.double(), z.double(), strict=True):
        delta = b - a
        scaled = a + delta * min(1.0, 0.4 / float(delta.norm()))
        torch.testing.assert_close(c, scaled.clamp(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_membership_has_no_tolerance(norm):
    x = torch.full((1, 4), 0.5, dtype=torch.float64)
    step = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    threat = ThreatModel(norm, 0.25)
    assert bool(threat.contains(x, x + 0.25 * step).all())
    assert not bool(threat.contains(x, x + (0.25 + 1e-12) * step).any())
    wide = threat.at(None)
    assert bool(wide.contains(x, x + 0.5 * step).all())
    assert not bool(wide.contains(x, x + (0.5 + 1e-12) * step).any())
    assert not bool(wide.contains(x, x * torch.nan).any())


@pytest.mark.parametrize("norm", NORMS)
def test_distance_is_numpys_norm(norm):
    x, other = points(20)
    expected = [
        np.linalg.norm(b - a, ORDER[norm])
        for a, b in zip(x.double().numpy(), other.double().numpy(), strict=True)
    ]
    torch.testing.assert_close(ThreatModel(norm, None).distance(x, other), torch.tensor(expected))


def test_bounds_round_inwards():
    x = images(2000, (3,))
    for eps in (1 / 255, 8 / 255, 0.1, 0.3):
        lower, upper = ThreatModel("linf", eps).bounds(x)
        assert bool((x.double() - lower.double() <= eps).all())
        assert bool((upper.double() - x.double() <= eps).all())
        assert float((upper - lower).min()) >= eps * (1 - 1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_is_the_best_of_many_unit_directions(norm):
    """g . steepest(g) is the dual norm of g, and no sampled unit direction beats it."""
    gradient = torch.randn(10, 6, generator=torch.Generator().manual_seed(3))
    threat = ThreatModel(norm, 1.0)
    best = threat.steepest(gradient)
    torch.testing.assert_close(vector_norm(best, norm), torch.ones(10))
    gain = (gradient * best).sum(1)
    torch.testing.assert_close(gain, vector_norm(gradient, threat.dual_norm))
    others = torch.randn(5000, 6, generator=torch.Generator().manual_seed(4))
    others = others / vector_norm(others, norm)[:, None]
    assert bool((gradient @ others.T <= gain[:, None] + 1e-5).all())
    assert not bool(threat.steepest(torch.zeros(2, 6)).any())


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_are_legal_and_independent_of_the_batch(norm):
    x = images(60, (1, 8, 8))
    index = torch.arange(100, 160)
    threat, randomness = ThreatModel(norm, EPS[norm]), Randomness(5)
    start = threat.sample(x, index, randomness)
    assert bool(threat.contains(x, start).all())
    assert float(threat.distance(x, start).mean()) > 0.1 * EPS[norm]
    parts = [threat.sample(x[i : i + 1], index[i : i + 1], randomness) for i in range(60)]
    torch.testing.assert_close(start, torch.cat(parts), rtol=0, atol=1e-6)
    assert not torch.equal(start, threat.sample(x, index, Randomness(6)))


def test_random_starts_are_uniform_in_the_ball():
    """linf: each entry uniform. l2: radius^d uniform, and the direction without preference."""
    n, d = 4000, 3
    x, index = torch.full((n, d), 0.5), torch.arange(n)
    cube = (ThreatModel("linf", 0.2).sample(x, index, Randomness(1)) - x).double().numpy() / 0.2
    for column in cube.T:
        assert kstest(column, "uniform", args=(-1, 2)).pvalue > 1e-3
    ball = (ThreatModel("l2", 0.2).sample(x, index, Randomness(1)) - x).double().numpy() / 0.2
    radius = np.linalg.norm(ball, axis=1)
    assert kstest(radius**d, "uniform").pvalue > 1e-3
    # Archimedes: on the sphere in three dimensions each coordinate is uniform.
    for column in (ball / radius[:, None]).T:
        assert kstest(column, "uniform", args=(-1, 2)).pvalue > 1e-3


def test_tangent_drops_what_points_out_of_the_box():
    x = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.5]])
    direction = torch.tensor([[-1.0, 2.0, 3.0, -4.0, 5.0]])
    assert UNIT_BOX.tangent(x, direction).tolist() == [[0.0, 2.0, 0.0, -4.0, 5.0]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        ("0.5/255", 0.5 / 255),
        ("1e-3", 1e-3),
        ("0.1", 0.1),
        (0.3, 0.3),
        (0, 0.0),
        (None, None),
    ],
)
def test_eps_is_read_exactly(text, value):
    assert parse_eps(text) == value


@pytest.mark.parametrize("text", ["eight", "1/0", "", -0.1, "nan", "inf", float("inf"), float("nan")])
def test_bad_eps_is_a_users_error(text):
    with pytest.raises(UserError, match="eps"):
        ThreatModel("linf", text)


def test_other_bad_threats_are_users_errors():
    with pytest.raises(UserError, match="unknown norm 'l3': known are linf, l2, l1, l0"):
        ThreatModel("l3", 0.1)
    with pytest.raises(UserError, match="l0 has no dual norm"):
        _ = ThreatModel("l0", 3).dual_norm
    with pytest.raises(UserError, match="lower < upper"):
        Box(1.0, 1.0)
    with pytest.raises(UserError, match="need an eps"):
        ThreatModel("linf", None).sample(torch.zeros(1, 2), torch.zeros(1), Randomness(0))


@pytest.mark.parametrize("box", [UNIT_BOX, Box(-3.0, 2.0)])
@pytest.mark.parametrize("eps", [0, 1, 2.7, 4, 100])
def test_l0_projection_is_the_nearest_point_of_all_subsets(box, eps):
    """Against every set of floor(eps) entries that may move, each to its clipped goal."""
    x, other = points(30)
    x, other = box.lower + box.width * x, box.lower + box.width * other
    threat = ThreatModel("l0", eps, box)
    ours = threat.project(x, other)
    assert bool(threat.contains(x, ours).all())
    assert torch.equal(threat.project(x, ours), ours)
    assert torch.equal(threat.shrink(x, other, torch.full((30,), float(eps))), ours)
    for a, b, z in zip(x.double(), other.double(), ours.double(), strict=True):
        best = min(
            float(
                (torch.where(torch.isin(torch.arange(6), torch.tensor(s)), box.clamp(b), a) - b)
                .square()
                .sum()
            )
            for s in combinations(range(6), min(int(eps), 6))
        )
        assert float((z - b).square().sum()) == pytest.approx(best, rel=1e-5)


def test_l0_counts_entries_and_has_no_scale():
    x = torch.full((2, 5), 0.5)
    other = x.clone()
    other[0, :3], other[1, 4] = 1.0, 0.5 + 1e-6
    assert ThreatModel("l0", None).distance(x, other).tolist() == [3, 1]
    assert ThreatModel("l0", 2).contains(x, other).tolist() == [False, True]
    lower, upper = ThreatModel("l0", 1).bounds(x)
    assert bool((lower == 0).all())
    assert bool((upper == 1).all())
    lower, upper = ThreatModel("l0", 0.5).bounds(x)
    assert torch.equal(lower, x)
    assert torch.equal(upper, x)


def test_l0_starts_change_eps_entries_uniformly():
    x, index, threat = torch.full((2000, 8), 0.5), torch.arange(2000), ThreatModel("l0", 3)
    start = threat.sample(x, index, Randomness(1))
    assert bool(threat.contains(x, start).all())
    assert float(threat.distance(x, start).mean()) == pytest.approx(3, abs=0.01)
    share = (start != x).float().mean(0)
    assert float((share - 3 / 8).abs().max()) < 0.05
    assert kstest(start[start != x].numpy(), "uniform").pvalue > 1e-3
    parts = [threat.sample(x[i : i + 1], index[i : i + 1], Randomness(1)) for i in range(20)]
    assert torch.equal(start[:20], torch.cat(parts))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_each_sample_may_have_a_radius_of_its_own(norm):
    x, other = points(40)
    radius = torch.linspace(0.01, 0.6, 40)
    ours = ThreatModel(norm, None).shrink(x, other, radius)
    for i in range(40):
        alone = ThreatModel(norm, float(radius[i])).project(x[i : i + 1], other[i : i + 1])
        torch.testing.assert_close(ours[i : i + 1], alone, atol=1e-5, rtol=0)
