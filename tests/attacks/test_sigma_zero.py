"""Sigma-zero: the paper's iterates, exact counts on affine and convex networks, brute force on small ones."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch
from torch import nn

from attacks.cw import CarliniWagner
from attacks.fmn import FastMinimumNorm
from attacks.losses import margin_loss
from attacks.sigma_zero import SigmaZero, smooth_count_slope
from defenses.zoo import ModelName, load
from models.base import Classifier
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import Asked, images, labelled, linear, mlp, random_linear


def search(model, batch, eps=None, **settings):
    return SigmaZero(**settings).run(model, batch, ThreatModel("l0", eps, model.box), Randomness(0))


def test_the_iterates_are_the_papers():
    """Against algorithm 1 spelt out with autograd and PyTorch's own Adam, in double precision."""
    model = mlp(classes=3, inputs=12).double()
    batch = labelled(model, images(6).double())[5:]
    model.network = recorder = Asked(model.network)
    search(model, batch, steps=30, halvings=0)
    delta = torch.zeros_like(batch.x, requires_grad=True)
    adam, tau, iterates = torch.optim.Adam([delta], lr=1.0, eps=1e-20), 0.3, []
    for step in range(30):
        iterates.append(batch.x + delta.detach())
        value = margin_loss(recorder.network(batch.x + delta), batch.y)
        loss = (-value).clamp(min=0) + (delta**2 / (delta**2 + 1e-3)).sum() / 12
        if step:
            tau += (1 if value > 0 else -1) * 0.01 * adam.param_groups[0]["lr"]
        adam.param_groups[0]["lr"] = float(0.1 + 0.45 * (1 + torch.cos(torch.tensor(step / 29 * torch.pi))))
        adam.zero_grad()
        loss.sum().backward()
        delta.grad /= delta.grad.abs().max()
        adam.step()
        with torch.no_grad():
            delta.copy_((batch.x + delta).clamp(0, 1) - batch.x)
            delta[delta.abs() < tau] = 0.0
    # The first points asked about are the attack's, the others this test's own.
    for ours, theirs in zip(recorder.differentiated[:30], iterates, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_slope_is_that_of_the_smooth_count():
    delta = torch.linspace(-1, 1, 21).double().requires_grad_(True)
    (delta**2 / (delta**2 + 0.01)).sum().backward()
    torch.testing.assert_close(smooth_count_slope(delta.detach(), 0.01), delta.grad)


@pytest.mark.parametrize("corners", [False, True])
def test_affine_counts_within_the_box(corners):
    model, x = random_linear(5, 30), images(40, (30,))
    batch = labelled(model, (x > 0.5).float() if corners else x)
    result, exact = search(model, batch), distance_in_the_box(model, batch, "l0")
    assert bool(result.success.all())
    assert bool((result.distance >= exact).all())
    assert float((result.distance == exact).double().mean()) >= 0.9
    assert float((result.distance - exact).max()) <= 1


def convex(seed, inputs=8):
    """Two classes whose z_1 - z_0 is convex: over any face of the box it is greatest at a corner."""
    generator = torch.Generator().manual_seed(seed)
    hidden, out = nn.Linear(inputs, 12), nn.Linear(12, 2)
    with torch.no_grad():
        hidden.weight.copy_(torch.randn(12, inputs, generator=generator))
        hidden.bias.copy_(-1.5 * torch.rand(12, generator=generator))
        out.weight.copy_(torch.stack([torch.zeros(12), torch.rand(12, generator=generator)]))
        out.bias.copy_(torch.tensor([2.5, 0.0]))
    return Classifier(nn.Sequential(hidden, nn.ReLU(), out), num_classes=2, name="convex")


def least_count(model, x, y, values, most):
    """The fewest entries of one input (d,) that fool when set to `values`, by trying all; inf for none."""
    for count in range(1, most + 1):
        settings = torch.tensor(list(product(values, repeat=count)))
        for entries in combinations(range(len(x)), count):
            trial = x.repeat(len(settings), 1)
            trial[:, list(entries)] = settings
            if bool((model.logits(trial).argmax(1) != y).any()):
                return count
    return float("inf")


def test_no_fewer_than_the_least_number_on_convex_networks_and_rarely_more():
    """At most 8 entries, all subsets and corners of the box: the least number is exact."""
    extra = []
    for seed in range(3):
        model = convex(seed)
        x = images(40, (8,))
        batch = labelled(model, x[model.logits(x).argmax(1) == 0][:12])
        result = search(model, batch)
        least = [least_count(model, one, 0, (0.0, 1.0), 8) for one in batch.x]
        for found, best in zip(result.distance.tolist(), least, strict=True):
            if best < float("inf"):
                assert found >= best
                extra.append(found - best)
    assert len(extra) >= 20
    assert sum(more == 0 for more in extra) >= 0.8 * len(extra)
    assert sum(more <= 1 for more in extra) >= 0.9 * len(extra)


def test_within_one_entry_of_all_pairs_and_triples():
    """On a network of any shape, against every pair and triple of entries on a grid of values."""
    model, far = mlp(classes=4, inputs=9), []
    batch = labelled(model, images(25, (1, 3, 3)))
    result = search(model, batch)
    flat = Classifier(model.network, num_classes=4, name="flat")
    grid = (0.0, 0.25, 0.5, 0.75, 1.0)
    for found, one, y in zip(result.distance.tolist(), batch.x.flatten(1), batch.y, strict=True):
        least = least_count(flat, one, y, grid, 3)
        if least <= 3:
            far.append(found - least)
    assert len(far) >= 15
    assert sum(more <= 0 for more in far) >= 0.8 * len(far)
    assert max(far) <= 1


def test_no_more_entries_than_its_relatives_on_a_trained_network():
    """At 307 + 301 passes each, and against Carlini and Wagner's."""
    model, data = load(ModelName.parse("conv-small")), load_data("mnist5k")
    batch = data.batch(data.panel(12))
    ours = search(model, batch)
    assert bool(ours.success.all())
    assert set((ours.forward + ours.backward)[ours.clean & (ours.distance > 1)].tolist()) == {608}
    for relative in (FastMinimumNorm(steps=300), CarliniWagner()):
        theirs = relative.run(model, batch, ThreatModel("l0", None), Randomness(0))
        assert float(ours.distance.mean()) <= float(theirs.distance.mean())


def test_one_run_gives_the_curve_and_an_eps_ends_it_early():
    model = mlp(classes=5, inputs=24, hidden=24)
    batch = labelled(model, images(50, (1, 3, 8)))
    free = search(model, batch, steps=100)
    for eps in (2, 4):
        held = search(model, batch, eps=eps, steps=100)
        assert torch.equal(held.success, free.distance <= eps)
        assert float(held.distance[held.success].max()) <= eps
        done = held.success & (free.distance > 1)
        assert bool((held.backward[done] <= free.backward[done]).all())
        assert float(held.backward[done].double().mean()) < 0.8 * float(free.backward[done].double().mean())


def test_a_sample_leaves_when_one_entry_is_enough():
    model = linear(torch.tensor([[0.0, 0, 0], [9.0, 1, 1]]), torch.tensor([1.5, 0.0]))
    batch = labelled(model, torch.tensor([[0.1, 0.1, 0.1]]))
    result = search(model, batch)
    assert float(result.distance) == 1
    assert int(result.backward) < 100


def test_small_changes_are_taken_back():
    """Without steps of tau nothing below the threshold is ever handed over, whatever the gradient says."""
    model = random_linear(4, 30)
    batch = labelled(model, images(30, (30,)))
    result = search(model, batch, threshold=0.5, threshold_rate=0.0, halvings=0)
    change = (result.x_adv - batch.x).abs()
    assert bool(((change == 0) | (change >= 0.5)).all())
    assert float(result.success.double().mean()) > 0.9


def test_scaling_inputs_changes_no_count():
    small, large = mlp(), mlp()
    with torch.no_grad():
        large.network[1].weight /= 256
    large.box = Box(0.0, 256.0)
    batch = labelled(small, images(30))
    a, b = search(small, batch), search(large, labelled(large, batch.x * 256))
    assert torch.equal(a.success, b.success)
    assert float((a.distance != b.distance).double().mean()) <= 0.1


@pytest.mark.parametrize("constant", [-100.0, 20.0])
def test_a_constant_on_the_logits_changes_nothing(constant):
    model = mlp()
    batch = labelled(model, images(30))
    plain = search(model, batch)
    with torch.no_grad():
        model.network[3].bias += constant
    moved = search(model, batch)
    assert torch.equal(plain.success, moved.success)
    assert float((plain.distance != moved.distance).double().mean()) <= 0.1


def test_no_gradient_is_no_number():
    model = linear(torch.zeros(3, 6), torch.tensor([2.0, 0, 0]))
    result = search(model, labelled(model, images(5, (6,))), steps=20)
    assert not bool(result.success.any())
    assert bool(torch.isfinite(result.x_adv).all())
    assert bool(result.zero_gradient.all())


def test_bad_settings_are_users_errors():
    for bad in ({"rate": 0.0}, {"sigma": 0.0}, {"threshold": 1.0}, {"threshold_rate": -1.0}):
        with pytest.raises(UserError, match="sigma-zero needs rate and sigma > 0"):
            SigmaZero(**bad)
