"""SparseFool: the linear solver's exact optimum on affine networks, the paper's passes, and its relatives."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from attacks.deepfool import DeepFool
from attacks.jsma import JSMA
from attacks.losses import margin_loss
from attacks.sparsefool import SparseFool
from defenses.zoo import ModelName, load
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel, vector_norm
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import WIDE, exact_distance, images, labelled, linear, mlp, random_linear

# One pass of the paper's linear solver, and nothing after it.
ONE = {"steps": 1, "lam": 1.0, "halvings": 0}


def search(model, batch, norm="l1", eps=None, **settings):
    return SparseFool(**settings).run(model, batch, ThreatModel(norm, eps, model.box), Randomness(0))


def changed(result, batch):
    return (result.x_adv != batch.x).flatten(1).sum(1)


def corners(n, d, seed=1):
    return (images(n, (d,), seed=seed) > 0.5).float()


def test_one_entry_in_one_pass_where_the_box_is_far():
    """Two classes: 1.02 times the gap over the largest slope, by that entry alone."""
    model = random_linear(2, 20, box=WIDE)
    batch = labelled(model, images(40, (20,)))
    result = search(model, batch, **ONE)
    assert bool(result.success.all())
    steepest = int((model.network.weight[0] - model.network.weight[1]).abs().argmax())
    assert bool((changed(result, batch) == 1).all())
    assert bool((result.x_adv != batch.x)[:, steepest].all())
    torch.testing.assert_close(
        result.distance, 1.02 * exact_distance(model, batch, "l1"), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("norm", ["l1", "l0"])
@pytest.mark.parametrize("corner", [False, True])
def test_one_pass_is_the_optimum_in_the_box_for_two_classes(norm, corner):
    model = random_linear(2, 30)
    batch = labelled(model, corners(60, 30) if corner else images(60, (30,)))
    exact = distance_in_the_box(model, batch, norm)
    result = search(model, batch, norm, overshoot=1e-4, **ONE)
    reached = torch.isfinite(exact)
    assert int(reached.sum()) > 50
    assert torch.equal(result.success, reached)
    if norm == "l0":
        assert torch.equal(result.distance[reached], exact[reached])
    else:
        assert bool((result.distance >= exact - 1e-6)[reached].all())
        torch.testing.assert_close(result.distance[reached], exact[reached], rtol=2e-3, atol=2e-4)


def test_the_greedy_order_by_hand():
    """Slopes 4, 3, 2: 0.2 and 0.5 to their bounds gain 0.8 and 1.5, the last part comes from the third."""
    model = linear(torch.tensor([[0.0, 0, 0, 0], [4.0, -3, 2, 0.5]]), torch.tensor([2.0, 0.0]))
    x = torch.tensor([[0.8, 0.5, 0.25, 0.5]])
    gap = 2.0 - (3.2 - 1.5 + 0.5 + 0.25)
    assert gap < 0
    model.network.bias.data[0] += 2.0 - gap  # Now 2.0 short: 0.8 + 1.5 suffice.
    batch = labelled(model, x)
    near = search(model, batch, overshoot=1e-4, **ONE)
    torch.testing.assert_close(near.x_adv, torch.tensor([[1.0, 0.1, 0.25, 0.5]]), atol=2e-3, rtol=0)
    model.network.bias.data[0] += 1.0  # 3.0 short: 0.7 remain for the third entry, of slope 2.
    far = search(model, labelled(model, x), overshoot=1e-4, **ONE)
    torch.testing.assert_close(far.x_adv, torch.tensor([[1.0, 0.0, 0.6, 0.5]]), atol=2e-3, rtol=0)


def test_fewest_entries_by_brute_force():
    model = random_linear(2, 9, seed=4)
    batch = labelled(model, corners(25, 9))
    side = torch.where(batch.y == 0, 1.0, -1.0)[:, None]
    slope = side * (model.network.weight[1] - model.network.weight[0]).detach()
    best = (batch.x + slope.sign()).clamp(0, 1)
    fewest = torch.full((25,), torch.inf).double()
    for count in range(9, 0, -1):
        for chosen in combinations(range(9), count):
            trial = batch.x.clone()
            trial[:, list(chosen)] = best[:, list(chosen)]
            wrong = model.logits(trial).argmax(1) != batch.y
            fewest[wrong] = float(count)
    result = search(model, batch, "l0", overshoot=1e-4, **ONE)
    reached = torch.isfinite(fewest)
    assert int(reached.sum()) > 10
    assert torch.equal(result.distance[reached], fewest[reached])


@pytest.mark.parametrize("classes", [3, 10])
def test_many_classes_end_at_the_one_that_is_nearest_in_l2(classes):
    """The paper's shortcut: the l1 distance to the boundary of the class that DeepFool comes to."""
    model = random_linear(classes, 20, box=WIDE)
    batch = labelled(model, images(40, (20,)))
    result = search(model, batch, **ONE)
    assert bool(result.success.all())
    weight, z = model.network.weight.detach().double(), model.logits(batch.x).detach().double()
    slopes = weight[batch.y][:, None] - weight
    gaps = z.gather(1, batch.y[:, None]) - z
    rival = (gaps / slopes.norm(dim=2)).nan_to_num(torch.inf).argmin(1)
    row = torch.arange(40)
    wanted = gaps[row, rival] / slopes[row, rival].abs().amax(1)
    torch.testing.assert_close(result.distance, 1.02 * wanted, rtol=2e-3, atol=4e-4)
    assert bool((result.distance >= exact_distance(model, batch, "l1")).all())


