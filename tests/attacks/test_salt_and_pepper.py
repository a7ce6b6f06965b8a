"""Salt and pepper: noise as said, its bisection, closed forms, later draws, an exact bill, units."""

from __future__ import annotations

import pytest
import torch

from attacks.access import LabelAccess
from attacks.pointwise import Pointwise
from attacks.salt_and_pepper import LEVELS, Noise, SaltAndPepper
from models.base import Batch, Classifier
from models.errors import UserError
from models.pixels import changed_pixels
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import Asked, Counting, images, labelled, linear, mlp, random_linear


def run(model, batch, norm="l0", eps=None, *, seed=0, **settings):
    attack = SaltAndPepper(**({"queries": 300} | settings))
    return attack.run(model, batch, ThreatModel(norm, eps, model.box), Randomness(seed))


@pytest.mark.parametrize(("norm", "power"), [("l0", 1.0), ("l2", 0.5)])
@pytest.mark.parametrize("needed", [1, 2, 17, 40])
def test_where_white_pixels_count_bisection_ends_at_the_least_number(norm, power, needed):
    """Of black images those of `needed` white entries fool, wherever they are: black ones cost nothing."""
    weight = torch.stack([torch.zeros(100), torch.ones(100)])
    model = linear(weight, torch.tensor([needed - 0.5, 0.0]))
    batch = Batch.of(torch.zeros(20, 100), torch.zeros(20, dtype=torch.int64))
    result = run(model, batch, norm, queries=60)
    expected = torch.full((20,), float(needed), dtype=torch.float64) ** power
    torch.testing.assert_close(result.distance, expected)


