"""ACG: conjugate directions on quadratics, their limits, what a restart brings back, and its peer's steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.acg import Conjugate, ConjugateGradient, conjugate
from attacks.apgd import APGD
from models.base import Classifier, margin
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.builders import Counting, images, labelled, linear, mlp, random_linear


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parallel(a, b):
    return nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)) > 1 - 1e-9


def test_directions_are_conjugate_on_a_quadratic():
    """With exact line searches f = -x'Hx / 2 is at its top after as many steps as there are entries."""
    root = normal(6, 6)
    h = root @ root.T + torch.eye(6)
    x, past, way, ways = normal(1, 6, seed=1), torch.zeros(1, 6).double(), torch.zeros(1, 6).double(), []
    for _ in range(6):
        g = -x @ h
        way, past = conjugate(g, past, way), g
        ways.append(way[0])
        x = x + way * float((g * way).sum() / (way @ h @ way.T))
    gram = torch.stack(ways) @ h @ torch.stack(ways).T
    assert float((gram - gram.diag().diag()).abs().max()) < 1e-9
    assert float(x.abs().max()) < 1e-9


def test_the_formula_by_hand():
    """g = (1, 2), past = (3, 1), way = (1, -1): y = (2, -1), g.y = 0; and way = (0, 1), past = (1, 4)."""
    g = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    past = torch.tensor([[3.0, 1.0], [1.0, 4.0], [0.0, 1.0]])
    way = torch.tensor([[1.0, -1.0], [1.0, -0.5], [1.0, 0.5]])
    # y: (2, -1), (0, 2), (-1, -1); g.y: 0, 4, -3; way.y: 3, -1, -1.5; beta: 0, 4, -2, which becomes 0.
    found = conjugate(g, past, way)
    torch.testing.assert_close(found, torch.tensor([[0.5, 1.0], [1.0, 0.0], [0.5, 1.0]]))


def test_scales_do_not_matter_and_nothing_is_no_number():
    g, past, way = normal(40, 7), normal(40, 7, seed=1), normal(40, 7, seed=2)
    plain = conjugate(g, past, way)
    assert 5 < int(parallel(plain, g).sum()) < 35
    for scale in (1e-150, 1e150):
        assert bool(parallel(conjugate(scale * g, scale * past, way), plain).all())
        assert bool(parallel(conjugate(g, past, scale * way), plain).all())
    zero = torch.zeros(2, 7)
    for parts in ((zero, zero, zero), (zero, zero + 1, zero + 1), (zero + 1, zero + 1, zero + 1)):
        assert torch.equal(conjugate(*parts), parts[0])


def test_along_one_line_the_gradient_is_left_and_no_rounding():
    """g + beta way cancels there, whatever the lengths."""
    line = normal(30, 50).float()
    factor = normal(30, 1, seed=3).float()
    g = 0.3 * line
    found = conjugate(g, factor * line, -1.7 * line)
    assert bool(parallel(found.double(), g.double()).all())


def test_a_restart_brings_back_what_led_to_the_best_point():
    batch = labelled(mlp(), images(2))
    here, threat = batch.x, ThreatModel("linf", 0.1)
    state = Conjugate.start(batch, torch.arange(2), here, torch.zeros(2, dtype=torch.int64), 0.05)
    slopes = [normal(*here.shape, seed=seed).float() for seed in range(4)]
    values = [[0.0, 0.0], [2.0, 1.0], [1.0, 2.0], [0.0, 0.0]]
    ways, points = [torch.zeros_like(here)], []
    for value, slope in zip(values, slopes, strict=True):
        state.see(torch.tensor(value), slope)
        points.append(state.z)
        state.move(threat, threat.projection(here), slope, True)
        ways.append(state.way)
        assert torch.equal(state.past, slope)
    gradient = state.restart(torch.tensor([True, True]), slopes[3])
    for row, step in ((0, 1), (1, 2)):
        assert torch.equal(gradient[row], slopes[step][row])
        assert torch.equal(state.z[row], points[step][row])
        assert torch.equal(state.past[row], slopes[step - 1][row])
        assert torch.equal(state.way[row], ways[step][row])
    # From there on the direction is the one that it took, the step is another.
    state.move(threat, threat.projection(here), gradient, True)
    torch.testing.assert_close(state.way[0], ways[2][0])
    torch.testing.assert_close(state.way[1], ways[3][1])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "targeted"])
