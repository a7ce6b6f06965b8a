"""A refutation is one: what it bounds under the assumption holds wherever the assumption does."""

import pytest
import torch
from torch import nn

from certify import refutation
from certify.ascent import climb
from certify.backward import adaptive_slope, parallel_slope, relax
from certify.folded import folded_network
from certify.graph import trace
from certify.mixed_integer import feasible_point
from certify.refutation import Refutation
from models.region import Region
from tests.certify.builders import mlp
from tests.certify.test_branching import a_problem

FOREVER = float("inf")


def folded(net, rows, offsets, radius=1.0):
    """A network over the square around zero, folded, with one clause rows . outputs + offsets."""
    low = torch.full((1, 2), -radius, dtype=torch.float64)
    region = Region(low=low, high=-low)
    relaxation = relax(trace(net), region.centre, region, parallel_slope, adaptive_slope)
    rows = torch.tensor(rows, dtype=torch.float64)
    return region, folded_network(relaxation, [rows], [torch.tensor(offsets, dtype=torch.float64)])


def network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return mlp(2, 10, 10, 2).double().requires_grad_(False)


def grid(region, count=150):
    line = torch.linspace(0, 1, count, dtype=torch.float64)
    return region.low + (region.high - region.low) * torch.cartesian_prod(line, line)


def no_witness(point):
    return None


def assert_holds(branch, points, whole, targets, slack):
    """Bounds and functions of the branch at those of `points` that it speaks of; how many there are."""
    value = targets.values(points, whole.outputs(points)[1])[:, 0]
    z, a = branch.folded.outputs(points)
    mine = (value.amax(1) <= slack) & (z * branch.root.sign[0] >= 0).all(1)
    free = branch.root.sign[0] == 0
    assert (z[mine] >= branch.folded.lower - 1e-9)[:, free].all()
    assert (z[mine] <= branch.folded.upper + 1e-9)[:, free].all()
    assert torch.allclose(branch.targets.values(points[mine], a[mine])[:, 0], value[mine], atol=1e-9)
    return mine


@torch.no_grad()
@pytest.mark.parametrize("rows", [[[1.0, -1.0]], [[1.0, -1.0], [-0.5, -1.0]]])
def test_every_branch_speaks_the_truth_and_together_they_miss_nothing(rows, monkeypatch):
    monkeypatch.setattr(refutation, "ROUNDS", 1)
    split, smaller = 0, 0
    for seed in range(6):
        net = network(seed)
        region, (whole, targets) = folded(net, rows, [0.0] * len(rows))
        points = grid(region)
        least = float(targets.values(points, whole.outputs(points)[1]).amax(2).min())
        region, (whole, targets) = folded(net, rows, [0.1 - least] * len(rows))
        search = Refutation(whole, targets, 0, no_witness, slack=0.15)
        failing = targets.values(points, whole.outputs(points)[1]).amax((1, 2)) <= 0.15
        for _ in range(6):
            covered = torch.zeros_like(failing)
            for branch in search.open:
                covered |= assert_holds(branch, points, whole, targets, 0.15)
                smaller += branch.folded.neurons < whole.neurons
            assert (covered | ~failing).all()
            assert search.open
            branch = search.open.pop()
            left = search._narrowed(branch, FOREVER)
            children = [] if left is None else search._split(left)
            split += len(children) > 1
            search.open = [*children, *search.open] if children else search.open
            if not search.open or search.stuck:
                break
        assert search.open or search.stuck
    assert split > 6
    assert smaller > 6


@torch.no_grad()
def test_a_clause_that_fails_somewhere_is_never_refuted_and_a_clear_one_is():
    for seed in range(8):
        net = network(seed)
        region, (whole, targets) = folded(net, [[1.0, -1.0]], [0.0], radius=0.4)
        points = grid(region)
        least = float(targets.values(points, whole.outputs(points)[1]).min())
        for gap, refuted in ((0.0, False), (0.1, True)):
            _, (whole, targets) = folded(net, [[1.0, -1.0]], [gap - least], radius=0.4)
            search = Refutation(whole, targets, 0, lambda point: point, slack=1e-9)
            assert search.run(FOREVER) == refuted


@torch.no_grad()
@pytest.mark.parametrize(
    ("rows", "single"), [(1, False), pytest.param(3, False, marks=pytest.mark.slow), (1, True)]
)
def test_refutation_and_mixed_integer_programming_agree(rows, single, monkeypatch):
    if single:
        monkeypatch.setattr("certify.dual.SINGLE", 0)
    answers, undecided = [], 0
    for seed in range(12):
        x, threat, whole, targets, excess = a_problem(seed, rows)

        def check(point, excess=excess):
            return point if bool((excess(point) <= 0).all()) else None

        search = Refutation(whole, targets, 0, check, slack=1e-9)
        refuted, infeasible = search.run(FOREVER), feasible_point(whole, targets, 0, 20.0).infeasible
        if refuted:
            assert infeasible
        elif search.witness is None:
            assert search.stuck
            undecided += infeasible
        else:
            assert not infeasible
            assert threat.contains(x, search.witness[None])
            assert (excess(search.witness) <= 0).all()
        answers.append(refuted)
    assert len(set(answers)) == 2
    assert undecided <= (0 if rows == 1 else 1)


@torch.no_grad()
def test_a_search_that_is_stopped_goes_on_where_it_was():
    for seed in range(6):
        _, _, whole, targets, _ = a_problem(seed, 1)
        once, twice = (Refutation(whole, targets, 0, no_witness, slack=1e-9) for _ in range(2))
        refuted = once.run(FOREVER)
        assert twice.run(-FOREVER) is False
        assert twice.looked_at == 0
        assert twice.run(FOREVER) == refuted
        assert twice.looked_at == once.looked_at


@torch.no_grad()
def test_an_ascent_that_lies_about_its_bounds_is_seen_by_these_tests(monkeypatch):
    """The comparison above tells an honest search from one whose bounds are a little too good."""

    def liar(dual, branches, **options):
        value, best, bound = climb(dual, branches, **options)
        return value + 0.3, best, bound

    monkeypatch.setattr(refutation, "climb", liar)
    false = 0
    for seed in range(12):
        _, _, whole, targets, _ = a_problem(seed, 1)
        refuted = Refutation(whole, targets, 0, no_witness, slack=1e-9).run(FOREVER)
        false += refuted and not feasible_point(whole, targets, 0, 20.0).infeasible
    assert false > 2


@torch.no_grad()
def test_an_assumption_that_leaves_one_point_is_no_contradiction():
    """z = w . x and the target |w|_1 - z: 0 at one corner, where the bounds of z meet up to rounding."""
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.rand(1, 2, generator=generator, dtype=torch.float64) + 0.1
        net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
        net = net.double().requires_grad_(False)
        net[0].weight.copy_(torch.cat([weight, -weight, 0.7 * weight]))
        net[2].weight.copy_(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]))
        _, (whole, targets) = folded(net, [[-1.0, 0.0]], [float(weight.sum())])
        assert not Refutation(whole, targets, 0, no_witness, slack=1e-12).run(FOREVER), seed
