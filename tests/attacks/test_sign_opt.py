"""Sign-OPT: its slopes, rays and line search in closed form, exact on affine models, on an exact bill."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.access import LabelAccess
from attacks.oracle import Oracle
from attacks.sign_opt import SignOPT, descent, search, shorter
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import WIDE, exact_distance, images, labelled, linear, random_linear


def run(model, batch, *, queries=1500, eps=None, **settings):
    threat = ThreatModel("l2", eps, model.box)
    return SignOPT(queries=queries, **settings).run(model, batch, threat, Randomness(0))


class Plane:
    """An affine model of two classes: on a ray theta the boundary lies at gap / (normal . theta)."""

    def __init__(self, n: int = 12, d: int = 10, queries: int = 10_000) -> None:
        model = random_linear(2, d, box=WIDE)
        self.batch = labelled(model, images(n, (d,)))
        weight = model.network.weight.detach()
        self.normal = (weight[1 - self.batch.y] - weight[self.batch.y]) / (weight[1] - weight[0]).norm()
        self.gap = exact_distance(model, self.batch, "l2").float()
        self.oracle = Oracle(LabelAccess(model, n), self.batch, ThreatModel("l2", None, WIDE), queries)
        self.rows = torch.arange(n)
        self.theta = nn.functional.normalize(self.normal + 0.2 * torch.randn(n, d, generator=self._seed(3)))
        self.other = nn.functional.normalize(self.normal + 0.2 * torch.randn(n, d, generator=self._seed(4)))

    def _seed(self, seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def radius(self, theta):
        return self.gap / (self.normal * theta).sum(1)

    def point(self, theta):
        return self.batch.x + 1.000002 * self.radius(theta)[:, None] * theta


def test_the_signs_add_up_to_the_slope_of_the_distance():
    """On a plane -grad g is the normal without its part along theta; each sample pays for its labels."""
    plane = Plane()
    way = descent(plane.oracle, plane.point(plane.theta), plane.rows, 1e-2, 3000, Randomness(0))
    along = (plane.normal * plane.theta).sum(1, keepdim=True)
    expected = nn.functional.normalize(plane.normal - along * plane.theta)
    across = way - (way * plane.theta).sum(1, keepdim=True) * plane.theta
    cosine = (nn.functional.normalize(across) * expected).sum(1)
    assert float(cosine.min()) > 0.95
    torch.testing.assert_close(way.norm(dim=1), torch.ones(12))
    assert set(plane.oracle.left.tolist()) == {7000}


def test_one_label_turns_down_a_ray_and_twenty_more_measure_one():
    plane = Plane(n=40)
    found, nearer = shorter(plane.oracle, plane.point(plane.theta), plane.rows, 3 * plane.other)
    first, second = plane.radius(plane.theta), plane.radius(plane.other)
    assert torch.equal(nearer, second < first)
    assert 5 < int(nearer.sum()) < 35
    expected = torch.where(nearer[:, None], plane.point(plane.other), plane.point(plane.theta))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(10_000 - plane.oracle.left, torch.where(nearer, 21, 1))


def test_the_line_search_doubles_while_it_gains():
    """Towards the normal (theta + s normal) the distance falls without end: every label is spent on it."""
    plane = Plane(queries=21 * 5)
    point, step = search(
        plane.oracle, plane.point(plane.theta), plane.rows, plane.normal, torch.full((12,), 0.2)
    )
    torch.testing.assert_close(step, torch.full((12,), 3.2))
    best = nn.functional.normalize(plane.theta + 3.2 * plane.normal)
    torch.testing.assert_close((point - plane.batch.x).norm(dim=1), plane.radius(best), rtol=1e-4, atol=0)


def test_the_line_search_shrinks_its_step_by_four_and_gives_up():
    """Away from the normal nothing is gained at 0.2 / 4^k down to the first step below 1e-4: seven labels."""
    plane = Plane()
    start = plane.point(plane.theta)
    point, step = search(plane.oracle, start, plane.rows, -plane.normal, torch.full((12,), 0.2))
    assert torch.equal(point, start)
    torch.testing.assert_close(step, torch.full((12,), 0.2))
    assert set((10_000 - plane.oracle.left).tolist()) == {7}


def test_the_line_search_stops_where_a_longer_step_is_farther():
    """From theta along way the best direction is passed: the last gain is kept, and one label lost beyond."""
    plane = Plane(n=1)
    way = nn.functional.normalize(torch.randn(1, 10, generator=torch.Generator().manual_seed(6)))
    way = way - (way * plane.normal).sum() * plane.normal
    theta = nn.functional.normalize(plane.normal - 0.9 * way)
    point, step = search(plane.oracle, plane.point(theta), plane.rows, way, torch.full((1,), 0.1))
    sizes = 0.1 * 2 ** torch.arange(6.0)
    turned = nn.functional.normalize(theta + sizes[:, None] * way)
    radius = plane.gap / (turned * plane.normal).sum(1)
    last = int((radius[1:] >= radius[:-1]).nonzero()[0])
    assert float(step) == pytest.approx(float(sizes[last]))
    assert float((point - plane.batch.x).norm()) == pytest.approx(float(radius[last]), rel=1e-4)


@pytest.mark.parametrize(("classes", "most"), [(2, 1.03), (3, 1.25)])
def test_affine_models_nearly_exactly(classes, most):
    model = random_linear(classes, 10, box=Box(-4.0, 5.0))
    batch = labelled(model, images(30, (10,)))
    ratio = run(model, batch).distance / exact_distance(model, batch, "l2")
    assert float(ratio.min()) >= 1 - 1e-6
    assert float(ratio.median()) <= 1.01
    assert float(ratio.max()) <= most


@pytest.mark.parametrize("corners", [False, True])
def test_the_box_is_counted_on(corners):
    model, x = random_linear(2, 20), images(30, (20,))
    batch = labelled(model, (x > 0.5).float() if corners else x)
    exact = distance_in_the_box(model, batch, "l2")
    ratio = (run(model, batch).distance / exact)[exact.isfinite()]
    assert float(ratio.min()) >= 1 - 1e-6
    assert float(ratio.median()) <= 1.1
    assert float(ratio.max()) <= 1.5


def test_a_model_of_one_label_costs_the_tries_and_fails():
    model = linear(torch.zeros(2, 6), torch.tensor([3.0, 0.0]))
    result = run(model, Batch.of(images(4, (6,)), torch.zeros(4, dtype=torch.int64)), tries=30)
    assert not bool(result.success.any())
    assert set(result.forward.tolist()) == {30}


def test_the_box_is_a_unit_and_a_shift_of_all_logits_is_nothing():
    weight, x = torch.randn(3, 8, generator=torch.Generator().manual_seed(2)), images(20, (8,))
    plain = linear(weight, torch.zeros(3))
    scaled = linear(weight / 8, torch.full((3,), 4.0), Box(0.0, 8.0))
    first, second = run(plain, labelled(plain, x)), run(scaled, labelled(scaled, 8 * x))
    torch.testing.assert_close(8 * first.distance, second.distance, equal_nan=True, rtol=2e-2, atol=0)


def test_bad_settings_are_refused():
    for bad in ({"queries": 0}, {"tries": 0}, {"directions": -1}):
        with pytest.raises(UserError, match="queries >= 1, tries >= 1"):
            SignOPT(**bad)
    for bad in ({"step": 0.0}, {"smoothing": 0.0}, {"smoothing": 2.0}):
        with pytest.raises(UserError, match="a smoothing from 1e-5 to 1"):
            SignOPT(**bad)
    for samples in (0, 10_001):
        with pytest.raises(UserError, match="samples from 1 to 10000"):
            SignOPT(samples=samples)
