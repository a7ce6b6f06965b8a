"""CROWN-IBP: the formula by hand, its place between other bounds, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from certify.crown import Crown
from certify.crown_ibp import CrownIBP
from certify.ibp import IntervalBounds
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.certify.builders import FAMILIES, batch, mlp, model

WIDE = Box(-torch.inf, torch.inf)


def lower(certifier, judged, data, threat):
    found = certifier.run(judged, data, threat, Randomness(0)).lower
    return found[torch.arange(3) != data.y[:, None]]


def by_hand(network, x, y, eps, adaptive):
    """Intervals forwards, then lines backwards, of a fully connected ReLU network in numpy: (classes,)."""
    layers = [
        (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
        for layer in network
        if isinstance(layer, nn.Linear)
    ]
    low, high, bounds = x - eps, x + eps, []
    for weight, bias in layers[:-1]:
        centre, radius = weight @ (low + high) / 2 + bias, np.abs(weight) @ (high - low) / 2
        bounds.append((centre - radius, centre + radius))
        low, high = np.maximum(centre - radius, 0), np.maximum(centre + radius, 0)
    weight, bias = layers[-1]
    rows, constant = weight[y] - weight, bias[y] - bias
    for (weight, bias), (low, high) in zip(layers[-2::-1], bounds[::-1], strict=True):
        cross = (low < 0) & (high > 0)
        upper = np.where(cross, high / np.where(cross, high - low, 1), high > 0)
        below = np.where(cross, high > -low, upper) if adaptive else upper
        constant = constant + (np.minimum(rows, 0) * np.where(cross, -low * upper, 0)).sum(1)
        rows = np.where(rows > 0, rows * below, rows * upper)
        rows, constant = rows @ weight, constant + rows @ bias
    return rows @ x + constant - eps * np.abs(rows).sum(1)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_intervals_forwards_and_lines_backwards(seed):
    torch.manual_seed(seed)
    judged, data, eps = model(mlp(6, 8, 7, 3)), batch(4, (6,), seed), 0.2
    found = lower(CrownIBP(), judged, data, ThreatModel("linf", eps, WIDE)).reshape(4, 2)
    interval = lower(IntervalBounds(), judged, data, ThreatModel("linf", eps, WIDE)).reshape(4, 2)
    for i in range(4):
        x, y = data.x[i].double().numpy(), int(data.y[i])
        lines = [by_hand(judged.network, x, y, eps, adaptive) for adaptive in (False, True)]
        hand = np.delete(np.maximum(*lines), y)
        assert np.allclose(np.maximum(hand, interval[i].numpy()), found[i].numpy(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_is_never_below_ibp_and_steps_only_raise_it(family, norm):
    judged, data, threat = model(family), batch(3), ThreatModel(norm, 0.05)
    once, climbed = (lower(CrownIBP(steps=steps), judged, data, threat) for steps in (0, 5))
    assert (once - lower(IntervalBounds(), judged, data, threat)).min() >= 0
    assert (climbed - once).min() >= 0


def test_behind_one_hidden_layer_intervals_are_all_there_is_to_know():
    """Bounds on the first layer are exact, so that crown's slopes give crown's bound."""
    judged, data, threat = model(mlp(72, 9, 3)), batch(4), ThreatModel("linf", 0.1)
    crown = lower(Crown(), judged, data, threat)
    assert (lower(CrownIBP(), judged, data, threat) - crown).min() >= -1e-9


def test_steps_raise_what_one_pass_leaves_open():
    judged, data, threat = model("conv"), batch(), ThreatModel("linf", 0.1)
    once, climbed = (lower(CrownIBP(steps=steps), judged, data, threat) for steps in (0, 20))
    assert float((climbed - once).max()) > 1e-3


def test_many_classes_pass_back_in_pieces(monkeypatch):
    judged, data, threat = model("conv"), batch(3), ThreatModel("linf", 0.05)
    whole = lower(CrownIBP(), judged, data, threat)
    monkeypatch.setattr("certify.entry_bounds.MEMORY", 1)
    assert torch.allclose(lower(CrownIBP(), judged, data, threat), whole, atol=1e-12)


def test_a_negative_number_of_steps_is_the_users_mistake():
    with pytest.raises(UserError, match="crown-ibp has steps = -1: give a number from 0 up"):
        CrownIBP(steps=-1)
