"""The smallest perturbation by shrinking balls: exact on linear models, never beaten by its own start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.access import GradientAccess
from attacks.fab import FastAdaptiveBoundary
from attacks.fmn import FastMinimumNorm
from attacks.minimum_norm import SMALLEST, MinimumNorm, radii
from defenses.zoo import ModelName, load
from models.base import Batch, Classifier
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.builders import exact_distance, images, labelled, mlp, random_linear

NORMS = ["linf", "l2", "l1"]


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_models_distance_is_met_within_a_hundredth(norm):
    model = random_linear(inputs=12, classes=4)
    batch = labelled(model, 0.5 + 0.2 * (images(25, (12,)) - 0.5))
    result = MinimumNorm().run(model, batch, ThreatModel(norm, None), Randomness(0))
    exact = exact_distance(model, batch, norm)
    inside = exact < 0.2
    assert bool(result.success.all())
    assert int(inside.sum()) >= 10
    ratio = result.distance[inside] / exact[inside]
    assert float(ratio.min()) > 1 - 1e-6
    assert float(ratio.max()) < 1.015


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_it_is_nearer_than_its_peers_on_a_network_with_dead_rectifiers(norm):
    """Most rectifiers of this network are off: its gradients do not know what switching them on would do."""
    model, data = load(ModelName.parse("conv-small+polytope")), load_data("mnist5k")
    batch, threat = data.batch(data.panel(10)), ThreatModel(norm, None)
    found = {
        attack: attack.run(model, batch, threat, Randomness(0)).distance
        for attack in (MinimumNorm(), FastMinimumNorm(), FastAdaptiveBoundary())
    }
    ours, *others = found.values()
    assert bool(torch.isfinite(ours).all())
    for other in others:
        assert float(ours.mean()) < (0.75 if norm != "linf" else 1.0) * float(other.nan_to_num(1e3).mean())
    assert bool((ours <= found[FastMinimumNorm()] * (1 + 1e-6)).all())


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_it_is_never_farther_than_fab(norm):
    model = mlp(classes=12, inputs=48, hidden=40)
    batch, threat = labelled(model, images(12, (1, 6, 8))), ThreatModel(norm, None)
    ours = MinimumNorm(ratio=0.7, patience=1).run(model, batch, threat, Randomness(0)).distance
    stream, part = Randomness(0).child("batch", 0).child("first"), GradientAccess(model, 12)
    fab = FastAdaptiveBoundary().propose(part, batch, threat, stream, None)
    first = MinimumNorm()._first(part, batch, threat, Randomness(0).child("batch", 0))
    assert bool(torch.isfinite(ours).all())
    assert bool((first.distance <= threat.distance(batch.x, fab) * (1 + 1e-6)).all())
    assert bool((ours <= 1.05 * first.distance).all())


@pytest.mark.slow
def test_with_an_eps_it_stops_there_and_costs_less():
    model = random_linear(inputs=12, classes=4)
    batch = labelled(model, 0.5 + 0.2 * (images(25, (12,)) - 0.5))
    free = MinimumNorm().run(model, batch, ThreatModel("l2", None), Randomness(0))
    eps = float(free.distance.median())
    bound = MinimumNorm().run(model, batch, ThreatModel("l2", eps), Randomness(0))
    assert torch.equal(bound.success, free.distance <= eps)
    assert bool((bound.forward <= free.forward).all())
    assert bool((bound.forward < free.forward)[bound.success].any())


def test_what_no_point_of_the_box_fools_has_no_distance():
    class Certain(nn.Module):
        def forward(self, x):
            return torch.stack([x.sum(1), x.sum(1) - 1], 1)

    model = Classifier(Certain(), num_classes=2)
    result = MinimumNorm().run(
        model,
        Batch.of(images(4, (6,)), torch.zeros(4, dtype=torch.int64)),
        ThreatModel("l2", None),
        Randomness(0),
    )
    assert not bool(result.success.any())
    assert bool(result.distance.isnan().all())


def test_the_radii_fall_from_the_whole_box():
    found = radii(torch.rand(2, 3, 4), ThreatModel("l2", None), 0.9)
    assert found[0] == pytest.approx(12**0.5)
    assert found[1] / found[0] == pytest.approx(0.9)
    assert found[-1] <= found[0] * SMALLEST / 0.9


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"ratio": 0.0}, {"patience": 0}])
def test_bad_parameters_are_refused(options):
    with pytest.raises(UserError, match="minimum-norm needs"):
        MinimumNorm(**options)
