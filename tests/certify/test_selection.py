"""The largest of a group's entries: the function, its lines, and what exact methods make of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.backward import adaptive_slope, parallel_slope, relax
from certify.bounds import Interval, dot, entries
from certify.crown import Crown
from certify.exact import settle
from certify.graph import trace
from certify.lowering import without_maxima
from certify.property import Clause, Property
from certify.rules.extremes import Stack
from certify.rules.operation import Relaxed
from certify.rules.pooling import MaxPool
from certify.rules.selection import Largest, LargestOver
from certify.slopes import climbed
from defenses.zoo import ModelName, load
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.certify.test_rules import Forward

LARGEST: dict[str, tuple[Largest, tuple[int, ...]]] = {
    "pool": (MaxPool((2, 2), (2, 2), (0, 0), (1, 1)), (2, 4, 4)),
    "overlapping pool with padding": (MaxPool((3, 2), (1, 2), (1, 1), (1, 1)), (2, 4, 5)),
    "dilated pool": (MaxPool((2, 2), (1, 1), (1, 0), (2, 3)), (1, 4, 5)),
    "pool of one": (MaxPool((1, 1), (1, 1), (0, 0), (1, 1)), (2, 2, 3)),
    "over a dimension": (LargestOver((2,), False), (4, 3, 2)),
    "over the last": (LargestOver((-1,), True), (4, 5)),
    "over two": (LargestOver((-1, 1), False), (2, 4, 3)),
    "over two, kept": (LargestOver((1, 3), True), (2, 4, 3)),
    "over all": (LargestOver((1,), False), (5,)),
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


def worst_gaps(
    operation: Relaxed, bounds: Interval, points: Tensor, rows: Tensor, alpha: Tensor | None = None
) -> Tensor:
    """The least of rows . out - (pulled rows . in + constant) over points (p, n, ...): (n, k)."""
    pulled = operation.pull(rows, bounds, alpha)
    values = torch.stack([operation.forward(point) for point in points])
    ours = torch.einsum("nkd,pnd->pnk", entries(pulled.rows, 2), entries(points, 2)) + pulled.constant
    return (torch.einsum("nkd,pnd->pnk", entries(rows, 2), entries(values, 2)) - ours).amin(0)


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
    for alpha in mixtures(operation, bounds, 5):
        assert (worst_gaps(operation, bounds, points, rows, alpha) >= -1e-12 * (1 + size)).all()


def mixtures(operation: Largest, bounds: Interval, rows: int) -> list[Tensor]:
    """Weights for all rows and for each, some of them zero, and none at all."""
    first = operation.adaptive(bounds)
    generator = torch.Generator().manual_seed(9)
    each = torch.rand(len(first), rows, *first.shape[1:], generator=generator, dtype=torch.float64)
    return [each[:, 0], (2 * each - 1).clamp(min=0), 0 * each, 0 * first]


@pytest.mark.parametrize("name", LARGEST)
def test_the_first_mixture_is_the_entry_with_the_largest_lower_bound(name: str) -> None:
    operation, shape = LARGEST[name]
    bounds = some_bounds(shape, 30, 10)
    rows = torch.randn(30, 4, *operation.forward(bounds.lower).shape[1:]).double()
    alpha = operation.adaptive(bounds)
    plain, mixed, none = (operation.pull(rows, bounds, part) for part in (None, alpha, 0 * alpha))
    for other in (mixed, none):
        assert torch.allclose(plain.rows, other.rows, atol=1e-12)
        assert torch.allclose(plain.constant, other.constant, atol=1e-12)


def test_a_climb_finds_the_mixture_that_is_the_optimum() -> None:
    """max(x, y) - (0.3 x + 0.7 y) is never below 0, which no single entry shows."""
    network = Forward(
        lambda x: torch.cat([x.amax(1, keepdim=True), x @ torch.tensor([[0.3], [0.7]]).double()], 1)
    )
    graph, x = trace(network), torch.zeros(1, 2, dtype=torch.float64)
    relaxation = relax(graph, x, ThreatModel("linf", 1.0, Box(-1.0, 1.0)), parallel_slope, adaptive_slope)
    rows = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
    last = len(graph.nodes) - 1
    assert float(relaxation.lower(last, rows)) == pytest.approx(-1.4)
    found = climbed(relaxation, last, rows, 60, 0.25, lambda samples, best: best[:, 0] > 0)
    assert -0.02 <= float(found) <= 1e-12


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
        assert (least >= entries(end, 1) - 1e-12 * (1 + entries(end, 1).abs())).all()


@pytest.mark.parametrize("name", LARGEST)
def test_what_cannot_move_the_result_is_decided(name: str) -> None:
    operation, shape = LARGEST[name]
    bounds = some_bounds(shape, 60, 5)
    members = entries(operation.members(torch.Size(shape)), 1)
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


PLANES, LINES, ROW = (2, 6, 8), (3, 9), (12,)
CALLS = {
    "amax": (lambda x: x.amax(2), PLANES),
    "amax of two, kept": (lambda x: torch.amax(x, (1, -1), keepdim=True), PLANES),
    "amin": (lambda x: torch.amin(x, dim=-1), PLANES),
    "values": (lambda x: x.max(1).values, PLANES),
    "first of both": (lambda x: torch.max(x, dim=2, keepdim=True)[0], PLANES),
    "least values": (lambda x: torch.min(x, 1).values + x.transpose(1, 2).min(-1)[0], LINES),
    "maximum": (lambda x: torch.maximum(x[:, :3], x[:, 1:4]), ROW),
    "larger of two": (lambda x: torch.max(x[:, :3], x[:, 1:4]) + x[:, :3].max(other=x[:, 2:5]), ROW),
    "lesser of two": (lambda x: torch.min(x[:, :3], x[:, 1:4]) + x[:, :3].minimum(x[:, 6:9]), ROW),
    "with a constant": (lambda x: torch.max(x, torch.tensor(0.3)) + torch.min(torch.tensor(0.1), x), ROW),
    "pool over one": (nn.MaxPool1d(3, 2, 1, 1), LINES),
    "pool by a function": (lambda x: F.max_pool1d(x, 2), LINES),
    "to one": (nn.AdaptiveMaxPool2d(1), PLANES),
    "to one by a function": (lambda x: F.adaptive_max_pool2d(x, (1, 1)), PLANES),
    "line to one": (nn.AdaptiveMaxPool1d(1), LINES),
    "line to one by a function": (lambda x: F.adaptive_max_pool1d(x, 1), LINES),
    "to a number": (lambda x: x.amax(1).unsqueeze(1), ROW),
    "maxout": (lambda x: x.unflatten(1, (-1, 3)).amax(2), ROW),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_compute_what_torch_computes_as_relus_too(name: str) -> None:
    function, shape = CALLS[name]
    network = nn.Sequential(function if isinstance(function, nn.Module) else Forward(function))
    x = torch.randn(7, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    graph, expected = trace(network), network(x)
    lowered = without_maxima(graph, x)
    assert not any(isinstance(node.operation, Largest) for node in lowered.nodes)
    for one in (graph, lowered):
        assert one.values(x)[-1].shape == expected.shape
        assert torch.allclose(one.values(x)[-1], expected, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.maximum(x, x[:, :5]), "shapes that broadcast"),
        (lambda x: torch.maximum(x, x.unflatten(1, (3, 4))), "as many dimensions"),
        (lambda x: x.amax(-2), "mixes them"),
        (lambda x: x.unflatten(-2, (1, -1)), "samples"),
        (nn.AdaptiveMaxPool1d(2), "output size of 2"),
        (nn.MaxPool1d(2, return_indices=True), "return_indices"),
        (lambda x: F.max_pool1d(x, 2), "channels, length"),
    ],
)
def test_what_is_not_understood_says_why(function, message: str) -> None:
    network = function if isinstance(function, nn.Module) else Forward(function)
    with pytest.raises(UserError, match=message):
        trace(nn.Sequential(network)).values(torch.zeros(1, 12))


def test_a_stack_is_its_own_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 4, 3, 2, generator=generator, dtype=torch.float64)
    stack, rows = Stack(), torch.randn(4, 5, 2, 3, 2, generator=generator, dtype=torch.float64)
    back = stack.transpose(rows, first.shape[1:], second.shape[1:])
    ours = dot(back[0], first) + dot(back[1], second)
    assert torch.allclose(dot(rows, stack.forward(first, second)), ours, atol=1e-12)
    one = torch.ones((), dtype=torch.float64)
    assert float(stack.lipschitz("l2", [one, one], [first.shape[1:]] * 2)) == pytest.approx(2**0.5)
    found = stack.interval(Interval(first - 1, first), Interval(second, second + 2))
    assert torch.equal(found.lower, stack.forward(first - 1, second))
    assert torch.equal(found.upper, stack.forward(first, second + 2))


class Maxima(nn.Module):
    """Two inputs through maxima of every kind."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.head = nn.Linear(2, 9), nn.Linear(4, 6), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        pieces = self.first(x).unflatten(1, (3, 3))
        x = torch.cat([pieces.amax(2), pieces.min(1).values.amax(1).unsqueeze(1)], 1)
        x = self.second(x)
        return self.head(torch.maximum(x[:, :3], x[:, 3:]) - torch.min(x[:, :3], 0.3 * x[:, 3:]))


@pytest.mark.parametrize("few", [0, 16])
@pytest.mark.parametrize("seed", range(6))
def test_exact_agrees_with_a_grid(seed: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certify.settle.FEW_INPUTS", few)
    network = Maxima(seed).double().eval()
    axis = torch.linspace(-1, 1, 401, dtype=torch.float64)
    with torch.no_grad():
        least = float(network(torch.cartesian_prod(axis, axis)).min())
    end = torch.ones(2, dtype=torch.float64)
    for shift, expected in ((-0.05, "certified"), (1e-6, "broken")):
        clause = Clause(torch.ones(1, 1, dtype=torch.float64), torch.tensor([-(least + shift)]).double())
        verdict = settle(network, Property(-end, end, (clause,)), seconds=30.0)
        assert verdict.status == expected


def test_maxout_of_the_zoo_has_a_certificate() -> None:
    judged, data = load(ModelName.parse("maxout")), load_data("mnist5k")
    images = data.batch(data.panel(2))
    lower = Crown().run(judged, images, ThreatModel("linf", 0.005), Randomness(0)).lower
    assert (lower > 0).all()
