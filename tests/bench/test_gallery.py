"""The pictures of a cell are of samples that were right and then broken, with what the model says."""

from __future__ import annotations

import torch

from attacks.pgd import PGD
from bench.gallery import gallery
from models.base import Batch, Classifier
from models.randomness import Randomness
from models.threat import ThreatModel
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
