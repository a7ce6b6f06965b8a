"""Decision regions: geometry of the plane, closed-form distances on linear nets, the same plane for all."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from bench.analysis.regions import SIDE, gradient_direction, orthogonal_direction, regions
from models.base import Batch, Classifier
from models.errors import UserError
from models.randomness import Randomness
from tests.builders import images, labelled, mlp, random_linear

R = Randomness(0)


def sample_of(model: Classifier, row: int = 0) -> Batch:
    x = images(8) if "mlp" in model.name else images(8, (24,))
    return labelled(model, x)[row : row + 1]


def two_classes(seed: int = 3) -> tuple[Classifier, Batch, float]:
    """A linear net of two classes, an image, and its l2 distance to the only boundary."""
    model = random_linear(2, 24, seed)
    sample = sample_of(model)
    with torch.no_grad():
        z = model.logits(sample.x.double().float())[0].double()
    weight = model.network.weight.detach().double()
    return model, sample, float((z[0] - z[1]).abs() / (weight[0] - weight[1]).norm())


def test_u_and_v_are_orthonormal() -> None:
    model = mlp()
    sample = sample_of(model)
    u = gradient_direction(model, sample)
    v = orthogonal_direction(u, R.normal(sample.index, sample.x.shape[1:])[0])
    assert abs(float((u * v).sum())) < 1e-14
    torch.testing.assert_close(torch.stack([u.norm(), v.norm()]), torch.ones(2, dtype=torch.float64))
    assert abs(regions([model], sample, R).cosine) < 1e-14


def test_u_is_the_direction_of_cross_entropy() -> None:
    model = mlp()
    sample = sample_of(model, 2)
    x = sample.x.double().requires_grad_(True)
    loss = nn.functional.cross_entropy(model.double()(x), sample.y)
    (slope,) = torch.autograd.grad(loss, x)
    found = gradient_direction(model.float(), sample)
    torch.testing.assert_close(found, slope[0] / slope.norm(), atol=1e-5, rtol=0)


def test_u_survives_confidence_where_cross_entropy_vanishes() -> None:
    model, sample, _ = two_classes()
    plain = gradient_direction(model, sample)
    with torch.no_grad():
        model.network.weight.mul_(1e4)
    x = sample.x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), sample.y), x)
    assert not slope.any()
    torch.testing.assert_close(gradient_direction(model, sample), plain, atol=1e-6, rtol=0)


def test_the_boundary_of_a_linear_net_is_a_straight_line_at_its_distance() -> None:
    model, sample, distance = two_classes()
    found = regions([model], sample, R)
    (plane,) = found.planes
    assert plane.ahead is not None
    assert plane.ahead.distance == pytest.approx(distance, rel=1e-5)
    assert plane.ahead.entered == 1 - int(sample.y[0])
    assert plane.behind is None
    # v is orthogonal to the gradient, so the line is parallel to it: every row is the same step at b = any.
    assert len({tuple(row) for row in plane.classes}) == 1
    places = [-found.reach + k * 2 * found.reach / (SIDE - 1) for k in range(SIDE)]
    assert plane.classes[0] == [plane.predicted if a < distance else plane.ahead.entered for a in places]


def test_another_net_on_the_same_plane_has_its_own_straight_line() -> None:
    """Brute force: the second model's weights projected on u and v say its class at every point."""
    first, sample, _ = two_classes(3)
    second = random_linear(4, 24, 8)
    found = regions([first, second], sample, R)
    u = gradient_direction(first, sample)
    v = orthogonal_direction(u, R.normal(sample.index, sample.x.shape[1:])[0])
    weight, bias = second.network.weight.detach().double(), second.network.bias.detach().double()
    still, along, up = (weight @ part for part in (sample.x[0].double(), u, v))
    steps = torch.linspace(-found.reach, found.reach, SIDE, dtype=torch.float64)
    grid = torch.tensor(found.planes[1].classes)
    logits = still + bias + steps[None, :, None] * along + steps[:, None, None] * up
    top = logits.topk(2, dim=2).values
    sure = top[..., 0] - top[..., 1] > 1e-4
    assert bool(sure.any())
    assert torch.equal(grid[sure], logits.argmax(2)[sure])
    crossings = [
        float((still + bias)[j] - (still + bias)[k]) / float(along[k] - along[j])
        for j, k in itertools.permutations(range(4), 2)
        if j == found.planes[1].predicted
    ]
    for end, sign in ((found.planes[1].ahead, 1), (found.planes[1].behind, -1)):
        expected = min((sign * t for t in crossings if sign * t > 0), default=float("inf"))
        if end is None:
            assert expected > found.far
        else:
            assert end.distance == pytest.approx(expected, rel=1e-4)


def test_the_centre_is_the_prediction_of_every_model() -> None:
    models = [mlp(seed=seed) for seed in range(4)]
    for row in range(4):
        sample = sample_of(models[0], row)
        for model, plane in zip(models, regions(models, sample, R).planes, strict=True):
            expected = int(model.logits(sample.x).argmax())
            assert plane.predicted == expected == plane.classes[SIDE // 2][SIDE // 2]


def test_the_plane_is_the_first_models_and_none_elses() -> None:
    """A model says the same on the plane whoever stands beside it, as long as the first one stays."""
    first, other, third = (mlp(seed=seed) for seed in range(3))
    sample = sample_of(first)
    pair, more = regions([first, other], sample, R), regions([first, other, third], sample, R)
    assert [plane.ahead for plane in pair.planes] == [plane.ahead for plane in more.planes[:2]]
    swapped = regions([other, first], sample, R)
    assert swapped.planes[1].ahead != pair.planes[0].ahead


def test_a_model_without_a_gradient_is_refused() -> None:
    flat = random_linear(3, 24)
    with torch.no_grad():
        flat.network.weight.zero_()
    with pytest.raises(UserError, match=r"no gradient at image 0: name another model first"):
        regions([flat], sample_of(random_linear(3, 24)), R)
