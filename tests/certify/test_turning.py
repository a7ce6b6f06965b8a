"""Activations whose derivative turns, and hinges: their lines, torch's own values, what exact settles."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.base import CERTIFIERS
from certify.bounds import Interval
from certify.exact import settle
from certify.graph import trace
from certify.property import Clause, Property
from certify.rules.operation import Affine
from certify.rules.product import Product
from certify.rules.turning import COURSES, ENDS, Turning
from models.discover import import_modules
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.certify.builders import batch, model, smallest_margins
from tests.certify.test_rules import Forward

import_modules("certify")
TURNING = {
    **{kind: Turning(kind) for kind in COURSES},
    "flat elu": Turning("elu", 0.3),
    "steep elu": Turning("elu", 2.5),
    "elu of no slope": Turning("elu", 0.0),
}
LAYERS = {
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "selu": nn.SELU(),
    "celu": nn.CELU(0.6),
    "elu": nn.ELU(1.7),
    "gelu": nn.GELU(approximate="tanh"),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "logsigmoid": nn.LogSigmoid(),
    "tanhshrink": nn.Tanhshrink(),
    "softshrink": nn.Softshrink(0.3),
    "threshold": nn.Threshold(0.2, 0.2),
    "prelu": nn.PReLU(init=0.4),
    "steep leaky relu": nn.LeakyReLU(1.8),
    "bent leaky relu": nn.LeakyReLU(-0.4),
    "steep prelu": nn.PReLU(init=-1.6),
    "rrelu": nn.RReLU(0.1, 0.6).eval(),
    "steep rrelu": nn.RReLU(1.1, 1.7).eval(),
}


def some_intervals() -> Interval:
    """Ordinary, very narrow, very wide and of one point; with ends at turns."""
    generator = torch.Generator().manual_seed(5)
    centres = 3 * torch.randn(900, 1, generator=generator, dtype=torch.float64)
    widths = 10 ** (11 * torch.rand(900, 1, generator=generator, dtype=torch.float64) - 8)
    widths[:60] = 0.0
    lower, upper = centres - widths, centres + widths
    turns = [0.0, 3.0, -3.0, 2.3993572805154677, -2.3993572805154677, 1.4905711794854284, -1.4185040087908284]
    for place, turn in enumerate(turns):
        lower[100 + place], upper[100 + place] = turn, turn + 2.5
        lower[110 + place], upper[110 + place] = turn - 4, turn
        lower[120 + place] = upper[120 + place] = turn
    return Interval(lower, upper)


@pytest.mark.parametrize("name", TURNING)
def test_functions_lie_between_their_lines_and_in_their_intervals(name: str) -> None:
    curve, bounds = TURNING[name], some_intervals()
    z = bounds.lower + torch.linspace(0, 1, 2001, dtype=torch.float64) * (bounds.upper - bounds.lower)
    z = torch.cat([z, z.new_tensor(COURSES[curve.kind].turns).expand(len(z), -1)], 1)
    z = z.maximum(bounds.lower).minimum(bounds.upper)
    value, lines, interval = curve.forward(z), curve.lines(bounds, None), curve.interval(bounds)
    below = lines.lower_slope * z + lines.lower_intercept
    above = lines.upper_slope * z + lines.upper_intercept
    slack = 1e-12 * (1 + bounds.lower.abs().maximum(bounds.upper.abs()))
    assert (below <= value + slack).all()
    assert (value <= above + slack).all()
    assert (interval.lower <= value + 1e-15).all()
    assert (value <= interval.upper + 1e-15).all()
    # The lines touch the function, and the interval's ends are values of it, up to the grid.
    step = (bounds.upper - bounds.lower) / 1000
    reach = slack + step * (3 if curve.kind in ("elu", "hardswish") else step.clamp(max=3))
    for gap in (value - below, above - value, value - interval.lower, interval.upper - value):
        assert (gap.amin(1, keepdim=True) <= reach).all()


@pytest.mark.parametrize("name", TURNING)
def test_the_derivative_is_monotone_between_the_turns(name: str) -> None:
    curve = TURNING[name]
    course = COURSES[curve.kind]
    edges = [-ENDS, *course.turns, ENDS]
    for count, (start, stop) in enumerate(itertools.pairwise(edges)):
        inside = torch.linspace(start, stop, 200_001, dtype=torch.float64)[1:-1].requires_grad_(True)
        (slope,) = torch.autograd.grad(curve.forward(inside).sum(), inside)
        assert torch.allclose(slope, curve._slope(inside).detach(), atol=1e-10)
        rising = course.rising == (count % 2 == 0)
        assert ((slope.diff() if rising else -slope.diff()) >= -1e-13).all()
    one = torch.ones((), dtype=torch.float64)
    steepest = curve._slope(torch.linspace(-ENDS, ENDS, 400_001, dtype=torch.float64)).abs().max()
    assert steepest <= curve.lipschitz("l2", [one], []) <= steepest * (1 + 1e-6)


def test_a_line_touches_hardswish_where_its_slope_jumps() -> None:
    curve, bounds = Turning("hardswish"), Interval(*torch.tensor([[[-6.0]], [[0.0]]]).double())
    lines = curve.lines(bounds, None)
    z = torch.linspace(-6, 0, 601, dtype=torch.float64)
    assert float((curve.forward(z) - lines.lower_slope * z).min()) == pytest.approx(
        float(lines.lower_intercept)
    )
    assert float(lines.lower_intercept) == pytest.approx(-0.375)
    assert float(lines.upper_intercept) == pytest.approx(0.0)


@pytest.mark.parametrize("name", TURNING)
def test_gradients_are_finite(name: str) -> None:
    bounds = some_intervals()
    ends = [end.clone().requires_grad_(True) for end in (bounds.lower, bounds.upper)]
    curve = TURNING[name]
    lines, interval = curve.lines(Interval(*ends), None), curve.interval(Interval(*ends))
    total = (
        lines.lower_intercept.sum()
        + lines.upper_intercept.sum()
        + interval.lower.sum()
        + interval.upper.sum()
    )
    for gradient in torch.autograd.grad(total, ends):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_what_torch_computes(name: str) -> None:
    network = nn.Sequential(copy.deepcopy(LAYERS[name])).double()
    x = torch.linspace(-9, 9, 122, dtype=torch.float64).reshape(61, 2)
    assert torch.allclose(trace(network).values(x)[-1], network(x), atol=1e-14)


SLOPES = torch.tensor([0.3, -0.2, 1.4], dtype=torch.float64)
CALLS = {
    "silu": F.silu,
    "mish": F.mish,
    "selu": lambda x: F.selu(x) + torch.selu(x),
    "celu": lambda x: F.celu(x, 0.5) + torch.celu(x, alpha=2.0),
    "elu": lambda x: F.elu(x, 0.5),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "softshrink": lambda x: F.softshrink(x, 0.2),
    "threshold": lambda x: F.threshold(x, 0.1, 0.1),
    "prelu": lambda x: F.prelu(x, SLOPES),
    "rrelu": lambda x: F.rrelu(x, 0.2, 0.5),
    "rrelu without settings": F.rrelu,
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 2)])
def test_calls_compute_what_torch_computes(name: str, shape: tuple[int, ...]) -> None:
    x = 3 * torch.randn(9, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = Forward(CALLS[name])
    assert torch.allclose(trace(network).values(x)[-1], network(x), atol=1e-14)


def test_slopes_of_a_prelu_follow_their_training_and_bound_as_tightly_as_a_leaky_relu() -> None:
    layer = nn.PReLU(3).double()
    with torch.no_grad():
        graph = trace(nn.Sequential(layer))
        layer.weight.fill_(0.3)
        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        assert torch.allclose(graph.values(x)[-1], F.leaky_relu(x, 0.3), atol=1e-15)
        found = [Interval(x - 1, x + 1)]
        for node in graph.nodes[1:]:
            found.append(node.operation.interval(*(found[j] for j in node.inputs)))
    assert torch.allclose(found[-1].lower, F.leaky_relu(x - 1, 0.3), atol=1e-14)
    assert torch.allclose(found[-1].upper, F.leaky_relu(x + 1, 0.3), atol=1e-14)


class Gated(nn.Module):
    """Activations that are spelled out, as layers and as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.sigmoid, self.softplus, self.hard = nn.Sigmoid(), nn.Softplus(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.sigmoid(x) + self.sigmoid(x) * x + torch.mul(x, x.sigmoid())
        y = y * torch.tanh(F.softplus(y)) - torch.tanh(self.softplus(y)) * y
        return y * F.hardsigmoid(y) + 2 * (self.hard(y) * y)


def test_activations_that_are_spelled_out_are_recognised() -> None:
    x, network = torch.linspace(-5, 5, 80, dtype=torch.float64).reshape(40, 2), Gated()
    graph = trace(network)
    assert torch.allclose(graph.values(x)[-1], network(x), atol=1e-13)
    kinds = [node.operation.kind for node in graph.nodes if isinstance(node.operation, Turning)]
    assert kinds == ["silu"] * 3 + ["mish"] * 2 + ["hardswish"] * 2
    assert all(isinstance(node.operation, Turning | Affine | None) for node in graph.nodes)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.sigmoid(2 * x),
        lambda x: x[:, :1] * torch.sigmoid(x[:, :1].flatten(1)),
        lambda x: x * torch.tanh(F.softplus(x, 2.0)),
        lambda x: x * F.softplus(torch.tanh(x)),
        lambda x: torch.sigmoid(x) * torch.sigmoid(x),
    ],
)
def test_what_only_looks_like_a_gate_is_a_product(function) -> None:
    x = torch.linspace(-3, 3, 18, dtype=torch.float64).reshape(6, 3)
    graph = trace(Forward(function))
    assert any(isinstance(node.operation, Product) for node in graph.nodes) or "square" in str(graph.nodes)
    assert torch.allclose(graph.values(x)[-1], function(x), atol=1e-14)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.CELU(-1.0), "above 0"),
        (nn.ELU(-0.5), "from 0 on"),
        (nn.RReLU(), "RReLU.*train mode its slopes are random"),
        (nn.Hardshrink(-1.0), "below 0"),
    ],
)
def test_what_has_no_rule_is_refused_with_the_reason(layer: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trace(nn.Sequential(layer))


@pytest.mark.parametrize("name", LAYERS)
def test_certificates_stay_below_every_margin_that_is_found(name: str) -> None:
    torch.manual_seed(3)
    layer = copy.deepcopy(LAYERS[name])
    network = nn.Sequential(nn.Flatten(), nn.Linear(72, 8), layer, nn.Linear(8, 6), layer, nn.Linear(6, 3))
    for parameter in network.parameters():
        parameter.data.mul_(1.5 if parameter.dim() > 1 else 1.0)
    judged, data = model(network), batch(3)
    for norm, eps in (("linf", 0.05), ("l2", 0.3)):
        threat = ThreatModel(norm, eps)
        least, count = smallest_margins(judged, data, threat)
        assert count > 100
        for certifier in (
            "ibp",
            "polytope",
            "crown",
            "alpha-crown",
            *(["lipschitz"] if norm == "l2" else []),
        ):
            lower = CERTIFIERS[certifier]().run(judged, data, threat, Randomness(0)).lower
            lower = lower.scatter(1, data.y[:, None], 0.0)
            assert (lower <= least + 1e-6).all()
            assert lower.isfinite().all()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("few", [0, 16])
def test_exact_agrees_with_a_grid(name: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certify.settle.FEW_INPUTS", few)
    torch.manual_seed(7)
    layer = copy.deepcopy(LAYERS[name])
    network = nn.Sequential(nn.Linear(2, 6), layer, nn.Linear(6, 5), layer, nn.Linear(5, 1)).double()
    axis = torch.linspace(-1, 1, 401, dtype=torch.float64)
    with torch.no_grad():
        least = float(network(torch.cartesian_prod(axis, axis)).min())
    end = torch.ones(2, dtype=torch.float64)
    for shift, expected in ((-0.05, "certified"), (1e-6, "broken")):
        clause = Clause(torch.ones(1, 1, dtype=torch.float64), torch.tensor([-(least + shift)]).double())
        verdict = settle(network, Property(-end, end, (clause,)), seconds=30.0)
        assert verdict.status == expected
