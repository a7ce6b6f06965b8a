"""SimBA: its bases, its order, each step by hand, and the corner of a linear model, on an exact bill."""

from __future__ import annotations

import math

import pytest
import torch

from attacks.access import ScoreAccess
from attacks.simba import Climb, Directions, SimBA, cosines, doubt
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.builders import WIDE, Counting, exact_distance, images, labelled, linear, mlp, random_linear


def run(model, batch, eps, *, queries=300, **settings):
    threat = ThreatModel("l2", eps, model.box)
    return SimBA(queries=queries, **settings).run(model, batch, threat, Randomness(0))


def taken(shape, basis, n=2, start=0):
    """All directions of n samples, one after the other: (entries, n, entries)."""
    x = images(n, shape)
    order = Directions(x, torch.arange(n), basis, Randomness(0))
    entries = x[0].numel()
    rows = torch.arange(n)
    return torch.stack([order.take(start * entries + i, rows).flatten(1) for i in range(entries)])


@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize("shape", [(12,), (2, 6), (1, 3, 4), (3, 5, 7)])
def test_the_directions_are_an_orthonormal_basis_drawn_without_replacement(basis, shape):
    found = taken(shape, basis)
    for mine in found.unbind(1):
        torch.testing.assert_close(mine @ mine.T, torch.eye(len(mine)), atol=1e-5, rtol=0)
    assert not torch.equal(found[:, 0], found[:, 1]), "each sample has its own order"


def test_a_second_pass_is_another_order():
    x = images(1, (12,))
    order = Directions(x, torch.arange(1), "pixel", Randomness(0))
    passes = [int(order.take(i, torch.arange(1)).argmax()) for i in range(24)]
    assert sorted(passes[:12]) == sorted(passes[12:]) == list(range(12))
    assert passes[:12] != passes[12:]


def test_waves_are_cosines_by_the_formula():
    found = cosines(5, torch.zeros(1, dtype=torch.float64))
    for k in range(5):
        for i in range(5):
            scale = math.sqrt((1 if k == 0 else 2) / 5)
            assert float(found[k, i]) == pytest.approx(scale * math.cos(math.pi * k * (2 * i + 1) / 10))


