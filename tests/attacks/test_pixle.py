"""Pixle: windows, what is copied where, the limit on changed pixels, its two versions, and an exact bill."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.pixle import Patches, Pixle, rearranged
from models.base import Batch, Classifier
from models.errors import UserError
from models.pixels import changed_pixels
from models.randomness import Randomness
from models.threat import Box
from models.threats import threat_named
from tests.builders import Asked, Counting, images, labelled, linear, mlp


def run(model, batch, eps, norm="l0", *, seed=0, **settings):
    attack = Pixle(**({"queries": 200} | settings))
    return attack.run(model, batch, threat_named(norm, eps, model.box), Randomness(seed))


@pytest.mark.parametrize(
    ("shape", "least", "most", "rows", "columns"),
    [((5, 7), 2, 4, {2, 3, 4}, {2, 3, 4}), ((1, 9), 2, 4, {1}, {2, 3, 4}), ((3, 3), 5, 9, {3}, {3})],
)
def test_windows_are_whole_of_all_sizes_and_everywhere(shape, least, most, rows, columns):
    height, width = shape
    place, inside = Patches(height, width, least, most).places(torch.arange(400), Randomness(0))
    sizes, corners = set(), set()
    for mine, has in zip(place, inside, strict=True):
        own = mine[has]
        down, along = own // width, own % width
        tall, wide = int(down.max() - down.min()) + 1, int(along.max() - along.min()) + 1
        assert len(own.unique()) == len(own) == tall * wide
        assert own.tolist() == sorted(own.tolist())
        assert int(own.max()) < height * width
        sizes.add((tall, wide))
        corners.add((int(down.min()), int(along.min())))
    assert sizes == {(tall, wide) for tall in rows for wide in columns}
    expected = {(i, j) for i in range(height - min(rows) + 1) for j in range(width - min(columns) + 1)}
    assert corners == expected


def test_a_window_is_copied_pixel_by_pixel():
    """Into an empty picture: what differs are the window's pixels, with all their channels, in new places."""
    x = 1 + torch.arange(2 * 30 * 3).reshape(2, 30, 3).float()
    patches, index = Patches(5, 6, 2, 3), torch.arange(2)
    for seed in range(20):
        moved = rearranged(x, x, patches, 30, index, Randomness(seed))
        source, inside = patches.places(index, Randomness(seed).child("patch"))
        for now, before, places, has in zip(moved, x, source, inside, strict=True):
            same = (now[:, None] == before[None]).all(2)
            assert bool(same.any(1).all()), "every pixel is a pixel of the image"
            came = same.float().argmax(1)
            changed = (now != before).any(1)
            assert set(came[changed].tolist()) <= set(places[has].tolist())
            assert int(changed.sum()) >= int(has.sum()) - 2, "one may land where it came from"


def test_at_most_so_many_pixels_differ_and_the_oldest_give_way():
    x = torch.arange(40.0).reshape(1, 40, 1)
    z, count = x, 7
    for seed in range(60):
        moved = rearranged(z, x, Patches(5, 8, 2, 3), count, torch.arange(1), Randomness(seed))
        fresh = (moved != z) & (moved != x)
        assert int((moved != x).sum()) <= count
        source, inside = Patches(5, 8, 2, 3).places(torch.arange(1), Randomness(seed).child("patch"))
        assert set(source[inside][:count].tolist()) <= set(moved.flatten().tolist())
        assert bool(((moved == z) | (moved == x) | fresh).all())
        z = moved
    assert int((z != x).sum()) >= count - 2


def test_with_less_room_than_a_window_its_first_pixels_are_copied():
    x = torch.arange(36.0).reshape(1, 36, 1)
    for seed in range(20):
        moved = rearranged(x, x, Patches(6, 6, 4, 4), 3, torch.arange(1), Randomness(seed))
        source, _ = Patches(6, 6, 4, 4).places(torch.arange(1), Randomness(seed).child("patch"))
        assert set(moved[moved != x].tolist()) <= set(x[0, source[0, :3], 0].tolist())


