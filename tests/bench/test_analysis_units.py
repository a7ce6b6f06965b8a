"""Units that an attack exploits: a net where one unit alone carries the attack, and its random control."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.pgd import PGD
from bench.analysis.stored import Dissection
from bench.analysis.units import activation_layer, area, peaks, units
from models.base import Batch, Classifier
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.builders import images, labelled, mlp

CULPRIT, INPUTS, HIDDEN, EPS = 5, 24, 16, 0.1


def planted(culprit: int = CULPRIT) -> tuple[Classifier, Batch]:
    """One unit reads all inputs, so that a small change of each moves it far; the others read one input each.

    Class 0 wins by its bias until the culprit's activation makes class 1 win; nothing else reaches class 1.
    """
    first, last = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, 3)
    with torch.no_grad():
        for parameter in (*first.parameters(), *last.parameters()):
            parameter.zero_()
        first.weight[range(HIDDEN), range(HIDDEN)] = 0.5
        first.weight[culprit] = 2.0
        first.bias[culprit] = 0.5 - INPUTS
        last.weight[1, culprit] = 1.0
        last.weight[2, [unit for unit in range(HIDDEN) if unit != culprit]] = 0.01
        last.bias[0] = 2.0
    model = Classifier(nn.Sequential(first, nn.ReLU(), last), num_classes=3, name="planted")
    batch = labelled(model, 0.4 + 0.2 * images(60, (INPUTS,)))
    return model, batch[batch.y == 0]


def dissect(model: Classifier, batch: Batch, eps: float = EPS, seed: int = 0, **more: Any) -> Dissection:
    (found,) = units([model], batch, ThreatModel("linf", eps), Randomness(seed), **more).dissections
    return found


@pytest.mark.parametrize("culprit", [CULPRIT, 15])
def test_the_planted_unit_is_first_and_its_removal_kills_the_attack(culprit: int) -> None:
    found = dissect(*planted(culprit))
    assert found.broken == found.right > 20
    assert (found.units, found.top[0].unit) == (HIDDEN, culprit)
    assert found.top[0].shift > 10 * found.top[1].shift
    assert found.top[0].signed == pytest.approx(found.top[0].shift)
    one = found.removed.index(1)
    assert (found.success[0], found.success[one], found.clean[one]) == (1.0, 0.0, 1.0)
    # A draw of one unit hits the culprit once in sixteen times.
    assert found.success_random[one] >= 0.7
    assert found.success_random[one] <= found.success_random[0] == 1.0


def test_no_unit_moves_further_than_its_weights_and_eps_allow() -> None:
    found = dissect(*planted())
    shifts = {unit.unit: unit.shift for unit in found.top}
    assert shifts[CULPRIT] <= 2 * INPUTS * EPS + 1e-4
    for unit in range(HIDDEN):
        if unit != CULPRIT:
            assert shifts[unit] <= 0.5 * EPS + 1e-5


def test_the_confusion_counts_every_broken_sample_once() -> None:
    found = dissect(*planted())
    assert found.confusion == [[0, found.broken, 0], [0, 0, 0], [0, 0, 0]]


def test_both_curves_meet_where_nothing_and_everything_is_removed() -> None:
    model = mlp(hidden=16)
    found = dissect(model, labelled(model, images(60)), eps=0.2)
    assert (found.removed[0], found.removed[-1]) == (0, 16)
    for mine, control in ((found.success, found.success_random), (found.clean, found.clean_random)):
        assert (mine[0], mine[-1]) == (control[0], control[-1])
    assert found.success[0] == found.clean[0] == 1.0


def test_removal_equals_a_network_without_the_unit() -> None:
    """Brute force: the columns that read the removed units set to 0 in the weights."""
    model = mlp(hidden=16)
    batch = labelled(model, images(60))
    found = dissect(model, batch, eps=0.2)
    for removed, clean in zip(found.removed, found.clean, strict=True):
        copy = mlp(hidden=16)
        with torch.no_grad():
            copy.network[3].weight[:, [unit.unit for unit in found.top[:removed]]] = 0
            assert clean == pytest.approx(float((copy(batch.x).argmax(1) == batch.y).double().mean()))


def test_the_seed_draws_the_control_and_nothing_else() -> None:
    """From the clean image alone PGD has no chance in it, so only the random units may differ."""
    model = mlp(hidden=16)
    batch = labelled(model, images(60))
    one, other = (dissect(model, batch, 0.2, seed, attack=PGD(restarts=1)) for seed in (0, 1))
    assert (one.top, one.success, one.clean) == (other.top, other.success, other.clean)
    assert one.success_random != other.success_random


def test_the_peak_is_over_positions() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 6, 4))
    model = Classifier(network, num_classes=4)
    x = images(5)
    name, module = activation_layer(model)
    found = peaks(model, module, x)
    assert name == "1"
    inside = network[:2](x).detach()
    expected = [[float(inside[i, j].max()) for j in range(3)] for i in range(5)]
    torch.testing.assert_close(found, torch.tensor(expected))


def brute_area(scores: Tensor, positive: Tensor) -> float:
    pairs = list(itertools.product(scores[positive].tolist(), scores[~positive].tolist()))
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    for levels in (2, 5, 1000):
        scores = torch.randint(levels, (40,), generator=generator).double()
        positive = torch.rand(40, generator=generator) < 0.3
        assert area(scores, positive) == pytest.approx(brute_area(scores, positive))
    assert area(torch.arange(4.0), torch.tensor([False, False, True, True])) == 1.0
    assert area(torch.arange(4.0), torch.zeros(4, dtype=torch.bool)) == 0.5


def test_mistakes_are_one_line() -> None:
    model, batch = planted()
    with pytest.raises(UserError, match=r"has no activation '7': it has 1"):
        dissect(model, batch, layer="7")
    with pytest.raises(UserError, match=r"breaks none of .* raise --eps"):
        dissect(model, batch, eps=1e-4)
    bare = Classifier(nn.Linear(INPUTS, 3), num_classes=3, name="bare")
    with pytest.raises(UserError, match=r"'bare' has no activation module"):
        dissect(bare, batch)
    shared = nn.ReLU()
    twice = nn.Sequential(nn.Linear(INPUTS, 8), shared, nn.Linear(8, 8), shared, nn.Linear(8, 3))
    mixed = Classifier(twice, num_classes=3, name="twice")
    with pytest.raises(UserError, match="once a pass"):
        peaks(mixed, shared, batch.x)
