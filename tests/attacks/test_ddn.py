"""Decoupled direction and norm: the published recursion, exact distances, passes, units, flat places."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from attacks.access import GradientAccess
from attacks.ddn import DecoupledDirectionNorm
from models.base import Batch, Classifier
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import Counting, exact_distance, images, labelled, mlp, random_linear


def search(model, batch, eps=None, **settings):
    threat = ThreatModel("l2", eps, model.box)
    return DecoupledDirectionNorm(**settings).run(model, batch, threat, Randomness(0))


def test_the_published_recursion():
    """Against algorithm 1 for one sample at a time: the nearest success of all iterates."""
    model, steps = mlp(classes=5, hidden=32).double(), 30
    batch = labelled(model, images(8).double())
    settings = {"steps": steps, "gamma": 0.1, "radius": 0.5, "halvings": 0}
    found = search(model, batch, **settings)
    for i in range(8):
        x, y = batch.x[i : i + 1], batch.y[i : i + 1]
        delta, radius, best, kept = torch.zeros_like(x), 0.5, math.inf, x
        for k in range(steps):
            z = (x + delta).requires_grad_(True)
            logits = model.logits(z)
            (slope,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y), z)
            wrong = bool(logits.argmax(1) != y)
            if wrong and float(delta.norm()) < best:
                best, kept = float(delta.norm()), (x + delta)
            rate = 0.01 + 0.99 * (1 + math.cos(math.pi * k / steps)) / 2
            delta = delta + rate * slope / slope.norm()
            radius *= 0.9 if wrong else 1.1
            delta = (x + radius * delta / delta.norm()).clamp(0, 1) - x
        assert best < math.inf
        torch.testing.assert_close(found.x_adv[i : i + 1], kept.detach(), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("loss", "median", "mean"), [("ce", 1.06, 1.1), ("margin", 1.005, 1.03)])
@pytest.mark.parametrize("corners", [False, True])
def test_affine_distances_within_the_box(corners, loss, median, mean):
    """Cross-entropy leans towards all classes at once, the margin towards the nearest."""
    model = random_linear(5, 30)
    x = images(40, (30,))
    batch = labelled(model, (x > 0.5).float() if corners else x)
    result, exact = search(model, batch, loss=loss), distance_in_the_box(model, batch, "l2")
    assert bool(result.success.all())
    assert bool((result.distance >= exact * (1 - 1e-5) - 1e-6).all())
    assert float((result.distance / exact).median()) <= median
    assert float((result.distance / exact).mean()) <= mean


@pytest.mark.parametrize(("halvings", "slack"), [(0, 0.11), (10, 0.003)])
def test_distances_between_two_classes_far_from_the_box(halvings, slack):
    """A straight boundary: the radius swings around its distance by gamma, and bisection takes that away."""
    model = random_linear(2, 20, box=Box(-6.0, 7.0))
    batch = labelled(model, images(30, (20,)))
    result = search(model, batch, halvings=halvings, loss="margin", steps=150)
    ratio = result.distance / exact_distance(model, batch, "l2")
    assert float(ratio.min()) >= 1 - 1e-5
    assert float(ratio.max()) <= 1 + slack


def test_one_run_gives_the_curve():
    model = mlp(classes=5, inputs=24, hidden=24)
    batch = labelled(model, images(50, (1, 3, 8)))
    free = search(model, batch)
    for quantile in (0.3, 0.7):
        eps = float(free.distance.nanquantile(quantile))
        held = search(model, batch, eps)
        assert bool(held.success[free.distance <= eps].all())
        assert not bool(held.success[~(free.distance <= eps * 1.0001)].any())
        assert float(held.distance[held.success].max()) <= eps
        assert float(held.backward[held.success].double().mean()) < 100


def test_every_pass_is_counted():
    model = mlp()
    model.network = counter = Counting(model.network)
    batch = labelled(model, images(20))
    counter.forward_samples = counter.backward_samples = 0
    result = search(model, batch, steps=40, halvings=5)
    assert result.backward.tolist() == [40] * 20
    assert result.forward.tolist() == [40 + 5] * 20
    assert counter.forward_samples == 20 * 45 + 40
    assert counter.backward_samples == 20 * 40


@pytest.mark.parametrize("origin", [0.0, -100.0])
def test_scaling_and_moving_the_units_moves_the_points(origin):
    small, large = mlp().double(), mlp().double()
    with torch.no_grad():
        large.network[1].weight /= 255
        large.network[1].bias -= origin * large.network[1].weight.sum(1)
    large.box = Box(origin, origin + 255)
    batch = labelled(small, images(30).double())
    a = search(small, batch)
    b = search(large, Batch(origin + 255 * batch.x, batch.y, batch.index))
    torch.testing.assert_close((b.x_adv - origin) / 255, a.x_adv, atol=1e-6, rtol=0)


def test_a_constant_on_the_logits_changes_nothing():
    model = mlp().double()
    batch = labelled(model, images(30).double())
    plain = search(model, batch)
    with torch.no_grad():
        model.network[3].bias += 50.0
    moved = search(model, batch)
    # What counts as rounding grows with the constant, and with it a little of each distance.
    torch.testing.assert_close(plain.distance, moved.distance, equal_nan=True, rtol=1e-2, atol=0)


class Ramp(nn.Module):
    """Right until an entry leaves 0.4 .. 0.6, flat there; beyond, the loss rises."""

    def forward(self, x):
        away = ((x - 0.5).abs() - 0.1).clamp(min=0).flatten(1).sum(1)
        return torch.stack([torch.full_like(away, 0.05), away], 1)


def test_a_flat_place_is_left_in_a_random_direction():
    """At x the gradient is zero; each sample draws its own way out, whatever its neighbours."""
    model = Classifier(Ramp(), num_classes=2)
    batch = Batch.of(torch.full((12, 1, 3, 4), 0.5), torch.zeros(12, dtype=torch.int64))
    result = search(model, batch)
    assert bool(result.success.all())
    assert bool(torch.isfinite(result.x_adv).all())
    # The nearest point that errs has one entry 0.15 away.
    assert float(result.distance.min()) >= 0.15 - 1e-6
    assert float(result.distance.mean()) < 0.45
    assert len(result.x_adv.flatten(1).unique(dim=0)) == 12
    alone = search(model, batch[5:6])
    torch.testing.assert_close(alone.x_adv, result.x_adv[5:6])


def test_a_model_that_never_errs_keeps_its_inputs():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.stack([2 + 0 * x.flatten(1).sum(1), 0 * x.flatten(1).sum(1)], 1)

    model = Classifier(Constant(), num_classes=2)
    batch = Batch.of(images(5), torch.zeros(5, dtype=torch.int64))
    view = GradientAccess(model, 5)
    attack = DecoupledDirectionNorm(steps=300, gamma=0.5)
    found = attack.propose(view, batch, ThreatModel("l2", None), Randomness(0), None)
    assert torch.equal(found, batch.x)
    assert not bool(search(model, batch).success.any())


def test_no_radius_is_longer_than_the_boxs_diagonal():
    model = mlp()
    batch = labelled(model, images(10))
    far, farther = (search(model, batch, radius=radius) for radius in (12**0.5 / 0.9, 1e6))
    assert torch.equal(far.x_adv, farther.x_adv)


@pytest.mark.parametrize("bad", [{"gamma": 0.0}, {"gamma": 0.6}, {"radius": 0.0}, {"steps": 0}])
def test_bad_settings_are_users_errors(bad):
    with pytest.raises(UserError, match=r"ddn needs 0 < gamma <= 0\.5, radius > 0 and steps >= 1"):
        DecoupledDirectionNorm(**bad)
    with pytest.raises(UserError, match="ddn has no loss"):
        DecoupledDirectionNorm(loss="mse")