@pytest.mark.parametrize("tries", [1, 4])
def test_both_versions_by_hand(tries):
    """Of every `tries` points from the same one the best goes on, where p of the label has fallen."""
    model = mlp(classes=5, hidden=32).double()
    model.network = asked = Asked(model.network)
    batch = labelled(model, images(1).double())
    asked.points.clear()
    asked.answers.clear()
    # No move of one row to another place fools this network by far: none leaves early.
    with torch.no_grad():
        asked.network[3].bias[int(batch.y)] += 100
    result = run(model, batch, 6, queries=61, tries=tries)
    points = torch.cat(asked.points[1:-1]).flatten(1)
    chances = torch.cat(asked.answers[1:-1])
    own = chances[:, int(batch.y)]
    odds = own - chances.scatter(1, batch.y.expand(62 - 1)[:, None], -torch.inf).logsumexp(1)
    assert torch.equal(points[0], batch.x.flatten())
    x, threat, attack = batch.x.reshape(1, 12, 1), threat_named("l0", 6), Pixle()
    here, leader, lowest = x, x, float(odds[0])
    for query in range(1, 61):
        stream = Randomness(0).child("query", query)
        moved = rearranged(here, x, Patches(3, 4, attack.least, attack.most), 6, batch.index, stream)
        torch.testing.assert_close(points[query], moved.flatten())
        assert bool(threat.contains(batch.x, moved.reshape(batch.x.shape)).all())
        if float(odds[query]) < lowest:
            lowest, leader = float(odds[query]), moved
        if query % tries == 0:
            here = leader
    assert lowest < float(odds[0])
    torch.testing.assert_close(asked.points[-1].flatten(), leader.flatten())
    assert not bool(result.success.any())


class Ordered(nn.Module):
    """Sees no value but in the first pixel: right while that is dark."""

    def forward(self, x):
        first = x.flatten(1)[:, 0]
        return torch.stack([0.6 - first, torch.zeros_like(first)], 1)


def test_it_finds_the_one_place_that_matters_where_the_image_has_what_it_takes():
    """Nothing else than a bright pixel copied to the first place fools; an image without one is safe."""
    model = Classifier(Ordered(), num_classes=2)
    x = 0.5 * images(20, (1, 4, 4))
    x[:10, 0, 2, 2] = 0.9
    batch = Batch.of(x, torch.zeros(20, dtype=torch.int64))
    result = run(model, batch, 4, queries=1500)
    assert result.success.tolist() == [True] * 10 + [False] * 10
    assert bool((result.x_adv[:10, 0, 0, 0] == 0.9).all())


@pytest.mark.parametrize(("norm", "eps"), [("l0", 1), ("mask", 1 / 12)])
def test_the_bill_is_exact_and_more_never_hurts(norm, eps):
    model = mlp()
    model.network = counter = Counting(model.network)
    batch = labelled(model, images(60))
    counter.forward_samples = 0
    result = run(model, batch, eps, norm, queries=40)
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == 0
    assert 5 < int(result.success.sum()) < 55
    assert set(result.forward[~result.success].tolist()) == {40}
    last = torch.zeros(60, dtype=torch.bool)
    for queries in (1, 5, 20, 40, 150):
        found = run(mlp(), batch, eps, norm, queries=queries).success
        assert bool((found | ~last).all())
        last = found
    assert int(run(mlp(), batch, 2 * eps, norm, queries=40).success.sum()) > int(result.success.sum())


@pytest.mark.parametrize(("norm", "eps", "pixels"), [("mask", 3 / 12, 3), ("l0", 9, 3), ("l0", 2, 1)])
def test_pixels_take_all_their_channels_within_eps(norm, eps, pixels):
    model = mlp(inputs=36)
    batch = labelled(model, images(60, (3, 3, 4)))
    result = run(model, batch, eps, norm, queries=100)
    assert int(result.success.sum()) >= 3
    assert int(changed_pixels(batch.x, result.x_adv).flatten(1).sum(1).max()) == pixels
    assert bool(threat_named(norm, eps).contains(batch.x, result.x_adv).all())


def test_no_pixel_no_query_and_a_flat_image_has_nothing_to_rearrange():
    model = mlp()
    batch = labelled(model, images(10))
    result = run(model, batch, 0.01, "mask")
    assert int(result.forward.sum()) == 0
    flat = labelled(model, torch.full((3, 1, 3, 4), 0.3))
    result = run(model, flat, 4, queries=20)
    assert torch.equal(result.x_adv, flat.x)
    assert set(result.forward.tolist()) == {20}


def test_a_constant_on_the_logits_changes_nothing_and_neither_do_units():
    weight, x = torch.randn(3, 8, generator=torch.Generator().manual_seed(2)), images(40, (8,))
    plain = linear(weight, torch.zeros(3))
    moved = linear(weight / 8, torch.full((3,), 16.0), Box(0.0, 8.0))
    batch = labelled(plain, x)
    first = run(plain, batch, 2, queries=30)
    assert 3 < int(first.success.sum()) < 37
    second = run(moved, Batch.of(8 * x, batch.y), 2, queries=30)
    assert torch.equal(first.success, second.success)


@pytest.mark.parametrize("bad", [{"queries": 0}, {"tries": 0}, {"least": 0}, {"least": 5, "most": 4}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(UserError, match="pixle needs queries >= 1, tries >= 1 and 1 <= least <= most"):
        Pixle(**bad)
