"""ZOO: its iterates written out, slopes exact where they are known, distances on affine models, the bill."""

from __future__ import annotations

import pytest
import torch

from attacks.access import ScoreAccess
from attacks.zoo import ZOO, EntrywiseAdam, hinge, slopes
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import Asked, Counting, images, labelled, linear, mlp, random_linear


def run(model, batch, *, queries=1500, eps=None, **settings):
    threat = ThreatModel("l2", eps, model.box)
    return ZOO(queries=queries, **settings).run(model, batch, threat, Randomness(0))


def test_the_iterates_are_written_out():
    """Passes over all entries at once, against the objective differentiated by hand and PyTorch's Adam."""
    model = random_linear(2, 6).double()
    batch = labelled(model, images(3, (6,)).double())[1:2]
    with torch.no_grad():
        model.network.bias[batch.y] += 1.0
    model.network = asked = Asked(model.network)
    run(model, batch, queries=1 + 13 * 6, entries=6, rate=0.05, penalty=0.2)
    looks = [points for points in asked.points[1:-1] if len(points) == 1]
    weight, y = asked.network.weight.detach(), int(batch.y)
    slope, x = (weight[y] - weight[1 - y])[None], batch.x
    z = x.clone().requires_grad_(True)
    adam, c = torch.optim.Adam([z], lr=0.05, eps=1e-20), None
    first = float((model.logits(x)[:, y] - model.logits(x)[:, 1 - y]).detach())
    expected, fooled, doubled = [x], False, 0
    for step in range(6):
        holds = float((model.logits(z.detach())[:, y] - model.logits(z.detach())[:, 1 - y]).detach()) > 0
        c = 0.2 * 2 * first / float(slope.square().sum()) if c is None else c
        z.grad = 2 * (z.detach() - x) + c * slope * holds
        adam.step()
        with torch.no_grad():
            z.clamp_(0, 1)
        expected.append(z.detach().clone())
        fooled = bool(model.logits(z.detach()).argmax(1) != y)
        if step and not fooled:
            c, doubled = 2 * c, doubled + 1
    assert doubled >= 2
    for ours, theirs in zip(looks, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_slopes_are_those_of_the_hinge_also_at_the_bounds():
    model = random_linear(3, 10).double()
    x = images(6, (10,)).double()
    x[:, :3], x[:, 3:5] = 0.0, 1.0
    batch = labelled(model, x)
    place = torch.rand(6, 10, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :7]
    view, rows = ScoreAccess(model, 6), torch.arange(6)
    found = slopes(view, x, batch, rows, place, 1e-5, ThreatModel("l2", None))
    weight, z = model.network.weight.detach(), model.logits(x).detach()
    rival = z.scatter(1, batch.y[:, None], -torch.inf).argmax(1)
    expected = (weight[batch.y] - weight[rival]).gather(1, place)
    wide = slopes(view, x, batch, rows, place, 1e-2, ThreatModel("l2", None))
    small = z.topk(2, dim=1).values
    inside = (small[:, 0] - small[:, 1]) > 0.1
    assert int(inside.sum()) >= 4
    torch.testing.assert_close(wide[inside], expected[inside], rtol=1e-3, atol=1e-3)
    assert bool((found[inside] == 0).any()), "differences of 1e-5 are partly within rounding"
    assert view.forward.tolist() == [2 * 2 * 7] * 6


def test_beyond_the_boundary_there_is_no_hinge():
    y = torch.tensor([0, 0, 0])
    logits = torch.tensor([[3.0, 1.0], [1.0, 3.0], [1.0, 1.0]])
    value = hinge(logits, y)
    assert float(value[0]) == pytest.approx(2.0, abs=1e-3)
    assert float(value[1]) == 0
    assert 0 < float(value[2]) < 1e-4


def test_each_entry_has_its_own_moments_and_count():
    generator = torch.Generator().manual_seed(0)
    w = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    separate = [torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    theirs = [torch.optim.Adam([one], lr=0.1, eps=1e-20) for one in separate]
    ours, here = EntrywiseAdam.on(w.detach()), torch.zeros(1, 3, dtype=torch.float64)
    for step in range(12):
        place = torch.tensor([[0, 1 + step % 2]])
        slope = torch.randn(1, 2, generator=generator, dtype=torch.float64)
        here[0, place[0]] += 0.1 * ours.step(torch.tensor([0]), place, slope)[0]
        for entry, value in zip(place[0].tolist(), slope[0], strict=True):
            separate[entry].grad = value[None]
            theirs[entry].step()
    torch.testing.assert_close(here[0], torch.cat(separate).detach())
    assert ours.count.tolist() == [[12, 6, 6]]


def test_moments_of_steeper_slopes():
    one, two, rows = EntrywiseAdam.on(torch.zeros(1, 2)), EntrywiseAdam.on(torch.zeros(1, 2)), torch.arange(1)
    place, slope = torch.tensor([[0, 1]]), torch.tensor([[1.0, -2.0]])
    one.step(rows, place, slope)
    two.step(rows, place, 5 * slope)
    one.rescale(torch.tensor([5.0]))
    torch.testing.assert_close(one.first, two.first)
    torch.testing.assert_close(one.second, two.second)


@pytest.mark.parametrize(("corners", "slack"), [(False, 1.1), (True, 1.2)])
def test_affine_distances_within_the_box(corners, slack):
    model, x = random_linear(3, 12), images(25, (12,))
    batch = labelled(model, (x > 0.5).float() if corners else x)
    result, exact = run(model, batch, queries=4000, rate=0.02), distance_in_the_box(model, batch, "l2")
    ratio = (result.distance / exact)[exact.isfinite()]
    assert float(ratio.nan_to_num(9.0).median()) < slack
    assert float(ratio[~ratio.isnan()].min()) >= 1 - 1e-5
    assert float(result.success.double().mean()) >= 0.9


def test_every_entry_has_its_turn():
    """24 entries, 7 a step: 7, 7, 7 and 3 make a pass, in which each is asked about twice."""
    model = mlp(inputs=24)
    model.network = asked = Asked(model.network)
    batch = labelled(model, images(1, (1, 3, 8)))
    asked.points.clear()
    run(model, batch, queries=1 + 2 * 24 + 4, entries=7)
    assert [len(points) for points in asked.points[1:-1]] == [1, 7, 7, 1, 7, 7, 1, 7, 7, 1, 3, 3, 1]
    here, turned = batch.x.flatten(1), []
    for points in (points.flatten(1) for points in asked.points[2:-1]):
        if len(points) > 1:
            turned += (points != here).nonzero()[:, 1].tolist()
        else:
            here = points
    assert sorted(turned) == sorted(list(range(24)) * 2)


@pytest.mark.parametrize("queries", [1, 2, 3, 4, 50, 333])
def test_the_bill_is_exact_and_the_budget_is_kept(queries):
    model = mlp()
    model.network = counter = Counting(model.network)
    batch = labelled(model, images(20))
    counter.forward_samples = 0
    result = run(model, batch, queries=queries, entries=5)
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert len(set(result.forward.tolist())) == 1
    assert queries - 2 <= int(result.forward[0]) <= queries


def test_more_queries_never_end_farther_and_an_eps_ends_it_early():
    """On budgets that end with whole steps: what more queries do begins as what fewer did."""
    model, last = mlp(), torch.full((30,), torch.inf).double()
    batch = labelled(model, images(30))
    for steps in (4, 20, 100):
        free = run(model, batch, queries=1 + 25 * steps)
        distance = free.distance.nan_to_num(torch.inf)
        assert bool((distance <= last * (1 + 1e-5)).all())
        last = distance
    assert bool(free.success.all())
    eps = float(free.distance.median())
    held = run(model, batch, queries=1 + 25 * 100, eps=eps)
    assert torch.equal(held.success, free.distance <= eps)
    assert float(held.forward[held.success].double().mean()) < 0.6 * (1 + 25 * 100)
    assert bool((held.forward[~held.success] == 1 + 25 * 100).all())


def test_neither_units_nor_shift_nor_scale_of_the_logits_matter():
    weight, x = torch.randn(3, 8, generator=torch.Generator().manual_seed(2)), images(20, (8,))
    plain = linear(weight, torch.zeros(3))
    scaled = linear(5 * weight / 8, 7.0 + 5 * 0.25 * weight.sum(1), Box(-2.0, 6.0))
    first, second = run(plain, labelled(plain, x)), run(scaled, labelled(scaled, 8 * x - 2))
    assert torch.equal(first.success, second.success)
    ratio = (8 * first.distance / second.distance)[first.success]
    assert float((ratio - 1).abs().median()) < 1e-3


def test_nothing_to_gain_is_no_number():
    model = linear(torch.zeros(2, 6), torch.tensor([3.0, 0.0]))
    batch = Batch.of(images(4, (6,)), torch.zeros(4, dtype=torch.int64))
    result = run(model, batch, queries=200)
    assert not bool(result.success.any())
    assert torch.equal(result.x_adv, batch.x)


def test_bad_settings_are_refused():
    for bad in ({"queries": 0}, {"entries": 0}, {"rate": 0.0}, {"penalty": -1.0}, {"width": 0.0}):
        with pytest.raises(UserError, match="zoo needs queries and entries >= 1, and a rate"):
            ZOO(**bad)
