"""APGD: the published checkpoints, closed forms on linear models, and its rule for the step."""

from __future__ import annotations

import pytest
import torch

from attacks.access import GradientAccess
from attacks.apgd import APGD, Ascent, checkpoints, sparse_steepest
from attacks.losses import difference_of_logits_ratio, margin_loss
from attacks.pgd import PGD
from models.base import margin
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.builders import WIDE, Counting, images, labelled, mlp, random_linear

EPS = {"linf": 0.1, "l2": 0.4, "l1": 0.8}


def test_checkpoints_are_the_papers():
    """Section 3.1 for 100 steps; the spacing falls by 0.03 down to 0.06."""
    assert checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(10) == [0, 3, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("loss", ["ce", "margin", "targeted"])
def test_two_class_linear_margin_falls_by_the_dual_norm(norm, loss):
    """min over ||d|| <= eps of w.d is -eps ||w||_q, from whatever random start."""
    model = random_linear(2, 20, box=WIDE)
    batch = labelled(model, images(30, (20,)))
    threat = ThreatModel(norm, 1e-3, WIDE)
    view = GradientAccess(model, 30)
    z = APGD(loss=loss).propose(view, batch, threat, Randomness(0), None)
    before, after = (margin(model.logits(x).detach().double(), batch.y) for x in (batch.x, z))
    weight = (model.network.weight[0] - model.network.weight[1]).detach().double()
    q = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    survive = after > 1e-3
    assert int(survive.sum()) > 10
    expected = torch.full_like(before, -1e-3 * float(weight.norm(p=q)))[survive]
    torch.testing.assert_close((after - before)[survive], expected, rtol=2e-2, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "entries"), [(2, 20), (3, 50), (10, 100)])
def test_in_l1_every_linear_network_falls_where_it_can(classes, entries):
    """The worst point of ball and box for each rival in closed form; sparse steps alone missed 1 in 40."""
    could = missed = 0
    for seed in range(4):
        model = random_linear(classes, entries, seed=seed)
        batch = labelled(model, images(60, (entries,), seed=seed + 100))
        weight = model.network.weight.detach()
        for eps in (0.3, 1.0):
            threat = ThreatModel("l1", eps)
            worst = [threat.furthest(batch.x, weight[rival] - weight[batch.y]) for rival in range(classes)]
            with torch.no_grad():
                lowest = torch.stack([margin(model.logits(x), batch.y) for x in worst]).amin(0)
            result = APGD().run(model, batch, threat, Randomness(0))
            can = lowest < -1e-4
            could, missed = could + int(can.sum()), missed + int((can & ~result.success).sum())
    assert could > 100
    assert missed == 0


def ascent(k: int) -> Ascent:
    batch = labelled(mlp(), images(k))
    rows = torch.arange(k)
    return Ascent.start(batch, rows, batch.x, torch.zeros(k, dtype=torch.int64), 0.2)


def test_a_step_is_halved_by_either_condition():
    """Sample 0 rises in 8 of 10 steps, 1 in 7 of 10, 2 in all but its best loss and step are as before."""
    state = ascent(3)
    state.rises = torch.tensor([8.0, 7.0, 10.0])
    state.highest = torch.tensor([1.0, 1.0, 1.0])
    state.highest_then = torch.tensor([0.5, 0.5, 1.0])
    state.unchanged = torch.tensor([True, True, True])
    assert state.decide(10).tolist() == [False, True, True]
    torch.testing.assert_close(state.size, torch.tensor([0.2, 0.1, 0.1]))
    assert state.rises.tolist() == [0.0, 0.0, 0.0]
    state.rises = torch.tensor([10.0, 10.0, 10.0])
    assert state.decide(10).tolist() == [True, False, False], "a fresh step is not halved for a stuck loss"


def test_it_goes_on_from_its_best_point():
    state = ascent(2)
    here = state.z.clone()
    state.see(torch.tensor([1.0, 1.0]), torch.ones_like(here))
    state.z = here + 0.5
    state.see(torch.tensor([0.0, 2.0]), 2 * torch.ones_like(here))
    gradient = state.restart(torch.tensor([True, True]), 3 * torch.ones_like(here))
    assert torch.equal(state.z[0], here[0])
    assert torch.equal(state.z[1], here[1] + 0.5)
    assert float(gradient[0].amax()) == 1.0
    assert float(gradient[1].amax()) == 2.0