def test_two_class_linear_margin_falls_by_the_dual_norm(norm, loss):
    """min over ||d|| <= eps of w.d is -eps ||w||_q; in cross-entropy all gradients lie on one line."""
    model = random_linear(2, 20, box=Box(-1e3, 1e3))
    batch = labelled(model, images(30, (20,)))
    result = ConjugateGradient(loss=loss).run(
        model, batch, ThreatModel(norm, 1e-2, model.box), Randomness(0), batch_size=7
    )
    weight = (model.network.weight[0] - model.network.weight[1]).detach().double()
    # The judge calls a failed proposal's margin that of the proposal.
    held = ~result.success
    fall = margin(model.logits(batch.x).detach().double(), batch.y)[held] - result.margin[held]
    expected = torch.full_like(fall, 1e-2 * float(weight.norm(p={"linf": 1, "l2": 2}[norm])))
    assert int(held.sum()) > 10
    torch.testing.assert_close(fall, expected, rtol=2e-3, atol=1e-5)


class Valley(nn.Module):
    """z_0 - z_1 = a^2 + 300 b^2 - 1e-4, a = x_0 - 0.8, b = x_1 - 0.5 - 0.3 a: steep across, flat along."""

    def forward(self, x):
        along, across = x[:, 0] - 0.8, x[:, 1] - 0.5 - 0.3 * (x[:, 0] - 0.8)
        gap = along.square() + 300 * across.square() - 1e-4
        return torch.stack([gap, torch.zeros_like(gap)], 1)


def test_it_follows_a_valley_that_steepest_ascent_crosses():
    """The network errs in a narrow ellipse; conjugate directions find it in fewer steps, in l2."""
    model = Classifier(Valley(), num_classes=2, name="valley")
    batch = labelled(model, 0.2 + 0.5 * images(60, (2,)))
    threat = ThreatModel("l2", 0.7)
    own, peer = (
        kind(steps=60, loss="margin").run(model, batch, threat, Randomness(0))
        for kind in (ConjugateGradient, APGD)
    )
    assert int(own.success.sum()) > int(peer.success.sum())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_as_strong_as_apgd_with_as_many_passes(norm):
    model = mlp(classes=5, inputs=30, hidden=64)
    batch = labelled(model, images(200, (1, 3, 10)))
    threat = ThreatModel(norm, {"linf": 0.05, "l2": 0.25}[norm])
    own, peer = (
        kind(steps=30, loss="margin").run(model, batch, threat, Randomness(0))
        for kind in (ConjugateGradient, APGD)
    )
    assert 30 < int(own.success.sum()) < 170
    assert int(own.success.sum()) >= int(peer.success.sum()) - 1


def test_every_pass_is_counted_and_more_restarts_never_hurt():
    model = mlp()
    model.network = counter = Counting(model.network)
    batch = labelled(model, images(60))
    last = torch.zeros(60, dtype=torch.bool)
    for restarts in (1, 2, 4):
        counter.forward_samples = counter.backward_samples = 0
        attack = ConjugateGradient(steps=8, restarts=restarts)
        result = attack.run(model, batch, ThreatModel("linf", 0.1), Randomness(0))
        assert set(result.backward[~result.success].tolist()) == {9 * restarts}
        assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
        assert counter.backward_samples == int(result.backward.sum())
        assert bool((result.success | ~last).all())
        last = result.success


def test_neither_units_nor_a_constant_on_the_logits_matter():
    weight, x = normal(3, 8, seed=2), images(60, (8,)).double()
    plain = linear(weight, torch.zeros(3).double())
    scaled = linear(weight / 8, 5.0 + 0.25 * weight.sum(1), Box(-2.0, 6.0))
    first = ConjugateGradient(steps=12).run(plain, labelled(plain, x), ThreatModel("l2", 0.2), Randomness(0))
    second = ConjugateGradient(steps=12).run(
        scaled, labelled(scaled, 8 * x - 2), ThreatModel("l2", 1.6, scaled.box), Randomness(0)
    )
    assert 5 < int(first.success.sum()) < 55
    assert torch.equal(first.success, second.success)
    torch.testing.assert_close((second.x_adv + 2) / 8, first.x_adv, atol=1e-4, rtol=0)


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="acg has no loss 'mse'"):
        ConjugateGradient(loss="mse")
    with pytest.raises(UserError, match="acg needs steps, restarts and targets of at least 1"):
        ConjugateGradient(steps=0)
