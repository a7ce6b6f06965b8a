"""GenAttack: who becomes a parent, what children inherit, how far they mutate, and an exact bill."""

from __future__ import annotations

import pytest
import torch

from attacks import genattack
from attacks.access import ScoreAccess
from attacks.genattack import GenAttack, Population, chosen
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.builders import WIDE, Asked, Counting, exact_distance, images, labelled, linear, mlp, random_linear


def run(model, batch, eps, *, seed=0, **settings):
    attack = GenAttack(**({"queries": 300} | settings))
    return attack.run(model, batch, ThreatModel("linf", eps, model.box), Randomness(seed))


def test_parents_are_drawn_in_proportion():
    weights = torch.tensor([[0.1, 0.0, 0.6, 0.3], [1.0, 0.0, 0.0, 0.0]])
    place = chosen(weights, Randomness(0).uniform(torch.arange(2), (20_000,)))
    share = torch.stack([(place == one).double().mean(1) for one in range(4)], 1)
    torch.testing.assert_close(share, weights.double(), atol=0.01, rtol=0)
    assert int(place[0].eq(1).sum()) == 0
    assert chosen(weights, torch.tensor([[0.0, 0.9999999], [0.0, 0.9999999]])).tolist() == [[0, 3], [0, 0]]


def herd(levels, fitness, eps=0.2, plateaus=0, entries=4000):
    """One sample in the middle of the box whose members are flat, at `levels` times eps from it."""
    batch = Batch.of(torch.full((1, entries), 0.5), torch.zeros(1, dtype=torch.int64))
    members = (0.5 + eps * torch.tensor(levels))[None, :, None].expand(1, -1, entries)
    one = torch.zeros(1, dtype=torch.int64)
    numbers = torch.tensor([fitness], dtype=torch.float64)
    return Population(one, members, numbers, one, one + plateaus), batch, ThreatModel("linf", eps)


def test_children_inherit_from_both_in_proportion_and_the_fittest_stays():
    """Of two members every child's entries are the fitter's at its share, wherever the parents differ."""
    search = GenAttack(temperature=2.0, rate=1e-6, reach=1e-6)
    parts, batch, threat = herd([-0.5, 0.5, 0.0, 0.0, 0.0], [1.0, 3.0] + 3 * [-1e9], plateaus=300)
    weights = torch.tensor([1.0, 3.0]).div(2).softmax(0)
    counts = torch.zeros(3)
    for seed in range(40):
        found = parts.children(batch, threat, search, Randomness(seed))
        assert torch.equal(found[:, 0], parts.members[:, 1])
        for child in found[0, 1:]:
            share = float((child > 0.5).float().mean())
            expected = (0.0, float(weights[1]), 1.0)
            nearest = min(range(3), key=lambda one: abs(share - expected[one]))
            assert abs(share - expected[nearest]) < 0.04
            counts[nearest] += 1
    # Both parents the weaker, one of each, both the fitter.
    w, f = weights.tolist()
    torch.testing.assert_close(
        counts / counts.sum(), torch.tensor([w * w, 2 * w * f, f * f]), atol=0.1, rtol=0
    )


@pytest.mark.parametrize(
    ("plateaus", "rate", "reach"), [(0, 0.5, 0.4), (3, 0.5 * 0.729, 0.4 * 0.729), (60, 0.1, 0.15)]
)
def test_mutations_are_uniform_and_shrink_with_plateaus(plateaus, rate, reach):
    parts, batch, threat = herd([0.25, 0.25], [0.0, 0.0], plateaus=plateaus, entries=20_000)
    child = parts.children(batch, threat, GenAttack(), Randomness(1))[0, 1]
    moved = ((child - 0.5) / 0.2 - 0.25).double()
    changed = moved[moved.abs() > 1e-6]
    assert len(changed) / 20_000 == pytest.approx(rate, abs=0.015)
    assert float(changed.abs().max()) == pytest.approx(reach, rel=0.01)
    assert abs(float(changed.mean())) < 0.03 * reach
    assert float(changed.square().mean()) == pytest.approx(reach**2 / 3, rel=0.05)


def test_mutations_stay_in_ball_and_box():
    parts, batch, threat = herd([1.0, 1.0], [0.0, 0.0])
    found = parts.children(batch, threat, GenAttack(), Randomness(0))
    assert bool(threat.contains(batch.x.expand(2, -1), found[0]).all())
    assert float((found[0, 1] < 0.699).double().mean()) == pytest.approx(0.25, abs=0.03)


def test_patience_is_counted_in_generations_without_a_rise():
    parts, _, _ = herd([0.0, 0.0], [1.0, 2.0])
    seen = []
    for top in (2.0, 2.0, 2.5, 2.5, 2.5, 2.5, 2.5):
        parts.replaced(parts.members, torch.tensor([[top, 0.0]], dtype=torch.float64), 2)
        seen.append((int(parts.stale), int(parts.plateaus)))
    assert seen == [(1, 0), (0, 1), (0, 1), (1, 1), (0, 2), (1, 2), (0, 3)]


