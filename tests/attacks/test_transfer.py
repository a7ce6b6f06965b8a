from __future__ import annotations

import pytest
import torch

from attacks.pgd import PGD
from attacks.transfer import Transfer
from attacks.universal import Universal
from models.base import Batch, Classifier
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.builders import Counting, images, labelled, mlp

THREAT = ThreatModel("linf", 0.15)


def cousin(model: Classifier, amount: float = 0.3) -> Classifier:
    """A model near `model`, so that points transfer between the two."""
    other, noise = mlp(hidden=32), torch.Generator().manual_seed(5)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            spread = amount * float(parameter.std())
            parameter += spread * torch.randn(parameter.shape, generator=noise)
    return other


def rate(result) -> float:
    return float(result.success[result.clean].float().mean())


def test_transfer_lies_between_noise_and_white_box():
    target = mlp(hidden=32)
    batch = labelled(target, images(150))
    source = cousin(target)
    transferred = rate(Transfer(source=source).run(target, batch, THREAT, Randomness(0)))
    white_box = rate(PGD().run(target, batch, THREAT, Randomness(0)))
    noise = THREAT.sample(batch.x, batch.index, Randomness(1))
    random = float((target.logits(noise).argmax(1) != batch.y).float().mean())
    assert random + 0.1 < transferred <= white_box


def test_from_itself_it_is_the_white_box_attack():
    model = mlp()
    batch = labelled(model, images(50))
    white_box = PGD(restarts=1)
    a = Transfer(source=mlp(), attack=white_box).run(model, batch, THREAT, Randomness(0))
    b = white_box.run(model, batch, THREAT, Randomness(0))
    assert torch.equal(a.x_adv, b.x_adv)


def test_the_target_is_never_asked_and_the_source_left_alone():
    source, target = mlp(seed=9), mlp()
    counter = Counting(target.network)
    target.network = counter
    batch = labelled(target, images(20))
    counter.forward_samples = 0
    source.train()
    result = Transfer(source=source).run(target, batch, THREAT, Randomness(0))
    assert counter.forward_samples == 2 * len(batch)
    assert int(result.forward.sum()) == int(result.backward.sum()) == 0
    assert source.training
    assert all(parameter.requires_grad for parameter in source.parameters())


def test_inputs_the_source_gets_wrong_are_still_attacked():
    """An early stop would hand over the clean image, which the target gets right."""
    source, target = mlp(seed=9), mlp()
    batch = labelled(target, images(60))
    lost = source.logits(batch.x).argmax(1) != batch.y
    assert int(lost.sum()) > 10
    result = Transfer(source=source).run(target, batch, THREAT, Randomness(0))
    assert bool((THREAT.distance(batch.x, result.x_adv)[lost] > 0.1).all())


def test_best_attempts_are_handed_over_where_the_source_holds():
    source, target = mlp(), mlp(seed=9)
    batch = labelled(source, images(60))
    batch = Batch(batch.x, target.logits(batch.x).argmax(1), batch.index)
    small = ThreatModel("linf", 0.01)
    result = Transfer(source=source).run(target, batch, small, Randomness(0))
    assert bool((small.distance(batch.x, result.x_adv) > 0.005).all())


def test_mismatches_are_refused():
    batch = labelled(mlp(), images(5))
    with pytest.raises(UserError, match="classes or box"):
        Transfer(source=mlp(classes=5)).run(mlp(), batch, THREAT, Randomness(0))
    other = mlp()
    other.box = Box(0.0, 2.0)
    with pytest.raises(UserError, match="classes or box"):
        Transfer(source=other).run(mlp(), batch, THREAT, Randomness(0))
    with pytest.raises(UserError, match="without fitting"):
        Transfer(source=mlp(), attack=Universal())


def test_parameters_name_source_and_inner_attack():
    values = Transfer(source=mlp()).parameters()
    assert values["source"] == "mlp"
    assert values["attack"]["name"] == "pgd"
    assert values["attack"]["early_stop"] is False
