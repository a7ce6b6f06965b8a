"""The boundary attack: its moves by geometry, exact on affine models, from labels alone, on an exact bill."""

from __future__ import annotations

import pytest
import torch

from attacks.boundary import BoundaryAttack, adapted, inwards, sideways
from defenses.zoo import ModelName, load
from models.base import Batch
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import UNIT_BOX, Box, ThreatModel
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import WIDE, exact_distance, images, labelled, linear, mlp, random_linear


def run(model, batch, *, queries=700, eps=None, **settings):
    threat = ThreatModel("l2", eps, model.box)
    return BoundaryAttack(queries=queries, **settings).run(model, batch, threat, Randomness(0))


def test_the_orthogonal_move_stays_on_the_sphere_and_is_orthogonal():
    x, z, draw = images(30), images(30, seed=2), images(30, seed=3)
    size = torch.linspace(0.01, 0.5, 30)
    moved = (sideways(x, z, draw, size, WIDE) - x).flatten(1)
    away = (z - x).flatten(1)
    torch.testing.assert_close(moved.norm(dim=1), away.norm(dim=1))
    cosine = (moved * away).sum(1) / moved.norm(dim=1) / away.norm(dim=1)
    torch.testing.assert_close(cosine, 1 / (1 + size.square()).sqrt())
    # Where to: the part of the draw that is orthogonal to z - x.
    basis = torch.linalg.qr(torch.stack([away, draw.flatten(1)], 2)).Q
    outside = moved - ((moved[:, None] @ basis) @ basis.mT)[:, 0]
    assert float(outside.norm(dim=1).max()) < 1e-5
    assert bool(((moved - away) * draw.flatten(1)).sum(1).sign().ne(0).all())


def test_the_orthogonal_move_is_cut_off_by_the_box():
    x, z = images(10), (images(10, seed=2) > 0.5).float()
    point = sideways(x, z, images(10, seed=3) - 0.5, torch.full((10,), 0.3), UNIT_BOX)
    assert bool(UNIT_BOX.contains(point).all())
    assert bool((ThreatModel("l2", None).distance(x, point) < ThreatModel("l2", None).distance(x, z)).all())


def test_the_step_inwards_is_along_the_segment():
    x, z = images(8), images(8, seed=2)
    distance = ThreatModel("l2", None).distance(x, z).float()
    part = torch.linspace(0.1, 1.2, 8)
    found = inwards(x, z, part * distance)
    expected = x + part.clamp(max=1.0)[:, None, None, None] * (z - x)
    torch.testing.assert_close(found, expected)


def test_a_length_is_still_where_the_wanted_share_succeeds():
    size = torch.full((1,), 0.01)
    for success in [True, False, False, False] * 3:
        size = adapted(size, torch.tensor([success]), 0.25)
    assert float(size) == pytest.approx(0.01, rel=1e-5)
    assert float(adapted(size, torch.tensor([True]), 0.25)) == pytest.approx(0.01 * 1.0778842, rel=1e-5)
    assert float(adapted(size, torch.tensor([False]), 0.25)) == pytest.approx(0.01 * 0.9753099, rel=1e-5)
    assert float(adapted(torch.full((1,), 0.5), torch.tensor([True]), 0.25)) == 0.5


@pytest.mark.parametrize(("classes", "most"), [(2, 1.01), (3, 1.2)])
def test_affine_models_nearly_exactly(classes, most):
    """With three classes a few walks end at the farther of two boundaries."""
    model = random_linear(classes, 10, box=Box(-4.0, 5.0))
    batch = labelled(model, images(40, (10,)))
    result = run(model, batch)
    ratio = result.distance / exact_distance(model, batch, "l2")
    assert float(ratio.min()) >= 1 - 1e-6
    assert float(ratio.median()) <= 1.003
    assert float(ratio.max()) <= most


@pytest.mark.parametrize("corners", [False, True])
def test_the_box_is_counted_on(corners):
    model, x = random_linear(2, 20), images(40, (20,))
    batch = labelled(model, (x > 0.5).float() if corners else x)
    exact = distance_in_the_box(model, batch, "l2")
    ratio = (run(model, batch, queries=1000).distance / exact)[exact.isfinite()]
    assert float(ratio.min()) >= 1 - 1e-6
    assert float(ratio.median()) <= 1.01
    assert float(ratio.max()) <= 1.2


def test_no_sample_is_lost_to_rounding_however_long_the_walk():
    """The nearest of thousands of points lies on the boundary itself: what is handed over must not."""
    model = random_linear(5, 20)
    batch = labelled(model, images(100, (20,)))
    result = run(model, batch, queries=2000)
    assert bool(result.success.all())
    assert int(result.forward.min()) < 1500, "a walk that has converged ends"


def test_samples_inside_the_ball_leave():
    batch = labelled(mlp(), images(40))
    free = run(mlp(), batch)
    eps = float(free.distance.median()) * 1.05
    bound = run(mlp(), batch, eps=eps)
    assert torch.equal(bound.success, free.distance <= eps)
    assert int(bound.forward[bound.success].double().median()) < 400
    assert bool((bound.distance[bound.success] <= eps).all())


def test_a_model_of_one_label_costs_the_tries_and_fails():
    model = linear(torch.zeros(2, 6), torch.tensor([3.0, 0.0]))
    result = run(model, Batch.of(images(4, (6,)), torch.zeros(4, dtype=torch.int64)), tries=30)
    assert not bool(result.success.any())
    assert set(result.forward.tolist()) == {30}


def test_a_single_input_has_no_way_around():
    model = linear(torch.tensor([[1.0], [0.0]]), torch.tensor([0.0, 0.3]))
    result = run(model, labelled(model, torch.tensor([[0.5], [0.9], [0.1]])))
    torch.testing.assert_close(result.distance, torch.tensor([0.2, 0.6, 0.2]).double(), rtol=1e-3, atol=0)


def test_the_box_is_a_unit_and_a_shift_of_all_logits_is_nothing():
    weight, x = torch.randn(3, 8, generator=torch.Generator().manual_seed(2)), images(20, (8,))
    plain = linear(weight, torch.zeros(3))
    scaled = linear(weight / 8, torch.full((3,), 4.0), Box(0.0, 8.0))
    first, second = run(plain, labelled(plain, x)), run(scaled, labelled(scaled, 8 * x))
    torch.testing.assert_close(8 * first.distance, second.distance, equal_nan=True, rtol=5e-3, atol=0)


def test_the_papers_rate_ends_farther_on_a_trained_network():
    """What the deviation in `orthogonal_rate` stands on."""
    model, data = load(ModelName.parse("conv-small")), load_data("mnist5k")
    batch = data.batch(data.panel(6))
    ours, published = (run(model, batch, queries=300, orthogonal_rate=rate) for rate in (0.25, 0.5))
    assert bool(ours.success.all())
    assert float(ours.distance.mean()) < float(published.distance.nanmean())


def test_bad_settings_are_refused():
    for bad in ({"queries": 0}, {"tries": 0}):
        with pytest.raises(UserError, match="queries >= 1"):
            BoundaryAttack(**bad)
    for bad in ({"source_step": 0.0}, {"orthogonal_step": 0.6}):
        with pytest.raises(UserError, match="a source_step and an orthogonal_step"):
            BoundaryAttack(**bad)
    for rate in (0.0, 1.0):
        with pytest.raises(UserError, match="orthogonal_rate between 0 and 1"):
            BoundaryAttack(orthogonal_rate=rate)
