"""The pictures of a cell are of samples that were right and then broken, with what the model says."""

from __future__ import annotations

import torch

from attacks.eot import EOT, survival
from attacks.pgd import PGD
from attacks.rp2 import RP2
from attacks.turtle import Turtle
from bench.gallery import DRAWS, VIEWS, gallery, held_out
from models.base import Batch, Classifier
from models.randomness import Randomness
from models.threat import ThreatModel
from models.threats import threat_named
from tests.builders import linear


def two_pixels() -> Classifier:
    """Class 1 where the first of two pixels is the larger."""
    return linear(torch.tensor([[-4.0, 4.0], [4.0, -4.0]]), torch.zeros(2))


def test_it_keeps_the_first_broken_ones_with_both_predictions() -> None:
    model = two_pixels()
    pixels = torch.tensor([[0.9, 0.1], [0.55, 0.5], [0.5, 0.52], [0.4, 0.45], [0.53, 0.5]])
    batch = Batch(pixels, torch.tensor([1, 1, 0, 1, 1]), torch.tensor([7, 3, 9, 11, 2]))
    result = PGD(steps=5, restarts=1).run(model, batch, ThreatModel("linf", "0.1"), Randomness(0))
    # The first cannot be broken within 0.1, the fourth is wrong to begin with.
    assert result.success.tolist() == [False, True, True, True, True]
    kept = gallery(model, batch, result, count=2)
    assert kept["gallery.index"].tolist() == [3, 9]
    assert kept["gallery.label"].tolist() == kept["gallery.clean"].tolist() == [1, 0]
    assert kept["gallery.predicted"].tolist() == [0, 1]
    assert torch.equal(kept["gallery.x"], batch.x[1:3])
    assert torch.equal(kept["gallery.x_adv"], result.x_adv[1:3])
    margin = 8 * (batch.x[1, 0] - batch.x[1, 1])
    assert torch.isclose(kept["gallery.clean_confidence"][0], torch.sigmoid(margin))
    assert gallery(model, batch, result)["gallery.index"].tolist() == [3, 9, 2]


def test_nothing_broken_keeps_nothing() -> None:
    model = two_pixels()
    batch = Batch(torch.tensor([[0.9, 0.1]]), torch.tensor([1]), torch.tensor([0]))
    result = PGD(steps=2, restarts=1).run(model, batch, ThreatModel("linf", "0.1"), Randomness(0))
    assert gallery(model, batch, result) == {}


def pictures() -> tuple[Classifier, Batch]:
    """A net that asks whether the upper half is brighter than the lower, and 8 x 8 images of class 0."""
    weight = torch.cat([torch.ones(32), -torch.ones(32)])
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2, bias=False))
    net[1].weight.data = torch.stack([weight, -weight])
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    x[:, :, :4] += 0.1
    return Classifier(net, num_classes=2, name="halves"), Batch(
        x, torch.zeros(5).long(), torch.arange(5) + 40
    )


def test_views_that_an_attack_has_not_seen_are_judged_like_any_others() -> None:
    model, batch = pictures()
    for attack, threat in (
        (EOT(steps=6, draws=2), ThreatModel("linf", 0.2)),
        (Turtle(steps=6, draws=2), ThreatModel("linf", 0.2)),
        (RP2(steps=6, draws=2), threat_named("mask", 0.5, model.box)),
    ):
        result = attack.run(model, batch, threat, Randomness(3))
        assert bool(result.success.any())
        kept = held_out(model, batch, result, attack, Randomness(3))
        rows = len(gallery(model, batch, result)["gallery.index"])
        assert kept["views.x"].shape == (rows, VIEWS, 1, 8, 8)
        sure = model.logits(kept["views.x"].flatten(0, 1)).softmax(1).max(1)
        assert torch.equal(sure.indices.reshape(rows, VIEWS), kept["views.predicted"])
        assert torch.allclose(sure.values.reshape(rows, VIEWS), kept["views.confidence"])
        views = attack.scene if isinstance(attack, Turtle) else attack.transform
        fresh = Randomness(3).child("held out")
        shares = [survival(model, batch, x, views, fresh, DRAWS).mean() for x in (result.x_adv, batch.x)]
        assert torch.allclose(kept["views.error"].double(), torch.stack(shares), atol=1e-6)
        assert kept["views.error"][0] > kept["views.error"][1]
        assert torch.equal(held_out(model, batch, result, attack, Randomness(3))["views.x"], kept["views.x"])
        assert not torch.equal(
            held_out(model, batch, result, attack, Randomness(4))["views.x"], kept["views.x"]
        )


def test_an_attack_of_no_views_keeps_none() -> None:
    model, batch = pictures()
    attack = PGD(restarts=1)
    result = attack.run(model, batch, ThreatModel("linf", 0.2), Randomness(0))
    assert held_out(model, batch, result, attack, Randomness(0)) == {}
