from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize

from attacks.deepfool import GROWTH, DeepFool, Rivals
from defenses.zoo import ModelName, load
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import UNIT_BOX, Box, ThreatModel, vector_norm
from tests.builders import WIDE, exact_distance, images, labelled, linear, mlp, random_linear


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_affine_distance_is_exact_after_one_step(norm, classes):
    model = random_linear(classes, 20, box=WIDE)
    batch = labelled(model, images(40, (20,)))
    result = DeepFool(steps=1).run(model, batch, ThreatModel(norm, None, WIDE), Randomness(0))
    assert bool(result.success.all())
    torch.testing.assert_close(
        result.distance, 1.02 * exact_distance(model, batch, norm), rtol=1e-3, atol=1e-4
    )


def test_more_than_ten_classes_look_at_the_ten_best():
    model = random_linear(30, 20, box=WIDE)
    batch = labelled(model, images(40, (20,)))
    threat = ThreatModel("l2", None, WIDE)
    every = DeepFool(classes=30, steps=1).run(model, batch, threat, Randomness(0))
    torch.testing.assert_close(
        every.distance, 1.02 * exact_distance(model, batch, "l2"), rtol=1e-3, atol=1e-4
    )
    ten = DeepFool().run(model, batch, threat, Randomness(0))
    assert bool(ten.success.all())
    assert bool((ten.backward == 9).all())
    assert bool((every.backward == 29).all())


