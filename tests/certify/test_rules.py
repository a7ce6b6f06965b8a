"""Each rule alone: affine ones against their own matrix, curved ones against a fine grid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval, dot
from certify.graph import trace
from certify.rules.convex import Convex
from certify.rules.curve import GELU, Softplus
from certify.rules.linear import WORTH, Linear
from certify.rules.operation import Affine
from certify.rules.sigmoidal import SIGMOIDAL, Sigmoidal
from models.errors import UserError

PLANES = (2, 5, 6)


class Forward(nn.Module):
    """A network from a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


MATRIX = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
AFFINE = {
    "permute": (lambda: Forward(lambda x: x.permute(0, 3, 1, 2)), PLANES),
    "permute by a tuple": (lambda: Forward(lambda x: torch.permute(x, (0, 2, 3, 1))), PLANES),
    "transpose": (lambda: Forward(lambda x: x.transpose(-1, 1)), PLANES),
    "slice": (lambda: Forward(lambda x: x[:, :, 1:4, ::2]), PLANES),
    "index": (lambda: Forward(lambda x: x[:, 1, :, -2]), PLANES),
    "narrow": (lambda: Forward(lambda x: x.narrow(3, 2, 3)), PLANES),
    "pad": (lambda: Forward(lambda x: F.pad(x, (1, 0, 2, 3), value=-0.7)), PLANES),
    "crop": (lambda: Forward(lambda x: F.pad(x, (-1, 2, 0, -2), value=0.4)), PLANES),
    "zero pad": (lambda: nn.ZeroPad2d((1, 2, 0, 1)), PLANES),
    "constant pad": (lambda: nn.ConstantPad2d(1, 0.3), PLANES),
    "broadcast": (lambda: Forward(lambda x: torch.broadcast_to(x, (-1, 3, 4, 5))), (1, 4, 1)),
    "expand": (lambda: Forward(lambda x: x.expand(x.shape[0], 2, -1, 6)), (2, 5, 1)),
    "expand nothing": (lambda: Forward(lambda x: x.expand(-1, 2, 3)), (2, 3)),
    "unsqueeze": (lambda: Forward(lambda x: x.unsqueeze(-1)), (3, 4)),
    "squeeze": (lambda: Forward(lambda x: x.squeeze(2)), (3, 1, 4)),
    "unflatten": (lambda: Forward(lambda x: x.unflatten(2, (-1, 5))), PLANES),
    "unflatten from the end": (lambda: Forward(lambda x: torch.unflatten(x, -1, (2, 3))), PLANES),
    "unflatten as a layer": (lambda: nn.Unflatten(1, (2, -1)), (6,)),
    "mean": (lambda: Forward(lambda x: x.mean((1, -1))), PLANES),
    "mean kept": (lambda: Forward(lambda x: x.mean(2, keepdim=True)), PLANES),
    "sum": (lambda: Forward(lambda x: x.sum(-2)), PLANES),
    "sum of all": (lambda: Forward(lambda x: x.sum((1, 2, 3), keepdim=True)), PLANES),
    "times a matrix": (lambda: Forward(lambda x: x @ MATRIX), (4, 5)),
    "a matrix times": (lambda: Forward(lambda x: torch.matmul(MATRIX.T, x)), (2, 5, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (4, 9)),
    "transposed over one": (lambda: nn.ConvTranspose1d(3, 4, 3, 2, 1, output_padding=1), (3, 6)),
    "average pool over one": (lambda: nn.AvgPool1d(3, 2, 1), (3, 9)),
    "average over one": (lambda: nn.AdaptiveAvgPool1d(1), (3, 9)),
    "average pool by a function": (lambda: Forward(lambda x: F.avg_pool1d(x, 2, 1)), (3, 5)),
    "batch norm over one": (lambda: nn.BatchNorm1d(3, eps=0.7).eval(), (3, 4)),
    "over volumes": (lambda: nn.Conv3d(2, 3, (2, 3, 1), (1, 2, 1), (1, 0, 2)), (2, 3, 5, 2)),
    "volumes in groups": (lambda: nn.Conv3d(2, 4, 2, 2, 1, dilation=(1, 2, 1), groups=2), (2, 4, 5, 3)),
    "batch norm over volumes": (lambda: nn.BatchNorm3d(2, eps=0.7).eval(), (2, 2, 3, 2)),
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "linear over planes": (lambda: nn.Linear(6, 4, bias=False), PLANES),
    "convolution": (lambda: nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(1, 2)), PLANES),
    "dilated in groups": (lambda: nn.Conv2d(2, 4, 2, 1, 2, dilation=(2, 3), groups=2, bias=False), PLANES),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), PLANES),
    "transposed in groups": (lambda: nn.ConvTranspose2d(2, 4, (2, 3), stride=(3, 1), groups=2), PLANES),
}  # fmt: skip


