"""A million random and attacked points: none leaves an intermediate bound, none falls below a margin's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from certify.backward import adaptive_slope, margins, parallel_slope, relax
from certify.bounds import Interval
from certify.graph import Graph
from certify.ibp import IntervalPass, interval_margins
from certify.prepare import prepare
from defenses.zoo import ModelName, load
from models.base import Batch, Classifier
from models.data import load_data
from models.threat import ThreatModel
from tests.certify.builders import FAMILIES, batch, margins_of, model

# Rounding in double precision, relative to the size of a value: far below every certificate's tolerance.
SLACK = 1e-9
CHUNK = 500

Bounds = dict[int, Interval]


def every_bound(
    graph: Graph, data: Batch, threat: ThreatModel
) -> tuple[dict[str, Bounds], dict[str, Tensor]]:
    """By method: the interval of each bounded node, and the margins' lower bounds."""
    x = data.x.double()
    passes = IntervalPass(graph, x, threat)
    for i in range(1, len(graph.nodes)):
        passes.step(i)
    found: dict[str, Bounds] = {"ibp": dict(passes.found)}
    least = {"ibp": interval_margins(graph, x, data.y, threat)}
    for name, slopes in {
        "polytope": (parallel_slope,), "crown": (adaptive_slope,), "both": (parallel_slope, adaptive_slope)
    }.items():  # fmt: skip
        relaxation = relax(graph, x, threat, *slopes)
        found[name], least[name] = dict(relaxation.bounds), margins(relaxation, data.y)
    return found, least


def outside(values: Tensor, interval: Interval) -> Tensor:
    """How far values (n, ...) leave one sample's interval (1, ...), relative to their size: (n, ...)."""
    size = torch.maximum(interval.lower.abs(), interval.upper.abs()).clamp(min=1.0)
    return torch.maximum(values - interval.upper, interval.lower - values) / size


def some_points(graph: Graph, x: Tensor, threat: ThreatModel, bounds: Bounds, turn: int) -> Tensor:
    """CHUNK legal points around x (1, ...): random, corners, or pressed against a node's bounds."""
    generator = torch.Generator().manual_seed(turn)
    noise = torch.rand(CHUNK, *x.shape[1:], generator=generator, dtype=torch.float64) * 2 - 1
    reach = threat.radius * (1.0 if threat.norm == "linf" else 3.0)
    points = threat.project(x.expand_as(noise), x + reach * (noise.sign() if turn % 3 == 1 else noise))
    if turn % 3 < 2:
        return points
    node = sorted(bounds)[turn // 3 % len(bounds)]
    weights = torch.randn(CHUNK, *bounds[node].lower.shape[1:], generator=generator, dtype=torch.float64)
    weights = weights * (torch.rand(weights.shape, generator=generator, dtype=torch.float64) < 0.1)
    for _ in range(2):
        points = points.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad((graph.values(points)[node] * weights).sum(), points)
        points = threat.project(x.expand_as(points), points.detach() + reach * threat.steepest(slope))
    return points.detach()


def visit(judged: Classifier, data: Batch, threat: ThreatModel, wanted: int) -> tuple[int, float]:
    """Checks at least `wanted` points; how many they were, and the furthest that any went outside."""
    graph, x = prepare(judged, data.x)
    with torch.no_grad():
        found, least = every_bound(graph, data, threat)
    count, furthest, turn = 0, -torch.inf, 0
    while count < wanted:
        i = turn % len(data)
        points = some_points(graph, x[i : i + 1], threat, found["crown"], turn)
        assert bool(threat.contains(x[i : i + 1].expand_as(points), points).all())
        with torch.no_grad():
            values = graph.values(points)
        for name, bounds in found.items():
            for node, interval in bounds.items():
                one = Interval(interval.lower[i : i + 1], interval.upper[i : i + 1])
                furthest = max(furthest, float(outside(values[node], one).max()))
            gap = least[name][i] - margins_of(lambda z: z, values[-1], data.y[i].expand(len(points)))
            furthest = max(furthest, float((gap / least[name][i].abs().clamp(min=1.0)).max()))
        count, turn = count + len(points), turn + 1
    return count, furthest


@pytest.mark.slow
def test_a_million_points_never_leave_their_bounds():
    count, furthest = 0, -torch.inf
    settings = [
        (model(family), batch(8), ThreatModel(norm, eps), 30_000)
        for family in FAMILIES
        for norm, eps in (("linf", 0.05), ("l2", 0.3))
    ]
    data = load_data("mnist5k")
    images = data.batch(data.panel(10))
    settings += [
        (load(ModelName.parse("fc500-150-10")), images, ThreatModel("linf", 0.02), 200_000),
        (load(ModelName.parse("conv-small+adversarial-pgd")), images, ThreatModel("linf", 0.1), 20_000),
    ]
    for judged, inputs, threat, wanted in settings:
        done, most = visit(judged, inputs, threat, wanted)
        count, furthest = count + done, max(furthest, most)
    print(f"\n{count:,} points in {len(settings)} settings; the furthest beyond a bound: {furthest:.1e}")
    assert count >= 1_000_000
    assert furthest <= SLACK


def test_a_bound_that_is_too_tight_is_caught():
    judged, data, threat = model("mlp"), batch(2), ThreatModel("linf", 0.05)
    graph, x = prepare(judged, data.x)
    found, _ = every_bound(graph, data, threat)
    for bounds in found.values():
        for node in list(bounds):
            if bounds[node].lower.shape[1:] == x.shape[1:]:
                continue
            middle = bounds[node].centre
            shrunk = Interval(
                *(middle + 0.2 * (end - middle) for end in (bounds[node].lower, bounds[node].upper))
            )
            worst = max(
                float(outside(graph.values(some_points(graph, x[:1], threat, found["crown"], turn))[node],
                              Interval(shrunk.lower[:1], shrunk.upper[:1])).max())
                for turn in range(3)
            )  # fmt: skip
            assert worst > SLACK
