"""Products of values: planes at a box's corners, gaps that are the bounds' own, verdicts beside a grid."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import certify.settle as steps
from certify.backward import adaptive_slope, relax
from certify.bounds import Interval, dot
from certify.exact import settle
from certify.graph import trace
from certify.property import Clause, Property
from certify.rules.activation import ReLU
from certify.rules.concatenation import Extended
from certify.rules.convex import Convex
from certify.rules.normalisation import Centred
from certify.rules.operation import Affine, Relaxed
from certify.rules.pooling import Gather
from certify.rules.product import Product
from certify.rules.sigmoidal import Sigmoidal
from certify.rules.softmax import Differences
from models.errors import UserError
from models.threat import Box, ThreatModel
from tests.certify.test_rules import Forward

DOUBLE = torch.float64


def some_bounds(*shape: int) -> Interval:
    generator = torch.Generator().manual_seed(2)
    centre = 2 * torch.randn(*shape, generator=generator, dtype=DOUBLE)
    return Interval.around(centre, torch.rand(*shape, generator=generator, dtype=DOUBLE) * 2)


def corners(bounds: Interval) -> Tensor:
    """The four corners of pairs (n, 2, m): (4, n, 2, m)."""
    ends = torch.stack([bounds.lower, bounds.upper])
    return torch.stack(
        [torch.stack([ends[i][:, 0], ends[j][:, 1]], 1) for i, j in itertools.product((0, 1), (0, 1))]
    )


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0, None])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_planes_enclose_a_product_and_meet_it_at_corners(mix: float | None, sign: float) -> None:
    """A product less a plane is bilinear, so that its extremes over a box are at corners."""
    bounds, product = some_bounds(5, 2, 7), Product()
    rows = sign * torch.eye(7, dtype=DOUBLE).expand(5, 7, 7)
    alpha = None if mix is None else torch.full((5, 2, 7), mix, dtype=DOUBLE)
    pulled = product.pull(rows, bounds, alpha, both=mix is None)
    values = [(sign * product.forward(corner), dot(pulled.rows, corner)) for corner in corners(bounds)]
    gaps = torch.stack([value - plane - pulled.constant for value, plane in values])
    assert gaps.amin() >= -1e-12
    # Pure planes are met on two sides of the box, which have three corners, mixtures in two of them.
    touched = (gaps < 1e-9).sum(0)
    assert (touched >= (3 if mix in (0.0, 1.0) else 2)).all()
    if mix is None:
        turned = product.pull(-rows, bounds, None)
        assert pulled.opposite is not None
        assert torch.allclose(turned.rows, -pulled.rows)
        assert torch.allclose(turned.constant, pulled.opposite)


def test_every_row_has_planes_of_its_own_alpha() -> None:
    bounds, product = some_bounds(3, 2, 4), Product()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 5, 4, generator=generator, dtype=DOUBLE)
    alpha = torch.rand(3, 5, 2, 4, generator=generator, dtype=DOUBLE)
    together = product.pull(rows, bounds, alpha)
    for k in range(5):
        alone = product.pull(rows[:, k : k + 1], bounds, alpha[:, k])
        assert torch.allclose(together.rows[:, k : k + 1], alone.rows)
        assert torch.allclose(together.constant[:, k : k + 1], alone.constant)


OPERATIONS: dict[str, tuple[Relaxed, tuple[int, ...]]] = {
    "product": (Product(), (2, 3)),
    "relu": (ReLU(), (3,)),
    "tanh": (Sigmoidal("tanh"), (3,)),
    "square": (Convex("square"), (3,)),
    "exp": (Convex("exp"), (3,)),
}


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("case", OPERATIONS)
def test_gaps_add_up_to_what_a_bound_loses(case: str, free: bool) -> None:
    operation, shape = OPERATIONS[case]
    bounds, generator = some_bounds(6, *shape), torch.Generator().manual_seed(1)
    rows = torch.randn(6, 3, generator=generator, dtype=DOUBLE)
    share = torch.rand(bounds.lower.shape, generator=generator, dtype=DOUBLE)
    alpha = torch.rand(bounds.lower.shape, generator=generator, dtype=DOUBLE) if free else None
    z = bounds.lower + share * (bounds.upper - bounds.lower)
    pulled = operation.pull(rows[:, None], bounds, alpha)
    lost = (rows * operation.forward(z)).sum(1) - dot(pulled.rows, z)[:, 0] - pulled.constant[:, 0]
    gap = operation.gap(rows, z, bounds, alpha)
    assert gap.shape == bounds.lower.shape
    # Both factors of a product are charged for it.
    found = (gap[:, 0] if case == "product" else gap).sum(1)
    assert torch.allclose(found, lost, atol=1e-12)


def test_intervals_of_products_are_their_corners() -> None:
    bounds = some_bounds(5, 2, 7)
    found, ends = Product().interval(bounds), corners(bounds).prod(2)
    assert torch.equal(found.lower, ends.amin(0))
    assert torch.equal(found.upper, ends.amax(0))


ALONE: dict[str, tuple[Affine, tuple[int, ...]]] = {
    "centred": (Centred(-1), (3, 4)),
    "centred over two": (Centred(-2), (2, 3, 4)),
    "centred from the second": (Centred(2), (2, 3, 4)),
    "differences": (Differences(-1), (2, 3)),
    "differences of the first": (Differences(1), (3, 2)),
    "a corrected mean": (Gather((1, -1), False, correction=1.0), (2, 3, 4)),
    "a constant before": (Extended(1, lambda: torch.ones(1, 2, 4), True), (3, 4)),
    "a constant behind": (Extended(-1, lambda: 2 * torch.ones(1, 3, 1), False), (3, 4)),
}


@pytest.mark.parametrize("case", ALONE)
def test_an_affine_operation_is_its_own_matrix(case: str) -> None:
    operation, shape = ALONE[case]
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    value = operation.forward(x)
    size = value[0].numel()
    rows = torch.eye(size, dtype=DOUBLE).reshape(1, size, *value.shape[1:]).expand(2, -1, *value.shape[1:])
    (matrix,) = operation.transpose(rows, x.shape[1:])
    constant = torch.as_tensor(operation.constant(rows))
    assert torch.allclose(dot(matrix, x) + constant, value.flatten(1), atol=1e-12)
    exact, one = matrix[0].flatten(1), torch.ones((), dtype=DOUBLE)
    for norm, order in (("linf", torch.inf), ("l2", 2)):
        assert (
            operation.lipschitz(norm, [one], [x.shape[1:]]) >= torch.linalg.matrix_norm(exact, order) - 1e-9
        )
    radius = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    found = operation.interval(Interval(x - radius, x + radius))
    reach = (exact.abs() @ radius.flatten(1).T).T.reshape(value.shape)
    assert torch.allclose(found.lower, value - reach, atol=1e-12)
    assert torch.allclose(found.upper, value + reach, atol=1e-12)


SUMS = {
    "means taken away": lambda x: x - x.mean(2, keepdim=True),
    "rows and columns": lambda x: x.amax(1, keepdim=True) + x.mean(2, keepdim=True),
    "the larger": lambda x: torch.maximum(x, x.mean((1, 2), keepdim=True)),
    "products": lambda x: x * x.sum(1, keepdim=True),
    "quotients": lambda x: x / (1 + x.abs().amax(2, keepdim=True)),
    "a row by a column": lambda x: x[:, :1, :, None] * x[:, :, :1, None],
    "matrices": lambda x: x.transpose(1, 2) @ x,
    "batches of matrices": lambda x: torch.bmm(x, x.transpose(1, 2)),
    "heads": lambda x: x.unflatten(2, (2, 2)) @ x.unflatten(2, (2, 2)).transpose(-1, -2),
    "powers": lambda x: x**3 + x**4 - x**5 + x**6 / 7 + x**7 + x**1,
    "powers of what is positive": lambda x: (x.abs() + 1) ** 0.5 + (1 + x**2) ** -0.5 + (x**2 + 2) ** -2,
    "stacked": lambda x: torch.stack([x, 2 * x, x.sin()], 2) * torch.stack([x], -2),
    "every index": lambda x: x[..., 0, None] + x[:, None, :, 1].transpose(1, 2),
}


@pytest.mark.parametrize("case", SUMS)
def test_values_that_meet_are_what_torch_computes_and_are_bounded(case: str) -> None:
    network, generator = Forward(SUMS[case]), torch.Generator().manual_seed(4)
    x = torch.randn(3, 3, 4, generator=generator, dtype=DOUBLE)
    graph, threat = trace(network), ThreatModel("linf", 0.2, Box(-9.0, 9.0))
    value = graph.values(x)[-1]
    assert torch.allclose(value, network(x), atol=1e-12)
    relaxation, last = relax(graph, x, threat, adaptive_slope), len(graph.nodes) - 1
    size = value[0].numel()
    rows = torch.eye(size, dtype=DOUBLE).reshape(1, size, *value.shape[1:]).expand(3, -1, *value.shape[1:])
    found = relaxation.range(last, rows)
    for _ in range(200):
        moved = x + 0.2 * (2 * torch.rand(x.shape, generator=generator, dtype=DOUBLE) - 1).sign()
        here = network(moved).flatten(1)
        assert (found.lower <= here + 1e-10).all()
        assert (here <= found.upper + 1e-10).all()


class Mixed(nn.Module):
    """Two inputs through products, a softmax, waves and exponentials."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.head = nn.Linear(2, 4), nn.Linear(2, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first(x), self.second(x)
        mixed = (2 * first).softmax(1) * second + torch.sin(2 * first) * 0.3
        return self.head(mixed / (1 + torch.exp(0.5 * second)))


