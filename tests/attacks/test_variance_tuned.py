"""Variance tuning: by hand, the neighbours it draws, its passes, and momentum where it is off."""

from __future__ import annotations

import pytest
import torch

from attacks.momentum import Momentum
from attacks.variance_tuned import VarianceTuned
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.attacks.directions import FULL, by_hand, cubic, iterate, passes, proposal, same_in_other_units
from tests.builders import images, labelled, mlp


def recorded(model) -> list[torch.Tensor]:
    """The list of all that the network is asked from now on."""
    asked, network = [], model.network

    class Recording(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x):
            asked.append(x.detach().clone())
            return self.inner(x)

    model.network = Recording()
    return asked


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_three_steps_by_hand(norm):
    """v is the mean of the neighbours' gradients less the gradient, of the step before; 0 at first."""
    model, network = cubic((1, 3, 4)), cubic((1, 3, 4)).network
    batch = Batch.of(images(8).double(), torch.zeros(8, dtype=torch.int64))
    threat = ThreatModel(norm, 0.2)
    asked = recorded(model)
    attack = VarianceTuned(steps=3, decay=0.7, loss="margin", neighbours=4, **FULL)
    found = proposal(attack, model, batch, threat)
    assert len(asked) == 2 * (1 + 4) + 1 + 1
    assert float((asked[1] - asked[0] - asked[6] + asked[5]).abs().amax((1, 2, 3)).min()) > 0.01
    variance = [torch.zeros_like(batch.x)]

    def slope(step, z, velocity):
        torch.testing.assert_close(asked[5 * step], z, atol=1e-9, rtol=0)
        around = asked[5 * step + 1 : 5 * step + 5]
        tuned = network.slope(z) + variance[-1]
        if step < 2:
            variance.append(torch.stack([network.slope(one) for one in around]).mean(0) - network.slope(z))
        return tuned

    trace = by_hand(batch.x, threat, 3, 0.7, slope)
    values = torch.stack([network(z)[:, 1] for z in trace])
    expected = torch.stack(trace)[values.argmax(0), torch.arange(8)]
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("norm", "mean"), [("linf", 0.5), ("l2", 12 / 13)])
def test_neighbours_are_uniform_in_a_ball_of_beta_eps(norm, mean):
    """Their mean distance is that of a uniform point (per entry for the cube), in no direction."""
    box = Box(-9.0, 9.0)
    model = cubic((12,), box)
    batch = Batch.of(torch.zeros(300, 12, dtype=torch.float64), torch.zeros(300, dtype=torch.int64))
    direction = VarianceTuned(beta=2.5, neighbours=5).direction(
        batch, ThreatModel(norm, 0.4, box), Randomness(3)
    )
    asked = recorded(model)
    at = iterate(model, batch, batch.x, batch.x)
    asked.clear()
    direction(at)
    drawn = torch.stack(asked)
    length = drawn.abs() if norm == "linf" else drawn.norm(dim=2)
    assert float(length.max()) <= 1.0
    assert abs(float(length.mean()) - mean) < 0.02
    assert float(drawn.mean((0, 1)).abs().max()) < 0.1
    assert len(drawn.flatten(0, 1).unique(dim=0)) == 5 * 300


def test_neighbours_stay_in_the_box_and_reach_its_edge():
    model = mlp()
    batch = labelled(model, (images(30) > 0.5).float())
    asked = recorded(model)
    proposal(VarianceTuned(**FULL), model, batch, ThreatModel("linf", 0.2))
    drawn = torch.cat(asked)
    assert float(drawn.min()) == 0.0
    assert float(drawn.max()) == 1.0
    first = torch.stack(asked[1:21])
    black = first[:, batch.x == 0]
    assert abs(float((black == 0).float().mean()) - 0.5) < 0.03
    assert abs(float(black[black > 0].mean()) - 0.15) < 0.01


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("early_stop", [True, False])
def test_without_neighbours_it_is_momentum(norm, early_stop):
    model, threat = mlp(), ThreatModel(norm, 0.15)
    batch = labelled(model, images(30))
    ours, plain = VarianceTuned(neighbours=0, early_stop=early_stop), Momentum(early_stop=early_stop)
    assert torch.equal(proposal(ours, model, batch, threat), proposal(plain, model, batch, threat))
    assert [t.tolist() for t in passes(ours)] == [t.tolist() for t in passes(plain)]
    one = VarianceTuned(steps=1, early_stop=early_stop)
    alone = proposal(Momentum(steps=1, early_stop=early_stop), model, batch, threat)
    assert torch.equal(proposal(one, model, batch, threat), alone)
    tuned = proposal(VarianceTuned(early_stop=early_stop), model, batch, threat)
    assert not torch.equal(tuned, proposal(plain, model, batch, threat))


def test_each_neighbour_costs_one_pass_and_the_last_step_none():
    forward, backward = passes(VarianceTuned(steps=4, neighbours=3, **FULL))
    assert forward.tolist() == [4 + 3 * 3 + 1] * 12
    assert backward.tolist() == [4 + 3 * 3] * 12


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_samples_that_leave_cost_nothing_more_and_change_nobodys_variance(norm):
    model = mlp()
    batch = labelled(model, images(40))
    result = VarianceTuned(neighbours=5).run(model, batch, ThreatModel(norm, 0.25), Randomness(0))
    assert int(result.success.sum()) > 5
    steps = result.backward[result.success]
    assert bool(((steps - 1) % 6 == 0).all())
    alone = [
        VarianceTuned(neighbours=5).run(model, batch[i : i + 1], ThreatModel(norm, 0.25), Randomness(0))
        for i in range(40)
    ]
    apart = torch.cat([one.x_adv for one in alone])
    torch.testing.assert_close(result.x_adv, apart, atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_neither_scale_nor_origin_of_the_units_matters(norm):
    same_in_other_units(VarianceTuned(**FULL, neighbours=5), norm, origin=-100.0)


def test_bad_settings_are_users_errors():
    for bad in ({"neighbours": -1}, {"beta": 0.0}):
        with pytest.raises(UserError, match="variance-tuned needs neighbours >= 0 and beta > 0"):
            VarianceTuned(**bad)
