"""GeoDA: exact distances on affine models, the paper's allotment of queries, and waves as they should be."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from attacks.access import LabelAccess
from attacks.geoda import FIRST, GeoDA, Waves, Way, allotment, crossing
from attacks.hopskipjump import HopSkipJump
from attacks.oracle import Oracle
from defenses.zoo import ModelName, load
from models.base import Batch
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import WIDE, Asked, exact_distance, images, labelled, linear, mlp, random_linear

NORMS = ["l2", "linf", "l1"]
ENTRIES = 20


def run(model, batch, norm="l2", *, queries=600, eps=None, **settings):
    threat = ThreatModel(norm, eps, model.box)
    return GeoDA(queries=queries, **settings).run(model, batch, threat, Randomness(0))


@pytest.mark.parametrize(("norm", "slack"), [("l2", 1.03), ("linf", 1.03), ("l1", 1.01)])
@pytest.mark.parametrize("classes", [2, 3])
def test_affine_models_within_a_few_percent_of_the_exact_distance(norm, slack, classes):
    model = random_linear(classes, 10, box=Box(-4.0, 5.0))
    batch = labelled(model, images(15, (10,)))
    ratio = run(model, batch, norm, queries=2000).distance / exact_distance(model, batch, norm)
    assert float(ratio.min()) >= 1 - 1e-6
    assert float(ratio.median()) < slack
    assert float(ratio.double().quantile(0.9)) < 1.3


@pytest.mark.parametrize("norm", NORMS)
def test_affine_models_where_the_box_is_in_the_way(norm):
    """Images of 0 and 1: the nearest point has entries at bounds, and half of all moves are cut off."""
    model = random_linear(3, ENTRIES)
    batch = labelled(model, (images(15, (ENTRIES,)) > 0.5).float())
    ratio = run(model, batch, norm, queries=2000).distance / distance_in_the_box(model, batch, norm)
    assert float(ratio.min()) >= 1 - 1e-6
    assert float(ratio.median()) < 1.15


@pytest.mark.parametrize("norm", NORMS)
def test_with_the_true_normal_one_crossing_is_the_exact_distance(norm):
    """The theorem behind it: on a plane the least move in the box along the normal's dual is the answer."""
    model = random_linear(2, ENTRIES)
    batch = labelled(model, images(20, (ENTRIES,)))
    weight, threat, rows = model.network.weight.detach(), ThreatModel(norm, None), torch.arange(20)
    normal = weight[1 - batch.y] - weight[batch.y]
    oracle = Oracle(LabelAccess(model, 20), batch, threat, 100)
    end = Way.along(batch.x, normal, threat).at(torch.ones(20))
    crossed = crossing(oracle, end, rows, normal, 20)
    exact = distance_in_the_box(model, batch, norm)
    reached = exact.isfinite()
    assert int(reached.sum()) >= 15
    torch.testing.assert_close(threat.distance(batch.x, crossed)[reached], exact[reached], rtol=1e-4, atol=0)


