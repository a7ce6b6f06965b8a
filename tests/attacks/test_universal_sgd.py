"""The fast universal perturbation: no weaker on held-out images than DeepFool's, in fewer passes."""

from __future__ import annotations

import pytest
import torch

from attacks import deepfool
from attacks.access import GradientAccess
from attacks.universal import Universal
from attacks.universal_sgd import UniversalSGD
from defenses.zoo import ModelName, load
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel, vector_norm
from tests.builders import images, labelled, linear, mlp, random_linear


def fooling(result) -> float:
    return float(result.success[result.clean].float().mean())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 4.0)])
def test_it_fools_held_out_images_no_less_than_deepfools_in_fewer_passes(norm, eps, monkeypatch):
    model, data = load(ModelName.parse("fc500-150-10")), load_data("mnist5k")
    panel, threat = data.panel(None), ThreatModel(norm, eps)
    batch, aside = data.batch(panel[:300]), data.batch(panel[-300:])
    fast = UniversalSGD().run(model, batch, threat, Randomness(0), aside)
    # DeepFool as published linearises every class at every step.
    monkeypatch.setattr(deepfool, "GROWTH", 1e9)
    slow = Universal(passes=2).run(model, batch, threat, Randomness(0), aside)
    assert float(vector_norm(fast.artifacts["perturbation"].double(), norm)) <= eps
    assert fooling(fast) >= fooling(slow)
    assert fast.shared_forward + fast.shared_backward < 0.5 * (slow.shared_forward + slow.shared_backward)
    noise = threat.steepest(Randomness(1).normal(torch.zeros(1, dtype=torch.int64), batch.x.shape[1:])) * eps
    moved = threat.project(batch.x, batch.x + noise)
    random = float((model.logits(moved).argmax(1) != batch.y)[fast.clean].float().mean())
    assert fooling(fast) > max(0.5, 3 * random)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_affine_class_against_another_gives_the_closed_form(norm):
    """Where all images have the same label the best v is eps along the steepest direction."""
    model = random_linear(2, 20, box=Box(-9.0, 9.0))
    x = images(200, (20,))
    batch = labelled(model, x)
    batch = batch[batch.y == int(batch.y.mode().values)]
    threat = ThreatModel(norm, 0.3, model.box)
    attack = UniversalSGD(clip=100.0)
    v = attack.fit(GradientAccess(model, 0), batch, threat, Randomness(0))
    label = int(batch.y[0])
    slope = (model.network.weight[1 - label] - model.network.weight[label]).detach()[None]
    torch.testing.assert_close(v, 0.3 * threat.steepest(slope), rtol=0, atol=1e-4)


def test_the_clip_lets_go_of_images_that_are_fooled():
    """Two groups pull v opposite ways; without the clip the one whose loss grows fastest rules."""
    model = random_linear(2, 1, box=Box(-50.0, 50.0))
    with torch.no_grad():
        model.network.weight.copy_(torch.tensor([[0.0], [1.0]]))
        model.network.bias.zero_()
    # Class 1 at 0.5 (20 images, fooled by v < -0.5), class 0 at -30 (21 images, never to be fooled).
    x = torch.cat([torch.full((20, 1), 0.5), torch.full((21, 1), -30.0)])
    batch, threat = labelled(model, x), ThreatModel("linf", 5.0, model.box)
    v = UniversalSGD(clip=3.0, minibatch=41).fit(GradientAccess(model, 0), batch, threat, Randomness(0))
    assert float(v) < -0.5


def test_every_image_gets_the_same_perturbation():
    model = mlp()
    batch, aside = labelled(model, 0.3 + 0.4 * images(20)), labelled(model, images(60, seed=7))
    result = UniversalSGD().run(model, batch, ThreatModel("linf", 0.2), Randomness(0), aside)
    v = result.artifacts["perturbation"]
    assert v.shape == (1, *batch.x.shape[1:])
    assert float(v.abs().max()) == pytest.approx(0.2, abs=1e-5)
    torch.testing.assert_close(result.x_adv - batch.x, v.expand_as(batch.x), rtol=0, atol=1e-6)
    assert int(result.forward.sum()) == int(result.backward.sum()) == 0


def test_passes_are_what_they_say():
    model = mlp()
    batch, aside = labelled(model, images(5)), labelled(model, images(50, seed=7))
    result = UniversalSGD(passes=3, minibatch=16).run(
        model, batch, ThreatModel("l2", 0.5), Randomness(0), aside
    )
    assert (result.shared_forward, result.shared_backward) == (4 * 50, 3 * 50)


def test_scaling_inputs_scales_v_and_a_constant_changes_nothing():
    small, large = mlp(), mlp()
    with torch.no_grad():
        large.network[1].weight /= 255
        large.network[3].bias += 25.0
    large.box = Box(0.0, 255.0)
    aside = labelled(small, images(60, seed=7))
    scaled = labelled(large, aside.x * 255)
    a = UniversalSGD().fit(GradientAccess(small, 0), aside, ThreatModel("l2", 0.5), Randomness(0))
    wide = ThreatModel("l2", 127.5, large.box)
    b = UniversalSGD().fit(GradientAccess(large, 0), scaled, wide, Randomness(0))
    torch.testing.assert_close(255 * a, b, rtol=0, atol=0.5)


def test_the_few_unsure_images_do_not_choose_the_direction():
    """Logits (x_1, x_2, 0): nine images lead by 8 and need x_1 to fall, one leads by 0.2 and needs x_2 to.

    The plain cross-entropy's gradient is 140 times larger for the one than for the nine together.
    """
    model = linear(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), torch.zeros(3), Box(-20.0, 20.0))
    batch = labelled(model, torch.tensor([[8.0, -8.0]] * 9 + [[-8.0, 0.2]]))
    threat = ThreatModel("l2", 1.0, model.box)
    one_step = UniversalSGD(passes=1, minibatch=10)
    (v,) = one_step.fit(GradientAccess(model, 0), batch, threat, Randomness(0))
    assert float(v.norm()) == pytest.approx(0.2, rel=1e-4)
    assert float(v[0]) < 2 * float(v[1]) < 0


@pytest.mark.parametrize(
    "settings", [{"minibatch": 0}, {"clip": 0.0}, {"relative_step": -1.0}, {"spread": 0.0}]
)
def test_bad_settings_are_users_errors(settings):
    with pytest.raises(UserError, match="universal-sgd needs"):
        UniversalSGD(**settings)
