"""Nesterov's look-ahead and scaled copies: by hand, counted, in any box, and momentum where both are off."""

from __future__ import annotations

import pytest
import torch

from attacks.momentum import Momentum
from attacks.nesterov import Ahead, Nesterov
from models.base import Batch
from models.errors import UserError
from models.threat import Box, ThreatModel
from tests.attacks.directions import FULL, by_hand, cubic, iterate, passes, proposal, same_in_other_units
from tests.builders import images, labelled, mlp

ENTRIES = 42


@pytest.mark.parametrize("lower", [0.0, -0.5, 1.0])
@pytest.mark.parametrize(("copies", "look_ahead"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_three_steps_by_hand(norm, copies, look_ahead, lower):
    """G = mean_i 2^-i f'(l + 2^-i (x' - l)), x' = x + a decay g d / ||1||_p, for f' = 3 w (x - c)^2."""
    box = Box(lower, lower + 2)
    model = cubic((1, 6, 7), box, centre=0.3)
    batch = Batch.of(images(8, (1, 6, 7), box=box).double(), torch.zeros(8, dtype=torch.int64))
    threat = ThreatModel(norm, 0.4, box)
    attack = Nesterov(steps=3, decay=0.7, loss="margin", copies=copies, look_ahead=look_ahead, **FULL)
    reach = 0.4 / 3 * 0.7 * (ENTRIES if norm == "linf" else ENTRIES**0.5) * look_ahead

    def slope(step, z, velocity):
        ahead = (z + reach * velocity).clamp(lower, lower + 2)
        parts = [0.5**i * model.network.slope(lower + 0.5**i * (ahead - lower)) for i in range(copies)]
        return torch.stack(parts).mean(0)

    trace = by_hand(batch.x, threat, 3, 0.7, slope)
    values = torch.stack([model.logits(z)[:, 1] for z in trace])
    expected = torch.stack(trace)[values.argmax(0), torch.arange(8)]
    torch.testing.assert_close(proposal(attack, model, batch, threat), expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_flat_velocity_looks_one_step_ahead(norm):
    """The point ahead is where the next step along the velocity would end, where its entries are equal."""
    box = Box(-5.0, 5.0)
    model = cubic((1, 6, 7), box)
    x = images(4, (1, 6, 7)).double()
    batch = Batch.of(x, torch.zeros(4, dtype=torch.int64))
    velocity = torch.full_like(x, 1 / ENTRIES)
    at = iterate(model, batch, x, velocity)
    found = Ahead(0.25, 1, norm)(at)
    ahead = x + 0.25 * ThreatModel(norm, 1.0).steepest(velocity)
    torch.testing.assert_close(found, model.network.slope(ahead), atol=1e-9, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("early_stop", [True, False])
def test_with_neither_it_is_momentum(norm, early_stop):
    model, threat = mlp(), ThreatModel(norm, 0.15)
    batch = labelled(model, images(30))
    ours, plain = (
        Nesterov(copies=1, look_ahead=False, early_stop=early_stop),
        Momentum(early_stop=early_stop),
    )
    assert torch.equal(proposal(ours, model, batch, threat), proposal(plain, model, batch, threat))
    assert [t.tolist() for t in passes(ours)] == [t.tolist() for t in passes(plain)]
    still = Nesterov(copies=1, decay=0.0, early_stop=early_stop)
    stood = proposal(Momentum(decay=0.0, early_stop=early_stop), model, batch, threat)
    assert torch.equal(proposal(still, model, batch, threat), stood)
    for changed in (Nesterov(copies=1, early_stop=early_stop), Nesterov(look_ahead=False)):
        assert not torch.equal(proposal(changed, model, batch, threat), proposal(plain, model, batch, threat))


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_each_copy_costs_one_pass(copies):
    forward, backward = passes(Nesterov(steps=4, copies=copies, **FULL))
    assert forward.tolist() == [4 * (copies + 1) + 1] * 12
    assert backward.tolist() == [4 * copies] * 12
    forward, backward = passes(Nesterov(steps=4, copies=copies, look_ahead=False, **FULL))
    assert forward.tolist() == [4 * copies + 1] * 12
    assert backward.tolist() == [4 * copies] * 12


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_neither_scale_nor_origin_of_the_units_matters(norm):
    same_in_other_units(Nesterov(**FULL), norm, origin=-100.0)


def test_bad_settings_are_users_errors():
    with pytest.raises(UserError, match="nesterov needs copies >= 1"):
        Nesterov(copies=0)
    with pytest.raises(UserError, match="nesterov has no target"):
        Nesterov(target="nearest")