def test_low_frequencies_come_first():
    """On 16 x 16 the first 2 x 2 waves, then those of 4 x 4, of 8 x 8, and the rest."""
    base = cosines(16, torch.zeros(1))
    for mine in taken((1, 16, 16), "dct").unbind(1):
        waves = torch.einsum("ih,nhw,jw->nij", base, mine.reshape(-1, 16, 16), base).abs()
        place = waves.flatten(1).argmax(1)
        reach = torch.maximum(place // 16, place % 16)
        for count, most in ((4, 2), (16, 4), (64, 8)):
            assert int(reach[:count].max()) == most - 1
            assert int(reach[count:].min()) >= most


def test_doubt_is_the_log_odds_and_does_not_saturate():
    logits, y = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 5
    p = logits.softmax(1).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(doubt(logits, y), ((1 - p) / p).log())
    sure = torch.tensor([[200.0, 0.0], [200.0, 1.0]])
    assert doubt(sure, torch.zeros(2, dtype=torch.int64)).tolist() == [-200.0, -199.0]


def test_steps_by_hand():
    """z = (x_0, 0.5 - x_1, 0.3): plus is kept, else minus, else nothing; what moves nothing is not asked."""
    weight = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    model = linear(weight, torch.tensor([0.5, 0.0]))
    batch = Batch.of(torch.tensor([[0.5, 0.0], [0.5, 0.0]]), torch.zeros(2, dtype=torch.int64))
    access, rows = ScoreAccess(model, 2), torch.arange(2)
    climb = Climb(access, batch, ThreatModel("l2", 0.5), 10)
    assert climb.ask(rows, torch.tensor([[0.1, 0.0], [-0.1, 0.0]])).tolist() == [False, True]
    torch.testing.assert_close(climb.point, torch.tensor([[0.5, 0.0], [0.4, 0.0]]))
    assert climb.ask(rows, torch.tensor([[0.0, -0.1], [0.0, 0.1]])).tolist() == [False, True]
    torch.testing.assert_close(climb.point, torch.tensor([[0.5, 0.0], [0.4, 0.1]]))
    assert access.forward.tolist() == [2, 3], "below the box there is nothing to ask about"
    torch.testing.assert_close(climb.value, torch.tensor([-1.0, -0.8]))
    # A step beyond the ball is scaled back to it.
    climb.ask(rows[:1], torch.tensor([[-0.4, 0.6]]))
    assert float((climb.point[0] - batch.x[0]).norm()) == pytest.approx(0.5, abs=1e-5)


def test_it_breaks_linear_models_beyond_the_exact_distance_and_none_within():
    model = random_linear(3, 16, box=WIDE)
    batch = labelled(model, images(12, (16,)))
    distance = exact_distance(model, batch, "l2")
    for factor in (0.98, 1.1):
        for i in range(12):
            attack = SimBA(queries=600, step=1e-4 * factor * float(distance[i]))
            threat = ThreatModel("l2", factor * float(distance[i]), WIDE)
            result = attack.run(model, batch[i : i + 1], threat, Randomness(0))
            assert bool(result.success.all()) == (factor > 1)


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_the_bill_is_exact_and_is_the_curve(basis):
    model = mlp()
    counter = Counting(model.network)
    model.network = counter
    batch = labelled(model, images(60))
    counter.forward_samples = 0
    result = run(model, batch, 0.4, queries=30, basis=basis)
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == 0
    assert 5 < int(result.success.sum()) < 55
    assert set(result.forward[~result.success].tolist()) == {30}
    assert int(result.forward[result.success].max()) < 30


def test_more_queries_and_larger_balls_never_break_fewer():
    batch, last = labelled(mlp(), images(40)), torch.zeros(40, dtype=torch.bool)
    for queries in (2, 10, 40, 120):
        found = run(mlp(), batch, 0.4, queries=queries).success
        assert bool((found | ~last).all())
        last = found
    counts = [int(run(mlp(), batch, eps).success.sum()) for eps in (0.1, 0.3, 0.6, 1.2)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_nothing_to_gain_is_no_reason_to_crash_and_ends():
    model = linear(torch.zeros(2, 6), torch.tensor([3.0, 0.0]))
    batch = Batch.of(images(4, (6,)), torch.zeros(4, dtype=torch.int64))
    result = run(model, batch, 0.5, queries=50)
    assert not bool(result.success.any())
    assert torch.equal(result.x_adv, batch.x)
    assert set(result.forward.tolist()) == {13}, "one look, then two at each of six directions"


def test_a_ball_of_nothing_ends():
    result = run(mlp(), labelled(mlp(), images(4)), 0.0)
    assert not bool(result.success.any())
    assert set(result.forward.tolist()) == {1}


def test_the_box_is_a_unit_and_a_shift_of_all_logits_is_nothing():
    weight, x = torch.randn(3, 8, generator=torch.Generator().manual_seed(2)), images(30, (8,))
    plain = linear(weight, torch.zeros(3))
    scaled = linear(weight / 8, torch.full((3,), 4.0), Box(0.0, 8.0))
    first, second = (
        run(plain, labelled(plain, x), 0.3),
        run(scaled, labelled(scaled, 8 * x), 2.4),
    )
    assert torch.equal(first.success, second.success)
    assert 3 < int(first.success.sum()) < 27
    torch.testing.assert_close(8 * first.distance, second.distance, equal_nan=True, rtol=1e-3, atol=0)


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="no basis 'wavelet': choose pixel, dct"):
        SimBA(basis="wavelet")
    for bad in ({"queries": 0}, {"step": 0.0}):
        with pytest.raises(UserError, match="queries >= 1 and a step > 0"):
            SimBA(**bad)
