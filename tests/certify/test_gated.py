"""Gated linear units: torch's own values, bounds that no point leaves, and exact verdicts beside a grid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from certify.base import CERTIFIERS
from certify.exact import settle
from certify.graph import trace
from certify.property import Clause, Property
from models.discover import import_modules
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.certify.builders import batch, model, smallest_margins
from tests.certify.test_rules import Forward
from tests.certify.test_soundness import SLACK, visit

import_modules("certify")


def network() -> nn.Module:
    """Gates of vectors, with weights larger than usual."""
    torch.manual_seed(3)
    layers = nn.Sequential(
        nn.Flatten(), nn.Linear(72, 12), nn.GLU(), nn.Linear(6, 8), nn.GLU(1), nn.Linear(4, 3)
    )
    for parameter in layers.parameters():
        parameter.data.mul_(1.5)
    return layers


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (F.glu, (6,)),
        (nn.GLU(), (3, 4)),
        (nn.GLU(1), (4, 2, 3)),
        (lambda x: F.glu(x, dim=-2), (3, 4, 5)),
        (lambda x: F.glu(x, 3), (1, 2, 6)),
    ],
)
def test_calls_compute_what_torch_computes(function, shape: tuple[int, ...]) -> None:
    x = 5 * torch.randn(9, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(trace(Forward(function)).values(x)[-1], function(x), atol=1e-13)


@pytest.mark.parametrize(("dim", "shape"), [(-1, (5,)), (0, (4,)), (-2, (4,))])
def test_what_cannot_be_halved_is_refused(dim: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="even size after the samples"):
        trace(nn.Sequential(nn.GLU(dim))).values(torch.ones(2, *shape))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.3), ("l1", 0.8)])
def test_certificates_stay_below_every_margin_that_is_found(norm: str, eps: float) -> None:
    judged, data, threat = model(network()), batch(3), ThreatModel(norm, eps)
    least, count = smallest_margins(judged, data, threat)
    assert count > 100
    for certifier in ("ibp", "crown", "alpha-crown", "best"):
        lower = CERTIFIERS[certifier]().run(judged, data, threat, Randomness(0)).lower
        lower = lower.scatter(1, data.y[:, None], 0.0)
        assert (lower <= least + 1e-6).all()
        assert lower.isfinite().all()


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.5])
def test_no_point_leaves_a_bound(eps: float) -> None:
    count, furthest = visit(model(network()), batch(4), ThreatModel("linf", eps), 20_000)
    assert count >= 20_000
    assert furthest <= SLACK


def test_bounds_of_a_point_are_its_values() -> None:
    judged, data, still = model(network()), batch(3), ThreatModel("linf", 0.0)
    own = judged.network(data.x).detach()
    own = own.gather(1, data.y[:, None]) - own
    for certifier in ("ibp", "crown"):
        lower = CERTIFIERS[certifier]().run(judged, data, still, Randomness(0)).lower
        others = lower.isfinite()
        assert torch.allclose(lower.float()[others], own[others], atol=1e-5)


def test_exact_agrees_with_a_grid() -> None:
    torch.manual_seed(7)
    judged = nn.Sequential(nn.Linear(2, 6), nn.GLU(), nn.Linear(3, 4), nn.GLU(), nn.Linear(2, 1)).double()
    axis = torch.linspace(-1, 1, 401, dtype=torch.float64)
    with torch.no_grad():
        least = float(judged(torch.cartesian_prod(axis, axis)).min())
    end = torch.ones(2, dtype=torch.float64)
    for shift, expected in ((-0.02, "certified"), (1e-6, "broken")):
        clause = Clause(torch.ones(1, 1, dtype=torch.float64), torch.tensor([-(least + shift)]).double())
        assert settle(judged, Property(-end, end, (clause,)), seconds=30.0).status == expected