@pytest.mark.parametrize("case", AFFINE)
def test_an_affine_rule_is_its_own_matrix(case: str) -> None:
    build, shape = AFFINE[case]
    torch.manual_seed(0)
    network = build().double()
    graph = trace(network)
    x = torch.randn(2, *shape, dtype=torch.float64)
    values, shapes = graph.values(x), graph.shapes(x)
    assert torch.allclose(values[-1], network(x), atol=1e-12)
    found = Interval(x, x + 0.3)
    for i, node in enumerate(graph.nodes[1:], start=1):
        operation, source = node.operation, values[node.inputs[0]]
        assert isinstance(operation, Affine)
        size = shapes[i].numel()
        rows = torch.eye(size, dtype=torch.float64).reshape(1, size, *shapes[i]).expand(2, -1, *shapes[i])
        (matrix,) = operation.transpose(rows, shapes[node.inputs[0]])
        rebuilt = dot(matrix, source) + operation.constant(rows)
        assert torch.allclose(rebuilt, values[i].flatten(1), atol=1e-12)
        exact = matrix[0].flatten(1)
        _check_norms(operation, exact, shapes[node.inputs[0]])
        places = torch.randint(0, size, (2, 30))
        if (single := operation.single(places, shapes[i], shapes[node.inputs[0]])) is not None:
            assert torch.equal(single.rows.flatten(2), exact[places])
            told = torch.as_tensor(operation.constant(rows)).to(x).expand(2, size).gather(1, places)
            assert torch.equal(torch.as_tensor(single.constant).to(x).expand(2, 30), told)
        found = operation.interval(found)
    assert torch.allclose(found.lower.minimum(found.upper), found.lower)
    corner = network(x + 0.3 * torch.rand(x.shape, dtype=torch.float64))
    assert (found.lower <= corner + 1e-12).all()
    assert (corner <= found.upper + 1e-12).all()


def _check_norms(operation: Affine, matrix: Tensor, shape: torch.Size) -> None:
    one = torch.ones((), dtype=torch.float64)
    for norm, order in (("linf", torch.inf), ("l2", 2)):
        bound = operation.lipschitz(norm, [one], [shape])
        assert bound >= torch.linalg.matrix_norm(matrix, order) - 1e-9
    gains = torch.rand(1, *shape, dtype=torch.float64)
    weighted = matrix * gains.flatten()
    for norm, order in (("l1", 1), ("l2", 2), ("linf", torch.inf)):
        gain = operation.gain(gains, norm)
        if gain is not None:
            assert (gain.flatten() >= torch.linalg.vector_norm(weighted, order, dim=1) - 1e-12).all()


CURVES = {
    "gelu": GELU(),
    "softplus": Softplus(),
    "absolute value": Convex("abs"),
    "square": Convex("square"),
    "elu": Convex("elu"),
    "erf": Sigmoidal("erf"),
    "softsign": Sigmoidal("softsign"),
    "atan": Sigmoidal("atan"),
    "asinh": Sigmoidal("asinh"),
    "sigmoid": Sigmoidal("sigmoid"),
    "tanh": Sigmoidal("tanh"),
    "sharp softplus": Softplus(beta=4.0, threshold=1.5),
    "flat softplus": Softplus(beta=0.1),
}


def _random_bounds() -> Interval:
    generator = torch.Generator().manual_seed(5)
    centres = 4 * torch.randn(400, 1, generator=generator, dtype=torch.float64)
    widths = 10 ** (8 * torch.rand(400, 1, generator=generator, dtype=torch.float64) - 6.5)
    centres[:4], widths[:4] = 0.0, torch.tensor([[1e-12], [0.0], [80.0], [1e3]], dtype=torch.float64)
    return Interval(centres - widths, centres + widths)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("case", CURVES)
