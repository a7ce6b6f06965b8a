"""Virtual adversarial directions: the Hessian's top eigenvector, one step by hand, no labels, units."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from attacks.access import GradientAccess
from attacks.fgm import FGM
from attacks.virtual_adversarial import VirtualAdversarial, divergence, unit
from defenses.zoo import ModelName, load
from models.base import Batch, Classifier
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.builders import WIDE, Counting, images, labelled, linear, mlp, random_linear


def run(model, batch, eps, *, seed=0, **settings):
    return VirtualAdversarial(**settings).run(
        model, batch, ThreatModel("l2", eps, model.box), Randomness(seed)
    )


def moves(model, batch, eps, **settings):
    """What is handed over, minus x, whether it fools or not: (n, entries)."""
    view, threat = GradientAccess(model, len(batch)), ThreatModel("l2", eps, model.box)
    found = VirtualAdversarial(**settings).propose(view, batch, threat, Randomness(0), None)
    return (found - batch.x).flatten(1)


def test_the_divergence_is_that_of_the_softmaxes():
    clean, z = (torch.randn(20, 5, generator=torch.Generator().manual_seed(i)) for i in range(2))
    expected = functional.kl_div(z.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(divergence(clean)(z).float(), expected)
    assert float(divergence(clean)(clean).abs().max()) == 0.0
    torch.testing.assert_close(divergence(clean)(z + 7), divergence(clean + 3)(z), rtol=1e-4, atol=1e-6)


def test_it_finds_the_top_eigenvector_of_the_hessian():
    """For logits W x the Hessian of the divergence is W' (diag p - p p') W."""
    model = random_linear(5, 12).double()
    model.box = WIDE
    batch = labelled(model, images(10, (12,)).double())
    away = moves(model, batch, 1e-3, steps=400, width=1e-7)
    weight = model.network.weight.detach()
    for x, move in zip(batch.x, away, strict=True):
        p = model.logits(x[None]).detach().softmax(1)[0]
        hessian = weight.T @ (p.diag() - p[:, None] * p) @ weight
        top = torch.linalg.eigh(hessian).eigenvectors[:, -1]
        assert abs(float(functional.cosine_similarity(move, top, dim=0))) > 1 - 1e-4


def test_one_step_by_hand():
    model = mlp(classes=5, hidden=32).double()
    model.box = Box(-100.0, 100.0)
    batch = labelled(model, images(15).double())
    found = moves(model, batch, 0.02, steps=1, width=0.001)
    start = Randomness(0).normal(batch.index, batch.x.shape[1:]).double()
    signs = []
    for i in range(15):
        x, d = batch.x[i : i + 1], start[i : i + 1]
        r = (0.001 * 200 * d / d.norm()).requires_grad_(True)
        p = model.logits(x).detach().softmax(1)
        kl = (p * (p.log() - model.logits(x + r).log_softmax(1))).sum()
        (slope,) = torch.autograd.grad(kl, r)
        step = 0.02 * slope / slope.norm()
        sides = [step, -step]
        logits = torch.cat([model.logits(x + side).detach() for side in sides])
        wrong = logits.argmax(1) != batch.y[i]
        values = (p * (p.log() - logits.log_softmax(1))).sum(1)
        best = int(wrong[1]) if bool(wrong.any()) and not bool(wrong[0]) else int(values[1] > values[0])
        best = 0 if bool(wrong[0]) else best
        signs.append(best)
        torch.testing.assert_close(found[i], sides[best].flatten(), atol=1e-6, rtol=0)
    assert set(signs) == {0, 1}


@pytest.mark.parametrize("corners", [False, True])
def test_two_classes_fall_where_they_can_in_the_box(corners):
    """The divergence of two classes curves along w alone; what the box blocks is spent elsewhere."""
    model = random_linear(2, 30)
    x = images(60, (30,))
    batch = labelled(model, (x > 0.5).float() if corners else x)
    weight = model.network.weight.detach()
    for eps in (0.1, 0.3, 0.6):
        threat = ThreatModel("l2", eps)
        worst = threat.furthest(batch.x, (weight[1] - weight[0]) * (1 - 2 * batch.y[:, None]))
        can = model.logits(worst).argmax(1) != batch.y
        result = run(model, batch, eps)
        assert 5 < int(can.sum()) < 60
        assert int((result.success & can).sum()) >= int(can.sum()) - 1


def test_labels_play_no_part():
    model = mlp(classes=5, hidden=32)
    batch = labelled(model, images(30))
    other = Batch(batch.x, (batch.y + 1) % 5, batch.index)
    assert torch.equal(moves(model, batch, 0.3), moves(model, other, 0.3))


def test_sure_networks_have_a_direction_and_tiny_slopes_a_length():
    model = mlp(classes=5, hidden=32)
    with torch.no_grad():
        model.network[3].weight *= 30
        model.network[3].bias *= 30
    batch = labelled(model, images(40))
    assert float(model.logits(batch.x).detach().softmax(1).amax(1).median()) == 1.0
    plain = run(mlp(classes=5, hidden=32), batch, 0.5)
    assert int(run(model, batch, 0.5).success.sum()) >= 0.8 * int(plain.success.sum())
    tiny = unit(torch.tensor([[3e-42, 4e-42], [0.0, 0.0], [3e30, -4e30]]))
    torch.testing.assert_close(tiny.norm(dim=1), torch.tensor([1.0, 0.0, 1.0]), atol=1e-3, rtol=0)


def test_without_labels_it_breaks_more_than_one_step_with_them():
    data = load_data("mnist5k")
    batch, model = data.batch(data.panel(30)), load(ModelName.parse("conv-small"))
    peer = FGM().run(model, batch, ThreatModel("l2", 1.5), Randomness(0))
    own, once = run(model, batch, 1.5), run(model, batch, 1.5, steps=1)
    assert int(own.success.sum()) >= int(once.success.sum()) >= int(peer.success.sum())
    assert int(own.success.sum()) > int(peer.success.sum())


def test_every_pass_is_counted():
    model = mlp()
    model.network = counter = Counting(model.network)
    batch = labelled(model, images(60))
    counter.forward_samples = counter.backward_samples = 0
    result = run(model, batch, 0.3, steps=3)
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == int(result.backward.sum())
    assert set(result.backward.tolist()) == {3}
    assert set(result.forward.tolist()) == {1 + 3 + 1, 1 + 3 + 2}
    assert set(result.forward[~result.success].tolist()) == {6}


def test_larger_balls_break_more():
    batch = labelled(mlp(), images(60))
    counts = [int(run(mlp(), batch, eps).success.sum()) for eps in (0.05, 0.2, 0.5, 1.0)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_neither_units_nor_a_constant_on_the_logits_matter():
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(2)).double()
    x, plain = images(40, (8,)).double(), linear(weight, torch.zeros(3).double())
    scaled = linear(weight / 8, 5.0 + 0.25 * weight.sum(1), Box(-2.0, 6.0))
    first, second = (run(plain, labelled(plain, x), 0.2), run(scaled, labelled(scaled, 8 * x - 2), 1.6))
    assert 3 < int(first.success.sum()) < 37
    assert torch.equal(first.success, second.success)
    torch.testing.assert_close((second.x_adv + 2) / 8, first.x_adv, atol=1e-5, rtol=0)


def test_a_place_without_a_slope_keeps_its_random_direction():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([2 + 0 * x.flatten(1).sum(1), 0 * x.flatten(1).sum(1)], 1)

    model = Classifier(Flat(), num_classes=2)
    batch = Batch.of(torch.full((5, 12), 0.5), torch.zeros(5, dtype=torch.int64))
    found = moves(model, batch, 0.1)
    start = Randomness(0).normal(batch.index, (12,))
    torch.testing.assert_close(found, 0.1 * start / start.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"width": 0.0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(UserError, match="virtual-adversarial needs steps >= 1 and width > 0"):
        VirtualAdversarial(**bad)
