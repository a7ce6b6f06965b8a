from __future__ import annotations

import pytest
import torch

from attacks.cw import CarliniWagner, unbounded
from attacks.deepfool import DeepFool
from models.base import margin
from models.errors import UserError
from models.randomness import Randomness
from models.threat import UNIT_BOX, Box, ThreatModel
from tests.builders import exact_distance, images, labelled, mlp, random_linear

FREE = ThreatModel("l2", None)
PUBLISHED = {"warm_start": False, "learning_rate": 0.01, "steps": 300, "rounds": 5, "patience": 300}


def distances(attack, model, batch, threat=FREE):
    return attack.run(model, batch, threat, Randomness(0))


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_linear_distance_is_nearly_exact(warm, classes):
    """Inside a box wide enough not to matter: never below, 3 % above, cold starts by the median alone."""
    box = Box(-3.0, 4.0)
    model = random_linear(classes, 20, box=box)
    batch = labelled(model, images(30, (20,)))
    settings = {} if warm else PUBLISHED
    result = distances(CarliniWagner(**settings), model, batch, ThreatModel("l2", None, box))
    exact = exact_distance(model, batch, "l2")
    assert bool(result.success.all())
    assert bool((result.distance >= exact - 1e-5).all())
    ratio = result.distance / exact
    assert float(ratio.median()) <= 1.03
    assert not warm or bool((result.distance <= 1.03 * exact + 1e-4).all())


@pytest.mark.parametrize("warm", [True, False])
def test_black_and_white_images_are_not_frozen(warm):
    """torchattacks clamps the inverse tanh to infinity and moves no pixel of such images."""
    model = mlp(inputs=48, seed=2)
    batch = labelled(model, (images(30, (1, 6, 8)) > 0.5).float())
    result = distances(CarliniWagner(**({} if warm else PUBLISHED)), model, batch)
    assert bool(result.success.all())
    assert float(result.distance.max()) < 3


def test_the_variable_is_finite_on_the_faces_of_the_box():
    box = Box(-2.0, 5.0)
    x = torch.tensor([[box.lower, 0.0, box.upper]])
    w = unbounded(x, box)
    assert bool(w.isfinite().all())
    torch.testing.assert_close(box.lower + box.width / 2 * (w.tanh() + 1), x, atol=1e-5, rtol=0)


def test_nearer_than_deepfool_for_every_sample():
    model = mlp(classes=5, seed=4)
    batch = labelled(model, images(60))
    deepfool = distances(DeepFool(tangent=True), model, batch)
    cw = distances(CarliniWagner(), model, batch)
    reached = deepfool.success
    assert bool(cw.success[reached].all())
    assert bool((cw.distance[reached] <= deepfool.distance[reached] * (1 + 1e-5)).all())
    assert float(cw.distance[reached].mean()) < 0.99 * float(deepfool.distance[reached].mean())


@pytest.mark.parametrize("constant", [-1000.0, -20.0, 20.0])
def test_result_is_invariant_to_a_constant_on_the_logits(constant):
    """A margin by multiplication with one-hot labels floors at 0 where all logits are negative."""
    model = mlp()
    batch = labelled(model, images(30))
    plain = distances(CarliniWagner(), model, batch)
    with torch.no_grad():
        model.network[3].bias += constant
    moved = distances(CarliniWagner(), model, batch)
    assert torch.equal(plain.success, moved.success)
    torch.testing.assert_close(plain.distance, moved.distance, equal_nan=True, rtol=2e-2, atol=3e-3)


def test_scaling_inputs_scales_the_perturbation():
    small, large = mlp(), mlp()
    with torch.no_grad():
        large.network[1].weight /= 255
    large.box = Box(0.0, 255.0)
    batch = labelled(small, images(30))
    a = distances(CarliniWagner(), small, batch)
    b = distances(CarliniWagner(), large, labelled(large, batch.x * 255), ThreatModel("l2", None, large.box))
    assert torch.equal(a.success, b.success)
    torch.testing.assert_close(255 * a.distance, b.distance, equal_nan=True, rtol=1e-2, atol=1e-2)


def test_confidence_raises_margin_and_distance():
    model = random_linear(4, 20)
    batch = labelled(model, images(30, (20,)))
    levels = [distances(CarliniWagner(confidence=k), model, batch) for k in (0.0, 0.5, 1.5)]
    for level, confidence in zip(levels, (0.0, 0.5, 1.5), strict=True):
        achieved = -margin(model.logits(level.x_adv).detach(), batch.y)[level.success]
        assert bool((achieved >= confidence).all())
    means = [float(level.distance[levels[-1].success].mean()) for level in levels]
    assert means == sorted(means)
    assert means[0] < means[2]


def test_more_rounds_are_never_farther():
    model = mlp(seed=5)
    batch = labelled(model, images(40))
    few, many = (distances(CarliniWagner(rounds=r), model, batch).distance for r in (1, 5))
    assert bool((many[few.isfinite()] <= few[few.isfinite()] + 1e-9).all())


def test_a_radius_is_respected():
    model = mlp()
    batch = labelled(model, images(40))
    free = distances(CarliniWagner(), model, batch)
    eps = float(free.distance.nanmedian())
    held = distances(CarliniWagner(), model, batch, ThreatModel("l2", eps, UNIT_BOX))
    assert bool(held.success[free.distance <= eps].all())
    assert bool(held.legal.all())
    assert float(held.distance[held.success].max()) <= eps


def test_a_negative_confidence_is_refused():
    with pytest.raises(UserError, match="confidence >= 0"):
        CarliniWagner(confidence=-1.0)
