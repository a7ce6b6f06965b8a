"""Functions of single values: lines that enclose and touch on their domain, and nothing known beyond it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.base import CERTIFIERS
from certify.bounds import Interval
from certify.graph import trace
from certify.rules.convex import SHAPES, Convex
from certify.rules.operation import Lines
from certify.rules.periodic import Wave
from models.discover import import_modules
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.certify.builders import batch, model, smallest_margins
from tests.certify.test_rules import Forward

import_modules("certify")
POSITIVE = [kind for kind, shape in SHAPES.items() if shape.domain >= 0]
DOUBLE = torch.float64


def positive_bounds() -> Interval:
    generator = torch.Generator().manual_seed(5)
    lower = 10 ** (8 * torch.rand(400, 1, generator=generator, dtype=DOUBLE) - 6)
    return Interval(
        lower, lower * 10 ** (4 * torch.rand(400, 1, generator=generator, dtype=DOUBLE) - 2) + lower
    )


def line_errors(value: Tensor, z: Tensor, lines: Lines) -> tuple[Tensor, Tensor]:
    """From the line below up to the values, and from them to the line above, relative to what is summed."""
    size = 1 + value.abs() + lines.lower_slope.abs() * z.abs() + lines.upper_slope.abs() * z.abs()
    below = lines.lower_slope * z + lines.lower_intercept
    return (value - below) / size, (lines.upper_slope * z + lines.upper_intercept - value) / size


@pytest.mark.parametrize("alpha", [None, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("kind", [*POSITIVE, "exp"])
def test_lines_enclose_and_touch_on_the_domain(kind: str, alpha: float | None) -> None:
    curve, bounds = Convex(kind), positive_bounds()
    if kind == "exp":
        bounds = Interval(bounds.lower.log(), bounds.upper.log())
    share = torch.linspace(0, 1, 4001, dtype=DOUBLE)
    z = bounds.lower + share * (bounds.upper - bounds.lower)
    places = None if alpha is None else torch.full_like(bounds.lower, alpha)
    value, interval = curve.forward(z), curve.interval(bounds)
    below, above = line_errors(value, z, curve.lines(bounds, places))
    assert min(below.amin(), above.amin()) >= -1e-14
    assert below.amin(1).amax() <= 1e-6
    assert above.amin(1).amax() <= 1e-12
    assert torch.allclose(interval.lower, value.amin(1, keepdim=True), rtol=1e-12)
    assert torch.allclose(interval.upper, value.amax(1, keepdim=True), rtol=1e-12)


@pytest.mark.parametrize("kind", ["sin", "cos"])
@pytest.mark.parametrize("width", [1e-9, 0.3, 2.0, 5.0, 6.2, 6.3, 40.0])
def test_lines_of_waves_enclose_and_touch(kind: str, width: float) -> None:
    curve = Wave(kind)
    lower = 10 * torch.randn(300, 1, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    bounds = Interval(lower, lower + width)
    z = lower + torch.linspace(0, 1, 8001, dtype=DOUBLE) * width
    value, interval = curve.forward(z), curve.interval(bounds)
    below, above = line_errors(value, z, curve.lines(bounds, None))
    assert min(below.amin(), above.amin()) >= -1e-14
    assert max(below.amin(1).amax(), above.amin(1).amax()) <= 1e-5
    for end, found in ((interval.lower, value.amin(1)), (interval.upper, value.amax(1))):
        assert torch.allclose(end[:, 0], found, atol=1e-5)
    assert (interval.lower <= value + 1e-15).all()
    assert (value <= interval.upper + 1e-15).all()


@pytest.mark.parametrize("kind", POSITIVE)
def test_nothing_is_known_where_a_domain_may_be_left(kind: str) -> None:
    bounds = Interval(torch.tensor([[-0.1, 0.2]]).double(), torch.tensor([[0.4, 0.3]]).double())
    curve = Convex(kind)
    for alpha in (None, torch.full_like(bounds.lower, 0.5)):
        lines = curve.lines(bounds, alpha)
        for part in (lines.lower_slope, lines.lower_intercept, lines.upper_slope, lines.upper_intercept):
            assert part.isfinite().all()
        assert lines.lower_intercept[0, 0] <= -1e29
        assert lines.upper_intercept[0, 0] >= 1e29
    interval = curve.interval(bounds)
    assert interval.lower[0, 0] <= -1e29
    assert interval.upper[0, 1] < 100


@pytest.mark.parametrize("function", [torch.log, torch.sqrt, torch.rsqrt, torch.reciprocal])
def test_a_domain_that_may_be_left_certifies_nothing(function) -> None:
    """The network is right and far from its boundary; where it is no number it may be anything."""

    class Edge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = function(x[:, 0, 0, :1])
            return torch.cat([z * 0.01 + 5, z * 0.01, -z], 1)

    judged, data = model(Edge()), batch(2)
    data.x[:, 0, 0, 0], data.y[:] = 0.05, 0
    for name in ("ibp", "crown", "alpha-crown"):
        near, far = (
            CERTIFIERS[name]().run(judged, data, ThreatModel("linf", eps, Box(-1.0, 2.0)), Randomness(0))
            for eps in (0.04, 0.06)
        )
        assert near.certified.all()
        assert not far.certified.any()
        assert not far.lower.isnan().any()


def test_bounds_of_exp_that_would_overflow_are_refused_but_not_those_of_a_softmax() -> None:
    class Steep(nn.Module):
        def __init__(self, function) -> None:
            super().__init__()
            self.function, self.head = function, nn.Linear(72, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.function(100 * self.head(x.flatten(1)))

    torch.manual_seed(0)
    threat = ThreatModel("linf", 1.0)
    for function in (lambda z: (0.3 * z).exp(), lambda z: z.log_softmax(1) * 2):
        with pytest.raises(UserError, match="may exceed 60"):
            CERTIFIERS["crown"]().run(model(Steep(function)), batch(3), threat, Randomness(0))
    judged, data = model(Steep(lambda z: 2 * z.softmax(1))), batch(3)
    least, _ = smallest_margins(judged, data, threat)
    for name in ("ibp", "crown", "alpha-crown"):
        lower = CERTIFIERS[name]().run(judged, data, threat, Randomness(0)).lower
        others = torch.arange(3) != data.y[:, None]
        assert (lower <= least + 1e-9)[others].all()
        assert (lower[others] >= -4).all()


FAMILIES = [
    (torch.sin, torch.cos),
    (torch.tanh, torch.sigmoid, torch.erf, F.softsign),
    (F.gelu, F.silu, F.mish, torch.sin),
]


@pytest.mark.parametrize("family", range(len(FAMILIES)))
@pytest.mark.parametrize("name", ["crown", "alpha-crown"])
def test_functions_of_the_same_value_have_lines_of_their_own(name: str, family: int) -> None:
    data, threat = batch(2, (3,), classes=3), ThreatModel("linf", 0.2)
    for functions in (FAMILIES[family], FAMILIES[family][::-1]):
        judged = model(Forward(lambda x, own=functions: same_value(2 * x - 1, own)), classes=3)
        least, _ = smallest_margins(judged, data, threat, samples=20)
        lower = CERTIFIERS[name]().run(judged, data, threat, Randomness(0)).lower
        assert (lower <= least + 1e-9)[torch.arange(3) != data.y[:, None]].all()


def same_value(z: Tensor, functions: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    return sum(function(z) * z + function(z) for function in functions)


CALLS = {
    "exponentials": lambda x: x.exp() + torch.log(1 + x.exp()).sqrt() + torch.rsqrt(2 + x.cos()),
    "waves": lambda x: x.sin() * torch.cos(3 * x) + torch.sin(x + 1),
    "softmax": lambda x: x.softmax(-1) + F.softmax(3 * x, 2) * torch.softmax(x, dim=1),
    "softmin": lambda x: F.softmin(x, -1) - x.log_softmax(1),
    "log-sum-exp": lambda x: x.logsumexp((1, 2), True) + torch.logsumexp(2 * x, -1, True),
    "log-sum-exp kept": lambda x: x - x.logsumexp(2, keepdim=True),
    "variance": lambda x: x.var(1, keepdim=True) * x.std(-1, keepdim=True),
    "variance uncorrected": lambda x: (
        x.var(-1, unbiased=False, keepdim=True) + torch.var(x, 2, correction=0)[:, :, None]
    ),
    "norms": lambda x: x.norm(dim=1) + torch.linalg.vector_norm(x, 1, dim=1) + x.norm(p=float("inf"), dim=-2),
    "normalised": lambda x: F.normalize(x, dim=1) + F.normalize(x, p=1.0, dim=2),
    "layer norm": lambda x: F.layer_norm(x, (4,)) + F.layer_norm(x, (3, 4), torch.ones(3, 4).double() * 2),
    "root mean square": lambda x: F.rms_norm(x, (4,), eps=1e-3),
    "instance norm": lambda x: F.instance_norm(x, eps=1e-2),
    "groups": lambda x: F.group_norm(x.transpose(1, 2), 2, eps=0.1),
    "split": lambda x: torch.split(x, [1, 3], 2)[1] * x.split(3, 2)[0] + x.chunk(3, 1)[2][:, :, 1:],
    "unbound": lambda x: x.unbind(1)[0] * torch.unbind(x, -2)[-1],
    "samples behind": lambda x: x.permute(1, 0, 2)[0] * x.permute(2, 0, 1).unbind(0)[3][:, :1],
    "attention": lambda x: F.scaled_dot_product_attention(x, 2 * x, x.sin()),
    "attention by a scale": lambda x: F.scaled_dot_product_attention(x, x[:, 1:], x[:, :2], scale=0.3),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_calls_compute_what_torch_computes(case: str) -> None:
    x = 2 * torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    network = Forward(CALLS[case])
    assert torch.allclose(trace(network, like=x).values(x)[-1], network(x), atol=1e-12)


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "layer norm": (nn.LayerNorm((3, 4)), (2, 3, 4)),
    "layer norm without weights": (nn.LayerNorm(4, elementwise_affine=False), (3, 4)),
    "layer norm without bias": (nn.LayerNorm(4, bias=False), (3, 4)),
    "root mean square": (nn.RMSNorm(4), (3, 4)),
    "groups of planes": (nn.GroupNorm(2, 4), (4, 3, 2)),
    "groups of channels": (nn.GroupNorm(2, 4, affine=False), (4,)),
    "instance": (nn.InstanceNorm2d(3, affine=True), (3, 2, 4)),
    "instance of lines": (nn.InstanceNorm1d(3), (3, 4)),
    "softmax": (nn.Softmax(1), (3, 4)),
    "log-softmax within": (nn.Sequential(nn.LogSoftmax(-1), nn.Linear(4, 2)), (3, 4)),
}


@pytest.mark.parametrize("case", LAYERS)
def test_layers_compute_what_torch_computes(case: str) -> None:
    layer, shape = LAYERS[case]
    generator = torch.Generator().manual_seed(0)
    layer = layer.double().eval()
    for parameter in layer.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(5, *shape, generator=generator, dtype=DOUBLE)
    graph = trace(nn.Sequential(layer))
    # The root mean square's own eps is that of the type in which the network computes.
    assert torch.allclose(graph.values(x)[-1], layer(x), atol=1e-6 if "root" in case else 1e-12)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.5)
    assert torch.allclose(graph.values(x)[-1], layer(x), atol=1e-6 if "root" in case else 1e-12)


def test_intervals_of_a_softmax_of_independent_values_are_exact() -> None:
    """The least share has its own value least and all others largest."""
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    found = Interval(x - 0.7, x + 0.4)
    for node in trace(nn.Sequential(nn.Softmax(1))).nodes[1:]:
        found = node.operation.interval(found)
    for i in range(5):
        low, high = x + 0.4, x - 0.7
        low[:, i], high[:, i] = x[:, i] - 0.7, x[:, i] + 0.4
        assert torch.allclose(found.lower[:, i], low.softmax(1)[:, i], atol=1e-14)
        assert torch.allclose(found.upper[:, i], high.softmax(1)[:, i], atol=1e-14)


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_normalised_values_have_a_largest_size(kind: type[nn.Module]) -> None:
    """The root of 4 - 1, reached where all others are equal; without the mean the root of 4."""
    layer, most = kind(4, elementwise_affine=False), math.sqrt(3) if kind is nn.LayerNorm else 2.0
    wide = torch.full((1, 4), 1e3, dtype=DOUBLE)
    found = Interval(-wide, wide)
    values = [found]
    graph = trace(nn.Sequential(layer))
    for node in graph.nodes[1:]:
        values.append(node.operation.interval(*(values[i] for i in node.inputs)))
    assert torch.allclose(values[-1].upper, torch.full_like(wide, most))
    reached = layer(torch.tensor([[9e4, 0.0, 0.0, 0.0]])).amax()
    assert float(reached) == pytest.approx(most, rel=1e-4)


class OneSided(nn.Module):
    """1 / x cut off on one side, then behind a layer or a clamp that a number of 1e30 would swallow."""

    def __init__(self, layer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.layer = nn.Linear(1, 1), layer
        nn.init.constant_(self.linear.weight, -1.0)
        nn.init.constant_(self.linear.bias, 6.0)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(torch.reciprocal(x.flatten(1)))
        z = F.relu(self.layer(self.linear(z)))
        return torch.cat([z, 0.5 + 0 * z], 1)


@pytest.mark.parametrize("name", ["ibp", "crown", "crown-ibp", "alpha-crown"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_is_added_to_a_value_of_which_nothing_is_known_is_not_lost(name: str, sign: float) -> None:
    """Of [0, 1e30] the centre has no digit left for a 6: 6 - z once was at most 0, and its ReLU 0."""
    for layer in (lambda z: z, lambda z: 1.0 - z, lambda z: torch.clamp(z, -2.0, 3.0) + 0.25):
        judged = model(OneSided(layer), classes=2)
        data = batch(1, (1,), classes=2)
        data = type(data).of(torch.full_like(data.x, 0.2), torch.full_like(data.y, int(sign < 0)))
        threat = ThreatModel("linf", 0.3)
        with torch.no_grad():
            logits = judged.network(torch.linspace(1e-3, 0.5, 4001)[:, None])
        margin = sign * (logits[:, 0] - logits[:, 1])
        lower = CERTIFIERS[name]().run(judged, data, threat, Randomness(0)).lower
        assert (lower[0, int(sign > 0)] <= margin.min() + 1e-5).all()
