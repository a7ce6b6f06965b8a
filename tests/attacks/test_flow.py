"""The flow attack: each pixel's best reading by brute force, the paper's smoothness, and one step by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from attacks.access import GradientAccess
from attacks.flow import SpatialFlow, places, roughness
from attacks.losses import margin_loss
from attacks.worst import Worst
from defenses.zoo import ModelName, load
from models.base import Classifier
from models.data import load_data
from models.errors import UserError
from models.flow import displaced
from models.randomness import Randomness
from models.threat import UNIT_BOX, Box
from models.threats import threat_named
from tests.attacks.test_rotation_translation import batch_of, conv
from tests.builders import images, labelled, mlp


def search(model, batch, eps, **settings):
    return SpatialFlow(**settings).run(model, batch, threat_named("flow", eps, model.box), Randomness(0))


def flat(classes: int = 2, shape=(2, 6, 5), seed: int = 0) -> Classifier:
    """A linear network on images."""
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(shape[0] * shape[1] * shape[2], classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        layer.bias.zero_()
    return Classifier(torch.nn.Sequential(torch.nn.Flatten(), layer), num_classes=classes, name="flat")


def best_readings(x, slope, eps, fineness=20):
    """sum over pixels of max over a disc of sum_c slope_c reading_c: (n,), by a fine grid and its rim."""
    reach = math.ceil(eps)
    line = torch.linspace(-reach, reach, 2 * fineness * reach + 1, dtype=torch.float64)
    angle = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)
    disc = torch.cartesian_prod(line, line)
    disc = torch.cat([disc[disc.norm(dim=1) <= eps], eps * torch.stack([angle.sin(), angle.cos()], 1)])
    moves = disc[:, :, None, None].expand(-1, 2, *x.shape[2:])
    best = []
    for image, weight in zip(x.double(), slope.expand_as(x).double(), strict=True):
        readings = displaced(image.expand(len(disc), *image.shape), moves, UNIT_BOX)
        best.append((readings * weight).sum(1).amax(0).sum())
    return torch.stack(best)


@pytest.mark.parametrize("eps", [0.4, 1.3])
def test_a_linear_network_gets_each_pixels_best_reading(eps):
    """Pixels are separable there: the search's margins against brute force, without steps and with them."""
    model = flat()
    batch = labelled(model, images(12, (2, 6, 5)))
    weight = model.network[1].weight.detach().double()
    side = (weight[1] - weight[0])[None] * torch.where(batch.y == 0, 1.0, -1.0)[:, None]
    slope = side.reshape(12, 2, 6, 5)
    start, best = (batch.x.double() * slope).sum((1, 2, 3)), best_readings(batch.x, slope, eps)
    far = 2 * float((best - start).max())
    with torch.no_grad():
        model.network[1].bias[0] += far
    batch = labelled(model, batch.x)
    kept = (batch.y == 0) & (side[:, 0] == (weight[1] - weight[0])[0])
    assert int(kept.sum()) >= 4
    for settings in ({"steps": 0, "restarts": 1}, {"steps": 5, "restarts": 2, "tau": 0.0}):
        result = search(model, batch, eps, **settings)
        gained = (model.logits(batch.x).double().diff(dim=1)[:, 0] + result.margin)[kept]
        wanted = (best - start)[kept]
        assert not bool(result.success.any())
        assert bool((-gained >= 0.99 * wanted).all())
        assert bool((-gained <= 1.001 * wanted).all())


@pytest.mark.parametrize("reach", [0.3, 1.0, 1.7, 3.2])
def test_the_places_hold_the_best_reading_of_a_disc(reach):
    x = images(3, (1, 9, 9), seed=2)
    tried = torch.full((3, 9, 9), -torch.inf)
    assert bool((places(reach).norm(dim=1) <= reach * (1 + 1e-9)).all())
    assert places(reach)[0].tolist() == [0.0, 0.0]
    for place in places(reach):
        move = place[None, :, None, None].expand(3, 2, 9, 9)
        tried = torch.maximum(tried, displaced(x, move, UNIT_BOX)[:, 0])
    ideal = best_readings(x, torch.ones(1), reach)
    found = tried.double().flatten(1).sum(1)
    gain = ideal - x.double().flatten(1).sum(1)
    assert bool((found >= ideal - 0.01 * gain).all())
    assert bool((found <= ideal + 0.001 * gain).all())


def test_few_places_in_a_wide_disc():
    assert len(places(28.0)) < 150
    assert len(places(0.0).unique(dim=0)) == 1