@pytest.mark.parametrize("few", [0, 16])
@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.slow), 1, 2])
def test_exact_agrees_with_a_grid(seed: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By branches that cut ranges, factors' among them, and by branches that cut the inputs."""
    monkeypatch.setattr(steps, "FEW_INPUTS", few)
    network = Mixed(seed).double()
    axis = torch.linspace(-0.5, 0.5, 401, dtype=DOUBLE)
    with torch.no_grad():
        least = float(network(torch.cartesian_prod(axis, axis)).min())
    end = torch.full((2,), 0.5, dtype=DOUBLE)
    for shift, expected in ((-0.01, "certified"), (1e-6, "broken")):
        clause = Clause(torch.ones(1, 1, dtype=DOUBLE), torch.tensor([-(least + shift)]).double())
        verdict = settle(network, Property(-end, end, (clause,)), seconds=60.0)
        assert verdict.status == expected


def test_samples_are_never_broadcast() -> None:
    with pytest.raises(UserError, match="shapes that broadcast"):
        trace(Forward(lambda x: x + x[:, :3])).values(torch.zeros(2, 4))
    with pytest.raises(UserError, match="as many dimensions"):
        trace(Forward(lambda x: x * x[:, :, 0])).values(torch.zeros(2, 2, 2))


def test_a_constant_of_each_sample_is_joined_to_none() -> None:
    class Tagged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tag = nn.Parameter(torch.ones(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.tag], 1)

    with pytest.raises(UserError, match="same for all samples"):
        trace(Tagged()).values(torch.zeros(2, 4))


class Apart(nn.Module):
    """Slopes climb in one branch, while before the curve of the other none does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Linear(2, 5), nn.Linear(2, 5)
        self.between, self.head = nn.Linear(5, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(x)) + torch.tanh(self.between(torch.sin(3 * self.second(x)))))


def test_ranges_that_no_slope_moves_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "FEW_INPUTS", 0)
    network, end = Apart().double(), torch.full((2,), 0.7, dtype=DOUBLE)
    axis = torch.linspace(-0.7, 0.7, 301, dtype=DOUBLE)
    with torch.no_grad():
        least = float(network(torch.cartesian_prod(axis, axis)).min())
    for shift, expected in ((-0.02, "certified"), (1e-6, "broken")):
        clause = Clause(torch.ones(1, 1, dtype=DOUBLE), torch.tensor([-(least + shift)]).double())
        assert settle(network, Property(-end, end, (clause,)), seconds=60.0).status == expected