def test_sparse_steps_skip_what_the_box_blocks():
    gradient = torch.tensor([[5.0, -4.0, 3.0, -2.0, 1.0]])
    z = torch.tensor([[1.0, 0.5, 0.5, 0.5, 0.5]])
    step = sparse_steepest(gradient, z, ThreatModel("l1", 1.0), torch.tensor([2.0]))
    torch.testing.assert_close(step, torch.tensor([[0.0, -0.5, 0.5, 0.0, 0.0]]))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_as_strong_as_pgd_with_as_many_passes(norm):
    """Up to what its random start costs, where PGD begins at the clean input."""
    model = mlp(classes=5, inputs=30, hidden=64)
    batch = labelled(model, images(80, (1, 3, 10)))
    threat = ThreatModel(norm, EPS[norm])
    pgd = PGD(steps=40, restarts=1, loss="margin").run(model, batch, threat, Randomness(0))
    own = APGD(steps=40, loss="margin").run(model, batch, threat, Randomness(0))
    assert 0 < int(own.success.sum()) < 80
    assert int(own.success.sum()) >= int(pgd.success.sum()) - 3
    both = ~own.success & ~pgd.success
    assert float(own.margin[both].mean()) <= float(pgd.margin[both].mean()) + 0.03


def test_more_restarts_never_hurt():
    model = mlp(classes=5, hidden=32)
    batch = labelled(model, images(60))
    counts = [
        APGD(steps=8, restarts=restarts).run(model, batch, ThreatModel("linf", 0.1), Randomness(0)).success
        for restarts in (1, 2, 4)
    ]
    assert bool((counts[1] | ~counts[0]).all())
    assert bool((counts[2] | ~counts[1]).all())


def test_difference_of_logits_ratio():
    z = torch.tensor([[4.0, 1.0, 2.0, 0.0], [0.0, 3.0, 1.0, 2.0]])
    y = torch.tensor([0, 2])
    torch.testing.assert_close(difference_of_logits_ratio(z, y), torch.tensor([-2 / 3, 1.0]))
    torch.testing.assert_close(difference_of_logits_ratio(1000 * z + 7, y), torch.tensor([-2 / 3, 1.0]))
    for classes in (2, 3):
        some = torch.randn(6, classes, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(6) % classes
        assert torch.equal(difference_of_logits_ratio(some, labels), margin_loss(some, labels))


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("loss", ["dlr", "targeted"])
def test_any_class_count(classes, loss):
    """The reference implementation indexes a third or fourth logit that is not there."""
    model = random_linear(classes, 12)
    batch = labelled(model, images(40, (12,)))
    result = APGD(loss=loss, steps=20).run(model, batch, ThreatModel("linf", 0.2), Randomness(0))
    assert int(result.success.sum()) > 10


def test_passes_are_counted_and_stop_with_the_sample():
    model = mlp()
    counter = Counting(model.network)
    model.network = counter
    batch = labelled(model, images(40))
    counter.forward_samples = counter.backward_samples = 0
    attack = APGD(steps=10, restarts=2, loss="targeted", targets=2)
    result = attack.run(model, batch, ThreatModel("linf", 0.1), Randomness(0))
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == int(result.backward.sum())
    assert set(result.backward[~result.success].tolist()) == {2 * 2 * 11}
    assert int(result.backward[result.success].min()) <= 3


def test_a_vertex_costs_a_step_in_l1():
    model = mlp()
    counter = Counting(model.network)
    model.network = counter
    batch = labelled(model, images(40))
    counter.forward_samples = counter.backward_samples = 0
    result = APGD(steps=40).run(model, batch, ThreatModel("l1", 0.3), Randomness(0))
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == int(result.backward.sum())
    assert set(result.backward[~result.success].tolist()) == {41}
    assert 1 in result.backward[result.success].tolist()


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="has no loss 'mse'"):
        APGD(loss="mse")
    with pytest.raises(UserError, match="at least 1"):
        APGD(restarts=0)
