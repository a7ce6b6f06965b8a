"""HopSkipJump: near the exact distance on linear models, from labels alone, on an exact bill."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.access import LabelAccess
from attacks.hopskipjump import HopSkipJump, normals
from attacks.oracle import Oracle, bisect, towards
from models.base import Batch, Classifier
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.builders import WIDE, Counting, exact_distance, images, labelled, linear, mlp, random_linear

BOX = Box(-4.0, 5.0)


def run(model, batch, norm, *, queries=1500, eps=None, box=None, batch_size=256):
    threat = ThreatModel(norm, eps, box or model.box)
    return HopSkipJump(queries=queries).run(model, batch, threat, Randomness(0), batch_size=batch_size)


@pytest.mark.parametrize(("norm", "slack"), [("l2", 1.02), ("linf", 1.15)])
@pytest.mark.parametrize("classes", [2, 3])
def test_linear_models_within_a_few_percent_of_the_exact_distance(norm, slack, classes):
    model = random_linear(classes, 10, box=BOX)
    batch = labelled(model, images(25, (10,)))
    exact = exact_distance(model, batch, norm)
    ratio = run(model, batch, norm, queries=4000).distance / exact
    assert float(ratio.min()) >= 1 - 1e-6
    assert float(ratio.median()) < slack
    assert float(ratio.max()) < 1.5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_estimated_normals_are_those_of_the_plane(norm):
    model = random_linear(2, 20, box=WIDE)
    batch = labelled(model, images(5, (20,)))
    weight = model.network.weight.detach()
    threat = ThreatModel(norm, None, WIDE)
    away = (weight[1 - batch.y] - weight[batch.y]) / (weight[1] - weight[0]).norm()
    oracle = Oracle(LabelAccess(model, 5), batch, threat, 10_000)
    rows = torch.arange(5)
    boundary = bisect(oracle, batch.x + 5 * away, rows, 20)
    found = normals(oracle, boundary, rows, torch.full((5,), 0.1), 4000, Randomness(0))
    expected = threat.steepest(away)
    cosine = (found * expected).sum(1) / found.norm(dim=1) / expected.norm(dim=1)
    assert float(cosine.min()) > (0.98 if norm == "l2" else 0.85)
    assert set(oracle.left.tolist()) == {10_000 - 20 - 4000}


def test_the_mean_is_taken_off():
    """Off the boundary, where most labels agree, the estimate with the mean is the better one (eq. 16)."""
    model = random_linear(2, 20, box=WIDE)
    batch = labelled(model, images(200, (20,)))
    weight = model.network.weight.detach()
    away = (weight[1 - batch.y] - weight[batch.y]) / (weight[1] - weight[0]).norm()
    distance = exact_distance(model, batch, "l2")[:, None].float()
    oracle = Oracle(LabelAccess(model, 200), batch, ThreatModel("l2", None, WIDE), 10_000)
    z, rows = batch.x + (distance + 0.03) * away, torch.arange(200)
    found = normals(oracle, z, rows, torch.full((200,), 0.1), 60, Randomness(0))
    keys = batch.index.repeat_interleave(60) * 10_000 + torch.arange(60).repeat(200)
    u = Randomness(0).normal(keys, (20,))
    u = u / u.norm(dim=1, keepdim=True)
    wrong = model.logits(z.repeat_interleave(60, 0) + 0.1 * u).argmax(1) != batch.y.repeat_interleave(60)
    plain = (torch.where(wrong, 1.0, -1.0)[:, None] * u).reshape(200, 60, 20).sum(1)
    plain = plain / plain.norm(dim=1, keepdim=True)
    assert float((found * away).sum(1).mean()) > float((plain * away).sum(1).mean()) + 0.05


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nothing_but_the_label_is_used(norm):
    inner = mlp()

    class OneHot(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(inner.logits(x).argmax(1), 4).float() * 9 - 3

    batch = labelled(inner, images(15))
    plain = run(inner, batch, norm, queries=400)
    hidden = run(Classifier(OneHot(), num_classes=4), batch, norm, queries=400)
    assert torch.equal(plain.x_adv, hidden.x_adv)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("queries", [1, 3, 17, 150, 700])
def test_the_bill_is_exact_and_the_budget_is_kept(norm, queries):
    model = mlp()
    counter = Counting(model.network)
    model.network = counter
    batch = labelled(model, images(20))
    counter.forward_samples = 0
    result = run(model, batch, norm, queries=queries)
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == 0
    assert set(result.forward.tolist()) == {queries}


def test_more_queries_never_end_farther():
    batch, last = labelled(mlp(), images(20)), torch.full((20,), torch.inf).double()
    for queries in (30, 200, 500, 1500):
        distance = run(mlp(), batch, "l2", queries=queries).distance.nan_to_num(torch.inf)
        assert bool((distance <= last).all())
        last = distance
    assert bool(last.isfinite().all())


def test_samples_inside_the_ball_leave():
    batch = labelled(mlp(), images(40))
    free = run(mlp(), batch, "l2")
    eps = float(free.distance.median())
    bound = run(mlp(), batch, "l2", eps=eps)
    assert torch.equal(bound.success, free.distance <= eps)
    assert set(bound.forward[~bound.success].tolist()) == {1500}
    assert int(bound.forward[bound.success].double().median()) < 1000


def test_a_model_of_one_label_costs_the_tries_and_fails():
    model = linear(torch.zeros(2, 6), torch.tensor([3.0, 0.0]))
    result = run(model, Batch.of(images(4, (6,)), torch.zeros(4, dtype=torch.int64)), "l2")
    assert not bool(result.success.any())
    assert bool(result.distance.isnan().all())
    assert set(result.forward.tolist()) == {100}


def test_the_box_is_a_unit():
    weight, x = torch.randn(3, 8, generator=torch.Generator().manual_seed(2)), images(20, (8,))
    for norm in ("linf", "l2"):
        plain, scaled = (
            linear(weight, torch.zeros(3)),
            linear(weight / 8, 0.25 * weight.sum(1), Box(-2.0, 6.0)),
        )
        first = run(plain, labelled(plain, x), norm, queries=600)
        second = run(scaled, labelled(scaled, 8 * x - 2), norm, queries=600)
        torch.testing.assert_close(8 * first.distance, second.distance, equal_nan=True, rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_way_ends_at_both_ends(norm):
    x, point = images(3), images(3, seed=5)
    assert torch.equal(towards(x, point, torch.ones(3), norm), point)
    assert torch.equal(towards(x, point, torch.zeros(3), norm), x)
    threat = ThreatModel(norm, None)
    half = threat.distance(x, towards(x, point, torch.full((3,), 0.5), norm))
    torch.testing.assert_close(half, threat.distance(x, point) / 2, rtol=1e-5, atol=0)


def test_bad_settings_are_refused():
    for bad in ({"queries": 0}, {"tries": 0}):
        with pytest.raises(UserError, match="queries >= 1"):
            HopSkipJump(**bad)
