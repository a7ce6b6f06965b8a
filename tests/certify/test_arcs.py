"""Functions on a stretch around 0: lines that enclose and touch, nothing known beyond, torch's own values."""

from __future__ import annotations

import math

import pytest
import torch

from certify.bounds import Interval
from certify.graph import trace
from certify.rules.arcs import ARCS, Arc
from certify.rules.convex import MOST, Convex
from certify.rules.turning import Turning
from models.errors import UserError
from tests.certify.test_rules import Forward

DOUBLE = torch.float64
CURVES: dict[str, Turning | Convex] = {**{kind: Arc(kind) for kind in ARCS}, "cosh": Convex("cosh")}


def some_intervals(end: float) -> Interval:
    """Narrow, wide and of one point, at the ends of the stretch and across the turn."""
    generator = torch.Generator().manual_seed(5)
    ends = end * (2 * torch.rand(600, 2, generator=generator, dtype=DOUBLE) - 1)
    widths = 10 ** (-8 * torch.rand(300, generator=generator, dtype=DOUBLE))
    ends[:300, 1] = (ends[:300, 0] + widths).clamp(max=end)
    ends[:5] = torch.tensor([[-1.0, 1.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, -0.999]]) * end
    lower, upper = ends.sort(1).values.unbind(1)
    return Interval(lower[:, None], upper[:, None])


@pytest.mark.parametrize("alpha", [None, 0.2])
@pytest.mark.parametrize("kind", CURVES)
def test_curves_lie_between_their_lines_and_in_their_intervals(kind: str, alpha: float | None) -> None:
    curve = CURVES[kind]
    bounds = some_intervals({"asin": 1.0, "atanh": 1 - 1e-6}.get(kind, 6.0))
    z = bounds.lower + torch.linspace(0, 1, 4001, dtype=DOUBLE) * (bounds.upper - bounds.lower)
    z = z.minimum(bounds.upper)
    places = None if alpha is None else torch.full_like(bounds.lower, alpha)
    value, interval, lines = curve.forward(z), curve.interval(bounds), curve.lines(bounds, places)
    below = lines.lower_slope * z + lines.lower_intercept
    above = lines.upper_slope * z + lines.upper_intercept
    size = 1 + value.abs() + lines.lower_slope.abs() + lines.upper_slope.abs()
    for gap in (value - below, above - value, value - interval.lower, interval.upper - value):
        assert (gap >= -1e-14 * size).all()
        assert (gap.amin(1, keepdim=True) <= 2e-3 * size * (bounds.upper - bounds.lower) + 1e-12 * size).all()


@pytest.mark.parametrize("kind", ["asin", "atanh"])
def test_beyond_its_stretch_nothing_is_known(kind: str) -> None:
    bounds = Interval(
        torch.tensor([[-0.5, -1.1, 0.2]], dtype=DOUBLE), torch.tensor([[0.5, 0.0, 1.1]], dtype=DOUBLE)
    )
    found, lines = Arc(kind).interval(bounds), Arc(kind).lines(bounds, None)
    assert found.lower[0, 1:].tolist() == [-MOST] * 2
    assert found.upper[0, 1:].tolist() == [MOST] * 2
    assert lines.lower_slope[0, 1:].tolist() == [0.0] * 2
    assert lines.upper_intercept[0, 1:].tolist() == [MOST] * 2
    assert float(found.upper[0, 0]) == pytest.approx(math.asin(0.5) if kind == "asin" else math.atanh(0.5))


@pytest.mark.parametrize(("curve", "end"), [(Arc("sinh"), 41.0), (Convex("cosh"), 61.0)])
def test_what_overflows_is_refused_on_either_side(curve: Turning | Convex, end: float) -> None:
    near, far = (torch.full((1, 1), size, dtype=DOUBLE) for size in (1.0, end))
    for bounds in (Interval(-near, far), Interval(-far, near)):
        with pytest.raises(UserError, match="take a smaller eps"):
            curve.interval(bounds)
        with pytest.raises(UserError, match="take a smaller eps"):
            curve.lines(bounds, None)


@pytest.mark.parametrize("function", [torch.sinh, torch.cosh, torch.asin, torch.acos, torch.atanh])
def test_calls_compute_what_torch_computes(function: object) -> None:
    x = torch.linspace(-0.99, 0.99, 82, dtype=DOUBLE).reshape(41, 2)
    network = Forward(function)
    assert torch.allclose(trace(network).values(x)[-1], network(x), atol=1e-14)
