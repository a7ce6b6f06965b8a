"""Sparse-RS: the published schedule, what one query changes, and exact answers where all can be tried."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.fmn import FastMinimumNorm
from attacks.jsma import JSMA
from attacks.sparse_rs import Search, SparseRS, as_inputs, as_places, corners, share
from defenses.zoo import ModelName, load
from models.data import load_data
from models.errors import UserError
from models.pixels import changed_pixels
from models.randomness import Randomness
from models.threat import Box
from models.threats import threat_named
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import Asked, Counting, images, labelled, mlp, random_linear

UNIT = Box(0.0, 1.0)


def run(model, batch, eps, norm="l0", seed=0, **settings):
    return SparseRS(**settings).run(model, batch, threat_named(norm, eps, model.box), Randomness(seed))


def test_the_schedule_is_the_papers():
    """alpha = 0.3 over 2, 4, 5, 6, 8, 10, 12, 15, 20 after 0, 50, 200, ..., 8000 of 10,000 queries."""
    asked = (1, 50, 51, 200, 201, 501, 1001, 2001, 4001, 6001, 8000, 8001, 9999)
    divisors = (2, 2, 4, 4, 5, 6, 8, 10, 12, 15, 15, 20, 20)
    assert [share(query, 10_000, 0.3) for query in asked] == [0.3 / divisor for divisor in divisors]
    assert share(101, 1000, 0.3) == share(1010, 10_000, 0.3)


@pytest.mark.parametrize("norm", ["l0", "mask"])
@pytest.mark.parametrize("shape", [(12,), (2, 6), (1, 3, 4), (3, 5, 7)])
def test_places_are_entries_or_pixels_of_any_shape(norm, shape):
    x = images(4, shape)
    places = as_places(x, norm)
    assert torch.equal(as_inputs(places, x, norm), x)
    assert places.shape[2] == (shape[0] if norm == "mask" and len(shape) > 1 else 1)
    changed = places.clone()
    changed[:, 3] = 7.0
    assert int((as_inputs(changed, x, norm) != x).sum()) == 4 * places.shape[2]


@pytest.mark.parametrize(
    ("norm", "eps", "places", "count"),
    [("l0", 4, 12, 4), ("l0", 4.9, 12, 4), ("l0", 99, 12, 12), ("l0", 0.5, 12, 0), ("mask", 0.4, 12, 4)]
    + [("mask", 1, 12, 12), ("mask", 0.05, 12, 0)]
    + [("mask", k / 49, 49, k) for k in (1, 7, 29, 41)],
)
def test_as_many_places_as_eps_allows(norm, eps, places, count):
    assert threat_named(norm, eps).count(places) == count


@pytest.mark.parametrize(("norm", "binary"), [("l0", False), ("l0", True), ("mask", True)])
def test_a_query_moves_so_many_places_and_all_changes_are_at_corners(norm, binary):
    x = images(6, (3, 4, 5))
    x = (x > 0.5).float() if binary else x
    places, index = as_places(x, norm), torch.arange(6)
    search = Search.start(places, index, UNIT, Randomness(0), 8)
    for query in range(1, 30):
        chosen, z = search.next(query, 3)
        differs = (z != places).any(2)
        assert torch.equal(differs, chosen), "every chosen place differs from the input, and no other"
        assert bool((chosen.sum(1) == 8).all())
        assert bool(((z == 0) | (z == 1))[chosen].all())
        assert bool(((search.chosen & ~chosen).sum(1) == 3).all())
        kept = search.chosen & chosen
        assert torch.equal(z[kept], search.z[kept])
        search.chosen, search.z = chosen, z
    assert len({tuple(row.tolist()) for row in search.chosen}) == 6, "each sample has its own"


def test_where_every_place_may_change_values_are_drawn_anew():
    places = as_places(images(5, (6,)), "l0")
    search = Search.start(places, torch.arange(5), UNIT, Randomness(0), 6)
    seen = set()
    for query in range(1, 60):
        chosen, z = search.next(query, 2)
        assert bool(chosen.all())
        assert bool(((z != search.z).sum((1, 2)) <= 2).all())
        search.z = z
        seen.add(tuple(z[0, :, 0].tolist()))
    assert len(seen) > 10


def test_corners_are_drawn_evenly():
    x = torch.full((400, 5, 3), 0.3)
    place = torch.arange(5).expand(400, 5)
    drawn = corners(x, place, Box(-2.0, 3.0), torch.arange(400), Randomness(1))
    assert set(drawn.unique().tolist()) == {-2.0, 3.0}
    assert 0.47 < float((drawn == 3.0).double().mean()) < 0.53


@pytest.mark.parametrize("binary", [False, True])
def test_affine_networks_fall_exactly_from_their_distance_on(binary):
    """With queries for all choices of 1 to 3 of 8 entries: success where the exact distance says so."""
    model, x = random_linear(4, 8), images(40, (8,))
    batch = labelled(model, (x > 0.5).float() if binary else x)
    exact = distance_in_the_box(model, batch, "l0")
    for eps in (1, 2, 3):
        result = run(model, batch, eps, queries=600)
        assert torch.equal(result.success, exact <= eps)
        assert 0 < int(result.success.sum()) <= 40


def test_only_what_lowers_the_margin_is_kept():
    """Each point asked about differs from the lowest one before it in as many entries as were moved."""
    model = mlp(classes=10, inputs=300)
    batch = labelled(model, images(1, (1, 3, 100)))
    with torch.no_grad():
        model.network[3].bias[batch.y] += 5.0
    model.network = asked = Asked(model.network)
    run(model, batch, 20, queries=40)
    y, points = int(batch.y), asked.points[1:-1]
    margins = [float(z[0, y] - max(z[0, j] for j in range(10) if j != y)) for z in asked.answers[1:-1]]
    assert len(points) == 40
    for query in range(1, 40):
        lowest = points[min(range(query), key=margins.__getitem__)]
        moved = max(int(share(query, 40, 0.3) * 20), 1)
        assert int((points[query] != lowest).sum()) == 2 * moved
        assert int((points[query] != batch.x).sum()) == 20


@pytest.mark.parametrize(("norm", "eps"), [("l0", 1), ("mask", 1 / 12)])
def test_the_bill_is_exact_and_more_never_hurts(norm, eps):
    model = mlp()
    model.network = counter = Counting(model.network)
    batch = labelled(model, images(60))
    counter.forward_samples = 0
    result = run(model, batch, eps, norm, queries=40)
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == 0
    assert 5 < int(result.success.sum()) < 60
    assert set(result.forward[~result.success].tolist()) == {40}
    assert int(result.forward[result.success].min()) >= 1
    assert int(run(model, batch, 2 * eps, norm, queries=40).success.sum()) > int(result.success.sum())
    assert int(run(model, batch, eps, norm, queries=10).success.sum()) < int(result.success.sum())


def test_a_mask_changes_whole_pixels_and_no_more_of_them():
    model = mlp(inputs=36)
    model.network = nn.Sequential(nn.Flatten(), *list(model.network)[1:])
    batch = labelled(model, images(40, (3, 3, 4)))
    result = run(model, batch, 3 / 12, "mask", queries=100)
    assert int(result.success.sum()) > 5
    assert bool((changed_pixels(batch.x, result.x_adv).flatten(1).sum(1) == 3).all())
    entries = run(model, batch, 3, "l0", queries=100)
    assert int(entries.success.sum()) < int(result.success.sum()), "three values a pixel against one"


def test_no_place_no_query():
    model = mlp()
    batch = labelled(model, images(10))
    result = run(model, batch, 0.01, "mask")
    assert int(result.forward.sum()) == 0
    assert torch.equal(result.x_adv, batch.x)


def test_fewer_stand_than_after_gradients_that_saturated_pixels_mislead():
    model, data = load(ModelName.parse("conv-small+adversarial-pgd")), load_data("mnist5k")
    batch, threat = data.batch(data.panel(20)), threat_named("l0", 20)
    ours = run(model, batch, 20, queries=300)
    for relative in (JSMA(), FastMinimumNorm(steps=50)):
        theirs = relative.run(model, batch, threat, Randomness(0))
        assert int(ours.success.sum()) >= int(theirs.success.sum()) + 5


@pytest.mark.parametrize("change", ["scale", "shift"])
def test_neither_scale_nor_a_constant_on_the_logits_matters(change):
    model, other = mlp(), mlp()
    factor = 256.0 if change == "scale" else 1.0
    with torch.no_grad():
        other.network[1].weight /= factor
        other.network[3].bias += 16.0 * (change == "shift")
    other.box = Box(0.0, factor)
    batch = labelled(model, images(30))
    a, b = run(model, batch, 2, queries=50), run(other, labelled(other, batch.x * factor), 2, queries=50)
    assert torch.equal(a.success, b.success)
    assert float((a.x_adv * factor != b.x_adv).flatten(1).any(1).double().mean()) <= 0.1


def test_bad_settings_are_refused():
    for bad in ({"queries": 0}, {"share": 0.0}, {"share": 1.5}):
        with pytest.raises(UserError, match="queries >= 1"):
            SparseRS(**bad)
