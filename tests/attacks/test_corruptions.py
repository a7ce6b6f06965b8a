"""Corruptions as an attack: brute force over the families, one at a time and the worst, and the bill."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.corruptions import WORST, Corruptions
from models.base import Batch, Classifier
from models.corruption import families
from models.errors import NotApplicable, UserError
from models.randomness import Randomness
from models.threats import threat_named
from tests.attacks.test_rotation_translation import batch_of, conv
from tests.builders import Counting, labelled

FITTING = [name for name in families() if name != "saturate"]
THREAT = threat_named("corruption", 5)


def broken_by(model: Classifier, batch: Batch, name: str) -> torch.Tensor:
    """Which samples a family alone breaks, without the attack."""
    return model.logits(THREAT.corrupted(batch.x, name, 5, batch.index)).argmax(1) != batch.y


def test_the_worst_family_is_that_of_brute_force():
    model = conv()
    batch = batch_of(model, 60)
    alone = torch.stack([broken_by(model, batch, name) for name in FITTING])
    result = Corruptions().run(model, batch, THREAT, Randomness(0))
    assert torch.equal(result.success, alone.any(0))
    first = [FITTING[int(column.nonzero()[0])] for column in alone.T[alone.any(0)]]
    moved = result.move[result.success]
    assert [families()[int(number)] for number in moved[:, 0]] == first
    assert bool((moved[:, 1] == 5).all())
    assert 5 < int(result.success.sum()) < 60
    assert bool((result.distance[result.success] == 5).all())


@pytest.mark.parametrize("name", ["fog", "impulse-noise", "contrast"])
def test_one_family_alone(name):
    model = conv()
    batch = batch_of(model, 60)
    result = Corruptions(family=name).run(model, batch, THREAT, Randomness(0))
    assert torch.equal(result.success, broken_by(model, batch, name))
    assert set(result.forward.tolist()) == {1}


def test_broken_samples_leave_and_the_bill_is_exact():
    model = conv()
    model.network = counter = Counting(model.network)
    batch = batch_of(model, 60)
    counter.forward_samples = 0
    result = Corruptions().run(model, batch, THREAT, Randomness(0))
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert set(result.forward[~result.success].tolist()) == {len(FITTING)}
    assert int(result.forward.min()) < len(FITTING)


def test_the_seed_of_the_run_does_not_move_a_corruption():
    model = conv()
    batch = batch_of(model)
    first, second = (Corruptions().run(model, batch, THREAT, Randomness(seed)) for seed in (0, 1))
    assert torch.equal(first.x_adv, second.x_adv)


def test_colour_images_have_one_more_family():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3))
    model = Classifier(network, num_classes=3)
    batch = labelled(model, torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    result = Corruptions(family="saturate").run(model, batch, THREAT, Randomness(0))
    assert bool((result.move[:, 0] == families().index("saturate")).all())
    with pytest.raises(NotApplicable, match="channels other than 1"):
        Corruptions(family="saturate").run(conv(), batch_of(conv()), THREAT, Randomness(0))


def test_unknown_families_are_refused():
    with pytest.raises(UserError, match="unknown corruption family 'fogg': did you mean fog"):
        Corruptions(family="fogg")
    assert Corruptions().family == WORST
