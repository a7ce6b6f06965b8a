from __future__ import annotations

import pytest
import torch

from attacks.access import GradientAccess
from attacks.cw import CarliniWagner
from attacks.cw_l0 import most_useful
from attacks.deepfool import DeepFool
from attacks.nearest import Best
from attacks.unbounded import bounded, unbounded
from defenses.zoo import ModelName, load
from models.base import margin
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import UNIT_BOX, Box, ThreatModel
from tests.attacks.test_fmn import distance_in_the_box
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
    w = unbounded(x, box.lower, box.upper)
    assert bool(w.isfinite().all())
    torch.testing.assert_close(bounded(w, box.lower, box.upper)[0], x, atol=1e-5, rtol=0)
    drawn, slant = bounded(unbounded(x, box.lower, box.upper, inset=0.1), box.lower, box.upper)
    torch.testing.assert_close(drawn, torch.tensor([[-1.65, 0.0, 4.65]]), atol=1e-4, rtol=0)
    assert float(slant.min()) > 0.18 * box.width / 2


def test_an_entry_whose_bounds_coincide_stays_exactly():
    x = images(5, (7,))
    point, slant = bounded(unbounded(x, x, x), x, x)
    assert torch.equal(point, x)
    assert bool((slant == 0).all())


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


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(("norm", "most"), [("linf", 1.05), ("l0", 1.0)])
def test_affine_distances_within_the_box_in_linf_and_l0(norm, most, corners):
    """Never below the exact distance; above it by at most 5 % (linf) or not at all (l0) in the median."""
    model = random_linear(5, 30)
    x = images(40, (30,))
    batch = labelled(model, (x > 0.5).float() if corners else x)
    threat = ThreatModel(norm, None)
    result = distances(CarliniWagner(), model, batch, threat)
    exact = distance_in_the_box(model, batch, norm)
    assert bool(result.success.all())
    assert bool((result.distance >= exact * (1 - 1e-5) - 1e-6).all())
    assert float((result.distance / exact).median()) <= most
    assert float((result.distance / exact).mean()) <= 1.3


@pytest.mark.parametrize("warm", [True, False])
def test_nearer_than_deepfool_in_linf_on_a_trained_network(warm):
    model, data = load(ModelName.parse("conv-small")), load_data("mnist5k")
    batch, threat = data.batch(data.panel(25)), ThreatModel("linf", None)
    ours = distances(CarliniWagner(warm_start=warm), model, batch, threat)
    deepfool = distances(DeepFool(), model, batch, threat)
    assert bool(ours.success.all())
    assert float(ours.distance.mean()) < (0.93 if warm else 1.0) * float(deepfool.distance.nanmean())
    if warm:
        assert bool((ours.distance <= deepfool.distance.nan_to_num(torch.inf) * (1 + 1e-5)).all())


@pytest.mark.parametrize("norm", ["linf", "l0"])
@pytest.mark.parametrize("warm", [True, False])
def test_black_and_white_images_are_not_frozen_in_the_other_norms(norm, warm):
    model = mlp(inputs=48, seed=2)
    batch = labelled(model, (images(30, (1, 6, 8)) > 0.5).float())
    result = distances(CarliniWagner(warm_start=warm), model, batch, ThreatModel(norm, None))
    assert bool(result.success.all())
    assert float(result.distance.mean()) < {"linf": 0.2, "l0": 3.5}[norm]


def test_few_entries_change_on_a_trained_network():
    model, data = load(ModelName.parse("conv-small")), load_data("mnist5k")
    batch = data.batch(data.panel(20))
    few = distances(CarliniWagner(), model, batch, ThreatModel("l0", None))
    none = distances(CarliniWagner(bounds=0), model, batch, ThreatModel("l0", None))
    assert bool(few.success.all())
    assert float(few.distance.mean()) < 15
    assert bool((few.distance <= none.distance.nan_to_num(torch.inf)).all())


def test_the_entries_kept_are_those_that_gain_most():
    model = random_linear(2, 12)
    batch = labelled(model, 0.2 + 0.6 * images(10, (12,)))
    best = Best(torch.ones_like(batch.x), torch.full((10,), 12.0))
    best.point[:, :2] = batch.x[:, :2]
    kept = most_useful(GradientAccess(model, 10), batch, torch.arange(10), torch.full((10,), 3.0), best)
    side = torch.where(batch.y == 0, 1.0, -1.0)[:, None]
    gain = side * (model.network.weight[1] - model.network.weight[0]).detach() * (best.point - batch.x)
    gain[:, :2] = -torch.inf
    assert torch.equal(kept.sum(1), torch.full((10,), 3))
    assert torch.equal(kept, gain >= gain.topk(3, dim=1).values[:, 2:])


@pytest.mark.parametrize("norm", ["linf", "l0"])
def test_confidence_is_held_in_the_other_norms(norm):
    model = random_linear(4, 20)
    batch = labelled(model, images(30, (20,)))
    loose, tight = (
        distances(CarliniWagner(confidence=k), model, batch, ThreatModel(norm, None)) for k in (0.0, 0.7)
    )
    both = loose.success & tight.success
    assert int(both.sum()) > 20
    assert bool((-margin(model.logits(tight.x_adv).detach(), batch.y)[tight.success] >= 0.7).all())
    assert float(tight.distance[both].mean()) > float(loose.distance[both].mean())


@pytest.mark.parametrize("norm", ["linf", "l0"])
def test_scaling_inputs_scales_the_other_norms(norm):
    small, large = mlp(), mlp()
    with torch.no_grad():
        large.network[1].weight /= 255
        large.network[3].bias += 30.0
    large.box = Box(0.0, 255.0)
    batch = labelled(small, images(30))
    a = distances(CarliniWagner(), small, batch, ThreatModel(norm, None))
    scaled = labelled(large, batch.x * 255)
    b = distances(CarliniWagner(), large, scaled, ThreatModel(norm, None, large.box))
    ratio = b.distance / a.distance / (255 if norm == "linf" else 1)
    assert torch.equal(a.success, b.success)
    assert float((ratio.nan_to_num(1.0) - 1).abs().median()) < 1e-3
    assert float((ratio.nan_to_num(1.0) - 1).abs().max()) < (0.51 if norm == "l0" else 0.1)
