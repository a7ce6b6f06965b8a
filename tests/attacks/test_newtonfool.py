"""NewtonFool: the published step, exact distances, saturated probabilities, passes, units, flat places."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.access import GradientAccess
from attacks.deepfool import DeepFool
from attacks.newtonfool import NewtonFool, needed
from defenses.zoo import ModelName, load
from models.base import Batch, Classifier
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import WIDE, Counting, exact_distance, images, labelled, linear, mlp, random_linear


def search(model, batch, eps=None, **settings):
    return NewtonFool(**settings).run(model, batch, ThreatModel("l2", eps, model.box), Randomness(0))


@pytest.mark.parametrize(("eta", "newton"), [(0.0003, False), (0.1, True)])
def test_the_published_steps(eta, newton):
    """Against algorithm 1 on one sample at a time, in a box that no step meets; short steps and Newton's."""
    model = mlp(classes=5, hidden=32).double()
    model.box = Box(0.0, 50.0)
    with torch.no_grad():
        model.network[1].bias -= 20 * model.network[1].weight.sum(1)
    batch = labelled(model, 20 + images(12).double())
    found = search(model, batch, eta=eta, steps=60)
    lengths = []
    for i in range(12):
        x, y = batch.x[i : i + 1], int(batch.y[i])
        z, p = x.clone(), model.logits(x).detach().softmax(1)
        for _ in range(60):
            if int(p.argmax()) != y:
                break
            z = z.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(model.logits(z).softmax(1)[0, y], z)
            longest = eta * max(float(x.norm()), 50.0) * float(slope.norm())
            delta = min(longest, float(p[0, y]) - 1 / 5)
            lengths.append(delta < longest)
            z = z.detach() - delta * slope / slope.square().sum()
            p = model.logits(z).detach().softmax(1)
        wrong = int(p.argmax()) != y
        assert bool(found.success[i]) == wrong
        torch.testing.assert_close(found.x_adv[i : i + 1], z if wrong else x, atol=1e-7, rtol=0)
    assert (sum(lengths) > 0.2 * len(lengths)) == newton
    assert int(found.success.sum()) > 8


def test_what_is_needed_is_newtons_and_does_not_saturate():
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0], [500.0, 0.0, 0.0, 0.0], [-1e-7, 0.0, 0.0, 0.0]])
    p = logits.softmax(1)[0, 0]
    value = (1 / logits.double().softmax(1)[:, 0] - 1).log().float()
    found = needed(logits, value.nan_to_num(neginf=-500.0))
    assert float(found[0]) == pytest.approx(float((p - 0.25) / (p * (1 - p))), rel=1e-5)
    assert float(found[1]) == torch.inf
    assert 0 < float(found[2]) < 1e-5


def test_two_classes_are_met_at_the_boundary():
    """Straight lines: the last step is Newton's or the cap, so that the overshoot is at most eta ||x||."""
    model = random_linear(2, 20, box=WIDE)
    model.box = Box(-6.0, 7.0)
    batch = labelled(model, images(40, (20,)))
    for halvings, slack in ((0, 0.005 * 13 * 20**0.5), (14, 0.001)):
        result = search(model, batch, eta=0.005, steps=300, halvings=halvings)
        exact = exact_distance(model, batch, "l2")
        assert bool(result.success.all())
        assert bool((result.distance >= exact * (1 - 1e-5)).all())
        assert float((result.distance - exact).max()) <= slack
    assert float((result.distance / exact).max()) <= 1.002


@pytest.mark.parametrize("corners", [False, True])
def test_affine_distances_within_the_box(corners):
    """A gradient that leans towards all rivals at once costs some; entries at a bound do not."""
    model = random_linear(5, 30)
    x = images(40, (30,))
    batch = labelled(model, (x > 0.5).float() if corners else x)
    result, exact = search(model, batch, halvings=8), distance_in_the_box(model, batch, "l2")
    assert bool(result.success.all())
    assert bool((result.distance >= exact * (1 - 1e-5) - 1e-6).all())
    assert float((result.distance / exact).median()) <= 1.06