def test_two_classes_in_the_box_reach_the_box_constrained_optimum():
    """Against SLSQP: min ||r||_2 s.t. f(x + r) = 0, x + r in [0, 1]."""
    model = random_linear(2, 8, seed=3)
    batch = labelled(model, (images(12, (8,)) > 0.5).float())
    result = DeepFool().run(model, batch, ThreatModel("l2", None), Randomness(0))
    w = (model.network.weight[0] - model.network.weight[1]).double().detach()
    b = float((model.network.bias[0] - model.network.bias[1]).detach())
    checked = 0
    for i, x in enumerate(batch.x.double()):
        side = 1.0 if batch.y[i] == 0 else -1.0
        best = minimize(
            lambda r: float(r @ r),
            torch.zeros(8).numpy(),
            jac=lambda r: 2 * r,
            bounds=[(float(-v), float(1 - v)) for v in x],
            constraints={
                "type": "ineq",
                "fun": lambda r, x=x, side=side: -side * (float(w @ x) + b + float(w.numpy() @ r)),
                "jac": lambda r, side=side: -side * w.numpy(),
            },
            method="SLSQP",
        )
        if not best.success:
            assert not bool(result.success[i])
            continue
        assert bool(result.success[i])
        assert best.fun**0.5 * (1 - 1e-4) <= float(result.distance[i]) <= best.fun**0.5 * 1.021 + 1e-4
        checked += 1
    assert checked >= 8


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_result_is_invariant_to_a_constant_on_the_logits(norm):
    model, threat = mlp(), ThreatModel(norm, None)
    batch = labelled(model, images(30))
    plain = DeepFool().run(model, batch, threat, Randomness(0))
    with torch.no_grad():
        model.network[3].bias += 50.0
    moved = DeepFool().run(model, batch, threat, Randomness(0))
    assert torch.equal(plain.success, moved.success)
    torch.testing.assert_close(plain.distance, moved.distance, equal_nan=True, rtol=1e-3, atol=5e-4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_scaling_inputs_scales_the_perturbation(norm):
    small, large = mlp(), mlp()
    with torch.no_grad():
        large.network[1].weight /= 255
    large.box = Box(0.0, 255.0)
    batch = labelled(small, images(30))
    wide = labelled(large, batch.x * 255)
    assert torch.equal(batch.y, wide.y)
    a = DeepFool().run(small, batch, ThreatModel(norm, None), Randomness(0))
    b = DeepFool().run(large, wide, ThreatModel(norm, None, large.box), Randomness(0))
    assert torch.equal(a.success, b.success)
    torch.testing.assert_close(255 * a.distance, b.distance, equal_nan=True, rtol=1e-3, atol=1e-3)


def test_a_radius_judges_and_projects():
    """Inside eps the point is untouched; beyond it the projected point is handed over and judged."""
    model = random_linear(3, 20)
    batch = labelled(model, images(60, (20,)))
    free = DeepFool().run(model, batch, ThreatModel("l2", None), Randomness(0))
    eps = float(free.distance.nanmedian())
    bound = ThreatModel("l2", eps)
    held = DeepFool().run(model, batch, bound, Randomness(0))
    within = free.distance <= eps
    assert 0 < int(within.sum()) < len(batch)
    assert torch.equal(held.x_adv[within], free.x_adv[within])
    assert bool(held.success[within].all())
    beyond = free.success & (free.distance > eps * 1.03)
    assert int(beyond.sum()) > 5
    assert bool(held.legal.all())
    assert not bool(held.success[beyond].any())
    lengths = vector_norm((held.x_adv - batch.x).double(), "l2")[beyond]
    torch.testing.assert_close(lengths, torch.full_like(lengths, eps), rtol=1e-3, atol=1e-4)


def test_halvings_only_shorten():
    model, threat = mlp(), ThreatModel("l2", None)
    batch = labelled(model, images(50))
    plain = DeepFool().run(model, batch, threat, Randomness(0))
    short = DeepFool(halvings=8).run(model, batch, threat, Randomness(0))
    assert torch.equal(plain.success, short.success)
    reached = plain.success
    assert bool((short.distance[reached] <= plain.distance[reached] + 1e-7).all())
    assert float(short.distance[reached].mean()) < float(plain.distance[reached].mean())


def test_a_flat_model_fails_with_nan():
    model = linear(torch.zeros(3, 5), torch.tensor([1.0, 0.0, -1.0]))
    batch = labelled(model, images(4, (5,)))
    result = DeepFool().run(model, batch, ThreatModel("l2", None), Randomness(0))
    assert not bool(result.success.any())
    assert bool(result.distance.isnan().all())
    assert torch.equal(result.x_adv, batch.x)


def test_a_class_alone_is_refused():
    with pytest.raises(UserError, match="classes >= 2"):
        DeepFool(classes=1)


def test_exhausted_steps_hand_over_the_clean_input():
    model = mlp()
    batch = labelled(model, images(20))
    result = DeepFool(steps=0).run(model, batch, ThreatModel("linf", None, UNIT_BOX), Randomness(0))
    assert torch.equal(result.x_adv, batch.x)
    assert bool((result.backward == 0).all())


def test_steps_tangent_to_the_box_are_fewer():
    model, threat = mlp(inputs=48, seed=2), ThreatModel("linf", None)
    batch = labelled(model, (images(40, (1, 6, 8)) > 0.5).float())
    plain = DeepFool().run(model, batch, threat, Randomness(0))
    tangent = DeepFool(tangent=True).run(model, batch, threat, Randomness(0))
    assert bool(tangent.success.all())
    assert int(tangent.backward.sum()) < 0.7 * int(plain.backward.sum())


@pytest.mark.parametrize(("norm", "part"), [("linf", 0.6), ("l2", 0.6), ("l1", 0.95)])
def test_leaving_out_far_classes_changes_nothing_but_the_passes(norm, part, monkeypatch):
    model, data, threat = load(ModelName.parse("fc500-150-10")), load_data("mnist5k"), ThreatModel(norm, None)
    batch = data.batch(data.panel(20))
    few = DeepFool().run(model, batch, threat, Randomness(0))
    monkeypatch.setattr("attacks.deepfool.GROWTH", torch.inf)
    every = DeepFool().run(model, batch, threat, Randomness(0))
    assert bool((every.backward % 9 == 0).all())
    assert torch.equal(few.success, every.success)
    torch.testing.assert_close(few.distance, every.distance, equal_nan=True, rtol=1e-4, atol=1e-5)
    assert int(few.backward.sum()) < part * int(every.backward.sum())


def test_a_class_comes_back_with_time_and_with_its_gap():
    rivals, live = Rivals(torch.zeros(1, 4), 3, tangent=False), torch.zeros(1, dtype=torch.int64)
    others, near = torch.tensor([[1, 2]]), torch.tensor([[1.0, 1.0]])
    assert bool(rivals.possible(live, others, near).all())
    rivals.measured(live, others, torch.tensor([[1.0, GROWTH**-3.5]]))
    asked = []
    for _ in range(3):  # The second boundary is GROWTH^3.5 times as far: three steps may bring it near.
        asked.append(rivals.possible(live, others, near)[0].tolist())
        rivals.measured(live, others[:, :1], torch.tensor([[1.0]]))
    assert asked == [[True, False], [True, False], [True, True]]
    rivals.measured(live, others, torch.tensor([[1.0, GROWTH**-3.5]]))
    assert bool(rivals.possible(live, others, torch.tensor([[1.0, GROWTH**-2]])).all())