def test_generations_by_hand():
    """The fittest of all that were asked is handed over, and is not asked about again."""
    model = mlp(classes=5, hidden=32).double()
    model.network = asked = Asked(model.network)
    batch = labelled(model, images(1).double())
    asked.points.clear()
    asked.answers.clear()
    threat = ThreatModel("linf", 0.01)
    view = ScoreAccess(model, 1)
    found = GenAttack(queries=40, population=5).propose(view, batch, threat, Randomness(0), None)
    assert [len(points) for points in asked.points] == [5, 4, 4, 4, 4, 4, 4, 4, 4, 3]
    points, p = torch.cat(asked.points), torch.cat(asked.answers).softmax(1)[:, int(batch.y)]
    assert torch.equal(found[0], points[p.argmin()])
    assert len(points.unique(dim=0)) == 40
    assert bool(threat.contains(batch.x.expand_as(points), points).all())


@pytest.mark.slow
def test_it_breaks_linear_models_beyond_the_exact_distance_and_none_within():
    model = random_linear(3, 16, box=WIDE)
    batch = labelled(model, images(5, (16,)))
    distance = exact_distance(model, batch, "linf")
    for factor in (0.98, 1.2):
        for i in range(5):
            threat = ThreatModel("linf", factor * float(distance[i]), WIDE)
            result = GenAttack(queries=2500).run(model, batch[i : i + 1], threat, Randomness(0))
            assert bool(result.success.all()) == (factor > 1)


@pytest.mark.parametrize("target", ["2", "least-likely"])
def test_it_is_driven_at_its_target(target):
    model = random_linear(4, 30)
    batch = labelled(model, images(60, (30,)))
    batch = batch[batch.y != 2]
    result = run(model, batch, 0.9, target=target, queries=2000)
    logits = model.logits(batch.x)
    goal = torch.full_like(batch.y, 2) if target == "2" else logits.argmin(1)
    assert float((model.logits(result.x_adv).argmax(1) == goal).double().mean()) > 0.9


@pytest.mark.parametrize(
    ("target", "queries"), [("none", 1), ("none", 4), ("none", 33), ("least-likely", 33)]
)
def test_the_bill_is_exact(target, queries):
    model = mlp()
    model.network = counter = Counting(model.network)
    batch = labelled(model, images(60))
    counter.forward_samples = 0
    result = run(model, batch, 0.15, queries=queries, target=target)
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == 0
    assert 0 < int(result.success.sum()) < 60
    assert set(result.forward[~result.success].tolist()) == {queries}
    if queries == 33 and target == "none":
        assert set(result.forward[result.success].tolist()) <= {6, 11, 16, 21, 26, 31, 33}


def test_more_queries_and_larger_balls_break_more():
    batch, last = labelled(mlp(), images(60)), torch.zeros(60, dtype=torch.bool)
    counts = [int(run(mlp(), batch, eps).success.sum()) for eps in (0.02, 0.1, 0.2)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    for queries in (6, 16, 66, 206):
        found = run(mlp(), batch, 0.15, queries=queries).success
        assert bool((found | ~last).all())
        last = found


def test_groups_of_members_change_nothing(monkeypatch):
    batch = labelled(mlp(), images(10))
    whole = run(mlp(), batch, 0.15, queries=100)
    monkeypatch.setattr(genattack, "ENTRIES", 12 * 7)
    parts = run(mlp(), batch, 0.15, queries=100)
    torch.testing.assert_close(whole.x_adv, parts.x_adv)
    assert torch.equal(whole.forward, parts.forward)


def test_neither_units_nor_a_constant_on_the_logits_matter():
    weight, x = (
        torch.randn(3, 8, generator=torch.Generator().manual_seed(2)).double(),
        images(40, (8,)).double(),
    )
    plain = linear(weight, torch.zeros(3).double())
    scaled = linear(weight / 8, 5.0 + 0.25 * weight.sum(1), Box(-2.0, 6.0))
    first, second = (
        run(plain, labelled(plain, x), 0.1),
        run(scaled, labelled(scaled, 8 * x - 2), 0.8),
    )
    assert 3 < int(first.success.sum()) < 37
    assert torch.equal(first.success, second.success)


def test_a_model_of_one_answer_and_a_ball_of_nothing_cost_all_queries():
    model = linear(torch.zeros(2, 6), torch.tensor([3.0, 0.0]))
    batch = Batch.of(images(4, (6,)), torch.zeros(4, dtype=torch.int64))
    for eps in (0.0, 0.3):
        result = run(model, batch, eps, queries=50)
        assert not bool(result.success.any())
        assert set(result.forward.tolist()) == {50}


def test_bad_settings_are_refused():
    for bad in ({"population": 1}, {"queries": 0}, {"patience": 0}):
        with pytest.raises(UserError, match="population >= 2, queries >= 1 and patience >= 1"):
            GenAttack(**bad)
    for bad in ({"temperature": 0.0}, {"rate": 0.0}, {"reach": 1.5}):
        with pytest.raises(UserError, match=r"temperature > 0, and a rate and a reach in \(0, 1\]"):
            GenAttack(**bad)
    with pytest.raises(UserError, match="genattack has no target"):
        GenAttack(target="random")
