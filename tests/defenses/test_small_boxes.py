"""`small-boxes`: its boxes lie within the ball, and its loss within what the ball's own bounds allow."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from defenses.interval import IntervalTraining
from defenses.small_boxes import SmallBoxes
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def batch(n: int = 20) -> Batch:
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return Batch(x, torch.arange(n) % 3, torch.arange(n))


def loss(defense: IntervalTraining) -> float:
    return defense.loss(network(), batch(), 1.0, Randomness(0)).item()


def test_boxes_stay_within_the_ball_and_the_images_box() -> None:
    eps, share = 0.2, 0.3
    defense = SmallBoxes(eps=eps, share=share, overshoot=1.0)
    some = batch()
    centres = defense.centres(network(), some, (1 - share) * eps, Randomness(0))
    assert ((centres - some.x).abs().amax() + share * eps).item() <= eps + 1e-6
    assert torch.equal(centres, centres.clamp(0, 1))


def test_centres_are_adversarial() -> None:
    net, some, radius = network(), batch(), 0.15
    found = SmallBoxes(steps=3).centres(net, some, radius, Randomness(0))
    generator = torch.Generator().manual_seed(1)
    noise = (some.x + radius * (2 * torch.rand(some.x.shape, generator=generator) - 1)).clamp(0, 1)
    raised = functional.cross_entropy(net(found), some.y)
    assert raised > functional.cross_entropy(net(some.x), some.y)
    assert raised > functional.cross_entropy(net(noise), some.y)


def test_the_whole_ball_is_interval_training_and_a_smaller_share_costs_no_more() -> None:
    whole = loss(IntervalTraining(eps=0.1, overshoot=1.0))
    shares = [loss(SmallBoxes(eps=0.1, overshoot=1.0, share=share)) for share in (1.0, 0.7, 0.4)]
    assert shares[0] == pytest.approx(whole, rel=1e-6)
    # A box within a box: its interval bounds are within the other's, whatever centre was found.
    assert all(small <= whole for small in shares[1:])


def test_a_share_of_zero_is_adversarial_training_on_its_centres() -> None:
    net, some = network(), batch()
    defense = SmallBoxes(eps=0.1, overshoot=1.0, share=0.0)
    centres = defense.centres(net, some, 0.1, Randomness(0))
    plain = functional.cross_entropy(net(centres), some.y).item()
    assert defense.loss(net, some, 1.0, Randomness(0)).item() == pytest.approx(plain, rel=1e-5)


def test_points_do_not_depend_on_the_batch() -> None:
    defense, net, some = SmallBoxes(), network(), batch()
    whole = defense.centres(net, some, 0.1, Randomness(0))
    parts = [defense.centres(net, part, 0.1, Randomness(0)) for part in some.split(7)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(UserError, match="share"):
        SmallBoxes(share=1.5)
    with pytest.raises(UserError, match="steps to be a whole number from 1 up"):
        SmallBoxes(steps=0)
