"""Attacks that see labels alone: nothing else is used, the bill is exact, and more queries end no farther."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.base import Attack
from attacks.boundary import BoundaryAttack
from attacks.geoda import GeoDA
from attacks.pointwise import Pointwise
from attacks.rays import RayS
from attacks.sign_opt import SignOPT
from models.base import Classifier
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.builders import Counting, images, labelled, mlp

STEADY = [RayS, BoundaryAttack, SignOPT]
"""More queries continue what fewer began."""
SPENDERS = [*STEADY, GeoDA]
"""Nothing but the end of the queries ends these."""


def run(kind: type[Attack], model, batch, queries: int, eps: float | None = None):
    threat = ThreatModel(kind.norms[0], eps)
    return kind(queries=queries).run(model, batch, threat, Randomness(0))


@pytest.mark.parametrize("kind", [*SPENDERS, Pointwise], ids=lambda kind: kind.name)
def test_nothing_but_the_label_is_used(kind):
    inner = mlp()

    class OneHot(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(inner.logits(x).argmax(1), 4).float() * 9 - 3

    batch = labelled(inner, images(15))
    plain = run(kind, inner, batch, 400)
    hidden = run(kind, Classifier(OneHot(), num_classes=4), batch, 400)
    assert torch.equal(plain.x_adv, hidden.x_adv)


@pytest.mark.parametrize("kind", SPENDERS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("queries", [1, 2, 17, 60, 300])
def test_the_bill_is_exact_and_the_budget_is_kept(kind, queries):
    model = mlp()
    counter = Counting(model.network)
    model.network = counter
    batch = labelled(model, images(20))
    counter.forward_samples = 0
    result = run(kind, model, batch, queries)
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == 0
    assert set(result.forward.tolist()) == {queries}


@pytest.mark.parametrize("kind", [*STEADY, Pointwise], ids=lambda kind: kind.name)
def test_more_queries_never_end_farther(kind):
    """But for labels within rounding of the boundary, where they depend on what else is in the batch."""
    batch, last = labelled(mlp(), images(20)), torch.full((20,), torch.inf).double()
    for queries in (3, 10, 30, 100, 400, 1000):
        distance = run(kind, mlp(), batch, queries).distance.nan_to_num(torch.inf)
        assert bool((distance <= last * (1 + 1e-5)).all())
        last = distance
    assert bool(last.isfinite().all())


@pytest.mark.parametrize(("kind", "queries"), [(GeoDA, 600), (SignOPT, 1500)])
def test_samples_inside_the_ball_leave(kind, queries):
    batch = labelled(mlp(), images(40))
    free = run(kind, mlp(), batch, queries)
    eps = float(free.distance.median())
    bound = run(kind, mlp(), batch, queries, eps)
    assert torch.equal(bound.success, free.distance <= eps)
    assert set(bound.forward[~bound.success].tolist()) == {queries}
    assert int(bound.forward[bound.success].double().median()) < 2 * queries / 3