def test_curves_lie_between_their_lines_and_in_their_intervals(case: str, alpha: float | None) -> None:
    curve, bounds = CURVES[case], _random_bounds()
    widths = (bounds.upper - bounds.lower) / 2
    share = torch.linspace(0, 1, 4001, dtype=torch.float64)
    z = bounds.lower + share * (bounds.upper - bounds.lower)
    places = None if alpha is None else torch.full_like(widths, alpha)
    value, lines, interval = curve.forward(z), curve.lines(bounds, places), curve.interval(bounds)
    below = lines.lower_slope * z + lines.lower_intercept
    above = lines.upper_slope * z + lines.upper_intercept
    slack = 1e-12 * (1 + z.abs())
    assert (below <= value + slack).all()
    assert (value <= above + slack).all()
    assert (interval.lower <= value + slack).all()
    assert (value <= interval.upper + slack).all()
    # The lines touch the curve, up to the grid and the switch to z: no slack is given away.
    drop = curve._drop(bounds)[:, 0] if isinstance(curve, Softplus) else 0.0
    reach = 2 * drop + 1e-6 * (1 + widths[:, 0] ** 2).clamp(max=1e3)
    reach = reach + widths[:, 0] / 2000 * isinstance(curve, Convex)
    assert ((value - below).amin(1) <= reach).all()
    assert ((above - value).amin(1) <= reach).all()


@pytest.mark.parametrize("kind", SIGMOIDAL)
def test_no_two_parallel_lines_are_nearer_in_the_middle_than_the_adaptive_ones(kind: str) -> None:
    """The lower line at the middle is the convex envelope's value there, which no line below f exceeds."""
    curve, bounds = Sigmoidal(kind), _random_bounds()
    z = bounds.centre
    parallel, adaptive = curve.lines(bounds, None), curve.lines(bounds, curve.adaptive(bounds))
    below, above = (
        [lines.lower_slope * z + lines.lower_intercept, lines.upper_slope * z + lines.upper_intercept]
        for lines in (parallel, adaptive)
    )
    assert (above[0] >= below[0] - 1e-6).all()
    assert (above[1] <= below[1] + 1e-6).all()
    assert (above[0] > below[0] + 0.1).any()


@pytest.mark.parametrize("case", CURVES)
def test_lines_of_each_row_are_those_of_its_own_alpha(case: str) -> None:
    curve, bounds = CURVES[case], _random_bounds()
    alpha = torch.rand(400, 3, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = curve.lines(bounds, alpha)
    for k in range(3):
        alone = curve.lines(bounds, alpha[:, k])
        for name in ("lower_slope", "lower_intercept", "upper_slope", "upper_intercept"):
            part = getattr(together, name)
            part = part[:, min(k, part.shape[1] - 1)]
            assert torch.equal(part, getattr(alone, name))


def test_clamps_equal_torchs_and_keep_intervals_end_to_end() -> None:
    graph = trace(Forward(lambda x: torch.clamp(x, -0.2, 0.6)))
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)[:, None]
    assert torch.allclose(graph.values(x)[-1], x.clamp(-0.2, 0.6), atol=1e-15)
    found = Interval(x - 0.5, x + 0.5)
    for node in graph.nodes[1:]:
        found = node.operation.interval(found)
    assert torch.allclose(found.lower, (x - 0.5).clamp(-0.2, 0.6), atol=1e-15)
    assert torch.allclose(found.upper, (x + 0.5).clamp(-0.2, 0.6), atol=1e-15)