def test_smoothness_by_hand():
    flow = torch.rand(2, 2, 3, 4, generator=torch.Generator().manual_seed(1)).double()
    wanted = torch.zeros(2).double()
    for n, i, j in itertools.product(range(2), range(3), range(4)):
        for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            if 0 <= a < 3 and 0 <= b < 4:
                wanted[n] += (flow[n, :, i, j] - flow[n, :, a, b]).square().sum().sqrt()
    torch.testing.assert_close(roughness(flow), wanted)
    assert float(roughness(torch.ones(1, 2, 5, 5))) == 0.0
    still = torch.zeros(1, 2, 4, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(roughness(still).sum(), still)
    assert bool((slope == 0).all())


def test_one_step_by_hand():
    """Each vector along its own gradient of the paper's objective, and back into its disc."""
    model = conv()
    x = batch_of(model).x.double()
    batch, rows = labelled(model.double(), x), torch.arange(40)
    eps, tau, threat = 0.05, 0.01, threat_named("flow", 0.05)
    start = threat.within(
        0.05 * (2 * torch.rand(40, 128, generator=torch.Generator().manual_seed(3)).double() - 1)
    )
    worst = Worst(batch, 128)
    attack = SpatialFlow(steps=1, relative_step=0.7, tau=tau)
    attack._climb(GradientAccess(model, 40), batch, threat, worst, rows, start)
    flow = start.unflatten(1, (2, 8, 8)).clone().requires_grad_(True)
    before = margin_loss(model.logits(displaced(x, flow, UNIT_BOX)), batch.y)
    (slope,) = torch.autograd.grad((before - tau * roughness(flow)).sum(), flow)
    ahead = flow.detach() + 0.7 * eps * slope / slope.norm(dim=1, keepdim=True)
    ahead = ahead / (ahead.norm(dim=1, keepdim=True) / eps).clamp(min=1.0)
    after = margin_loss(model.logits(displaced(x, ahead, UNIT_BOX)), batch.y)
    better = (after > before) & (before <= 0)
    assert int(better.sum()) > 20
    torch.testing.assert_close(worst.move[better], ahead.flatten(1)[better], atol=1e-10, rtol=0)


def test_a_larger_tau_gives_smoother_flows():
    model = conv()
    batch = batch_of(model)
    rough = [
        float(roughness(search(model, batch, 0.02, tau=tau).move.unflatten(1, (2, 8, 8))).mean())
        for tau in (0.0, 0.1, 10.0)
    ]
    assert rough[0] > rough[1] >= rough[2]


def test_more_is_broken_and_margins_fall_as_eps_grows():
    model = conv()
    batch = batch_of(model)
    results = [search(model, batch, eps) for eps in (0.0, 0.1, 0.3, 0.9)]
    broken = [int(result.success.sum()) for result in results]
    assert broken == sorted(broken)
    assert broken[0] == 0
    assert 0 < broken[1] < broken[3]
    assert torch.equal(results[0].x_adv, batch.x)
    for small, large in itertools.pairwise(results):
        assert bool(large.success[small.success].all())
        held = ~large.success
        assert bool((large.margin <= small.margin + 1e-4)[held].all())


def test_samples_that_are_done_leave():
    model = conv()
    batch = batch_of(model)
    result = search(model, batch, 0.1, steps=5, restarts=3)
    done = result.success
    assert bool((result.forward[~done] == 3 * (5 + 2)).all())
    assert bool((result.backward[~done] == 3 * (5 + 1)).all())
    assert bool((result.forward[done] < 3 * (5 + 2)).all())
    assert int(result.forward[done].min()) == 2


def test_restarts_and_steps_only_gain():
    model = conv()
    batch = batch_of(model)
    one, four = (search(model, batch, 0.1, restarts=count) for count in (1, 4))
    assert bool(four.success[one.success].all())
    assert bool((four.margin <= one.margin + 1e-5)[~four.success].all())
    still = search(model, batch, 0.1, restarts=1, steps=0)
    assert bool(one.success[still.success].all())
    assert float(one.margin.mean()) < float(still.margin.mean())


def test_a_trained_network_falls_to_half_a_pixel():
    model, data = load(ModelName.parse("conv-small")), load_data("mnist5k")
    batch = data.batch(data.panel(20))
    ours = search(model, batch, 0.5)
    assert float(ours.success.double().mean()) >= 0.8
    assert bool((ours.distance[ours.success] <= 0.5).all())
    gradients = search(model, batch, 0.3, steps=10, restarts=1)
    first = search(model, batch, 0.3, steps=0, restarts=1)
    assert int(gradients.success.sum()) > int(first.success.sum())


def test_scaling_inputs_changes_no_flow():
    small, large = mlp(), mlp()
    with torch.no_grad():
        large.network[1].weight /= 256
    large.box = Box(0.0, 256.0)
    batch = labelled(small, images(30))
    a, b = search(small, batch, 0.3), search(large, labelled(large, batch.x * 256), 0.3)
    assert torch.equal(a.success, b.success)
    torch.testing.assert_close(a.margin, b.margin, atol=1e-3, rtol=0)


@pytest.mark.parametrize("constant", [-100.0, 20.0])
def test_a_constant_on_the_logits_changes_nothing(constant):
    model = mlp()
    batch = labelled(model, images(30))
    plain = search(model, batch, 0.3)
    with torch.no_grad():
        model.network[3].bias += constant
    moved = search(model, batch, 0.3)
    assert torch.equal(plain.success, moved.success)
    torch.testing.assert_close(plain.margin, moved.margin, atol=5e-3, rtol=0)


def test_no_gradient_is_no_number():
    model = flat(3)
    with torch.no_grad():
        model.network[1].weight.zero_()
        model.network[1].bias.copy_(torch.tensor([2.0, 0.0, 0.0]))
    batch = labelled(model, images(5, (2, 6, 5)))
    result = search(model, batch, 1.0)
    assert not bool(result.success.any())
    assert bool(result.legal.all())
    assert bool(result.zero_gradient.all())
    assert torch.equal(result.x_adv, batch.x)


def test_bad_settings_are_users_errors():
    for bad in ({"relative_step": 0.0}, {"tau": -1.0}):
        with pytest.raises(UserError, match="flow needs relative_step > 0 and tau >= 0"):
            SpatialFlow(**bad)
