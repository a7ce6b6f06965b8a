"""The pointwise attack: what it hands over is minimal, what it asks is its procedure, and labels are all."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch

from attacks.access import LabelAccess
from attacks.pointwise import LEVELS, Pointwise
from models.base import Batch, Classifier
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import Asked, Counting, images, labelled, linear, mlp, random_linear


def run(model, batch, *, queries=1000, eps=None, seed=0):
    return Pointwise(queries=queries).run(model, batch, ThreatModel("l0", eps, model.box), Randomness(seed))


def put_back(point, x, entries):
    trial = point.clone()
    trial[list(entries)] = x[list(entries)]
    return trial


@pytest.mark.parametrize("corners", [False, True])
def test_on_two_affine_classes_no_subset_can_be_put_back(corners):
    """What remains pulls one way only, so that each subset pulls at least as much as any of its entries."""
    model, x = random_linear(2, 16), images(30, (16,))
    batch = labelled(model, (x > 0.5).float() if corners else x)
    result, exact = run(model, batch), distance_in_the_box(model, batch, "l0")
    assert float(result.success.double().mean()) >= 0.8
    assert bool((result.distance >= exact)[result.success].all())
    more = 0
    for x, point, y, won in zip(batch.x, result.x_adv, batch.y, result.success, strict=True):
        changed = (x != point).nonzero()[:, 0].tolist()
        subsets = [entries for k in range(1, len(changed) + 1) for entries in combinations(changed, k)]
        if won:
            more += len(changed) > 1
            trials = torch.stack([put_back(point, x, entries) for entries in subsets])
            assert bool((model.logits(trials).argmax(1) == y).all())
    assert more >= 6


def test_no_entry_can_be_put_back_alone_on_any_network():
    model = mlp(classes=5, inputs=24, hidden=24)
    batch = labelled(model, images(40, (1, 3, 8)))
    result = run(model, batch, queries=800)
    assert bool(result.success.all())
    for x, point, y in zip(batch.x.flatten(1), result.x_adv.flatten(1), batch.y, strict=True):
        trials = torch.stack([put_back(point, x, [entry]) for entry in (x != point).nonzero()[:, 0].tolist()])
        assert bool((model.logits(trials.reshape(-1, 1, 3, 8)).argmax(1) == y).all())


def test_several_starts_come_near_the_least_count():
    model = random_linear(4, 20)
    batch = labelled(model, images(30, (20,)))
    exact = distance_in_the_box(model, batch, "l0")
    extra = (run(model, batch, queries=1000).distance - exact)[exact.isfinite()]
    assert float(extra.min()) >= 0
    assert float((extra == 0).double().mean()) >= 0.8
    first = (run(model, batch, queries=40).distance - exact)[exact.isfinite()]
    assert float(first.nanmean()) > float(extra.mean()) + 0.3


def test_what_it_asks_is_the_procedure():
    """Nested noise until it fools; then entry by entry, none tried twice unless one was put back since."""
    model = random_linear(2, 200)
    batch = labelled(model, images(1, (200,), seed=2))
    model.network = asked = Asked(model.network)
    run(model, batch, queries=400)
    points, x, y = torch.cat(asked.points[1:-1]), batch.x[0], batch.y[0]
    wrong = torch.cat(asked.answers[1:-1]).argmax(1) != y
    begin = int(wrong.long().argmax())
    assert 2 <= begin < LEVELS
    for level, (fewer, more) in enumerate(pairwise(points[: begin + 1]), start=1):
        kept = fewer != x
        assert torch.equal(fewer[kept], more[kept])
        assert abs(int(kept.sum()) - 200 * level / LEVELS) < 25
    here, tried, since, ends = points[begin], set(), 0, None
    assert set(here[here != x].tolist()) <= {0.0, 1.0}
    for place in range(begin + 1, len(points)):
        changed = (points[place] != here).nonzero()[:, 0]
        left = set((here != x).nonzero()[:, 0].tolist())
        if left <= tried:
            ends = place
            break
        assert len(changed) == 1
        entry = int(changed)
        assert points[place][entry] == x[entry]
        assert entry not in tried
        tried.add(entry)
        if wrong[place]:
            here, tried, since = points[place], set(), since + 1
    assert since > 10
    assert ends is not None, "the first run ended and another one began"
    assert int((points[ends] != x).sum()) < 25, "which begins with as little noise"


def test_entries_are_tried_in_turn():
    """After a success the next one tried is the one that has waited longest, not one that just failed."""
    model = linear(torch.tensor([[0.0] * 4, [5.0, 5.0, 0.1, 0.1]]), torch.tensor([9.0, 0.0]))
    batch = Batch.of(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))
    for seed in range(20):
        model.network, plain = Asked(model.network), model.network
        run(model, batch, queries=60, seed=seed)
        points = torch.cat(model.network.points[1:-1])
        model.network = plain
        full = (points == 1).all(1).nonzero()[:, 0]
        if len(full) and int(full[0]) + 4 < len(points):
            four = points[int(full[0]) + 1 : int(full[0]) + 5] == 0
            last = four[:3].any(0)
            assert int(last.sum()) == 3
            assert bool(four.any(0).all())
            return
    pytest.fail("no start had all four entries changed")


def test_where_noise_does_not_fool_a_picture_does():
    """Bright inputs alone are of class 1: noise on all 60 entries stays far below."""
    model = linear(torch.tensor([[0.0] * 60, [1.0] * 60]), torch.tensor([48.0, 0.0]))
    batch = labelled(model, 0.2 * images(10, (60,)))
    result, exact = run(model, batch), distance_in_the_box(model, batch, "l0")
    assert bool(result.success.all())
    assert bool((result.distance >= exact).all())
    assert float((result.distance - exact).max()) <= 1


@pytest.mark.parametrize("queries", [1, 7, 50, 333])
def test_the_bill_is_exact_and_the_budget_is_kept(queries):
    model = mlp(classes=5, inputs=24, hidden=24)
    model.network = counter = Counting(model.network)
    batch = labelled(model, images(20, (1, 3, 8)))
    counter.forward_samples = 0
    result = run(model, batch, queries=queries)
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert set(result.forward[~(result.distance <= 1)].tolist()) == {queries}
    assert bool((result.forward[result.distance <= 1] <= queries).all())


def test_samples_leave_within_the_ball_and_when_one_entry_is_enough():
    model = mlp(classes=5, inputs=24, hidden=24)
    batch = labelled(model, images(40, (1, 3, 8)))
    free, held = run(model, batch), run(model, batch, eps=3)
    assert torch.equal(held.success, free.distance <= 3)
    assert bool((held.forward <= free.forward).all())
    assert float(held.forward[held.success].double().mean()) < 400
    assert bool((free.forward[free.distance == 1] < 1000).all())


def test_a_model_of_one_label_costs_all_queries_and_fails():
    model = linear(torch.zeros(2, 6), torch.tensor([3.0, 0.0]))
    result = run(model, Batch.of(images(4, (6,)), torch.zeros(4, dtype=torch.int64)), queries=150)
    assert not bool(result.success.any())
    assert set(result.forward.tolist()) == {150}


def test_a_random_network_that_errs_at_the_input_gives_no_empty_perturbation():
    """It errs half of the time wherever it is asked: one entry is enough, none is not."""
    model = linear(torch.zeros(2, 40), torch.zeros(2))

    class Coin(torch.nn.Module):
        def forward(self, x):
            return model.network(x) + torch.randn(len(x), 2)

    random = Classifier(Coin(), num_classes=2, stochastic=True, name="coin")
    batch, threat = Batch.of(images(20, (40,)), torch.zeros(20, dtype=torch.int64)), ThreatModel("l0", None)
    torch.manual_seed(0)
    points = Pointwise(queries=300).propose(LabelAccess(random, 20), batch, threat, Randomness(0), None)
    assert bool((threat.distance(batch.x, points) == 1).all())


def test_neither_units_nor_a_constant_on_the_logits_matter():
    weight, x = torch.randn(3, 8, generator=torch.Generator().manual_seed(2)), images(20, (8,))
    plain = linear(weight, torch.zeros(3))
    scaled = linear(weight / 8, 7.0 + 0.25 * weight.sum(1), Box(-2.0, 6.0))
    first, second = (
        run(plain, labelled(plain, x), queries=300),
        run(scaled, labelled(scaled, 8 * x - 2), queries=300),
    )
    torch.testing.assert_close(first.distance, second.distance, equal_nan=True, rtol=0, atol=0)


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="pointwise needs queries >= 1, not 0"):
        Pointwise(queries=0)
