"""The fast adaptive boundary attack: exact on affine models, and nearer than DeepFool on trained ones."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from attacks.deepfool import DeepFool
from attacks.fab import FastAdaptiveBoundary, onto
from defenses.zoo import ModelName, load
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import exact_distance, images, labelled, linear, mlp, random_linear

NORMS = ["linf", "l2", "l1"]


def search(model, batch, norm, *, eps=None, seed=0, batch_size=256, **settings):
    threat = ThreatModel(norm, eps, model.box)
    attack = FastAdaptiveBoundary(**settings)
    return attack.run(model, batch, threat, Randomness(seed), batch_size=batch_size)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("corners", [False, True])
def test_affine_distances_within_the_box_are_exact(norm, corners):
    model = random_linear(5, 30)
    x = images(40, (30,))
    batch = labelled(model, (x > 0.5).float() if corners else x)
    result, exact = search(model, batch, norm, restarts=0), distance_in_the_box(model, batch, norm)
    assert bool(result.success.all())
    assert bool((result.distance >= exact * (1 - 1e-5) - 1e-6).all())
    assert bool((result.distance <= exact * 1.001 + 1e-4).all())


@pytest.mark.parametrize("norm", NORMS)
def test_affine_distances_where_the_box_is_far(norm):
    model = random_linear(4, 20, box=Box(-6.0, 7.0))
    batch = labelled(model, images(30, (20,)))
    result, exact = search(model, batch, norm), exact_distance(model, batch, norm)
    assert bool((result.distance >= exact - 1e-5).all())
    assert bool((result.distance <= exact * 1.001 + 1e-4).all())


@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_class_is_not_the_likeliest(norm):
    """The runner-up's boundary is far, the third class' near: one target must be the right one."""
    weight = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.1], [-4.0, 4.0, 4.0]])
    model = linear(weight, torch.tensor([0.0, -0.1, -1.0]), Box(-9.0, 9.0))
    batch = labelled(model, torch.zeros(1, 3))
    result = search(model, batch, norm, targets=1, restarts=0)
    torch.testing.assert_close(result.distance, exact_distance(model, batch, norm), rtol=1e-3, atol=0)
    assert int(model.logits(result.x_adv).argmax(1)) == 2


def test_a_class_that_the_box_puts_out_of_reach_is_not_the_target():
    """Class 1 is nearer, at 0.85, but beyond the bound."""
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.2]])
    model = linear(weight, torch.tensor([0.0, -1.05, -0.19]))
    batch = labelled(model, torch.tensor([[0.2, 0.0]]))
    result = search(model, batch, "linf", targets=1, restarts=0)
    assert bool(result.success.all())
    assert float(result.distance) == pytest.approx(0.95, abs=2e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_projections_land_on_the_hyperplane_from_both_sides(norm):
    x, slope = images(30, (20,)), images(30, (20,), seed=4) - 0.5
    value = torch.linspace(-0.5, 0.5, 30)
    move, length, reached = onto(ThreatModel(norm, None), x, slope, value)
    assert int(reached.sum()) > 20
    there = value.double() + (slope.double() * move).sum(1)
    torch.testing.assert_close(there[reached], torch.zeros_like(there[reached]), atol=1e-6, rtol=0)
    assert bool(ThreatModel(norm, None).box.contains(x + move).all())
    free = value.abs() / torch.linalg.vector_norm(slope, {"linf": 1, "l2": 2, "l1": torch.inf}[norm], dim=1)
    assert bool((length[reached] >= free[reached] * (1 - 1e-6)).all())


@pytest.mark.parametrize("norm", NORMS)
def test_nearer_than_deepfool_on_a_trained_network(norm):
    model, data = load(ModelName.parse("conv-small")), load_data("mnist5k")
    batch = data.batch(data.panel(20))
    ours = search(model, batch, norm, targets=2, restarts=0)
    deepfool = DeepFool().run(model, batch, ThreatModel(norm, None), Randomness(0))
    assert bool(ours.success.all())
    assert float(ours.distance.mean()) < 0.95 * float(deepfool.distance.nanmean())


@pytest.mark.parametrize("norm", NORMS)
def test_targets_and_restarts_only_improve(norm):
    model = mlp(classes=5, inputs=24, hidden=24)
    batch = labelled(model, images(40, (1, 3, 8)))
    runs = [
        search(model, batch, norm, halvings=0, **settings).distance
        for settings in ({"targets": 1, "restarts": 0}, {"restarts": 0}, {"restarts": 2})
    ]
    assert all(bool((b <= a + 1e-9)[a.isfinite()].all()) for a, b in pairwise(runs))
    assert float(runs[2].mean()) < float(runs[0].mean())


@pytest.mark.parametrize("norm", NORMS)
def test_a_run_at_a_radius_breaks_what_the_free_run_puts_within(norm):
    model = mlp(classes=5, inputs=24, hidden=24)
    batch = labelled(model, images(50, (1, 3, 8)))
    free = search(model, batch, norm)
    eps = float(free.distance.nanmedian())
    held = search(model, batch, norm, eps=eps)
    assert bool(held.success[free.distance <= eps].all())
    assert float(held.distance[held.success].max()) <= eps
    # Samples that are within the radius leave.
    assert float(held.backward[held.success].double().mean()) < 0.5 * float(free.backward.double().mean())


@pytest.mark.parametrize("norm", NORMS)
def test_scaling_inputs_scales_the_perturbation(norm):
    small, large = mlp(), mlp()
    with torch.no_grad():
        large.network[1].weight /= 255
    large.box = Box(0.0, 255.0)
    batch = labelled(small, images(30))
    a, b = search(small, batch, norm), search(large, labelled(large, batch.x * 255), norm)
    assert torch.equal(a.success, b.success)
    torch.testing.assert_close(255 * a.distance, b.distance, equal_nan=True, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("constant", [-1000.0, 20.0])
def test_a_constant_on_the_logits_changes_nothing(constant):
    model = mlp()
    batch = labelled(model, images(30))
    plain = search(model, batch, "l2")
    with torch.no_grad():
        model.network[3].bias += constant
    moved = search(model, batch, "l2")
    assert torch.equal(plain.success, moved.success)
    torch.testing.assert_close(plain.distance, moved.distance, equal_nan=True, rtol=2e-2, atol=3e-3)


def test_seeds_change_the_restarts_alone():
    model = mlp(classes=5, inputs=24, hidden=24)
    batch = labelled(model, images(40, (1, 3, 8)))
    without = [search(model, batch, "l2", seed=s, restarts=0).x_adv for s in (0, 1)]
    restarted = [search(model, batch, "l2", seed=s, restarts=2).forward for s in (0, 1)]
    assert torch.equal(*without)
    assert not torch.equal(*restarted)


@pytest.mark.parametrize(
    "settings", [{"bias": 1.5}, {"backward": 1.0}, {"extrapolation": 0.9}, {"targets": 0}]
)
def test_bad_settings_are_users_errors(settings):
    with pytest.raises(UserError, match="fab needs"):
        FastAdaptiveBoundary(**settings)