def test_noise_is_half_black_half_white_in_random_order():
    batch = Batch.of(torch.full((3, 2, 60, 50), 0.5), torch.zeros(3, dtype=torch.int64))
    noise = Noise(batch, ThreatModel("l0", None), Randomness(0))
    assert set(noise.full.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(noise.full[..., 0], noise.full[..., 1]), "all channels of a pixel alike"
    assert abs(float(noise.full.mean()) - 0.5) < 0.02
    assert torch.equal(noise.rank.sort(1).values, torch.arange(3000).expand(3, -1))
    assert not torch.equal(noise.rank[0], noise.rank[1])
    points, count = noise.ask(torch.arange(3))
    assert count.tolist() == [150] * 3
    assert changed_pixels(batch.x, points).flatten(1).sum(1).tolist() == [150] * 3


def test_what_it_asks_is_the_procedure():
    """Nested noise until it fools, halved between what does and what does not; then other draws."""
    model = random_linear(2, 200)
    batch = labelled(model, images(1, (200,), seed=10))
    model.network = asked = Asked(model.network)
    run(model, batch, queries=120)
    points, x = torch.cat(asked.points[1:-1]), batch.x[0]
    wrong = torch.cat(asked.answers[1:-1]).argmax(1) != batch.y[0]
    sizes, begin = (points != x).sum(1), int(wrong.long().argmax())
    assert 2 <= begin < LEVELS
    assert sizes[: begin + 1].tolist() == [200 // LEVELS * level for level in range(1, begin + 2)]
    low, high, place = int(sizes[begin]) - 200 // LEVELS, int(sizes[begin]), begin
    while high - low > 1:
        place += 1
        assert int(sizes[place]) == (low + high) // 2
        larger = points[begin][points[place] != x]
        assert torch.equal(points[place][points[place] != x], larger), "nested in what fooled"
        low, high = (low, int(sizes[place])) if wrong[place] else (int(sizes[place]), high)
    best, halving = high, False
    for later in range(place + 1, len(points)):
        if not halving:
            assert int(sizes[later]) == best - 1
            low, high, halving = 0, best - 1, bool(wrong[later])
        else:
            assert int(sizes[later]) == (low + high) // 2
            low, high = (low, int(sizes[later])) if wrong[later] else (int(sizes[later]), high)
        best = min(best, int(sizes[later])) if wrong[later] else best
        halving = halving and high - low > 1
    assert best < int(sizes[begin])


@pytest.mark.parametrize("norm", ["l0", "l2"])
def test_later_draws_come_nearer_and_never_under_the_exact_distance(norm):
    model = random_linear(4, 30)
    batch = labelled(model, images(40, (30,)))
    exact = distance_in_the_box(model, batch, norm)
    few, many = (run(model, batch, norm, queries=queries).distance for queries in (30, 400))
    assert bool((many.nan_to_num(torch.inf) >= exact * (1 - 1e-6)).all())
    assert bool((many.nan_to_num(1e9) <= few.nan_to_num(1e9)).all())
    assert float(many.mean()) < 0.8 * float(few.nanmean())
    if norm == "l0":
        peer = Pointwise(queries=400).run(model, batch, ThreatModel("l0", None), Randomness(0)).distance
        assert float(peer.mean()) <= float(many.mean())


def test_pixels_change_with_all_their_channels():
    model = mlp(classes=5, inputs=36, hidden=32)
    batch = labelled(model, images(30, (3, 3, 4)))
    result = run(model, batch)
    changed = changed_pixels(batch.x, result.x_adv).flatten(1).sum(1)
    found = result.success
    assert torch.equal(result.distance[found], 3.0 * changed[found].double())
    values = result.x_adv[result.x_adv != batch.x]
    assert set(values.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("norm", ["l0", "l2"])
@pytest.mark.parametrize("queries", [1, 9, 75])
def test_the_bill_is_exact_and_the_budget_is_kept(norm, queries):
    model = mlp(classes=5, inputs=24, hidden=24)
    model.network = counter = Counting(model.network)
    batch = labelled(model, images(30, (1, 3, 8)))
    counter.forward_samples = 0
    result = run(model, batch, norm, queries=queries)
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == 0
    assert set(result.forward[~(result.distance <= 1)].tolist()) <= {queries}
    assert int(result.forward.max()) == queries


@pytest.mark.parametrize(("norm", "eps"), [("l0", 1), ("l2", 0.6)])
def test_samples_leave_within_the_ball(norm, eps):
    model = mlp(classes=5, inputs=24, hidden=24)
    batch = labelled(model, images(40, (1, 3, 8)))
    free, held = run(model, batch, norm), run(model, batch, norm, eps)
    # A farther point is handed over projected, and may fool there all the same.
    assert bool(held.success[free.distance <= eps].all())
    assert 5 < int(held.success.sum()) < 40
    assert float(held.forward[held.success].double().mean()) < 200
    assert float(held.distance[held.success].max()) <= eps


def test_a_model_of_one_label_costs_all_queries_and_fails():
    model = linear(torch.zeros(2, 6), torch.tensor([3.0, 0.0]))
    result = run(model, Batch.of(images(4, (6,)), torch.zeros(4, dtype=torch.int64)), queries=150)
    assert not bool(result.success.any())
    assert set(result.forward.tolist()) == {150}


def test_a_random_network_that_errs_at_the_input_gives_no_empty_perturbation():
    class Coin(torch.nn.Module):
        def forward(self, x):
            return torch.randn(len(x), 2)

    random = Classifier(Coin(), num_classes=2, stochastic=True, name="coin")
    batch, threat = Batch.of(images(20, (40,)), torch.zeros(20, dtype=torch.int64)), ThreatModel("l0", None)
    torch.manual_seed(0)
    points = SaltAndPepper().propose(LabelAccess(random, 20), batch, threat, Randomness(0), None)
    assert bool((threat.distance(batch.x, points) == 1).all())


@pytest.mark.parametrize("norm", ["l0", "l2"])
def test_neither_units_nor_a_constant_on_the_logits_matter(norm):
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(2)).double()
    x, plain = images(20, (8,)).double(), linear(weight, torch.zeros(3).double())
    scaled = linear(weight / 8, 7.0 + 0.25 * weight.sum(1), Box(-2.0, 6.0))
    first, second = (run(plain, labelled(plain, x), norm), run(scaled, labelled(scaled, 8 * x - 2), norm))
    factor = 8 if norm == "l2" else 1
    torch.testing.assert_close(factor * first.distance, second.distance, equal_nan=True)


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="salt-and-pepper needs queries >= 1, not 0"):
        SaltAndPepper(queries=0)
