"""Affine forms: no value leaves them, they are exact where nothing bends, and tighter than intervals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from certify import settle as steps
from certify.affine_forms import affine_forms
from certify.exact import settle
from certify.graph import trace
from certify.ibp import IntervalPass
from certify.property import Clause, Property
from models.region import Region
from tests.certify.builders import FAMILIES, batch, model


def region_around(x: torch.Tensor, places: list[int], reach: float) -> Region:
    move = torch.zeros_like(x).flatten()
    move[places] = reach
    return Region(low=x - move.reshape(x.shape), high=x + move.reshape(x.shape))


def points_in(region: Region, n: int = 400) -> torch.Tensor:
    share = torch.rand(
        n, *region.low.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    share[: n // 2] = share[: n // 2].round()
    return region.low + share * (region.high - region.low)


@pytest.mark.parametrize("reach", [1e-6, 0.05, 0.4])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_value_of_any_network_leaves_its_form(family: str, reach: float) -> None:
    network, x = model(family).network.double(), batch(1).x.double()
    graph = trace(network, like=x)
    region = region_around(x, [0, 3, 7], reach)
    with torch.no_grad():
        bounds, last = affine_forms(graph, region.centre, region)
        values = graph.values(points_in(region))
        plain = IntervalPass(graph, region.centre, region).run()
    for i, found in bounds.items():
        slack = 1e-9 * (1 + values[i].abs().amax())
        assert bool(((values[i] >= found.lower - slack) & (values[i] <= found.upper + slack)).all()), i
        if i in plain.found:
            assert bool(
                (found.upper - found.lower <= (plain.found[i].upper - plain.found[i].lower) + slack).all()
            )
    rows = torch.randn(
        20, values[-1][0].numel(), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    assert bool((values[-1].flatten(1) @ rows.T >= last.least(rows) - slack).all())


def convolutional(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4),
    ).double()  # fmt: skip


def test_what_nothing_bends_is_exact() -> None:
    network, x = convolutional(), torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    region = region_around(x, [14, 15, 21], 1e-5)
    graph = trace(network, like=x)
    with torch.no_grad():
        _, last = affine_forms(graph, x, region)
        corners = torch.stack(torch.meshgrid(*[torch.tensor([-1e-5, 1e-5]).double()] * 3, indexing="ij"), -1)
        points = x.flatten(1).repeat(8, 1)
        points[:, [14, 15, 21]] += corners.reshape(8, 3)
        least = network(points.reshape(8, 1, 6, 6)).amin(0)
    assert last.radius.abs().max() < 1e-13
    torch.testing.assert_close(last.least(torch.eye(4).double()), least, rtol=0, atol=1e-12)


def test_forms_prove_what_intervals_do_not_and_no_line_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = convolutional(), torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    region = region_around(x, [14, 15], 0.02)
    graph = trace(network, like=x)
    with torch.no_grad():
        _, last = affine_forms(graph, x, region)
        plain = IntervalPass(graph, x, region).run()
        for i in range(1, len(graph.nodes)):
            plain.step(i)
    row = torch.eye(4).double()[:1]
    found = float(last.least(row))
    assert found > float(plain.found[len(graph.nodes) - 1].lower[0, 0]) + 0.01
    clause = Clause(row, torch.tensor([1e-6 - found]).double())
    prop = Property(region.low[0], region.high[0], (clause,))
    monkeypatch.setattr(steps, "WIDE", 0)
    monkeypatch.setattr(steps, "relax", lambda *args, **settings: pytest.fail("lines were drawn"))
    verdict = settle(network, prop, seconds=20)
    assert (verdict.status, verdict.settled_by) == ("certified", "affine-forms")
