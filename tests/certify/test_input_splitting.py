"""Cutting the input: every clause of every box must be proved, and what is open stays open."""

import time

import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from certify.backward import adaptive_slope, parallel_slope, relax
from certify.bounds import Interval
from certify.exact import Exact, settle
from certify.graph import trace
from certify.input_splitting import clause_bounds, mixed_planes, split_inputs
from certify.property import Clause, Property
from models.errors import UserError
from models.region import Region
from tests.certify.builders import mlp


def network(seed: int = 0, smooth: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = mlp(2, 12, 12, 3).double().requires_grad_(False)
    return nn.Sequential(*(nn.Tanh() if smooth and isinstance(part, nn.ReLU) else part for part in net))


def clause(row: list[float], offset: float = 0.0) -> Clause:
    return Clause(torch.tensor([row], dtype=torch.float64), torch.tensor([offset], dtype=torch.float64))


def square(*clauses: Clause) -> Property:
    return Property(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), clauses)


def grid(net: nn.Module, prop: Property) -> torch.Tensor:
    line = torch.linspace(0, 1, 120, dtype=torch.float64)
    return prop.excess(net(torch.cartesian_prod(line, line)))


def search(net: nn.Module, prop: Property, seconds: float = 20.0):
    limit = time.monotonic() + seconds
    return split_inputs(trace(net), prop, lambda point: point, tolerance=1e-9, deadline=limit)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_one_clause_that_holds_never_hides_one_that_breaks(seed, smooth):
    net = network(seed, smooth)
    outputs = net(torch.rand(4000, 2, dtype=torch.float64))
    low, middle = float(outputs[:, 0].min()), float(outputs[:, 1].median())
    harmless = clause([1.0, 0.0, 0.0], 10 - low)
    unsafe = square(harmless, clause([0.0, 1.0, 0.0], -middle))
    found = search(net, unsafe)
    assert found.witness is not None
    assert float(unsafe.excess(net(found.witness))) <= 0


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_a_small_gap_is_proved_by_bounds_that_hold_on_a_grid(seed, smooth):
    net = network(seed, smooth)
    least = float(grid(net, square(clause([1.0, -1.0, 0.5]))).min())
    prop = square(clause([1.0, -1.0, 0.5], 0.02 - least))
    found = search(net, prop)
    assert found.witness is None
    assert found.open == 0
    assert 1e-9 < float(found.lower.min()) <= float(grid(net, prop).min())


def test_rows_of_a_clause_are_all_needed_to_break_it():
    net = nn.Linear(2, 2, bias=False).double().requires_grad_(False)
    net.weight.copy_(torch.eye(2))
    both = Clause(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([-0.4, 0.6]))
    assert search(net, square(both)).open == 0
    assert search(net, square(Clause(both.rows, torch.tensor([-0.6, 0.4])))).witness is not None


def test_bounds_of_many_boxes_are_those_of_each_alone():
    net, prop = trace(network()), square(clause([1.0, 0.0, -1.0]), clause([0.0, 1.0, 0.0]))
    low = torch.rand(5, 2, dtype=torch.float64) / 2
    from_all = bounds(net, prop, low, low + 0.3)
    one_by_one = torch.cat([bounds(net, prop, low[i : i + 1], low[i : i + 1] + 0.3) for i in range(5)])
    assert torch.allclose(from_all, one_by_one, atol=1e-12)


def bounds(graph, prop, low, high):
    region = Region(low=low, high=high)
    return clause_bounds(relax(graph, region.centre, region, parallel_slope, adaptive_slope), prop)


def test_no_time_proves_nothing():
    net = network(1)
    least = float(grid(net, square(clause([1.0, -1.0, 0.5]))).min())
    found = search(net, square(clause([1.0, -1.0, 0.5], 0.02 - least)), seconds=-1.0)
    assert found.open == 1
    assert float(found.lower.min()) == -torch.inf


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_time_limit_must_be_positive(seconds):
    with pytest.raises(UserError, match="leaves no time"):
        Exact(seconds=seconds)
    with pytest.raises(UserError, match="leaves no time"):
        settle(network(), square(clause([1.0, 0.0, 0.0])), seconds=seconds)


def several(*rows: list[float], offsets: tuple[float, ...] | None = None) -> Clause:
    """A clause that is unsafe only where all rows are."""
    found = torch.tensor(rows, dtype=torch.float64)
    return Clause(found, torch.tensor(offsets or (0.0,) * len(rows), dtype=torch.float64))


@pytest.mark.parametrize("seed", range(6))
def test_rows_that_exclude_each_other_are_proved_without_a_cut(seed):
    # y0 <= y1 and y1 <= y0 - 0.001 never hold together, though each holds somewhere in every small box.
    net = network(seed)
    middle = float(
        net(torch.full((1, 2), 0.5, dtype=torch.float64))[0, :2] @ torch.tensor([1.0, -1.0]).double()
    )
    prop = square(several([1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], offsets=(-middle, middle + 1e-3)))
    region = Region(low=prop.lower[None], high=prop.upper[None])
    graph = trace(net)
    wide = relax(graph, region.centre, region, parallel_slope, adaptive_slope)
    assert float(clause_bounds(wide, prop)) > 0
    alone = [square(several(row.tolist(), offsets=(float(shift),))) for row, shift in zip(
        prop.clauses[0].rows, prop.clauses[0].offsets, strict=True)]  # fmt: skip
    assert all(float(clause_bounds(wide, one)) < 0 for one in alone)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_a_conjunction_is_settled_as_a_grid_says(seed, smooth):
    # Offsets such that the grid's least excess is a little above, or a little below 0.
    net, generator = network(seed, smooth), torch.Generator().manual_seed(seed)
    rows = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    shifts = 0.2 * torch.randn(4, generator=generator, dtype=torch.float64)
    least = float(grid(net, square(Clause(rows, shifts))).min())
    safe, unsafe = (square(Clause(rows, shifts - least + gap)) for gap in (0.02, -0.02))
    assert float(grid(net, safe).min()) > 0
    proved, broken = search(net, safe), search(net, unsafe)
    assert proved.witness is None
    assert proved.open == 0
    assert 0 < float(proved.lower) <= 0.02 + 1e-9
    assert broken.witness is not None
    assert float(unsafe.excess(net(broken.witness))) <= 0


def test_mixed_planes_are_the_linear_programs():
    generator = torch.Generator().manual_seed(0)
    planes = torch.randn(20, 4, 3, generator=generator, dtype=torch.float64)
    shifts = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    low = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    box = Interval(low, low + torch.rand(20, 3, generator=generator, dtype=torch.float64))
    found = mixed_planes(planes, shifts, box)[0]
    single = [
        shifts[:, k] + (planes[:, k] * box.centre).sum(1) - (planes[:, k].abs() * box.radius).sum(1)
        for k in range(4)
    ]
    for i in range(20):
        # min t such that planes . x + shifts <= t over the box.
        answer = linprog(
            [0, 0, 0, 1],
            A_ub=torch.cat([planes[i], -torch.ones(4, 1)], 1).numpy(),
            b_ub=-shifts[i].numpy(),
            bounds=[*zip(box.lower[i].tolist(), box.upper[i].tolist(), strict=True), (None, None)],
        ).fun
        assert float(found[i]) <= answer + 1e-9
        assert float(found[i]) > 0 or float(found[i]) >= answer - 0.1
        assert float(found[i]) > 0 or float(found[i]) >= max(float(one[i]) for one in single) - 0.1