def test_lambda_lengthens_the_first_pass():
    model = random_linear(2, 20, box=WIDE)
    batch = labelled(model, images(30, (20,)))
    near = search(model, batch, **ONE)
    far = search(model, batch, **(ONE | {"lam": 3.0, "grow": False}))
    torch.testing.assert_close(far.distance, 3 * near.distance, rtol=1e-3, atol=1e-4)
    grown = search(model, batch, **(ONE | {"lam": 3.0, "steps": 5}))
    assert torch.equal(grown.x_adv, near.x_adv)


def test_lambda_grows_by_a_factor():
    pushes = [SparseFool(steps=5, lam=16.0)._push(step) for step in range(5)]
    assert pushes == pytest.approx([1, 2, 4, 8, 16])
    assert {SparseFool(grow=False)._push(step) for step in range(20)} == {3.0}
    assert SparseFool(steps=1)._push(0) == 1.0


def test_two_passes_are_the_papers():
    """Algorithm 2 spelt out: each pass leaves from the point of the one before, not from x."""
    model = mlp(classes=3, inputs=24, hidden=32, seed=1).double()
    batch = labelled(model, images(60, (1, 3, 8)).double())
    result = search(model, batch, steps=2, lam=1.0, halvings=0)
    one = search(model, batch, steps=1, lam=1.0, halvings=0)
    rows = (result.success & ~one.success).nonzero()[:, 0]
    assert len(rows) >= 5
    for row in rows.tolist():
        z = batch.x[row : row + 1]
        for _ in range(2):
            start = labelled(model, z)
            edge = DeepFool(tangent=True).run(model, start, ThreatModel("l2", None), Randomness(0)).x_adv
            leaf = edge.clone().requires_grad_(True)
            (w,) = torch.autograd.grad(margin_loss(model.logits(leaf), start.y).sum(), leaf)
            left, z = float((w * (edge - z)).sum().abs()), z.clone()
            for d in w.abs().flatten().argsort(descending=True).tolist():
                old, slope = float(z.flatten()[d]), float(w.flatten()[d])
                z.view(-1)[d] = min(1.0, max(0.0, old + left / slope))
                left -= slope * (float(z.flatten()[d]) - old)
                if left < 1e-12:
                    break
        torch.testing.assert_close(result.x_adv[row : row + 1], z, atol=1e-4, rtol=0)


