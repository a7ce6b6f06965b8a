"""Attacks by finite differences: estimates against the true gradient, and the bill of queries."""

from __future__ import annotations

import pytest
import torch

from attacks.access import ScoreAccess
from attacks.nes import NES, Estimator
from attacks.pgd import PGD
from attacks.spsa import SPSA
from models.base import Batch, Classifier
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.builders import WIDE, Counting, exact_distance, images, labelled, linear, mlp, random_linear

BOTH = {"nes": NES(queries=40 * 21, samples=20), "spsa": SPSA(queries=40 * 21, samples=20)}
DRAWS = {"nes": Randomness.normal, "spsa": Randomness.sign}


def estimate(name: str, x, model, *, pairs: int, index=None, loss: str = "margin"):
    with torch.no_grad():
        y = model.logits(x).argmax(1)
    batch = Batch(x, y, torch.arange(len(x)) if index is None else index)
    rows = torch.arange(len(x))
    estimator = Estimator(DRAWS[name], loss, pairs, 0.01)
    view = ScoreAccess(model, len(x))
    found = estimator(view, x, batch, rows, ThreatModel("linf", 0.1, model.box), Randomness(0))
    assert set(view.forward.tolist()) == {2 * pairs}
    return found, y


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("where", ["inside", "at the bounds"])
def test_the_estimate_tends_to_the_gradient_of_a_linear_model(name, where):
    """Two classes: the loss is linear, its gradient w_other - w_y, at saturated pixels too."""
    model = random_linear(2, 8)
    x = 0.3 + 0.4 * images(3, (8,)) if where == "inside" else (images(3, (8,)) > 0.5).float()
    found, y = estimate(name, x, model, pairs=20_000)
    weight = model.network.weight.detach()
    torch.testing.assert_close(found, weight[1 - y] - weight[y], atol=0.15, rtol=0)


def test_without_the_share_saturated_pixels_would_count_half():
    model = random_linear(2, 2)
    x = torch.tensor([[0.0, 0.5]])
    found, y = estimate("spsa", x, model, pairs=20_000)
    weight = model.network.weight.detach()
    gradient = (weight[1 - y] - weight[y])[0]
    assert float((found[0] / gradient - 1).abs().max()) < 0.1


