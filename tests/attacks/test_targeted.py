"""Log-odds, targeted PGD and momentum: where they drive, what they refuse, what momentum is."""

from __future__ import annotations

import pytest
import torch

from attacks.access import GradientAccess
from attacks.ifgsm import IteratedFGSM
from attacks.log_odds import LogOdds
from attacks.momentum import Momentum
from attacks.pgd import PGD
from models.base import Batch, Classifier
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.builders import WIDE, images, labelled, mlp, random_linear

EPS = {"linf": 0.5, "l2": 2.0, "l1": 12.0}
TARGETED = [PGD, IteratedFGSM, Momentum, LogOdds]


def proposal(attack, model, batch, threat):
    return attack.propose(GradientAccess(model, len(batch)), batch, threat, Randomness(0), None)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_log_odds_reaches_its_target(norm):
    model = random_linear(5, 60)
    batch = labelled(model, images(60, (60,)))
    result = LogOdds().run(model, batch, ThreatModel(norm, EPS[norm]), Randomness(0))
    goal = model.logits(batch.x).argmin(1)
    assert float((model.logits(result.x_adv).argmax(1) == goal).double().mean()) >= 0.95


def test_log_odds_rises_by_the_dual_norm_on_a_linear_model():
    model = random_linear(4, 20, box=WIDE)
    batch = labelled(model, images(40, (20,)))
    keep = batch.y != 2
    batch, eps = batch[keep], 1e-3
    z = proposal(LogOdds(target="2"), model, batch, ThreatModel("linf", eps, WIDE))
    weight = model.network.weight.detach().double()
    move = (weight[2] - weight[batch.y]) * (z - batch.x).double()
    expected = eps * (weight[2] - weight[batch.y]).abs().sum(1)
    torch.testing.assert_close(move.sum(1), expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("attack", TARGETED)
def test_a_target_is_driven_at_and_nothing_else(attack):
    """At a radius that suffices, points end in the class that was named, not in the nearest one."""
    model = random_linear(4, 60)
    whole = labelled(model, images(80, (60,)))
    for target in range(4):
        batch = whole[whole.y != target]
        result = attack(target=str(target)).run(model, batch, ThreatModel("linf", 0.6), Randomness(0))
        assert float((model.logits(result.x_adv).argmax(1) == target).float().mean()) > 0.9


@pytest.mark.parametrize("attack", TARGETED)
def test_bad_targets_are_users_errors(attack):
    model = mlp()
    batch, threat = labelled(model, images(40)), ThreatModel("linf", 0.1)
    shared = int(batch.y[3])
    with pytest.raises(UserError, match=f"target {shared} is the label of .* samples .*leave them out"):
        attack(target=str(shared)).run(model, batch, threat, Randomness(0))
    with pytest.raises(UserError, match=r"target 4 is no class of the model: choose one of 0\.\.3"):
        attack(target="4").run(model, batch, threat, Randomness(0))
    for word in ("nearest", "-1", "1.5", ""):
        with pytest.raises(UserError, match=f"has no target '{word}'.*'least-likely'"):
            attack(target=word)
    with pytest.raises(UserError, match=r"has no target 3: .* a class number like '3'"):
        attack(target=3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_momentum_follows_the_published_recursion(norm):
    """Against a plain loop over one sample at a time."""
    model = mlp(classes=5, hidden=32)
    batch, threat = labelled(model, images(12)), ThreatModel(norm, 0.2)
    settings = {"steps": 7, "decay": 0.8, "early_stop": False}
    ours = proposal(Momentum(**settings), model, batch, threat)
    for i in range(12):
        x, y = batch.x[i : i + 1], batch.y[i : i + 1]
        z, velocity, trace = x, torch.zeros_like(x), []
        for _ in range(8):
            z = z.detach().requires_grad_(True)
            loss = torch.nn.functional.cross_entropy(model.logits(z), y)
            trace.append((float(loss.detach()), z.detach()))
            (gradient,) = torch.autograd.grad(loss, z)
            velocity = 0.8 * velocity + gradient / gradient.abs().sum()
            step = velocity.sign() if norm == "linf" else velocity / velocity.norm()
            z = threat.project(x, z.detach() + 0.2 / 7 * step)
        best = max(trace, key=lambda pair: pair[0])[1]
        torch.testing.assert_close(ours[i : i + 1], best, atol=1e-5, rtol=0)


def test_no_decay_is_iterated_fgsm():
    model = mlp(classes=5)
    batch, threat = labelled(model, images(30)), ThreatModel("linf", 0.1)
    plain = IteratedFGSM(steps=10, relative_step=0.1)
    assert torch.equal(
        proposal(Momentum(decay=0.0), model, batch, threat), proposal(plain, model, batch, threat)
    )


def test_momentum_crosses_a_ridge_that_plain_steps_rattle_in():
    """A narrow valley: the loss alternates in one entry and rises slowly in the other.

    z_0 - z_1 = 4 |x_0 - 1/2| - x_1 + const; a plain sign step jumps over the crease at every step as well,
    but l2 steps spend nearly all of their length there, and momentum cancels it.
    """

    class Crease(torch.nn.Module):
        def forward(self, x):
            gap = 4 * (x[:, 0] - 0.5).abs() - x[:, 1] + 0.65
            return torch.stack([gap, torch.zeros_like(gap)], 1)

    model = Classifier(Crease(), num_classes=2)
    batch = Batch.of(torch.tensor([[0.52, 0.3], [0.47, 0.35]]), torch.zeros(2, dtype=torch.int64))
    threat = ThreatModel("l2", 0.6)
    plain = IteratedFGSM(steps=10, relative_step=0.1).run(model, batch, threat, Randomness(0))
    ours = Momentum(steps=10).run(model, batch, threat, Randomness(0))
    assert not bool(plain.success.any())
    assert bool(ours.success.all())


def test_bad_settings_are_users_errors():
    with pytest.raises(UserError, match="decay >= 0 and steps >= 1"):
        Momentum(decay=-0.1)


def test_l1_steps_do_not_stop_at_a_bound():
    """One entry moves at a time; when it is at its bound the next best one takes over."""
    model = random_linear(2, 30)
    batch = labelled(model, (images(60, (30,)) > 0.5).float())
    result = PGD(loss="margin", restarts=1).run(model, batch, ThreatModel("l1", 6.0), Randomness(0))
    assert float(result.success.float().mean()) > 0.95
