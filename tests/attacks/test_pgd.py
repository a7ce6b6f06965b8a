"""FGSM, iterated FGSM and PGD: closed forms on linear models, and orders that must hold."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from attacks.access import GradientAccess
from attacks.base import judge
from attacks.fgsm import FGSM
from attacks.ifgsm import IteratedFGSM
from attacks.losses import LOSSES, cross_entropy, log_odds, margin_loss
from attacks.pgd import PGD
from models.base import Batch, Classifier, margin
from models.randomness import Randomness
from models.threat import UNIT_BOX, ThreatModel
from tests.builders import WIDE, images, labelled, mlp, random_linear

EPS = {"linf": 0.1, "l2": 0.4, "l1": 0.8}


def proposal(attack, model, batch, threat):
    view = GradientAccess(model, len(batch))
    return attack.propose(view, batch, threat, Randomness(0), None)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("attack", [FGSM(), IteratedFGSM(loss="margin"), PGD(loss="margin")])
def test_two_class_linear_margin_falls_by_the_dual_norm(attack, norm):
    """min over ||d|| <= eps of w.d is -eps ||w||_q: reached by the first step of length eps, and by many."""
    model = random_linear(2, 20, box=WIDE)
    batch = labelled(model, images(30, (20,)))
    threat = ThreatModel(norm, 1e-3, WIDE)
    z = proposal(attack, model, batch, threat)
    before, after = (margin(model.logits(x).detach().double(), batch.y) for x in (batch.x, z))
    weight = (model.network.weight[0] - model.network.weight[1]).detach().double()
    q = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    survive = after > 1e-3
    assert int(survive.sum()) > 10
    expected = torch.full_like(before, -1e-3 * float(weight.norm(p=q)))[survive]
    torch.testing.assert_close((after - before)[survive], expected, rtol=2e-2, atol=1e-6)


def test_fgsm_is_the_linear_programs_optimum_in_the_box():
    model = random_linear(2, 15)
    batch = labelled(model, (images(10, (15,)) > 0.5).float())
    threat = ThreatModel("linf", 0.2)
    z = proposal(FGSM(), model, batch, threat)
    weight = (model.network.weight[0] - model.network.weight[1]).detach().double()
    lower, upper = threat.bounds(batch.x)
    for i, y in enumerate(batch.y.tolist()):
        side = weight if y == 0 else -weight
        bounds = list(zip(lower[i].tolist(), upper[i].tolist(), strict=True))
        best = linprog(side.numpy(), bounds=bounds)
        assert float(side @ z[i].double()) == pytest.approx(best.fun, abs=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_pgd_is_no_weaker_than_fgsm(norm):
    model = mlp(classes=5, hidden=32)
    batch = labelled(model, images(80))
    threat = ThreatModel(norm, EPS[norm])
    fgsm, ifgsm, pgd = (
        int(attack.run(model, batch, threat, Randomness(0)).success.sum())
        for attack in (FGSM(), IteratedFGSM(), PGD())
    )
    assert fgsm <= ifgsm + 1
    assert fgsm <= pgd
    assert 0 < fgsm < 80


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_more_steps_and_restarts_break_a_superset(norm):
    model = mlp(classes=5, hidden=32)
    batch = labelled(model, images(80))
    threat = ThreatModel(norm, EPS[norm])

    def broken(**settings):
        return PGD(**settings).run(model, batch, threat, Randomness(0)).success

    for settings in ({"steps": 10}, {"restarts": 5}):
        small = broken(**{"steps": 3, "restarts": 1, "relative_step": 0.2})
        large = broken(**{"steps": 3, "restarts": 1, "relative_step": 0.2, **settings})
        assert bool((large | ~small).all())


def test_robust_accuracy_falls_with_eps_to_zero():
    model = mlp()
    batch = labelled(model, images(60))
    counts = [
        int(PGD().run(model, batch, ThreatModel("linf", eps), Randomness(0)).success.sum())
        for eps in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
    ]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] == 60


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scale_of_the_logits_does_not_hide_gradients_from_the_margin(scale):
    model, scaled = mlp(), mlp()
    with torch.no_grad():
        for parameter in scaled.network[3].parameters():
            parameter *= scale
    batch, threat = labelled(model, images(60)), ThreatModel("linf", 0.1)
    plain = PGD(loss="margin").run(model, batch, threat, Randomness(0)).success
    other = PGD(loss="margin").run(scaled, batch, threat, Randomness(0)).success
    assert int((plain != other).sum()) <= 1


def test_a_sample_that_fell_costs_nothing_more():
    model = mlp()
    batch = labelled(model, images(60))
    result = PGD(steps=20, restarts=2).run(model, batch, ThreatModel("linf", 0.1), Randomness(0))
    assert int(result.backward[~result.success].min()) == 40
    assert int(result.backward[result.success].min()) < 10


def test_without_early_stop_points_lie_deeper():
    model = mlp()
    batch = labelled(model, images(60))
    threat = ThreatModel("linf", 0.2)
    early = PGD(loss="margin").run(model, batch, threat, Randomness(0))
    late = PGD(loss="margin", early_stop=False).run(model, batch, threat, Randomness(0))
    assert bool((late.success | ~early.success).all())
    assert bool((late.margin <= early.margin + 1e-6).all())
    assert float(late.margin.mean()) < float(early.margin.mean()) - 0.1


def test_gradients_do_not_depend_on_the_batch():
    """A mean over the batch would divide them by n."""
    model = mlp()
    batch = labelled(model, images(8))
    rows = torch.arange(8)
    for loss in LOSSES.values():
        _, _, together = GradientAccess(model, 8).gradient(batch.x, rows, lambda z, f=loss: f(z, batch.y))
        for i in range(8):
            view, y = GradientAccess(model, 1), batch.y[i : i + 1]
            _, _, alone = view.gradient(batch.x[i : i + 1], rows[:1], lambda z, f=loss, y=y: f(z, y))
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-6)


def test_margin_and_log_odds():
    z = torch.tensor([[-5.0, -1.0, -9.0], [2.0, 3.0, 1.0]])
    y = torch.tensor([1, 0])
    assert margin_loss(z, y).tolist() == [-4.0, 1.0]
    assert log_odds(z, y, torch.tensor([2, 1])).tolist() == [-8.0, 1.0]
    probability = z.softmax(1)
    ratio = (probability[:, [2, 1]].diag() / probability[:, [1, 0]].diag()).log()
    torch.testing.assert_close(log_odds(z, y, torch.tensor([2, 1])), ratio)
    torch.testing.assert_close(cross_entropy(z, y), -probability[:, [1, 0]].diag().log())


def test_log_odds_gradient_is_that_of_the_probabilities():
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y, target = torch.arange(5) % 4, torch.arange(1, 6) % 4
    (cancelled,) = torch.autograd.grad(log_odds(z, y, target).sum(), z)
    logp = z.log_softmax(1)
    plain = logp.gather(1, target[:, None]).sum() - logp.gather(1, y[:, None]).sum()
    (full,) = torch.autograd.grad(plain, z)
    torch.testing.assert_close(cancelled, full, rtol=0, atol=1e-6)


def test_the_box_bounds_what_eps_does_not():
    batch = Batch.of((images(10) > 0.5).float(), torch.zeros(10, dtype=torch.int64))
    z = proposal(FGSM(), mlp(), batch, ThreatModel("linf", 0.3))
    assert bool(UNIT_BOX.contains(z).all())
    assert float((z - batch.x).abs().max()) <= 0.3 + 1e-7


def test_an_attack_stops_where_the_network_errs_and_not_its_surrogate():
    """The surrogate calls every image wrong; the network errs at the far end of the ball alone."""

    class Surrogate(nn.Module):
        def forward(self, x):
            return torch.stack([-10 - x.flatten(1).sum(1), x.flatten(1).sum(1)], 1)

    class Network(nn.Module):
        def forward(self, x):
            level = (x.flatten(1).sum(1) * 8).floor() / 8
            return torch.stack([torch.full_like(level, 2.5), level], 1)

    model = Classifier(Network(), num_classes=2, surrogate=Surrogate())
    data = Batch(torch.full((3, 1, 2, 2), 0.4), torch.zeros(3, dtype=torch.long), torch.arange(3))
    result = PGD(restarts=1).run(model, data, ThreatModel("linf", 0.3), Randomness(0))
    assert bool(result.success.all())


def test_an_abstention_is_no_misclassification():
    """The network abstains, with equal logits, in most of the ball and errs in a corner alone."""

    class Abstaining(nn.Module):
        abstaining = True

        def forward(self, x):
            level = x.flatten(1).sum(1)
            votes = torch.where(level > 2.7, 1.0, 0.0) - torch.where(level < 2.0, 1.0, 0.0)
            return torch.stack([votes, torch.zeros_like(votes)], 1) + 0 * level[:, None]

    class Level(nn.Module):
        def forward(self, x):
            level = x.flatten(1).sum(1)
            return torch.stack([level, torch.zeros_like(level)], 1)

    data = Batch(torch.full((2, 1, 2, 2), 0.4), torch.ones(2, dtype=torch.long), torch.arange(2))
    model = Classifier(Abstaining(), num_classes=2, surrogate=Level())
    for eps, falls in ((0.2, False), (0.3, True)):
        result = PGD(restarts=1).run(model, data, ThreatModel("linf", eps), Randomness(0))
        assert result.success.tolist() == [falls] * 2


@pytest.mark.parametrize(("y", "falls"), [(0, False), (1, True)])
def test_of_equal_logits_the_first_decides(y, falls):
    """Saturated logits tie: what argmax says of them is what counts, clean and attacked."""

    class Saturated(nn.Module):
        def forward(self, x):
            level = 4 * (x.flatten(1).mean(1) - 0.5) * (1 - 2 * y) + 0.5
            return torch.stack([level, 1 - level], 1).clamp(0.0, 0.5)

    x = torch.full((2, 1, 2, 2), 0.6)
    data = Batch(x, torch.full((2,), y), torch.arange(2))
    model = Classifier(Saturated(), num_classes=2)
    assert bool(model.right(data.x, data.y).all())
    tied = model.logits(torch.full((2, 1, 2, 2), 0.5))
    assert tied.tolist() == [[0.5, 0.5]] * 2
    assert model.errs(tied, data.y).tolist() == [falls] * 2
    assert (
        judge(
            model,
            data,
            torch.full_like(x, 0.5),
            ThreatModel("linf", 0.2),
            torch.ones(2).bool(),
            GradientAccess(model, 2),
        ).success.tolist()
        == [falls] * 2
    )
