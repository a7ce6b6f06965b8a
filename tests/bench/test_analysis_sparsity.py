"""Accuracy against eps: exact on linear nets, monotone, the same samples for every model."""

from __future__ import annotations

import pytest
import torch

from attacks.pgd import PGD
from bench.analysis.sparsity import POINTS, sparsity, zero_weights
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.builders import WIDE, exact_distance, images, labelled, mlp, random_linear

R = Randomness(0)
ATTACK = PGD(steps=20, restarts=1)


def test_a_linear_net_has_the_curve_of_its_distances() -> None:
    """On two classes PGD is exact: accuracy(eps) is the share of distances above eps."""
    model = random_linear(2, 12, box=WIDE)
    batch = labelled(model, images(80, (12,)))
    distance = exact_distance(model, batch, "linf")
    result = sparsity([model], batch, ThreatModel("linf", 0.2, WIDE), R, attack=ATTACK)
    assert len(result.eps) == POINTS
    assert (result.eps[0], result.eps[-1]) == (0.0, 0.2)
    expected = [float((distance > eps).double().mean()) for eps in result.eps]
    assert result.curves[0].accuracy == pytest.approx(expected, abs=1 / 80 + 1e-9)
    assert 0.05 < expected[-1] < expected[0]


def test_curves_fall_and_begin_at_the_clean_accuracy() -> None:
    models = [mlp(seed=seed) for seed in range(3)]
    batch = labelled(models[0], images(40))
    result = sparsity(models, batch, ThreatModel("linf", 0.3), R, attack=ATTACK)
    for model, curve in zip(models, result.curves, strict=True):
        clean = float((model(batch.x).argmax(1) == batch.y).double().mean())
        assert curve.accuracy[0] == pytest.approx(clean)
        assert curve.accuracy == sorted(curve.accuracy, reverse=True)
    alone = sparsity(models[1:2], batch, ThreatModel("linf", 0.3), R, attack=ATTACK)
    assert alone.curves[0] == result.curves[1]


def test_attenuated_weights_hold_out_longer() -> None:
    """What l1-sparse promises: gains shrunk by a factor move the whole curve to larger eps."""
    model, weak = random_linear(3, 12, box=WIDE), random_linear(3, 12, box=WIDE)
    with torch.no_grad():
        weak.network.weight.mul_(0.0)
        weak.network.weight[:, 0] = torch.tensor([0.1, 0.0, -0.1])
        weak.network.bias.copy_(torch.tensor([5.0, 0.0, 0.0]))
        model.network.bias.copy_(torch.tensor([5.0, 0.0, 0.0]))
    batch = labelled(model, images(60, (12,)))
    batch = batch[batch.y == 0]
    assert len(batch) > 20
    strong, held = sparsity([model, weak], batch, ThreatModel("linf", 0.2, WIDE), R, attack=ATTACK).curves
    assert held.accuracy == [1.0] * POINTS
    assert strong.accuracy[-1] < 1.0
    assert held.zeros == pytest.approx(34 / 36)
    assert strong.zeros == zero_weights(model) == 0.0


def test_an_eps_of_nothing_is_refused() -> None:
    model = mlp()
    batch = labelled(model, images(4))
    for eps in (0.0, None):
        with pytest.raises(UserError, match="largest eps > 0"):
            sparsity([model], batch, ThreatModel("linf", eps), R)
