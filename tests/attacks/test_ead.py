"""EAD: the thresholding and the iterates of the paper, and exact l1 distances on affine networks."""

from __future__ import annotations

import pytest
import torch

from attacks.deepfool import DeepFool
from attacks.ead import ElasticNet, shrunk
from attacks.losses import margin_loss
from defenses.zoo import ModelName, load
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import Asked, exact_distance, images, labelled, linear, mlp, random_linear


def search(model, batch, eps=None, **settings):
    return ElasticNet(**settings).run(model, batch, ThreatModel("l1", eps, model.box), Randomness(0))


def test_thresholding_by_hand():
    """Eq. 7: min(z - beta, 1), x, max(z + beta, 0)."""
    x = torch.tensor([[0.5, 0.5, 0.5, 0.9, 0.05, 0.5]])
    z = torch.tensor([[0.9, 0.55, 0.2, 1.5, -0.8, 0.6]])
    wanted = torch.tensor([[0.8, 0.5, 0.3, 1.0, 0.0, 0.5]])
    torch.testing.assert_close(shrunk(z, x, 0.1, Box(0.0, 1.0)), wanted)


def test_thresholding_is_the_proximal_step_in_the_box():
    x, z = images(1, (200,)).double(), (3 * images(1, (200,), seed=2) - 1).double()
    grid = torch.linspace(-1, 2, 3001).double()[:, None]
    value = (grid - z).square() / 2 + 0.2 * (grid - x).abs()
    least = grid[value.argmin(0), 0]
    torch.testing.assert_close(shrunk(z, x, 0.2, Box(-1.0, 2.0))[0], least, atol=2e-3, rtol=0)


