"""FGM, step-LL and R+FGSM: optima of linear programs, first-order rise, and a masked network."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linprog, minimize

from attacks.access import GradientAccess
from attacks.fgm import FGM
from attacks.fgsm import FGSM
from attacks.losses import cross_entropy
from attacks.r_fgsm import RandomFGSM
from attacks.step_ll import StepLL
from defenses.zoo import ModelName, load
from models.base import Batch
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, vector_norm
from tests.builders import WIDE, images, labelled, mlp, random_linear

EPS = {"linf": 0.15, "l2": 0.6, "l1": 1.5}


def proposal(attack, model, batch, threat, seed=0):
    view = GradientAccess(model, len(batch))
    return attack.propose(view, batch, threat, Randomness(seed), None)


def gain(model, batch, z):
    """How much each sample's z_rival - z_y rose on a model of two classes."""
    weight = (model.network.weight[0] - model.network.weight[1]).detach().double()
    side = torch.where(batch.y == 0, -1.0, 1.0).double()
    return side * ((z - batch.x).double() @ weight), side[:, None] * weight


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fgm_is_the_optimum_over_ball_and_box(norm):
    """Against linprog and SLSQP, on black and white images where half of the bounds are in the way."""
    model = random_linear(2, 15)
    batch = labelled(model, (images(12, (15,)) > 0.5).float())
    threat = ThreatModel(norm, EPS[norm])
    z = proposal(FGM(), model, batch, threat)
    assert bool(threat.contains(batch.x, z).all())
    gained, slopes = gain(model, batch, z)
    for x, w, ours in zip(batch.x.double().numpy(), slopes.numpy(), gained, strict=True):
        if norm == "l2":
            best = -minimize(
                lambda m, w=w: -float(w @ m),
                0 * x,
                bounds=list(zip(-x, 1 - x, strict=True)),
                constraints=[{"type": "ineq", "fun": lambda m: EPS["l2"] ** 2 - float(m @ m)}],
                method="SLSQP",
            ).fun
        else:
            cap = EPS["linf"] if norm == "linf" else 1.0
            ways = [(0, min(cap, float(room))) for room in [*(1 - x), *x]]
            total = {} if norm == "linf" else {"A_ub": [[1.0] * 30], "b_ub": [EPS["l1"]]}
            best = -linprog([*(-w), *w], bounds=ways, **total).fun
        assert float(ours) == pytest.approx(best, abs=2e-4)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_fgm_gains_more_than_a_clipped_step(norm):
    model = random_linear(2, 30)
    batch = labelled(model, (images(40, (30,)) > 0.5).float())
    threat = ThreatModel(norm, EPS[norm])
    full, clipped = (
        gain(model, batch, proposal(attack, model, batch, threat))[0] for attack in (FGM(), FGSM())
    )
    assert bool((full >= clipped - 1e-5).all())
    assert float(full.mean()) > 1.2 * float(clipped.mean())


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_loss_rises_by_eps_times_the_dual_norm(norm):
    """To first order, where no bound is in the way: delta = eps g / ||g||_2, or eps on the largest entry."""
    model = mlp(classes=5)
    model.box = WIDE
    model.double()
    batch = labelled(model, images(30).double())
    eps, rows = 1e-4, torch.arange(30)
    z = proposal(FGM(), model, batch, ThreatModel(norm, eps, WIDE))
    before, _, gradient = GradientAccess(model, 30).gradient(
        batch.x, rows, lambda logits: cross_entropy(logits, batch.y)
    )
    rise = cross_entropy(model.logits(z).detach(), batch.y) - cross_entropy(before, batch.y)
    dual = vector_norm(gradient, "l2" if norm == "l2" else "linf")
    torch.testing.assert_close(rise, eps * dual, rtol=2e-3, atol=1e-12)
    if norm == "l2":
        aligned = (gradient * (z - batch.x)).flatten(1).sum(1) / vector_norm(z - batch.x, "l2") / dual
        torch.testing.assert_close(aligned, torch.ones(30).double())


def test_fgm_is_fgsm_in_linf():
    model = mlp()
    batch = labelled(model, images(30))
    threat = ThreatModel("linf", 0.2)
    assert torch.equal(proposal(FGM(), model, batch, threat), proposal(FGSM(), model, batch, threat))


def test_step_ll_drives_at_the_least_likely_class_and_ignores_the_label():
    model = random_linear(5, 20)
    batch = labelled(model, images(40, (20,)))
    threat = ThreatModel("linf", 0.05)
    z = proposal(StepLL(), model, batch, threat)
    last = model.logits(batch.x).argmin(1)
    before, after = (cross_entropy(model.logits(x).detach(), last) for x in (batch.x, z))
    assert bool((after < before).all())
    other = Batch(batch.x, (batch.y + 1) % 5, batch.index)
    assert torch.equal(z, proposal(StepLL(), model, other, threat))


def test_step_ll_is_one_pass_each_way():
    model = mlp()
    result = StepLL().run(model, labelled(model, images(20)), ThreatModel("linf", 0.1), Randomness(0))
    assert bool((result.forward == 1).all())
    assert bool((result.backward == 1).all())


def test_a_random_step_breaks_what_fgsm_training_masks():
    """FGSM finds less on this network as eps grows; R+FGSM at the same eps breaks most of it."""
    model, data = load(ModelName.parse("lenet+adversarial-fgsm")), load_data("mnist5k")
    batch, threat = data.batch(data.panel(150)), ThreatModel("linf", 0.3)
    fgsm, random = (a.run(model, batch, threat, Randomness(0)) for a in (FGSM(), RandomFGSM()))
    assert int(fgsm.success.sum()) < 15
    assert int(random.success.sum()) > 90
    assert torch.equal(fgsm.forward, random.forward)


def test_the_random_step_shortens_the_other_one():
    model = random_linear(2, 40, box=WIDE)
    batch = labelled(model, images(30, (40,)))
    threat = ThreatModel("linf", 0.2, WIDE)
    z = proposal(RandomFGSM(relative_start=0.25), model, batch, threat)
    # Entry by entry 0.05 and 0.15 agree in sign or not: nothing else can come out.
    sizes = (z - batch.x).abs()
    assert bool((((sizes - 0.2).abs() < 1e-5) | ((sizes - 0.1).abs() < 1e-5)).all())
    assert torch.equal(
        proposal(RandomFGSM(relative_start=0.0), model, batch, threat),
        proposal(FGSM(), model, batch, threat),
    )
    assert not torch.equal(z, proposal(RandomFGSM(relative_start=0.25), model, batch, threat, seed=1))


def test_a_start_outside_the_ball_is_refused():
    with pytest.raises(UserError, match="relative_start from 0 to 1"):
        RandomFGSM(relative_start=1.5)