CLAMPS = {
    "clamp": lambda x: torch.clamp(x, min=-0.2, max=0.3),
    "method": lambda x: x.clamp(-0.2, 0.3),
    "clip above": lambda x: torch.clip(x, max=0.3),
    "clamp_min": lambda x: torch.clamp_min(x, -0.2),
    "clamp_min method": lambda x: x.clamp_min(min=-0.2),
    "clamp_max": lambda x: torch.clamp_max(x, 0.3),
    "clamp_max method": lambda x: x.clamp_max(0.3),
    "maximum": lambda x: torch.maximum(x, torch.tensor([-0.2, 0.1])),
    "maximum turned": lambda x: torch.maximum(torch.tensor([-0.2, 0.1]), x),
    "minimum": lambda x: torch.minimum(x, torch.tensor([0.3, -0.4])),
    "hardtanh": lambda x: F.hardtanh(x, -0.2, 0.3),
    "relu6": lambda x: F.relu6(20 * x),
    "no bounds": lambda x: torch.clamp(x, -3.4028234663852886e38, float("inf")),
}


@pytest.mark.parametrize("case", CLAMPS)
def test_every_way_to_clamp_computes_what_torch_computes(case: str) -> None:
    x = torch.linspace(-1, 1, 82, dtype=torch.float64).reshape(41, 2)
    network = Forward(CLAMPS[case])
    assert torch.allclose(trace(network).values(x)[-1], network(x), atol=1e-14)


CALLS = {
    "absolute value": lambda x: torch.abs(x) + x.abs(),
    "square": lambda x: torch.square(x) + x**2 + torch.pow(x, 2.0) + x.pow(2),
    "error function": torch.erf,
    "softsign": F.softsign,
    "atan": torch.atan,
    "arctan": lambda x: x.arctan(),
    "asinh": torch.asinh,
    "a volume by a function": lambda x: F.conv3d(
        x.unflatten(1, (1, 1, 1, -1)), torch.ones(1, 1, 1, 1, 1).double()
    ),
    "elu": F.elu,
    "a parameter's transpose": lambda x: x @ torch.eye(2, dtype=torch.float64).T.t(),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls_compute_what_torch_computes(case: str) -> None:
    x = torch.linspace(-3, 3, 82, dtype=torch.float64).reshape(41, 2)
    network = Forward(CALLS[case])
    assert torch.allclose(trace(network).values(x)[-1], network(x), atol=1e-14)


class Transposed(nn.Module):
    """A product with a parameter that is turned."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + x @ self.weight.t()


def test_a_turned_parameter_follows_its_training() -> None:
    network, x = Transposed(), torch.rand(4, 2)
    graph = trace(network)
    assert torch.allclose(graph.values(x)[-1], network(x))
    with torch.no_grad():
        network.weight.mul_(2)
    assert torch.allclose(graph.values(x)[-1], network(x))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x**-3, "exponent -3"),
        (lambda x: x.expand(2, 3), "keep the samples"),
        (lambda x: x.unsqueeze(1).expand(-1, 4, 1, 2), "unsqueeze them first"),
    ],
)
def test_what_has_no_rule_is_refused_with_the_reason(function, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trace(Forward(function)).values(torch.zeros(1, 2))


@pytest.mark.parametrize(
    "layer",
    [nn.Hardtanh(-0.2, 0.3), nn.ReLU6(), nn.Softplus(2, 1), nn.GELU(), nn.ELU(), nn.Softsign()],
)
def test_layers_compute_what_torch_computes(layer: nn.Module) -> None:
    x = torch.linspace(-9, 9, 82, dtype=torch.float64).reshape(41, 2)
    assert torch.allclose(trace(nn.Sequential(layer)).values(x)[-1], layer(x), atol=1e-14)


def test_numbers_in_a_network_keep_their_double_precision() -> None:
    network = Forward(lambda x: (x - 0.1) / 0.3 * 0.7)
    x = torch.rand(5, 3, dtype=torch.float64)
    assert torch.allclose(trace(network).values(x)[-1], network(x), atol=1e-15, rtol=0)


@pytest.mark.parametrize("dead", [0.0, 0.7, 1.0])
def test_leaving_out_dead_neurons_changes_no_product(dead):
    torch.manual_seed(3)
    weight = torch.randn(20, 7, dtype=torch.double)
    rows = torch.randn(4, 3 * WORTH, 20, dtype=torch.double) * (torch.rand(4, 1, 20) >= dead)
    layer = Linear(lambda: weight, lambda: None)
    with torch.no_grad():
        (found,) = layer.transpose(rows)
    torch.testing.assert_close(found, rows @ weight, rtol=0, atol=1e-12)
