"""EOT: survival under fresh transforms against PGD's, the gradient of a mean, and the bill."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.access import GradientAccess
from attacks.eot import EOT, keys_of, mean_gradient, survival
from attacks.losses import margin_loss
from attacks.pgd import PGD
from attacks.transforms import Compose, Pose
from defenses.zoo import ModelName, load
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.builders import Counting, images, labelled, linear, mlp

SMALL = EOT(steps=10, draws=4)
STILL = {"rotate": 0.0, "scale": 0.0, "shift": 0.0, "blur": 0.0, "brightness": 0.0, "noise": 0.0}


def test_its_points_survive_fresh_transforms_and_those_of_pgd_do_not():
    data = load_data("mnist5k")
    model, batch = load(ModelName.parse("conv-small")), data.batch(data.panel(24))
    threat, attack = ThreatModel("linf", 0.1), EOT(steps=30, draws=8, rotate=15.0, shift=0.05)
    robust = attack.run(model, batch, threat, Randomness(0))
    plain = PGD(steps=30, restarts=1).run(model, batch, threat, Randomness(0))
    shares = [
        survival(model, batch, points, attack.transform, Randomness(99), 40)
        for points in (batch.x, plain.x_adv, robust.x_adv)
    ]
    both = plain.success & robust.success & robust.clean
    assert int(both.sum()) > 8
    nothing, by_pgd, by_eot = (float(share[both].mean()) for share in shares)
    assert nothing < by_pgd < by_eot - 0.2
    assert bool((shares[2][both] >= shares[1][both] - 0.15).all())


def test_the_gradient_is_that_of_the_mean_over_the_draws():
    model, x = mlp(), 0.3 + 0.4 * images(3)
    batch, transform = labelled(model, x), Compose((Pose(20.0, 0.1, 0.1),))
    keys, view = keys_of(torch.arange(3), 5), GradientAccess(model, 3)
    errs, gradient = mean_gradient(
        view, x, batch.y, torch.arange(3), transform, keys, Randomness(3), "margin"
    )
    leaf = x.clone().requires_grad_(True)
    value, wrong = margin_loss(model.logits(leaf), batch.y).sum() / 6, [torch.zeros(3) > 0]
    for draw in range(5):
        z = model.logits(transform(leaf, keys[:, draw], Randomness(3), model.box))
        value = value + margin_loss(z, batch.y).sum() / 6
        wrong.append(z.argmax(1) != batch.y)
    (expected,) = torch.autograd.grad(value, leaf)
    torch.testing.assert_close(gradient, expected)
    assert torch.equal(errs, torch.stack(wrong, 1))
    assert view.forward.tolist() == view.backward.tolist() == [6, 6, 6]


def test_survival_is_a_share_of_fresh_draws():
    model, batch = mlp(), labelled(mlp(), images(10))
    assert survival(model, batch, batch.x, Pose(), Randomness(0), 3).tolist() == [0.0] * 10
    turned = survival(model, batch, batch.x, Pose(rotate=90.0), Randomness(0), 50)
    assert bool((turned * 50 - (turned * 50).round()).abs().max() < 1e-9)
    assert 0 < float(turned.mean()) < 1
    one = survival(model, batch[3:4], batch.x[3:4], Pose(rotate=90.0), Randomness(0), 50)
    assert float(one) == float(turned[3])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_transforms_it_breaks_what_pgd_breaks(norm):
    batch, threat = labelled(mlp(), images(60)), ThreatModel(norm, {"linf": 0.1, "l2": 0.35}[norm])
    still = EOT(draws=1, loss="margin", **STILL).run(mlp(), batch, threat, Randomness(0)).success
    plain = PGD(restarts=1, loss="margin").run(mlp(), batch, threat, Randomness(0)).success
    assert 10 < int(plain.sum()) < 55
    assert int((still != plain).sum()) <= 1


def test_sure_samples_leave_and_the_bill_is_exact():
    model = mlp()
    counter = Counting(model.network)
    model.network = counter
    batch = labelled(model, images(60))
    counter.forward_samples = counter.backward_samples = 0
    attack = EOT(steps=30, draws=4, rotate=5.0, scale=0.0, shift=0.02, blur=0.1)
    result = attack.run(model, batch, ThreatModel("linf", 0.2), Randomness(0))
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == int(result.backward.sum())
    assert int(result.forward.max()) == 31 * 5
    assert int(result.forward.min()) < 20 * 5
    assert set((result.forward % 5).tolist()) == {0}


def test_the_box_is_a_unit_and_logits_have_no_origin():
    weight, x = torch.randn(3, 16, generator=torch.Generator().manual_seed(2)), images(25, (1, 4, 4))
    plain, box = linear(weight, torch.zeros(3)), Box(-3.0, 7.0)
    scaled = linear(weight / 10, weight.sum(1) * 0.3, box)
    shifted = linear(weight, torch.full((3,), 5.0))
    for model in (plain, scaled, shifted):
        model.network = nn.Sequential(nn.Flatten(), model.network)
    first = SMALL.run(plain, labelled(plain, x), ThreatModel("linf", 0.3), Randomness(0))
    second = SMALL.run(scaled, labelled(scaled, 10 * x - 3), ThreatModel("linf", 3.0, box), Randomness(0))
    third = SMALL.run(shifted, labelled(shifted, x), ThreatModel("linf", 0.3), Randomness(0))
    assert torch.equal(first.success, second.success)
    assert torch.equal(first.success, third.success)
    assert int(first.success.sum()) > 3


def test_bad_settings_are_refused():
    for bad in ({"draws": 0}, {"steps": 0}, {"patience": 0}):
        with pytest.raises(UserError, match="draws and patience >= 1"):
            EOT(**bad)
    for bad in ({"noise": -0.1}, {"scale": 1.0}):
        with pytest.raises(UserError, match="ranges >= 0 and a scale < 1"):
            EOT(**bad)
    with pytest.raises(UserError, match="has no loss"):
        EOT(loss="hinge")
