"""Dual bounds are valid for any multipliers, and their ascent direction is their derivative."""

import pytest
import torch

from certify import branching
from certify.ascent import climb, estimated
from certify.backward import parallel_slope, relax
from certify.branching import BranchAndBound
from certify.dual import Branches, Dual, imposed
from certify.folded import Folded, Targets, folded_network
from certify.graph import trace
from certify.input_set import InputSet
from certify.supergradient import Ascent
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
    slopes, step, checked, equal = ascent.slopes(value, *lines), 1e-7, 0, 0
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


def two_side_by_side(seed):
    """A folded network of two that read different inputs, and their sum: the last input is read by nobody."""
    parts = [a_folded_network("linf", seed + k)[2:] for k in range(2)]
    (first, ours), (second, theirs) = parts
    m, n = first.neurons, second.neurons
    rows = torch.zeros(m + n, 2 * D + 1, dtype=torch.float64)
    rows[:m, :D], rows[m:, D:-1] = first.input_rows, second.input_rows
    between = torch.zeros(m + n, m + n, dtype=torch.float64)
    between[:m, :m], between[m:, m:] = first.neuron_rows, second.neuron_rows
    joined = [
        torch.cat([getattr(part, name) for part in (first, second)])
        for name in ("constant", "leak", "lower", "upper")
    ]
    ends = [
        torch.cat([first.inputs.lower, second.inputs.lower, torch.zeros(1)]).double(),
        torch.cat([first.inputs.upper, second.inputs.upper, torch.ones(1)]).double(),
    ]
    layers = (*first.layers, *(slice(part.start + m, part.stop + m) for part in second.layers))
    folded = Folded(InputSet(*ends, sum(ends) / 2), layers, rows, between, *joined)
    one, other = ours.select(torch.tensor([0])), theirs.select(torch.tensor([0]))
    targets = Targets(
        torch.cat([one.input_rows[:, :1], other.input_rows[:, :1], torch.zeros(1, 1, 1)], 2),
        torch.cat([one.neuron_rows[:, :1], other.neuron_rows[:, :1]], 2),
        (one.constant + other.constant)[:, :1],
        torch.ones(1, 1, dtype=torch.bool),
    )
    return folded, targets, m


@pytest.mark.parametrize("seed", range(5))
def test_what_nobody_reads_is_left_out_of_the_steps_and_changes_no_bound(seed, monkeypatch):
    monkeypatch.setattr("certify.dual.SINGLE", 0)
    folded, targets, m = two_side_by_side(seed)
    dual, branches = Dual(folded, targets), random_branches(folded, targets, seed)
    assert dual.working.folded.input_rows.shape[1] == 2 * D
    assert all(seen.start >= m for (seen, rows), part in zip(folded.earlier, folded.layers, strict=True)
               if part.start > m)  # fmt: skip
    assert sum(rows.numel() for _, rows in folded.earlier) < 0.6 * folded.neurons**2 / 2
    exact = dual.bound(branches).value
    assert torch.allclose(estimated(dual, branches), exact, rtol=1e-4, atol=1e-4)
    x = torch.rand(50, 2 * D + 1, dtype=torch.float64)
    z, a = folded.outputs(x)
    assert torch.allclose(z, x @ folded.input_rows.T + a @ folded.neuron_rows.T + folded.constant)


def test_a_split_is_not_passed_over_because_one_child_starts_below_its_parent(monkeypatch):
    """A child's own lines may start lower, but the parent's bound holds for it: the larger gap is split."""
    _, _, folded, targets = a_folded_network("linf", 0)
    tree = BranchAndBound(folded, targets, lambda point: None, tolerance=torch.inf)
    roots = Branches.roots(folded, targets).select(torch.tensor([0]))
    starts = iter([torch.tensor([-1.6, -0.9999]), torch.tensor([-0.9, -0.9999])])
    monkeypatch.setattr(branching, "estimated", lambda dual, children: next(starts))
    proved = torch.tensor([-1.0])
    children, split, _ = tree._split(roots, proved, torch.tensor([[2, 1]]), torch.tensor([[0.5, 0.5]]))
    assert split.tolist() == [2]
    assert children.sign[:, 2].tolist() == [1, -1]
    assert children.sign[:, 1].tolist() == [0, 0]
