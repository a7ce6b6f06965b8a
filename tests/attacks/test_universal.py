from __future__ import annotations

import pytest
import torch

from attacks.universal import Universal
from defenses.zoo import ModelName, load
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, vector_norm
from tests.builders import images, labelled, mlp


@pytest.fixture(scope="module")
def zoo():
    model, data = load(ModelName.parse("fc500-150-10")), load_data("mnist5k")
    panel = data.panel(None)
    return model, data.batch(panel[:200]), data.batch(panel[-200:])


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 4.0)])
def test_held_out_fooling_is_far_above_a_random_vectors(zoo, norm, eps):
    model, batch, aside = zoo
    threat = ThreatModel(norm, eps)
    attack = Universal(passes=2)
    result = attack.run(model, batch, threat, Randomness(0), aside)
    v = result.artifacts["perturbation"]
    assert float(vector_norm(v.double(), norm)) <= eps
    scored = result.clean
    fooling = float(result.success[scored].float().mean())
    noise = threat.steepest(Randomness(1).normal(torch.zeros(1, dtype=torch.int64), batch.x.shape[1:])) * eps
    moved = threat.project(batch.x, batch.x + noise)
    random = float((model.logits(moved).argmax(1) != batch.y)[scored].float().mean())
    assert fooling > 3 * random
    assert fooling > 0.3
    on_aside = attack.run(model, aside, threat, Randomness(0), aside)
    assert abs(fooling - float(on_aside.success[on_aside.clean].float().mean())) < 0.2


def test_every_image_gets_the_same_perturbation_within_the_box():
    model = mlp()
    batch = labelled(model, 0.3 + 0.4 * images(20))
    aside = labelled(model, images(60, seed=7))
    result = Universal().run(model, batch, ThreatModel("linf", 0.2), Randomness(0), aside)
    v = result.artifacts["perturbation"]
    assert v.shape == (1, *batch.x.shape[1:])
    assert float(v.abs().max()) > 0
    torch.testing.assert_close(result.x_adv - batch.x, v.expand_as(batch.x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 8, 100])
def test_fooling_reaches_the_rate_asked_for_and_stops(chunk):
    model = mlp()
    aside = labelled(model, images(60, seed=7))
    threat = ThreatModel("linf", 0.6)
    easy = Universal(chunk=chunk, delta=0.6).run(model, aside, threat, Randomness(0), aside)
    assert float(easy.success.float().mean()) >= 0.4
    hard = Universal(chunk=chunk, delta=0.0, passes=4).run(model, aside, threat, Randomness(0), aside)
    assert easy.shared_forward < hard.shared_forward


def test_attacking_costs_nothing_after_the_fit():
    model = mlp()
    batch, aside = labelled(model, images(20)), labelled(model, images(30, seed=7))
    result = Universal().run(model, batch, ThreatModel("l2", 0.5), Randomness(0), aside)
    assert int(result.forward.sum()) == int(result.backward.sum()) == 0
    assert result.shared_forward > 0


def test_images_of_its_own_and_a_rate_are_demanded():
    batch = labelled(mlp(), images(3))
    with pytest.raises(UserError, match="aside"):
        Universal().run(mlp(), batch, ThreatModel("l2", 0.5), Randomness(0))
    with pytest.raises(UserError, match="delta"):
        Universal(delta=1.0)