def test_the_first_question_is_the_crossing_of_the_plane():
    """z = 1.2 times as far as the boundary: asked at 1, the plane through z, then bisected below it."""
    model = linear(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([1.0, 0.0]), Box(0.0, 4.0))
    model.network = asked = Asked(model.network)
    batch = Batch.of(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    oracle = Oracle(LabelAccess(model, 1), batch, ThreatModel("l2", None, model.box), 100)
    z, normal = torch.tensor([[1.2, 0.0]]), torch.tensor([[1.0, 1.0]])
    crossing(oracle, z, torch.arange(1), normal, 3)
    torch.testing.assert_close(torch.cat(asked.points)[:, 0], torch.tensor([0.6, 0.3, 0.45, 0.525]))
    asked.points.clear()
    crossing(oracle, z / 2, torch.arange(1), normal, 2)
    found = torch.cat(asked.points)[:, 0]
    torch.testing.assert_close(found, torch.tensor([0.3, 0.45, 0.675, 0.5625, 0.50625]))


@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("queries", [1, 60, 500, 5000])
def test_queries_grow_geometrically_from_fifty(queries, ratio):
    weights = allotment(queries, ratio)
    for first, second in pairwise(weights):
        assert second / first == pytest.approx(ratio ** (-2 / 3))
    assert queries / sum(weights) >= FIRST or len(weights) == 1
    assert queries / sum([*weights, weights[-1] * ratio ** (-2 / 3)]) < FIRST


def test_the_labels_asked_for_are_those_of_the_allotment():
    """On one sample: each step's batch of labels beside its crossing, from the queries then left."""
    model = random_linear(2, ENTRIES, box=WIDE)
    batch = labelled(model, images(1, (ENTRIES,)))
    model.network = asked = Asked(model.network)
    run(model, batch, queries=1000)
    sizes, left, weights = [len(points) for points in asked.points[1:-1]], 1000, allotment(1000, 0.6)
    step = 0
    for size in sizes:
        if size > 1:
            assert size == int(left * weights[step] / sum(weights[step:])) - 12
            step += 1
        left -= size
    assert step == len(weights) == 6
    assert left == 0


def test_draws_are_waves_of_the_band_and_as_long_as_one():
    x = images(3, (2, 10, 8))
    waves = Waves(x, 0.35)
    assert waves.sides == (2, 4, 3)
    u = waves.draw(torch.arange(2000), Randomness(0), x)
    assert u.shape == (2000, 2, 10, 8)
    assert float(u.flatten(1).square().sum(1).mean()) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(waves.part(u), u, atol=1e-5, rtol=0)
    assert int(torch.linalg.matrix_rank(u.flatten(1)[:100], rtol=1e-4)) == 2 * 4 * 3
    rest = x - waves.part(x)
    torch.testing.assert_close(waves.part(rest), torch.zeros_like(x), atol=1e-5, rtol=0)
    flat = torch.ones(1, 2, 10, 8)
    torch.testing.assert_close(Waves(flat, 0.01).part(flat), flat, atol=1e-5, rtol=0)


def test_the_whole_band_and_inputs_that_are_no_images_keep_all():
    for x, band in ((images(3), 1.0), (images(3, (12,)), 0.1), (images(3, (3, 4)), 0.1)):
        torch.testing.assert_close(Waves(x, band).part(x), x, atol=1e-5, rtol=0)


def test_normals_are_what_the_band_can_say_of_the_planes():
    """Though the box cuts off half of all moves, which are then no waves of the band."""
    weight = torch.randn(2, 48, generator=torch.Generator().manual_seed(3))
    model = linear(weight, torch.zeros(2))
    model.network = torch.nn.Sequential(torch.nn.Flatten(), model.network)
    x = (images(5, (1, 6, 8)) > 0.5).float()
    batch, waves, rows = labelled(model, x), Waves(x, 0.5), torch.arange(5)
    oracle = Oracle(LabelAccess(model, 5), batch, ThreatModel("l2", None), 9000)
    away = (weight[1 - batch.y] - weight[batch.y]).reshape(x.shape)
    gap = model.logits(x).gather(1, batch.y[:, None]) - model.logits(x).gather(1, 1 - batch.y[:, None])
    z = x + ThreatModel("l2", None).nearest_gain(x, away, gap[:, 0])[0].to(x)
    found = GeoDA(width=0.3)._normal(oracle, waves, z, rows, torch.tensor([9000] * 5), Randomness(0))
    torch.testing.assert_close(waves.part(found), found, atol=1e-3, rtol=0)
    cosine = torch.nn.functional.cosine_similarity(found.flatten(1), waves.part(away).flatten(1))
    assert float(cosine.detach().min()) > 0.8
    assert oracle.left.tolist() == [0] * 5


def test_nearer_than_hopskipjump_on_a_trained_network():
    """Two thirds of the distance after as many queries, and of what is found without waves."""
    model, data = load(ModelName.parse("conv-small")), load_data("mnist5k")
    batch = data.batch(data.panel(6))
    ours, plain = run(model, batch, queries=400), run(model, batch, queries=400, band=1.0)
    theirs = HopSkipJump(queries=400).run(model, batch, ThreatModel("l2", None), Randomness(0))
    assert bool(ours.success.all())
    assert float(ours.distance.mean()) < 0.75 * float(theirs.distance.nanmean())
    assert float(ours.distance.mean()) < 0.75 * float(plain.distance.mean())


@pytest.mark.parametrize("norm", NORMS)
def test_more_queries_end_nearer_on_the_whole(norm):
    batch, last = labelled(mlp(), images(20)), float("inf")
    for queries in (60, 200, 800):
        distance = float(run(mlp(), batch, norm, queries=queries, band=1.0).distance.mean())
        assert distance < last
        last = distance


def test_a_model_of_one_label_costs_the_tries_and_fails():
    model = linear(torch.zeros(2, 6), torch.tensor([3.0, 0.0]))
    result = run(model, Batch.of(images(4, (6,)), torch.zeros(4, dtype=torch.int64)))
    assert not bool(result.success.any())
    assert set(result.forward.tolist()) == {100}


@pytest.mark.parametrize("norm", NORMS)
def test_neither_units_nor_a_constant_on_the_logits_matter(norm):
    weight, x = torch.randn(3, 8, generator=torch.Generator().manual_seed(2)), images(20, (8,))
    plain = linear(weight, torch.zeros(3))
    scaled = linear(weight / 8, 7.0 + 0.25 * weight.sum(1), Box(-2.0, 6.0))
    first, second = run(plain, labelled(plain, x), norm), run(scaled, labelled(scaled, 8 * x - 2), norm)
    torch.testing.assert_close(8 * first.distance, second.distance, equal_nan=True, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("bad", "fix"),
    [
        ({"queries": 0}, "queries >= 1"),
        ({"tries": 0}, "tries >= 1"),
        ({"halvings": 21}, "halvings from 1 to 20"),
        ({"band": 0.0}, "a band in"),
        ({"band": 1.5}, "a band in"),
        ({"ratio": 1.0}, "a ratio between"),
        ({"width": 0.0}, "a width > 0"),
    ],
)
def test_bad_settings_are_refused(bad, fix):
    with pytest.raises(UserError, match=f"geoda needs .*{fix}"):
        GeoDA(**bad)
