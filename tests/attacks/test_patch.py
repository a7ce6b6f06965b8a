"""Patches: bit-exact outside the mask, closed forms on linear models, the best window by brute force."""

from __future__ import annotations

import itertools

import pytest
import torch

from attacks.patch import Masked, Patch, most_promising, square_size, window_mask
from attacks.pgd import PGD
from models.base import Classifier
from models.errors import UserError
from models.pixels import FreePixels
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.builders import Counting, images, labelled, linear, mlp

EPS = {"linf": 1.0, "l2": 1.0}


def flat_linear(classes: int = 2, shape=(1, 6, 6), seed: int = 0, box: Box | None = None) -> Classifier:
    """A linear classifier of images (n, *shape)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.Size(shape).numel()
    weight = torch.randn(classes, inputs, generator=generator)
    bias = -0.5 * weight.sum(1)
    inner = linear(weight, bias) if box is None else linear(weight, bias, box)
    inner.network = torch.nn.Sequential(torch.nn.Flatten(), inner.network)
    return inner


def best_gain(model: Classifier, x, y, mask, eps: float) -> float:
    """The greatest rise of z_other - z_y of a two-class linear model in the mask, ball linf and unit box."""
    weight = model.network[1].weight.detach().double()
    slope = ((weight[1 - y] - weight[y]).reshape(x.shape) * mask).double()
    room = torch.where(slope > 0, (1 - x.double()).clamp(max=eps), -x.double().clamp(max=eps))
    return float((slope * room).sum())


def changed(result, batch):
    return result.x_adv != batch.x


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nothing_changes_outside_one_window(norm):
    model = mlp(inputs=64)
    batch = labelled(model, images(40, (1, 8, 8)))
    attack = Patch(area=0.15)
    result = attack.run(model, batch, ThreatModel(norm, EPS[norm]), Randomness(0))
    height, width = square_size(batch.x, 0.15)
    assert (height, width) == (3, 3)
    assert 3 < int(result.success.sum()) < 40
    for moved in changed(result, batch)[:, 0]:
        where = moved.nonzero()
        assert len(where) == 0 or bool((where.amax(0) - where.amin(0) < torch.tensor([3, 3])).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_mask_is_kept_to_the_bit(norm):
    model = mlp(inputs=64)
    batch = labelled(model, images(40, (1, 8, 8)))
    mask = images(1, (8, 8), seed=4)[0] < 0.3
    result = Masked(mask=mask).run(model, batch, ThreatModel(norm, EPS[norm]), Randomness(0))
    assert not bool(changed(result, batch)[:, :, ~mask].any())
    assert bool(changed(result, batch)[result.success][:, :, mask].flatten(1).any(1).all())
    assert int(result.success.sum()) > 3
    assert bool(result.legal.all())


@pytest.mark.parametrize("eps", [0.15, 0.3])
def test_linear_models_fall_exactly_where_the_mask_allows_it(eps):
    model = flat_linear()
    batch = labelled(model, images(60, (1, 6, 6)))
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[1:4, 2:5] = True
    result = Masked(mask=mask, steps=60).run(model, batch, ThreatModel("linf", eps), Randomness(0))
    z = model.logits(batch.x).detach().double()
    expected = [
        best_gain(model, batch.x[i], int(y), mask, eps) > float(z[i, y] - z[i, 1 - y])
        for i, y in enumerate(batch.y.tolist())
    ]
    assert 2 < sum(expected) < 58
    assert result.success.tolist() == expected


def test_the_first_window_is_the_best_of_all():
    model = flat_linear()
    batch, threat = labelled(model, images(30, (1, 6, 6))), ThreatModel("linf", 0.7)
    weight = model.network[1].weight.detach()
    slope = (weight[1 - batch.y] - weight[batch.y]).reshape(batch.x.shape)
    top, left = most_promising(batch.x, slope, threat, (2, 3))
    for i, y in enumerate(batch.y.tolist()):
        gains = {}
        for corner in itertools.product(range(5), range(4)):
            mask = window_mask(batch.x[i : i + 1], *(torch.tensor([c]) for c in corner), (2, 3))[0]
            gains[corner] = best_gain(model, batch.x[i], y, mask, 0.7)
        assert max(gains, key=gains.get) == (int(top[i]), int(left[i]))


def test_two_classes_need_one_place_only():
    """On a linear model the first window is the best one: more places break nothing more."""
    model = flat_linear()
    batch, threat = labelled(model, images(60, (1, 6, 6))), ThreatModel("linf", 0.5)
    one, five = (
        Patch(area=0.06, places=places).run(model, batch, threat, Randomness(0)) for places in (1, 5)
    )
    assert torch.equal(one.success, five.success)
    assert 5 < int(one.success.sum()) < 60


def test_success_rises_with_the_area_up_to_that_of_pgd():
    model = mlp(inputs=64)
    batch, threat = labelled(model, images(60, (1, 8, 8))), ThreatModel("linf", 0.2)
    found = [
        int(Patch(area=area).run(model, batch, threat, Randomness(0)).success.sum())
        for area in (0.02, 0.1, 0.3, 1.0)
    ]
    assert found == sorted(found)
    assert found[0] < found[-1]
    whole = PGD(restarts=1).run(model, batch, threat, Randomness(0)).success
    assert found[-1] == int(whole.sum())


def test_the_bill_is_exact():
    model = mlp(inputs=64)
    counter = Counting(model.network)
    model.network = counter
    batch = labelled(model, images(40, (1, 8, 8)))
    counter.forward_samples = counter.backward_samples = 0
    result = Patch(places=2, steps=10).run(model, batch, ThreatModel("linf", 0.5), Randomness(0))
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == int(result.backward.sum())
    assert set(result.forward[~result.success].tolist()) == {1 + 2 * 11}
    assert int(result.forward[result.success].min()) < 12


def test_the_box_is_a_unit():
    box = Box(-3.0, 5.0)
    plain, scaled = flat_linear(3), flat_linear(3, box=box)
    layer = scaled.network[1]
    with torch.no_grad():
        layer.bias.copy_(layer.bias + layer.weight.sum(1) * 3 / 8)
        layer.weight.div_(8)
    x = images(40, (1, 6, 6))
    first = Patch().run(plain, labelled(plain, x), ThreatModel("linf", 0.5), Randomness(0))
    second = Patch().run(scaled, labelled(scaled, 8 * x - 3), ThreatModel("linf", 4.0, box), Randomness(0))
    assert torch.equal(first.success, second.success)
    assert 1 < int(first.success.sum()) < 40


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 1, 12), (1, 1)), ((3, 10, 10), (3, 3)), ((1, 4, 30), (3, 4))]
)
def test_windows_cover_their_share(shape, size):
    assert square_size(images(1, shape), 0.1) == size


def test_bad_settings_are_refused():
    for bad in ({"area": 0.0}, {"area": 1.1}, {"places": 0}):
        with pytest.raises(UserError, match="area in"):
            Patch(**bad)
    with pytest.raises(UserError, match="has no loss"):
        Patch(loss="hinge")
    batch = labelled(mlp(), images(3))
    with pytest.raises(UserError, match=r"the mask has shape \(5, 5\) but an input has \(1, 3, 4\)"):
        Masked(mask=torch.ones(5, 5)).run(mlp(), batch, ThreatModel("linf", 0.1), Randomness(0))


def test_the_threat_patch_bounds_the_window_and_frees_its_entries():
    model = mlp()
    batch = labelled(model, images(40))
    threat = FreePixels("patch", 0.4)
    result = Patch().run(model, batch, threat, Randomness(0))
    assert bool(result.legal.all())
    assert float(result.distance.nan_to_num(0).max()) == 4 / 12
    free = Patch(area=4 / 12).run(model, batch, ThreatModel("linf", 1.0), Randomness(0))
    assert torch.equal(result.x_adv, free.x_adv)
    assert int(result.success.sum()) > 5
    none = Patch().run(model, batch, FreePixels("patch", 0.05), Randomness(0))
    assert torch.equal(none.x_adv, batch.x)


@pytest.mark.parametrize("attack", [Patch(), Masked(mask=torch.arange(36).reshape(6, 6) < 18)])
def test_a_network_that_is_sure_falls_as_the_same_network_that_is_not(attack):
    """On two classes cross-entropy and margin rise together; a scale of 2^20 leaves the former no slope."""
    model, sure = flat_linear(), flat_linear()
    with torch.no_grad():
        for parameter in sure.network.parameters():
            parameter.mul_(2.0**20)
    batch = labelled(model, images(30, (1, 6, 6)))
    threat = FreePixels("patch", 0.03) if isinstance(attack, Patch) else ThreatModel("linf", 0.1)
    usual, found = (attack.run(one, batch, threat, Randomness(0)) for one in (model, sure))
    assert 3 < int(usual.success.sum()) < 28
    assert torch.equal(found.success, usual.success)
