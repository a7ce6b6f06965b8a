"""The fast minimum-norm attack: exact distances on affine models, and never beyond what others find."""

from __future__ import annotations

import pytest
import torch

from attacks.access import GradientAccess
from attacks.deepfool import DeepFool
from attacks.fmn import FastMinimumNorm
from attacks.jsma import JSMA
from attacks.nearest import Best, closer
from defenses.zoo import ModelName, load
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel, vector_norm
from tests.builders import exact_distance, images, labelled, mlp, random_linear

NORMS = ["linf", "l2", "l1", "l0"]


def search(model, batch, norm, box=None, eps=None, **settings):
    threat = ThreatModel(norm, eps, box or model.box)
    return FastMinimumNorm(**settings).run(model, batch, threat, Randomness(0))


def distance_in_the_box(model, batch, norm):
    """min over rivals of the least move within the box that closes the affine gap: (n,) float64."""
    weight, z = model.network.weight.detach(), model.logits(batch.x).detach()
    threat, found = ThreatModel(norm, None, model.box), []
    for rival in range(len(weight)):
        gap = z.gather(1, batch.y[:, None])[:, 0] - z[:, rival]
        move, enough = threat.nearest_gain(batch.x, weight[rival] - weight[batch.y], gap.clamp(min=0))
        reached = enough & (batch.y != rival)
        found.append(torch.where(reached, vector_norm(move, norm), torch.inf))
    return torch.stack(found).amin(0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("corners", [False, True])
def test_affine_distances_within_the_box(norm, corners):
    """Never below the exact distance; at most 2 % above it in the median, for l0 equal to it."""
    model = random_linear(5, 30)
    x = images(40, (30,))
    batch = labelled(model, (x > 0.5).float() if corners else x)
    result, exact = search(model, batch, norm), distance_in_the_box(model, batch, norm)
    assert bool(result.success.all())
    assert bool((result.distance >= exact * (1 - 1e-5) - 1e-6).all())
    assert float((result.distance / exact).median()) <= (1.0 if norm == "l0" else 1.02)
    assert float((result.distance / exact).mean()) <= 1.25


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_affine_distances_where_the_box_is_far(norm):
    model = random_linear(4, 20, box=Box(-6.0, 7.0))
    batch = labelled(model, images(30, (20,)))
    result, exact = search(model, batch, norm), exact_distance(model, batch, norm)
    assert bool((result.distance >= exact - 1e-5).all())
    assert float((result.distance / exact).median()) <= 1.03


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_nearer_than_deepfool_on_a_trained_network(norm):
    model, data = load(ModelName.parse("conv-small")), load_data("mnist5k")
    batch = data.batch(data.panel(20))
    ours = search(model, batch, norm)
    deepfool = DeepFool().run(model, batch, ThreatModel(norm, None), Randomness(0))
    assert bool(ours.success.all())
    assert float(ours.distance.mean()) < float(deepfool.distance.nanmean())


def test_fewer_entries_than_the_saliency_map():
    model, data = load(ModelName.parse("conv-small")), load_data("mnist5k")
    batch = data.batch(data.panel(20))
    ours = search(model, batch, "l0")
    pairs = JSMA().run(model, batch, ThreatModel("l0", None), Randomness(0))
    assert bool(ours.success.all())
    assert float(ours.distance.mean()) < float(pairs.distance.nanmean())


@pytest.mark.parametrize("norm", NORMS)
def test_one_run_gives_the_curve(norm):
    """A run at a radius breaks exactly what the free run puts within it."""
    model = mlp(classes=5, inputs=24, hidden=24)
    batch = labelled(model, images(50, (1, 3, 8)))
    free = search(model, batch, norm)
    for quantile in (0.3, 0.7):
        eps = float(free.distance.nanquantile(quantile))
        held = search(model, batch, norm, eps=eps)
        assert bool(held.success[free.distance <= eps].all())
        assert int((held.success & ~(free.distance <= eps)).sum()) == 0
        assert float(held.distance[held.success].max()) <= eps
        done = held.success & held.clean
        assert float(held.backward[done].double().mean()) < float(free.backward.double().mean())


@pytest.mark.parametrize("norm", NORMS)
def test_scaling_inputs_scales_the_perturbation(norm):
    small, large = mlp(), mlp()
    with torch.no_grad():
        large.network[1].weight /= 255
    large.box = Box(0.0, 255.0)
    batch = labelled(small, images(30))
    a, b = search(small, batch, norm), search(large, labelled(large, batch.x * 255), norm)
    scale = 1 if norm == "l0" else 255
    assert torch.equal(a.success, b.success)
    # Rounding may turn a step at the boundary; the bulk must agree.
    ratio = b.distance / (scale * a.distance)
    assert float((ratio.nan_to_num(1.0) - 1).abs().median()) < 1e-3
    assert float((ratio.nan_to_num(1.0) - 1).abs().max()) < (0.51 if norm == "l0" else 0.1)


@pytest.mark.parametrize("norm", NORMS)
def test_coming_closer_only_improves(norm):
    model = mlp(inputs=24, hidden=24)
    batch = labelled(model, images(40, (1, 3, 8)))
    raw, near = search(model, batch, norm, halvings=0), search(model, batch, norm)
    assert torch.equal(raw.success, near.success)
    assert bool((near.distance <= raw.distance + 1e-6)[raw.success].all())


def test_taking_entries_back_finds_the_few_that_matter():
    """Of 30 changed entries of an affine model, the exact l0 distance remains."""
    model = random_linear(2, 30)
    batch = labelled(model, images(40, (30,)))
    rows, threat = torch.arange(40), ThreatModel("l0", None)
    side = torch.where(batch.y == 0, 1.0, -1.0)[:, None]
    slope = side * (model.network.weight[1] - model.network.weight[0]).detach()
    far = (slope > 0).float()
    best = Best.none(batch.x)
    best.offer(rows, far, threat.distance(batch.x, far), model.logits(far).argmax(1) != batch.y)
    assert bool(best.found.all())
    closer(GradientAccess(model, 40), batch, rows, threat, best, 6)
    assert torch.equal(best.distance.double(), distance_in_the_box(model, batch, "l0"))


@pytest.mark.parametrize("constant", [-100.0, 20.0])
def test_a_constant_on_the_logits_changes_nothing(constant):
    model = mlp()
    batch = labelled(model, images(30))
    plain = search(model, batch, "l2")
    with torch.no_grad():
        model.network[3].bias += constant
    moved = search(model, batch, "l2")
    assert torch.equal(plain.success, moved.success)
    torch.testing.assert_close(plain.distance, moved.distance, equal_nan=True, rtol=2e-2, atol=3e-3)


def test_bad_settings_are_users_errors():
    with pytest.raises(UserError, match="0 < gamma < 1"):
        FastMinimumNorm(gamma=1.0)