def test_the_iterates_are_the_papers():
    """The second round, at ten times the first c, against algorithm 1 spelt out in double precision."""
    model = mlp(classes=3, inputs=12).double()
    batch = labelled(model, images(1).double())
    model.network = asked = Asked(model.network)
    search(model, batch, rounds=2, steps=40, patience=100, halvings=0, confidence=3.0)
    x, y = batch.x, batch.x.clone()
    start = x.clone().requires_grad_(True)
    (steepest,) = torch.autograd.grad(margin_loss(model.network.network(start), batch.y).sum(), start)
    c, point, iterates = 10 / steepest.abs().max(), x.clone(), []
    for k in range(40):
        iterates.append(y.clone())
        leaf = y.clone().requires_grad_(True)
        gap = (3.0 - margin_loss(model.network.network(leaf), batch.y)).clamp(min=0)
        (slope,) = torch.autograd.grad((c * gap + (leaf - x).square().sum()).sum(), leaf)
        z = y - 0.01 * (1 - k / 40) ** 0.5 * slope
        new = torch.where(z - x > 0.01, (z - 0.01).clamp(max=1), x)
        new = torch.where(z - x < -0.01, (z + 0.01).clamp(min=0), new)
        y, point = (new + k / (k + 3) * (new - point)).clamp(0, 1), new
    assert float((iterates[-1] - x).abs().max()) > 0.05
    # The first gradient gives the first c, at which no entry leaves x.
    assert len(asked.differentiated) == 81
    assert all(torch.equal(one, x) for one in asked.differentiated[:41])
    for ours, theirs in zip(asked.differentiated[41:], iterates, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("corners", [False, True])
def test_affine_distances_within_the_box(corners):
    """Never below the exact l1 distance; a few percent above it, which the l2 term costs."""
    model, x = random_linear(5, 30), images(40, (30,))
    batch = labelled(model, (x > 0.5).float() if corners else x)
    exact = distance_in_the_box(model, batch, "l1")
    plain, sparse = (search(model, batch, beta=beta) for beta in (0.01, 0.1))
    for result, median, mean in ((plain, 1.06, 1.1), (sparse, 1.03, 1.06)):
        assert bool(result.success.all())
        assert bool((result.distance >= exact * (1 - 1e-5)).all())
        assert float((result.distance / exact).median()) <= median
        assert float((result.distance / exact).mean()) <= mean


def test_affine_distance_where_the_box_is_far():
    """One entry alone need move: the gap over the largest slope."""
    model = linear(torch.tensor([[0.0, 0, 0], [1.0, 3, -2]]), torch.tensor([8.0, 0.0]), Box(-6.0, 7.0))
    batch = labelled(model, images(10, (3,)))
    result, exact = search(model, batch), exact_distance(model, batch, "l1")
    assert bool((result.distance >= exact - 1e-5).all())
    assert float((result.distance / exact).max()) <= 1.02
    assert float(((result.x_adv != batch.x).sum(1) == 1).double().mean()) >= 0.7


def test_a_larger_beta_changes_fewer_entries():
    model = random_linear(4, 40)
    batch = labelled(model, images(30, (40,)))
    counts = [
        float((search(model, batch, beta=beta, halvings=0).x_adv != batch.x).sum(1).double().mean())
        for beta in (0.001, 0.01, 0.1)
    ]
    assert counts[0] > 1.5 * counts[1] > 1.5 * counts[2]


def test_nearer_than_deepfool_on_a_trained_network():
    model, data = load(ModelName.parse("conv-small")), load_data("mnist5k")
    batch = data.batch(data.panel(15))
    ours = search(model, batch, steps=60)
    deepfool = DeepFool().run(model, batch, ThreatModel("l1", None), Randomness(0))
    assert bool(ours.success.all())
    assert float(ours.distance.mean()) < float(deepfool.distance.nanmean())


def test_an_eps_ends_a_sample_once_it_is_within():
    model = mlp(classes=5, inputs=24, hidden=24)
    batch = labelled(model, images(40, (1, 3, 8)))
    free = search(model, batch)
    eps = float(free.distance.median())
    held = search(model, batch, eps=eps)
    assert bool(held.success[free.distance <= eps].all())
    assert float(held.distance[held.success].max()) <= eps
    done = held.success
    assert bool((held.backward[done] <= free.backward[done]).all())
    assert float(held.backward[done].double().mean()) < 0.7 * float(free.backward[done].double().mean())


def test_confidence_is_a_margin():
    model = random_linear(3, 20)
    batch = labelled(model, images(20, (20,)))
    near, sure = search(model, batch), search(model, batch, confidence=0.5)
    assert bool(sure.success.all())
    assert bool((sure.margin < -0.5).all())
    assert bool((sure.distance > near.distance).all())


def test_stalled_samples_leave():
    model = random_linear(3, 20)
    batch = labelled(model, images(20, (20,)))
    short, long = search(model, batch, patience=5), search(model, batch, patience=1000)
    assert set(long.backward.tolist()) == {901}
    assert set(long.forward.tolist()) == {907}
    assert int(short.backward.max()) < 450


def test_scaling_inputs_scales_the_perturbation():
    small, large = mlp(), mlp()
    with torch.no_grad():
        large.network[1].weight /= 256
    large.box = Box(0.0, 256.0)
    batch = labelled(small, images(30))
    a, b = search(small, batch), search(large, labelled(large, batch.x * 256))
    assert torch.equal(a.success, b.success)
    torch.testing.assert_close(256 * a.distance, b.distance, rtol=2e-2, atol=0)
    assert float((b.distance / a.distance / 256 - 1).abs().median()) < 1e-4


@pytest.mark.parametrize("constant", [-100.0, 20.0])
def test_a_constant_on_the_logits_changes_nothing(constant):
    model = mlp()
    batch = labelled(model, images(30))
    plain = search(model, batch)
    with torch.no_grad():
        model.network[3].bias += constant
    moved = search(model, batch)
    assert torch.equal(plain.success, moved.success)
    torch.testing.assert_close(plain.distance, moved.distance, rtol=2e-2, atol=3e-3)


def test_no_gradient_is_no_number():
    model = linear(torch.zeros(3, 6), torch.tensor([2.0, 0, 0]))
    result = search(model, labelled(model, images(5, (6,))), steps=20)
    assert not bool(result.success.any())
    assert torch.equal(result.x_adv, images(5, (6,)))
    assert bool(result.zero_gradient.all())


def test_bad_settings_are_users_errors():
    for bad in ({"beta": 0.0}, {"learning_rate": 0.0}, {"confidence": -1.0}):
        with pytest.raises(UserError, match="ead needs beta > 0"):
            ElasticNet(**bad)