@pytest.mark.parametrize("name", BOTH)
def test_one_pair_is_the_published_formula(name):
    model, x = mlp(), 0.3 + 0.4 * images(4)
    found, y = estimate(name, x, model, pairs=1)
    u = DRAWS[name](Randomness(0), torch.arange(4), x.shape[1:])
    rivals = torch.arange(4) != y[:, None]

    def loss(points):
        z = model.logits(points).detach()
        return z.where(rivals, -torch.inf).amax(1) - z.gather(1, y[:, None])[:, 0]

    slope = (loss(x + 0.01 * u) - loss(x - 0.01 * u)) / 0.02
    torch.testing.assert_close(found, slope[:, None, None, None] * u, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", BOTH)
def test_each_sample_has_directions_of_its_own(name):
    model, x = mlp(), images(1).expand(3, -1, -1, -1)
    found, _ = estimate(name, x, model, pairs=2, index=torch.tensor([5, 6, 5]))
    assert torch.equal(found[0], found[2])
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("name", BOTH)
def test_groups_change_nothing(name, monkeypatch):
    whole, _ = estimate(name, images(4), mlp(), pairs=10)
    monkeypatch.setattr("attacks.nes.ENTRIES", 3 * 48)
    parts, _ = estimate(name, images(4), mlp(), pairs=10)
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_linear_models_fall_just_behind_the_exact_distance_and_never_before(name, norm):
    model = random_linear(3, 10, box=WIDE)
    batch = labelled(model, images(12, (10,)))
    distance = exact_distance(model, batch, norm)
    attack = {"nes": NES, "spsa": SPSA}[name](queries=40 * 201, samples=200, width=1e-5)
    for i in range(12):
        for factor in (0.98, 1.15):
            threat = ThreatModel(norm, factor * float(distance[i]), WIDE)
            result = attack.run(model, batch[i : i + 1], threat, Randomness(0))
            assert bool(result.success.all()) == (factor > 1)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_ball_stays_around_x_while_nobody_leaves(name, norm):
    """Against classes out of reach the walk goes along the ball, however many steps it takes."""
    model = linear(torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]]), torch.tensor([9.0, 0.0]))
    batch, threat = labelled(model, 0.4 + 0.2 * images(5, (3,))), ThreatModel(norm, 0.2)
    result = BOTH[name].run(model, batch, threat, Randomness(0))
    assert bool(result.legal.all())
    assert not bool(result.success.any())
    view = ScoreAccess(model, len(batch))
    point = BOTH[name].propose(view, batch, threat, Randomness(0), None)
    fallen = (model.logits(batch.x) - model.logits(point))[:, 0]
    most = 0.2 * (4 if norm == "linf" else 6**0.5)
    torch.testing.assert_close(fallen, torch.full_like(fallen, most), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", BOTH)
def test_the_bill_is_exact(name):
    model = mlp()
    counter = Counting(model.network)
    model.network = counter
    batch = labelled(model, images(60))
    counter.forward_samples = 0
    result = BOTH[name].run(model, batch, ThreatModel("linf", 0.1), Randomness(0))
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == 0
    assert 5 < int(result.success.sum()) < 55
    assert set(result.forward[~result.success].tolist()) == {40 * 21}
    assert set((result.forward % 21).tolist()) == {0}
    assert int(result.forward[result.success].max()) < 40 * 21


@pytest.mark.parametrize("name", BOTH)
def test_the_budget_is_never_exceeded(name):
    attack = type(BOTH[name])(queries=50, samples=20)
    result = attack.run(mlp(), labelled(mlp(), images(20)), ThreatModel("linf", 1e-4), Randomness(0))
    assert set(result.forward.tolist()) == {42}


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_box_is_a_unit_and_logits_have_no_origin(name, norm):
    """The same network on inputs of [-3, 7], or with a constant added to its logits."""
    weight, bias = torch.randn(3, 8, generator=torch.Generator().manual_seed(2)), torch.zeros(3)
    box, x, eps = Box(-3.0, 7.0), images(25, (8,)), {"linf": 0.12, "l2": 0.3}[norm]
    plain = linear(weight, bias)
    scaled = linear(weight / 10, weight.sum(1) * 0.3 + bias, box)
    shifted = linear(weight, bias + 5)
    first = BOTH[name].run(plain, labelled(plain, x), ThreatModel(norm, eps), Randomness(0))
    second = BOTH[name].run(
        scaled, labelled(scaled, 10 * x - 3), ThreatModel(norm, 10 * eps, box), Randomness(0)
    )
    third = BOTH[name].run(shifted, labelled(shifted, x), ThreatModel(norm, eps), Randomness(0))
    assert 3 < int(first.success.sum()) < 23
    assert torch.equal(first.success, second.success)
    assert torch.equal(first.success, third.success)
    torch.testing.assert_close(10 * first.distance, second.distance, equal_nan=True, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", BOTH)
def test_a_zero_gradient_does_not_stop_it(name):
    """Scores rounded to steps of 0.02 have no gradient; finite differences see the steps."""
    inner = mlp()

    class Rounded(torch.nn.Module):
        def forward(self, x):
            return (inner.network(x) / 0.02).round() * 0.02

    model = Classifier(Rounded(), num_classes=4)
    batch, threat = labelled(model, images(30)), ThreatModel("linf", 0.15)
    found = BOTH[name].run(model, batch, threat, Randomness(0))
    pgd = PGD(restarts=1).run(model, batch, threat, Randomness(0))
    assert int(found.success.sum()) > int(pgd.success.sum()) + 5


@pytest.mark.parametrize("name", BOTH)
def test_bad_settings_are_refused(name):
    for bad in ({"samples": 7}, {"samples": 0}, {"queries": 10, "samples": 10}, {"width": 0.0}):
        with pytest.raises(UserError, match="even number of samples"):
            type(BOTH[name])(**bad)
    with pytest.raises(UserError, match="has no loss 'hinge': choose ce"):
        type(BOTH[name])(loss="hinge")
