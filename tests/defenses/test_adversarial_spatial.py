"""Training on the worst of random poses: brute force over the same draws, limits, and per-sample draws."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from defenses.adversarial_spatial import AdversarialSpatial
from models.base import Batch
from models.errors import UserError
from models.poses import Poses
from models.randomness import Randomness
from models.threat import UNIT_BOX


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 4)
        ).double()


def batch(n: int = 8) -> Batch:
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch(x, torch.arange(n) % 4, 10 + 3 * torch.arange(n))


def test_it_is_the_worst_of_exactly_its_draws() -> None:
    net, some, randomness = network(), batch(), Randomness(5)
    draws = 2 * randomness.child("poses").uniform(some.index, (6, 3)).double() - 1
    worst = torch.full((len(some),), -torch.inf, dtype=torch.float64)
    for k in range(6):
        moved = Poses(40.0, 0.2).apply(some.x, draws[:, k], UNIT_BOX)
        worst = worst.maximum(functional.cross_entropy(net(moved), some.y, reduction="none").detach())
    defense = AdversarialSpatial(draws=6, rotation=40.0, translation=0.2)
    assert float(defense.loss(net, some, 1.0, randomness).detach()) == pytest.approx(
        float(worst.mean()), rel=1e-9
    )


def test_more_draws_are_never_easier_and_no_move_is_ordinary_training() -> None:
    net, some = network(), batch()
    values = [
        float(AdversarialSpatial(draws=k).loss(net, some, 1.0, Randomness(0)).detach()) for k in (1, 3, 10)
    ]
    assert values == sorted(values)
    assert values[2] > values[0]
    still = AdversarialSpatial(rotation=0.0, translation=0.0).loss(net, some, 1.0, Randomness(0))
    assert float(still.detach()) == pytest.approx(
        float(functional.cross_entropy(net(some.x), some.y).detach())
    )


def test_draws_belong_to_the_sample_and_change_by_epoch() -> None:
    net, some, defense = network(), batch(), AdversarialSpatial(draws=3)
    whole = defense.worst(net, some, Randomness(0))
    alone = torch.cat([defense.worst(net, some[i : i + 1], Randomness(0)) for i in range(len(some))])
    assert torch.allclose(whole, alone, atol=1e-12)
    assert not torch.allclose(whole, defense.worst(net, some, Randomness(1)))


def test_trained_on_poses_a_network_holds_where_a_plain_one_does_not() -> None:
    """Where the bright spot stands tells the class, up to one pixel: only the training sees the shifts."""
    y = torch.arange(80) % 2
    x = 0.2 * torch.rand(80, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    for i in range(80):
        place = 2 if y[i] == 0 else 6
        x[i, 0, 4:6, place : place + 2] += 0.8
    some = Batch(x, y, torch.arange(80))
    held = []
    for draws in (0, 6):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Flatten(), nn.Linear(100, 2))
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        for step in range(120):
            if draws:
                defense = AdversarialSpatial(draws=draws, rotation=10.0, translation=0.15)
                loss = defense.loss(net, some, 1.0, Randomness(step))
            else:
                loss = functional.cross_entropy(net(some.x), some.y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        worst = AdversarialSpatial(draws=20, rotation=10.0, translation=0.15).worst(net, some, Randomness(-1))
        held.append(float((net(worst).argmax(1) == y).double().mean()))
    assert held[1] > held[0] + 0.1


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"rotation": 181.0}, {"translation": -0.1}])
def test_impossible_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="adversarial-spatial"):
        AdversarialSpatial(**wrong)
