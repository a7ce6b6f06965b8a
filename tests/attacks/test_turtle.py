"""The turtle: held-out poses against a random texture and PGD's of the same size."""

from __future__ import annotations

import pytest
import torch

from attacks.eot import survival
from attacks.pgd import PGD
from attacks.turtle import Turtle
from defenses.zoo import ModelName, load
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.builders import Counting, images, labelled, mlp


def test_held_out_poses_are_fooled_more_than_by_a_random_texture_or_pgd():
    data, attack = load_data("mnist5k"), Turtle(steps=20, draws=4, turn=20.0)
    model, batch = load(ModelName.parse("conv-small")), data.batch(data.panel(16))
    threat = ThreatModel("linf", 0.2)
    noise = threat.box.clamp(batch.x + 0.2 * Randomness(5).sign(batch.index, batch.x.shape[1:]))
    plain = PGD(restarts=1).run(model, batch, threat, Randomness(0)).x_adv
    ours = attack.run(model, batch, threat, Randomness(0)).x_adv
    still, random, by_pgd, by_turtle = (
        float(survival(model, batch, x, attack.scene, Randomness(99), 20).mean())
        for x in (batch.x, noise, plain, ours)
    )
    assert still < 0.3
    assert by_turtle > random + 0.3
    assert by_turtle > by_pgd + 0.1


def test_the_bill_is_exact():
    model = mlp()
    model.network = counter = Counting(model.network)
    batch = labelled(model, images(20))
    counter.forward_samples = counter.backward_samples = 0
    result = Turtle(steps=6, draws=3).run(model, batch, ThreatModel("linf", 0.1), Randomness(0))
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == int(result.backward.sum())
    assert int(result.forward.max()) == 7 * 4


def test_an_object_that_stands_still_in_front_is_plain_ascent():
    batch, threat = labelled(mlp(), images(60)), ThreatModel("linf", 0.1)
    still = {"turn": 0.0, "roll": 0.0, "scale": 0.0, "shift": 0.0, "background": 0.0, "light": 0.0}
    flat = Turtle(mesh="square", draws=1, loss="margin", **still).run(mlp(), batch, threat, Randomness(0))
    plain = PGD(restarts=1, loss="margin").run(mlp(), batch, threat, Randomness(0))
    assert 10 < int(plain.success.sum()) < 55
    assert int((flat.success != plain.success).sum()) <= 1


def test_bad_settings_are_refused():
    for bad, message in (
        ({"mesh": "cube"}, "no mesh 'cube'"),
        ({"draws": 0}, "draws and patience >= 1"),
        ({"turn": -1.0}, "ranges >= 0"),
        ({"loss": "hinge"}, "has no loss"),
    ):
        with pytest.raises(UserError, match=message):
            Turtle(**bad)


def test_the_texture_stays_in_its_ball():
    batch = labelled(mlp(), images(10))
    result = Turtle(steps=5, draws=2).run(mlp(), batch, ThreatModel("l2", 0.3), Randomness(0))
    assert bool(result.legal.all())
    assert float(result.distance.nan_to_num(0).max()) <= 0.3
    assert not torch.equal(result.x_adv, batch.x)
