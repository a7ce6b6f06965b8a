"""The largest of a group's entries: the function, its lines, and what exact methods make of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from certify.bounds import Interval
from certify.rules.operation import Relaxed
from certify.rules.pooling import MaxPool
from certify.rules.selection import Largest

LARGEST: dict[str, tuple[Largest, tuple[int, ...]]] = {
    "pool": (MaxPool((2, 2), (2, 2), (0, 0), (1, 1)), (2, 4, 4)),
    "overlapping pool with padding": (MaxPool((3, 2), (1, 2), (1, 1), (1, 1)), (2, 4, 5)),
    "dilated pool": (MaxPool((2, 2), (1, 1), (1, 0), (2, 3)), (1, 4, 5)),
    "pool of one": (MaxPool((1, 1), (1, 1), (0, 0), (1, 1)), (2, 2, 3)),
}


def some_bounds(shape: tuple[int, ...], n: int, seed: int) -> Interval:
    """Random boxes: ordinary, very narrow, very wide, of one point, and with ends in common."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    radius = torch.rand(n, *shape, generator=generator, dtype=torch.float64)
    radius = radius * 10 ** (torch.randint(-9, 4, (n, *[1] * len(shape)), generator=generator).double())
    bounds = Interval(centre - radius, centre + radius)
    bounds.upper[::5] = bounds.lower[::5]
    same = torch.rand(n, *shape, generator=generator) < 0.3
    return Interval(bounds.lower, torch.where(same, bounds.lower, bounds.upper))


def points_in(bounds: Interval, count: int, seed: int) -> Tensor:
    """(count, n, ...): corners and points inside."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(count, *bounds.lower.shape, generator=generator, dtype=torch.float64)
    share[::2] = share[::2].round()
    return (bounds.lower + share * (bounds.upper - bounds.lower)).minimum(bounds.upper)


def worst_gaps(operation: Relaxed, bounds: Interval, points: Tensor, rows: Tensor) -> Tensor:
    """The least of rows . out - (pulled rows . in + constant) over points (p, n, ...): (n, k)."""
    pulled = operation.pull(rows, bounds, None)
    values = torch.stack([operation.forward(point) for point in points])
    ours = torch.einsum("nkd,pnd->pnk", pulled.rows.flatten(2), points.flatten(2)) + pulled.constant
    return (torch.einsum("nkd,pnd->pnk", rows.flatten(2), values.flatten(2)) - ours).amin(0)


@pytest.mark.parametrize("name", LARGEST)
def test_every_point_lies_in_the_interval_and_above_the_pulled_rows(name: str) -> None:
    operation, shape = LARGEST[name]
    bounds = some_bounds(shape, 60, 1)
    points = points_in(bounds, 1700, 2)
    found = operation.interval(bounds)
    values = torch.stack([operation.forward(point) for point in points])
    assert (values >= found.lower).all()
    assert (values <= found.upper).all()
    rows = torch.randn(60, 5, *values.shape[2:], generator=torch.Generator().manual_seed(3)).double()
    rows[:, 0], rows[:, 1] = rows[:, 0].abs(), -rows[:, 1].abs()
    size = torch.maximum(bounds.lower.abs(), bounds.upper.abs()).flatten(1).amax(1, keepdim=True)
    assert (worst_gaps(operation, bounds, points, rows) >= -1e-12 * (1 + size)).all()


@pytest.mark.parametrize("name", LARGEST)
def test_the_lines_are_never_looser_than_constants(name: str) -> None:
    operation, shape = LARGEST[name]
    bounds = some_bounds(shape, 60, 4)
    out = operation.forward(bounds.lower)
    rows = (
        torch.eye(out[0].numel(), dtype=torch.float64)
        .reshape(1, -1, *out.shape[1:])
        .expand(60, -1, *out.shape[1:])
    )
    below, above = operation.pull(rows, bounds, None), operation.pull(-rows, bounds, None)
    for pulled, end in ((below, out), (above, -operation.forward(bounds.upper))):
        flat = pulled.rows.flatten(2)
        low, high = bounds.lower.flatten(1)[:, None], bounds.upper.flatten(1)[:, None]
        least = torch.where(flat > 0, flat * low, flat * high).sum(2) + pulled.constant
        assert (least >= end.flatten(1) - 1e-12 * (1 + end.flatten(1).abs())).all()


@pytest.mark.parametrize("name", LARGEST)
def test_what_cannot_move_the_result_is_decided(name: str) -> None:
    operation, shape = LARGEST[name]
    bounds = some_bounds(shape, 60, 5)
    members = operation.members(torch.Size(shape)).flatten(1)
    lower, upper = bounds.lower.flatten(1), bounds.upper.flatten(1)
    expected = torch.zeros_like(lower, dtype=torch.bool)
    for group in members.T:
        places = group[group >= 0]
        for i in range(60):
            winner = places[lower[i, places].argmax()]
            rivals = [j for j in places.tolist() if upper[i, j] >= lower[i, winner]]
            others = [j for j in rivals if j != int(winner) and upper[i, j] > lower[i, winner]]
            if others:
                expected[i, rivals] = True
    assert torch.equal(operation.undecided(bounds).flatten(1), expected)


def test_an_upper_line_is_the_chord_over_the_entry_that_reaches_highest() -> None:
    pool = MaxPool((1, 2), (1, 2), (0, 0), (1, 1))
    bounds = Interval(torch.tensor([[[[-1.0, -3.0]]]]).double(), torch.tensor([[[[3.0, 1.0]]]]).double())
    pulled = pool.pull(-torch.ones(1, 1, 1, 1, 1).double(), bounds, None)
    # max(x, 1) on [-1, 3] is at most 1 + (x + 1) / 2.
    assert torch.allclose(pulled.rows.flatten(), torch.tensor([-0.5, 0.0]).double())
    assert float(pulled.constant) == pytest.approx(-1.5)


@pytest.mark.parametrize("name", LARGEST)
def test_gradients_are_finite(name: str) -> None:
    operation, shape = LARGEST[name]
    bounds = some_bounds(shape, 20, 6)
    ends = [end.clone().requires_grad_(True) for end in (bounds.lower, bounds.upper)]
    out = operation.forward(bounds.lower).shape
    rows = torch.randn(20, 3, *out[1:], generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    pulled = operation.pull(rows, Interval(*ends), None)
    for gradient in torch.autograd.grad(pulled.rows.square().sum() + pulled.constant.sum(), ends):
        assert gradient.isfinite().all()