def test_about_as_near_as_deepfool_in_fewer_passes():
    model, data = load(ModelName.parse("conv-small")), load_data("mnist5k")
    batch = data.batch(data.panel(20))
    ours = search(model, batch)
    deepfool = DeepFool(halvings=6).run(model, batch, ThreatModel("l1", None), Randomness(0))
    assert bool(ours.success.all())
    assert float(ours.distance.mean()) < 1.1 * float(deepfool.distance.nanmean())
    assert int(ours.backward.sum()) < 0.6 * int(deepfool.backward.sum())
    constant = search(model, batch, grow=False, halvings=0)
    assert bool(constant.success.all())
    assert float(ours.distance.mean()) < 0.5 * float(constant.distance.mean())


def test_fewer_entries_than_the_saliency_map_in_fewer_passes():
    model, data = load(ModelName.parse("conv-small")), load_data("mnist5k")
    batch = data.batch(data.panel(20))
    ours, pairs = search(model, batch, "l0"), JSMA().run(model, batch, ThreatModel("l0", None), Randomness(0))
    assert bool(ours.success.all())
    assert float(ours.distance.mean()) < 0.9 * float(pairs.distance.nanmean())
    assert int(ours.backward.sum()) < int(pairs.backward.sum())


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_halvings_only_shorten(norm):
    model = mlp(inputs=24, hidden=24)
    batch = labelled(model, images(40, (1, 3, 8)))
    raw, near = (search(model, batch, norm, halvings=count) for count in (0, 6))
    assert torch.equal(raw.success, near.success)
    assert bool((near.distance <= raw.distance + 1e-6)[raw.success].all())
    assert float(near.distance.nanmean()) < float(raw.distance.nanmean())


def test_a_radius_judges_and_projects():
    model = mlp(classes=5, inputs=24, hidden=24)
    batch = labelled(model, images(50, (1, 3, 8)))
    free = search(model, batch)
    eps = float(free.distance.nanmedian())
    held = search(model, batch, eps=eps)
    assert bool(held.success[free.distance <= eps].all())
    assert bool(held.legal.all())
    assert float(held.distance[held.success].max()) <= eps
    beyond = free.distance > 1.1 * eps
    lengths = vector_norm((held.x_adv - batch.x).double(), "l1")[beyond]
    torch.testing.assert_close(lengths, torch.full_like(lengths, eps), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_scaling_inputs_scales_the_perturbation(norm):
    small, large = mlp(), mlp()
    with torch.no_grad():
        large.network[1].weight /= 256
    large.box = Box(0.0, 256.0)
    batch = labelled(small, images(30))
    a, b = search(small, batch, norm), search(large, labelled(large, batch.x * 256), norm)
    assert torch.equal(a.success, b.success)
    scale = 1 if norm == "l0" else 256
    torch.testing.assert_close(scale * a.distance, b.distance, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("constant", [-100.0, 20.0])
def test_a_constant_on_the_logits_changes_nothing(constant):
    model = mlp()
    batch = labelled(model, images(30))
    plain = search(model, batch)
    with torch.no_grad():
        model.network[3].bias += constant
    moved = search(model, batch)
    assert torch.equal(plain.success, moved.success)
    torch.testing.assert_close(plain.distance, moved.distance, rtol=2e-2, atol=3e-3, equal_nan=True)


def test_samples_that_are_done_leave():
    """Nobody is asked again after the pass that broke it."""
    model = mlp(classes=3, inputs=24, hidden=32, seed=1)
    batch = labelled(model, images(60, (1, 3, 8)))
    one, every = (search(model, batch, steps=steps, halvings=0) for steps in (1, 20))
    done = one.success
    assert 10 < int(done.sum()) < 60
    assert torch.equal(one.forward[done], every.forward[done])
    assert bool((one.forward < every.forward)[~done].all())


def test_no_gradient_is_no_number():
    model = linear(torch.zeros(3, 6), torch.tensor([2.0, 0, 0]))
    result = search(model, labelled(model, images(5, (6,))))
    assert not bool(result.success.any())
    assert torch.equal(result.x_adv, images(5, (6,)))
    assert bool(result.zero_gradient.all())
    assert bool((result.backward <= 10).all())


def test_bad_settings_are_users_errors():
    for bad in ({"lam": 0.5}, {"overshoot": -0.1}, {"classes": 1}):
        with pytest.raises(UserError, match="sparsefool needs lam >= 1, overshoot >= 0 and classes >= 2"):
            SparseFool(**bad)
