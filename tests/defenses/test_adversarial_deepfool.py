"""Training on DeepFool's examples: the exact distance on linear networks, and what it does to distances."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from defenses.adversarial_deepfool import AdversarialDeepFool, deepfooled
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness


def linear(classes: int, seed: int = 0) -> nn.Sequential:
    """A linear network whose boundaries all meet in the grey image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).double()
    net[1].bias.data = -0.5 * net[1].weight.data.sum(1)
    return net


def batch(net: nn.Module, n: int = 12) -> Batch:
    """Images far from the bounds of the box, labelled as `net` sees them."""
    generator = torch.Generator().manual_seed(3)
    x = 0.45 + 0.1 * torch.rand(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    return Batch(x, net(x).argmax(1), torch.arange(n))


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("overshoot", [0.02, 0.5])
def test_on_a_linear_network_it_is_the_nearest_boundary_times_the_overshoot(
    classes: int, overshoot: float
) -> None:
    net = linear(classes)
    some = batch(net)
    weight, logits = net[1].weight.detach(), net(some.x).detach()
    gaps = logits.gather(1, some.y[:, None]) - logits
    slopes = (weight[:, None] - weight[None]).norm(dim=2)[some.y]
    nearest = torch.where(slopes > 0, gaps / slopes, torch.inf).amin(1)
    moved = deepfooled(net, some, overshoot, 5, classes)
    found = (moved - some.x).flatten(1).norm(dim=1)
    assert found.tolist() == pytest.approx(((1 + overshoot) * nearest).tolist(), rel=2e-3)
    assert bool((net(moved).argmax(1) != some.y).all())
    clean, adversarial = (float(functional.cross_entropy(net(x), some.y).detach()) for x in (some.x, moved))
    for alpha in (0.0, 0.5, 0.8):
        defense = AdversarialDeepFool(overshoot=overshoot, classes=classes, alpha=alpha)
        value = float(defense.loss(net, some, 0.9, Randomness(0)).detach())
        assert value == pytest.approx(alpha * clean + (1 - alpha) * adversarial)


def test_what_is_misclassified_already_stays_where_it_is() -> None:
    net = linear(4)
    some = batch(net)
    wrong = Batch(some.x, (some.y + 1) % 4, some.index)
    assert torch.equal(deepfooled(net, wrong, 0.02, 5, 4), some.x)


def test_the_first_part_is_ordinary_training_and_the_rest_is_not() -> None:
    net, defense = linear(4), AdversarialDeepFool(clean_part=0.5)
    some = batch(net)
    plain = float(functional.cross_entropy(net(some.x), some.y).detach())
    values = [float(defense.loss(net, some, progress, Randomness(0)).detach()) for progress in (0.49, 0.5)]
    assert values[0] == plain
    assert values[1] > plain * 1.001


def test_points_stay_in_the_box_and_do_not_see_their_batch() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    x = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    some = Batch(x, net(x).argmax(1), torch.arange(9))
    moved = deepfooled(net, some, 0.02, 5, 4)
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    alone = torch.cat([deepfooled(net, some[i : i + 1], 0.02, 5, 4) for i in range(9)])
    assert torch.allclose(moved, alone, atol=1e-5)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_it_pushes_the_boundary_away_from_the_images() -> None:
    """One pixel tells the class among noise; both trainings go on from the same plain one."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    x = 0.5 + 0.05 * torch.randn(200, 1, 4, 4, generator=generator)
    x[:, 0, 0, 0] = torch.where(y == 0, 0.3, 0.7)
    some = Batch(x.clamp(0, 1), y, torch.arange(200))
    away = []
    for alpha in (1.0, 0.5):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        defense = AdversarialDeepFool(alpha=alpha)
        for step in range(160):
            loss = defense.loss(net, some, step / 160, Randomness(0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert float((net(some.x).argmax(1) == y).double().mean()) > 0.98
        moved = deepfooled(net, some, 0.0, 20, 2)
        away.append(float((moved - some.x).flatten(1).norm(dim=1).median()))
    assert away[1] > 1.05 * away[0]


@pytest.mark.parametrize("wrong", [{"overshoot": -0.1}, {"classes": 1}, {"steps": 0}, {"clean_part": 2.0}])
def test_impossible_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="adversarial-deepfool"):
        AdversarialDeepFool(**wrong)
