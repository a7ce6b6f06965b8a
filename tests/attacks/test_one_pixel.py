"""One pixel: what genes paint, how children are made, and exact answers where one entry is enough."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import nn

from attacks import one_pixel
from attacks.one_pixel import OnePixel, paint, parents, pixels_within
from models.errors import UserError
from models.pixels import changed_pixels
from models.randomness import Randomness
from models.threat import Box
from models.threats import threat_named
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import Asked, Counting, images, labelled, mlp, random_linear


def run(model, batch, eps, norm="l0", **settings):
    return OnePixel(**settings).run(model, batch, threat_named(norm, eps, model.box), Randomness(0))


@pytest.mark.parametrize(
    ("norm", "eps", "shape", "pixels"),
    [
        ("l0", 1, (1, 4, 5), 1),
        ("l0", 7, (3, 4, 5), 2),
        ("l0", 2, (3, 4, 5), 1),
        ("l0", 0.5, (3, 4, 5), 0),
        ("l0", 99, (1, 4, 5), 20),
        ("mask", 0.16, (3, 4, 5), 3),
        ("mask", 0.04, (3, 4, 5), 0),
    ],
)
def test_as_many_pixels_as_eps_allows(norm, eps, shape, pixels):
    assert pixels_within(threat_named(norm, eps), images(2, shape)) == pixels


def test_genes_paint_pixels_and_the_last_is_on_top():
    image = torch.zeros(1, 2, 4, 5)
    genes = torch.tensor([[[0.0, 0.0, 0.5, 1.0], [1.0, 0.99, 0.25, 0.0], [0.99, 1.0, 0.75, 0.5]]])
    painted = paint(image, genes, Box(-2.0, 2.0))
    assert painted[0, :, 0, 0].tolist() == [0.0, 2.0]
    assert painted[0, :, 3, 4].tolist() == [1.0, 0.0]
    painted[0, :, 0, 0] = painted[0, :, 3, 4] = 0.0
    assert torch.equal(painted, image)


def test_parents_are_three_different_members_evenly_drawn():
    grid = torch.linspace(0, 1 - 2**-24, 61)
    draws = torch.cartesian_prod(grid, grid, grid)
    chosen = parents(draws, 5)
    assert bool((chosen.sort(1).values.diff(dim=1) > 0).all())
    counts = torch.bincount((chosen * torch.tensor([25, 5, 1])).sum(1))
    every = [25 * a + 5 * b + c for a, b, c in permutations(range(5), 3)]
    assert set(counts.nonzero()[:, 0].tolist()) == set(every)
    assert float(counts[every].double().std() / counts[every].double().mean()) < 0.2


@pytest.mark.parametrize("base", ["random", "best"])
def test_a_child_is_r1_plus_half_the_difference_and_the_fitter_one_stays(base):
    """Colours alone, on a picture of one pixel: every generation follows from the one before."""
    model = random_linear(3, 3)
    model.network = nn.Sequential(nn.Flatten(), model.network)
    batch = labelled(model, images(1, (3, 1, 1)))
    with torch.no_grad():
        model.network[1].bias[batch.y] += 20.0
    model.network = asked = Asked(model.network)
    result = run(model, batch, 3, queries=60, population=6, base=base)
    y = int(batch.y)
    colours = [one.flatten(1) for one in asked.points[1:-1]]
    loss = [z.clone().index_fill_(1, batch.y, -torch.inf).amax(1) - z[:, y] for z in asked.answers[1:-1]]
    assert len(colours) == 10
    members, fitness, moved = colours[0], loss[0], 0
    for children, value in zip(colours[1:], loss[1:], strict=True):
        first = members if base == "random" else members[[int(fitness.argmax())] * 6]
        every = torch.stack(
            [first[a] + 0.5 * (members[b] - members[c]) for a, b, c in permutations(range(6), 3)]
        )
        away = (every.clamp(0, 1)[None] - children[:, None]).abs().amax(2).amin(1)
        assert float(away.max()) < 1e-6
        better = value > fitness
        moved += int(better.sum())
        members = torch.where(better[:, None], children, members)
        fitness = torch.maximum(value, fitness)
    assert moved > 5
    torch.testing.assert_close(result.x_adv.flatten(), members[fitness.argmax()])


def test_the_first_colours_are_normal_and_places_uniform():
    model = mlp()
    batch = labelled(model, images(20))
    genes = OnePixel()._first(batch, 2, 1, Randomness(0))
    assert genes.shape == (20, 400, 2, 3)
    assert bool(((genes >= 0) & (genes <= 1)).all())
    place, colour = genes[..., :2], genes[..., 2]
    assert abs(float(place.mean()) - 0.5) < 0.01
    assert abs(float(place.var()) - 1 / 12) < 0.002
    for value, share in ((0.0, 0.1568), (1.0, 0.1587)):
        assert abs(float((colour == value).double().mean()) - share) < 0.01
    assert not torch.equal(genes[0], genes[1])


@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_affine_networks_fall_exactly_where_one_entry_is_enough(loss):
    """Every entry meets both bounds among 400 candidates: what one entry can do is found, and no more."""
    model = random_linear(3, 16)
    batch = labelled(model, images(60, (16,)))
    exact = distance_in_the_box(model, batch, "l0")
    result = run(model, batch, 1, queries=2000, loss=loss)
    assert torch.equal(result.success, exact <= 1)
    assert 5 < int(result.success.sum()) < 55


def test_two_pixels_of_an_affine_network_are_mostly_found():
    model = random_linear(4, 10)
    batch = labelled(model, images(60, (10,)))
    exact = distance_in_the_box(model, batch, "l0")
    result = run(model, batch, 2, queries=4000)
    assert not bool((result.success & (exact > 2)).any())
    assert int(result.success.sum()) >= 0.95 * int((exact <= 2).sum())


@pytest.mark.parametrize(("norm", "eps"), [("l0", 1), ("mask", 1 / 12)])
def test_the_bill_is_exact_and_more_never_hurts(norm, eps):
    model = mlp()
    model.network = counter = Counting(model.network)
    batch = labelled(model, images(60))
    counter.forward_samples = 0
    result = run(model, batch, eps, norm, queries=50, population=20)
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == 0
    assert 5 < int(result.success.sum()) < 55
    assert set(result.forward[~result.success].tolist()) == {50}
    assert set(result.forward[result.success].tolist()) == {20, 40, 50}
    assert int(run(model, batch, 3 * eps, norm, queries=50, population=20).success.sum()) > int(
        result.success.sum()
    )
    assert int(run(model, batch, eps, norm, queries=10, population=20).success.sum()) < int(
        result.success.sum()
    )


@pytest.mark.parametrize(("norm", "eps", "pixels"), [("mask", 2 / 12, 2), ("l0", 6, 2), ("l0", 2, 1)])
def test_pixels_take_all_their_channels_within_eps(norm, eps, pixels):
    model = mlp(inputs=36)
    model.network = nn.Sequential(nn.Flatten(), *list(model.network)[1:])
    batch = labelled(model, images(40, (3, 3, 4)))
    result = run(model, batch, eps, norm, queries=800, population=50)
    changed = changed_pixels(batch.x, result.x_adv).flatten(1).sum(1)
    assert int(result.success.sum()) >= 5
    assert int(changed.max()) == pixels
    assert bool(threat_named(norm, eps).contains(batch.x, result.x_adv).all())


def test_groups_of_candidates_change_nothing(monkeypatch):
    model = mlp()
    batch = labelled(model, images(10))
    whole = run(model, batch, 2, queries=100, population=25)
    monkeypatch.setattr(one_pixel, "ENTRIES", 12 * 7)
    parts = run(model, batch, 2, queries=100, population=25)
    torch.testing.assert_close(whole.x_adv, parts.x_adv)
    assert torch.equal(whole.forward, parts.forward)


def test_no_pixel_no_query():
    model = mlp()
    batch = labelled(model, images(10))
    result = run(model, batch, 0.01, "mask")
    assert int(result.forward.sum()) == 0
    assert torch.equal(result.x_adv, batch.x)


@pytest.mark.parametrize("change", ["scale", "shift"])
def test_neither_scale_nor_a_constant_on_the_logits_matters(change):
    model, other = mlp(), mlp()
    factor = 256.0 if change == "scale" else 1.0
    with torch.no_grad():
        other.network[1].weight /= factor
        other.network[3].bias += 16.0 * (change == "shift")
    other.box = Box(0.0, factor)
    batch = labelled(model, images(30))
    settings = {"queries": 200, "population": 40}
    a, b = run(model, batch, 1, **settings), run(other, labelled(other, batch.x * factor), 1, **settings)
    assert torch.equal(a.success, b.success)
    assert float((a.x_adv * factor != b.x_adv).flatten(1).any(1).double().mean()) <= 0.1


def test_bad_settings_are_refused():
    for bad in ({"queries": 0}, {"population": 2}, {"factor": 0.0}):
        with pytest.raises(UserError, match="population >= 3"):
            OnePixel(**bad)
    with pytest.raises(UserError, match="no base 'l7'"):
        OnePixel(base="l7")
    with pytest.raises(UserError, match="no loss 'l7'"):
        OnePixel(loss="l7")