def test_probabilities_of_one_have_a_slope():
    """Logits a thousand times larger: p rounds to 1 and its gradient to 0, in float64 too."""
    plain, sure = mlp(classes=5, hidden=32), mlp(classes=5, hidden=32)
    with torch.no_grad():
        sure.network[3].weight *= 1000
        sure.network[3].bias *= 1000
    batch = labelled(plain, images(40))
    assert float(sure.logits(batch.x).detach().double().softmax(1).amax(1).median()) == 1.0
    one, other = search(plain, batch), search(sure, batch)
    assert bool(one.success.all() & other.success.all())
    assert float(other.distance.mean()) < 1.1 * float(one.distance.mean())


def test_as_near_as_deepfool_in_fewer_passes_on_a_trained_network():
    data = load_data("mnist5k")
    batch, model = data.batch(data.panel(12)), load(ModelName.parse("conv-small"))
    own, peer = search(model, batch), DeepFool().run(model, batch, ThreatModel("l2", None), Randomness(0))
    assert torch.equal(own.success, peer.success)
    assert float(own.distance.nanmean()) < 1.05 * float(peer.distance.nanmean())
    assert int(own.backward.sum()) < int(peer.backward.sum())


def test_every_pass_is_counted():
    model = mlp()
    model.network = counter = Counting(model.network)
    batch = labelled(model, images(30))
    counter.forward_samples = counter.backward_samples = 0
    result = search(model, batch, steps=4, halvings=3)
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == int(result.backward.sum())
    failed = ~result.success
    assert 0 < int(failed.sum()) < 30
    assert set(result.forward[failed].tolist()) == {5}
    assert set(result.backward[failed].tolist()) == {4}
    # A look at each point up to the one that errs, then three halvings.
    assert set((result.forward - result.backward)[result.success].tolist()) <= {3, 4}


def test_more_steps_find_more_and_an_eps_cuts_off():
    model = mlp(classes=5, inputs=24, hidden=24)
    batch = labelled(model, images(50, (1, 3, 8)))
    last = torch.zeros(50, dtype=torch.bool)
    for steps in (1, 4, 16, 64):
        found = search(model, batch, steps=steps).success
        assert bool((found | ~last).all())
        last = found
    free = search(model, batch)
    eps = float(free.distance.nanmedian())
    held = search(model, batch, eps)
    assert bool(held.success[free.distance <= eps].all())
    assert float(held.distance[held.success].max()) <= eps


@pytest.mark.parametrize("origin", [0.0, -100.0])
def test_scaling_and_moving_the_units_moves_the_points(origin):
    small, large = mlp().double(), mlp().double()
    with torch.no_grad():
        large.network[1].weight /= 255
        large.network[1].bias -= origin * large.network[1].weight.sum(1)
        large.network[3].bias += 50
    large.box = Box(origin, origin + 255)
    batch = labelled(small, images(30).double())
    a = search(small, batch)
    b = search(large, Batch(origin + 255 * batch.x, batch.y, batch.index))
    torch.testing.assert_close((b.x_adv - origin) / 255, a.x_adv, atol=1e-4, rtol=0)


def test_black_images_are_left():
    model = linear(torch.tensor([[0.0] * 4, [1.0] * 4]), torch.tensor([0.5, 0.0]))
    result = search(model, Batch.of(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)))
    assert bool(result.success.all())
    assert 0.25 < float(result.distance) < 0.27


def test_what_a_bound_blocks_is_left_out_of_the_step():
    """One entry of four can move: the step is as long as it must be along that one."""
    model = linear(torch.tensor([[0.0] * 4, [1.0, -1.0, -1.0, -1.0]]), torch.tensor([0.1, 0.0]))
    result = search(model, Batch.of(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)), eta=1.0)
    assert float(result.distance) == pytest.approx(0.1, rel=0.01)
    assert int(result.forward) <= 3


def test_a_place_without_a_slope_is_no_reason_to_crash_and_costs_one_look():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([2 + 0 * x.flatten(1).sum(1), 0 * x.flatten(1).sum(1)], 1)

    model = Classifier(Flat(), num_classes=2)
    batch = Batch.of(images(5), torch.zeros(5, dtype=torch.int64))
    view = GradientAccess(model, 5)
    found = NewtonFool().propose(view, batch, ThreatModel("l2", None), Randomness(0), None)
    assert torch.equal(found, batch.x)
    assert set(view.forward.tolist()) == {1}


@pytest.mark.parametrize("bad", [{"steps": 0}, {"eta": 0.0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(UserError, match="newtonfool needs steps >= 1 and eta > 0"):
        NewtonFool(**bad)
