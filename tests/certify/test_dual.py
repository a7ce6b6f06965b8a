"""Dual bounds are valid for any multipliers, and their ascent direction is their derivative."""

import pytest
import torch

from certify import branching
from certify.ascent import Ascent, climb
from certify.backward import parallel_slope, relax
from certify.branching import BranchAndBound
from certify.dual import Branches, Dual, imposed
from certify.folded import folded_network
from certify.graph import trace
from models.threat import ThreatModel
from tests.certify.planes import small_network

EPS = {"linf": 0.4, "l2": 0.6, "l1": 0.8}
D = 4


def a_folded_network(norm, seed, leak=0.0):
    network = small_network(D, 8, 7, 3, seed=seed, leak=leak).double()
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, D, generator=generator, dtype=torch.float64)
    rows = [torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (1, 3)]
    threat = ThreatModel(norm, EPS[norm])
    with torch.no_grad():
        relaxation = relax(trace(network), x, threat, parallel_slope)
        folded, targets = folded_network(relaxation, rows, [torch.zeros(len(row)) for row in rows])
    assert folded.neurons > 3
    return x, threat, folded, targets


def random_branches(folded, targets, seed, b=40):
    """Any multipliers at all, some at the ends of their range, on random phases."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    shape = (b, folded.neurons)
    group = torch.randint(0, len(targets), (b,), generator=generator)
    sign = torch.randint(-1, 2, shape, generator=generator, dtype=torch.int8)
    sign[: b // 2] *= (draw(b // 2, folded.neurons) < 0.3).to(torch.int8)
    weight = draw(b, targets.constant.shape[1]) * targets.real[group]
    weight = weight / weight.sum(1, keepdim=True)
    alpha = (1.4 * draw(*shape) - 0.2).clamp(0, 1)
    return Branches(group, sign, alpha, 2 * draw(*shape) * (sign != 0), weight)


def some_points(x, threat, n=4000):
    many = x.expand(n, -1)
    noise = torch.randn(many.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return threat.project(many, many + 1.5 * threat.radius * noise)


@pytest.mark.parametrize("leak", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("norm", EPS)
def test_no_point_that_satisfies_the_phases_is_below_the_bound(norm, seed, leak):
    x, threat, folded, targets = a_folded_network(norm, seed, leak)
    dual, branches = Dual(folded, targets), random_branches(folded, targets, seed)
    value = dual.bound(branches).value
    points = some_points(x, threat)
    z, a = folded.outputs(points)
    functions, met = targets.values(points, a), 0
    for row in range(len(branches)):
        legal = (z * branches.sign[row] >= 0).all(1)
        real = targets.real[branches.group[row]]
        mixed = functions[legal, branches.group[row]][:, real] @ branches.weight[row][real]
        met += len(mixed)
        assert not len(mixed) or mixed.min() >= value[row] - 1e-9
    assert met > 1000


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("norm", EPS)
def test_the_ascent_is_the_derivative(norm, seed):
    _, _, folded, targets = a_folded_network(norm, seed, 0.1)
    dual, branches = Dual(folded, targets), random_branches(folded, targets, seed, 60)
    branches.alpha = 0.1 + 0.8 * branches.alpha
    ascent = Ascent(dual, branches)
    value, weight = torch.where(branches.sign == 0, branches.alpha, branches.beta), branches.weight
    here, *lines = ascent.bound(value, weight)
    assert (here - dual.bound(branches).value).abs().max() <= 1e-9
    slopes, step, checked, equal = ascent.slopes(*lines), 1e-7, 0, 0
    for part, slope in enumerate(slopes):
        for column in range(slope.shape[1]):
            ends = []
            for sign in (1, -1):
                moved = [value.clone(), weight.clone()]
                moved[part][:, column] += sign * step
                ends.append(ascent.bound(*moved)[0])
            real = targets.real[branches.group, column] if part else torch.ones(len(branches)).bool()
            found = ((ends[0] - ends[1]) / (2 * step))[real]
            close = (found - slope[real, column]).abs() <= 1e-4 * (1 + found.abs())
            checked, equal = checked + len(found), equal + int(close.sum())
    # The bound has kinks, where the two differ: they are few.
    assert checked > 300
    assert equal >= 0.99 * checked


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("norm", EPS)
def test_climbing_improves_and_keeps_every_multiplier_legal(norm, seed):
    x, threat, folded, targets = a_folded_network(norm, seed)
    dual, branches = Dual(folded, targets), random_branches(folded, targets, seed)
    before = dual.bound(branches).value
    value, best, bound = climb(dual, branches, steps=15, rate=0.2)
    assert (value >= before).all()
    assert (value - before).max() > 0.01
    assert torch.allclose(value, dual.bound(best).value, atol=1e-9)
    assert torch.equal(value, bound.value)
    assert ((best.alpha >= 0) & (best.alpha <= 1)).all()
    assert (best.beta >= 0).all()
    assert (best.weight.sum(1) - 1).abs().max() <= 1e-12
    roots = Branches.roots(folded, targets)
    value, _, _ = climb(dual, roots, steps=60, rate=0.25)
    points = some_points(x, threat)
    least = targets.values(points, folded.outputs(points)[1]).amax(2).amin(0)
    assert (value <= least + 1e-9).all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("norm", EPS)
def test_a_phase_against_a_lower_line_starts_no_lower_than_the_parent(norm, seed):
    _, _, folded, targets = a_folded_network(norm, seed, 0.1 * (seed % 2))
    tree = BranchAndBound(folded, targets, lambda point: None, tolerance=1e3)
    _, parents, bound = climb(tree.dual, Branches.roots(folded, targets), steps=5, rate=0.2)
    before, met = tree.dual.bound(parents).value, 0
    for neuron in range(folded.neurons):
        places, slopes = torch.full((len(parents),), neuron), bound.q[:, neuron]
        for sign in (1, -1):
            after = tree.dual.bound(imposed(folded, parents, places, slopes, sign)).value
            assert (after >= before - 1e-9)[slopes >= 0].all()
            met += int((slopes > 0).sum())
    assert met > 4


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("norm", EPS)
def test_what_is_proved_never_falls_from_round_to_round(norm, seed, monkeypatch):
    monkeypatch.setattr(branching, "LEAF_STEPS", 1)
    x, threat, folded, targets = a_folded_network(norm, seed, 0.1 * (seed % 2))
    tree = BranchAndBound(folded, targets, lambda point: None, tolerance=1e3, steps=0, batch=2)
    before, points = tree.run(-torch.inf).lower, some_points(x, threat)
    least = targets.values(points, folded.outputs(points)[1]).amax(2).amin(0)
    for _ in range(12):
        if not len(tree.pool):
            break
        tree._round(torch.inf)
        after = tree.run(-torch.inf).lower
        assert (after >= before - 1e-12).all()
        assert (after <= least + 1e-9).all()
        before = after
    assert tree.looked_at > 10
