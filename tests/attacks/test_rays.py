"""RayS: exact on affine models, at a local optimum of its own on others, on an exact bill."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from attacks.hopskipjump import HopSkipJump
from attacks.rays import RayS, blocks
from defenses.zoo import ModelName, load
from models.base import Batch, Classifier
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import exact_distance, images, labelled, linear, mlp, random_linear


def run(model, batch, *, queries=600, eps=None, batch_size=256, **settings):
    threat = ThreatModel("linf", eps, model.box)
    attack = RayS(queries=queries, **settings)
    return attack.run(model, batch, threat, Randomness(0), batch_size=batch_size)


def test_blocks_are_halved_down_to_single_entries():
    found = [(block.start, block.stop) for block in islice(blocks(5), 16)]
    singles = [(i, i + 1) for i in range(5)]
    assert found == [(0, 5), (0, 3), (3, 5), (0, 2), (2, 4), (4, 5), *singles, *singles]
    assert [(block.start, block.stop) for block in islice(blocks(1), 3)] == [(0, 1)] * 3


class Watched(torch.nn.Module):
    """Keeps what it is asked about."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.asked = network, []

    def forward(self, x):
        self.asked.append(x.clone())
        return self.network(x)


def test_the_signs_that_are_turned_are_the_published_ones():
    """A network of one label is asked about the corners that the signs point to, block by block."""
    network = Watched(linear(torch.zeros(2, 4), torch.tensor([3.0, 0.0])).network)
    model = Classifier(network, num_classes=2)
    result = run(model, Batch.of(images(1, (4,)), torch.zeros(1, dtype=torch.int64)), queries=7)
    assert not bool(result.success.any())
    asked = torch.cat(network.asked[1:-1]).tolist()
    assert asked == [
        [0, 0, 0, 0],
        [0, 0, 1, 1],
        [1, 1, 0, 0],
        [0, 1, 1, 1],
        [1, 0, 1, 1],
        [1, 1, 0, 1],
        [1, 1, 1, 0],
    ]


def test_one_step_by_hand():
    """x = 0.5 in one dimension, wrong below 0.3: asked at 0, then bisected to a radius just above 0.2."""
    network = Watched(linear(torch.tensor([[1.0], [0.0]]), torch.tensor([0.0, 0.3])).network)
    model = Classifier(network, num_classes=2)
    result = run(model, labelled(model, torch.full((1, 1), 0.5)), queries=6, halvings=3)
    asked = torch.cat(network.asked[2:-1]).flatten().tolist()
    assert asked[:4] == pytest.approx([0.0, 0.25, 0.375, 0.3125])
    # The nearest wrong one is at radius 0.25; the other sign is asked about at 7/8 of that.
    assert asked[4:] == pytest.approx([0.5 + 0.25 * 7 / 8] * 2)
    assert float(result.distance) == pytest.approx(0.25)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_classes_exactly(seed):
    """Of an affine gap each sign counts by itself: one pass over single entries finds the corner."""
    model = random_linear(2, 20, seed=seed, box=Box(-6.0, 7.0))
    batch = labelled(model, images(25, (20,), seed=seed + 10))
    ratio = run(model, batch).distance / exact_distance(model, batch, "linf")
    assert float(ratio.min()) >= 1 - 1e-5
    assert float(ratio.max()) <= 1.006


@pytest.mark.parametrize("corners", [False, True])
def test_the_box_is_counted_on(corners):
    model = random_linear(2, 20)
    x = images(40, (20,))
    batch = labelled(model, (x > 0.5).float() if corners else x)
    ratio = run(model, batch).distance / distance_in_the_box(model, batch, "linf")
    assert bool(ratio.isfinite().all())
    assert float(ratio.min()) >= 1 - 1e-5
    assert float(ratio.max()) <= 1.006


def test_several_classes_nearly():
    """Among the boundaries of several classes signs may end in a local optimum."""
    model = random_linear(5, 30, box=Box(-6.0, 7.0))
    batch = labelled(model, images(40, (30,)))
    ratio = run(model, batch).distance / exact_distance(model, batch, "linf")
    assert float(ratio.min()) >= 1 - 1e-5
    assert float(ratio.median()) <= 1.1
    assert float(ratio.max()) <= 1.6


def test_no_single_sign_is_worth_turning():
    """Where queries suffice the ray is a local optimum of the method's own moves, by brute force."""
    model, threat = mlp(), ThreatModel("linf", None)
    batch = labelled(model, images(20))
    result = run(model, batch, queries=2000)
    radius = result.distance.float()[:, None]
    signs = (result.x_adv - batch.x).flatten(1).sign()
    assert bool(result.success.all())
    # An entry at its bound has lost its sign or length: only samples whose ray is whole are looked at.
    whole = (((result.x_adv - batch.x).abs().flatten(1) - radius).abs() < 1e-5).all(1)
    assert int(whole.sum()) >= 5
    for entry in range(12):
        turned = signs.clone()
        turned[:, entry] *= -1
        point = threat.box.clamp(batch.x + (0.998 * radius * turned).reshape(batch.x.shape))
        assert bool((model.logits(point).argmax(1) == batch.y)[whole].all())


def test_samples_inside_the_ball_leave():
    batch = labelled(mlp(), images(40))
    free = run(mlp(), batch, queries=300)
    eps = float(free.distance.nanmedian())
    bound = run(mlp(), batch, queries=300, eps=eps)
    assert torch.equal(bound.success, free.distance <= eps)
    assert set(bound.forward[~bound.success].tolist()) == {300}
    assert int(bound.forward[bound.success].max()) < 300


def test_nothing_is_random():
    batch = labelled(mlp(), images(10))
    first, second = (
        RayS(queries=200).run(mlp(), batch, ThreatModel("linf", None), Randomness(seed)) for seed in (0, 1)
    )
    assert torch.equal(first.x_adv, second.x_adv)


def test_the_box_is_a_unit_and_a_shift_of_all_logits_is_nothing():
    weight, x = torch.randn(3, 8, generator=torch.Generator().manual_seed(2)), images(20, (8,))
    plain = linear(weight, torch.zeros(3))
    scaled = linear(weight / 8, 0.25 * weight.sum(1) + 1.5, Box(-2.0, 6.0))
    first, second = run(plain, labelled(plain, x)), run(scaled, labelled(scaled, 8 * x - 2))
    torch.testing.assert_close(8 * first.distance, second.distance, equal_nan=True, rtol=1e-3, atol=0)


def test_nearer_than_hopskipjump_on_a_trained_network():
    model, data = load(ModelName.parse("conv-small")), load_data("mnist5k")
    batch = data.batch(data.panel(12))
    ours = run(model, batch, queries=300)
    walk = HopSkipJump(queries=300).run(model, batch, ThreatModel("linf", None), Randomness(0))
    assert bool(ours.success.all())
    assert float(ours.distance.median()) < float(walk.distance.nanmedian())


def test_bad_settings_are_refused():
    for bad in ({"queries": 0}, {"halvings": 0}, {"halvings": 21}):
        with pytest.raises(UserError, match="queries >= 1 and halvings from 1 to 20"):
            RayS(**bad)
