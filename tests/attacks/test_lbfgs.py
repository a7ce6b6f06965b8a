"""L-BFGS in the box: its minimiser is the minimiser, its weight the least one, its distance the exact one."""

from __future__ import annotations

import pytest
import torch

from attacks.access import GradientAccess
from attacks.deepfool import DeepFool
from attacks.lbfgs import BoxConstrainedLBFGS
from attacks.losses import aimed, cross_entropy
from attacks.nearest import Best
from defenses.zoo import ModelName, load
from models.base import Batch
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import exact_distance, images, labelled, mlp, random_linear

FREE = ThreatModel("l2", None)


def search(model, batch, *, eps=None, **settings):
    threat = ThreatModel("l2", eps, model.box)
    return BoxConstrainedLBFGS(**settings).run(model, batch, threat, Randomness(0))


@pytest.mark.parametrize("corners", [False, True])
def test_two_class_distances_within_the_box_are_exact(corners):
    model = random_linear(2, 20)
    x = images(12, (20,))
    batch = labelled(model, (x > 0.5).float() if corners else x)
    result, exact = search(model, batch), distance_in_the_box(model, batch, "l2")
    assert bool(result.success.all())
    assert bool((result.distance >= exact * (1 - 1e-5)).all())
    assert bool((result.distance <= exact * 1.03 + 1e-4).all())


def test_distances_in_another_box():
    model = random_linear(2, 20, box=Box(-6.0, 7.0))
    batch = labelled(model, images(8, (20,)))
    result, exact = search(model, batch), exact_distance(model, batch, "l2")
    assert bool((result.distance >= exact - 1e-5).all())
    assert bool((result.distance <= 1.03 * exact + 1e-4).all())


@pytest.mark.parametrize("weight", [0.05, 0.5])
def test_one_minimisation_beats_projected_gradient_descent(weight):
    """The objective at the minimiser against 3000 small projected steps on the same function."""
    model, aim = mlp(), torch.tensor([2])
    batch = Batch(images(1), torch.tensor([0]), torch.arange(1))

    def objective(z):
        return (z - batch.x).square().sum() + weight * cross_entropy(model.logits(z), aim).sum()

    # The label 0 and a prediction that differs make every point count, the minimiser last.
    best, row = Best.none(batch.x), torch.arange(1)
    attack = BoxConstrainedLBFGS(steps=100)
    seen: list[torch.Tensor] = []
    view = GradientAccess(model, 1)
    ask = view.logits
    view.logits = lambda x, rows: seen.append(x) or ask(x, rows)
    attack._minimise(
        view, batch, row, FREE, aimed("ce", batch.y, aim), weight, best, batch.x.double().flatten().numpy()
    )
    z = batch.x.clone()
    for _ in range(3000):
        z.requires_grad_(True)
        (slope,) = torch.autograd.grad(objective(z), z)
        z = (z - 0.01 * slope).detach().clamp(0, 1)
    with torch.no_grad():
        assert float(objective(seen[-1])) <= float(objective(z)) + 1e-4


@pytest.mark.slow
def test_nearer_than_deepfool_on_a_trained_network():
    model, data = load(ModelName.parse("conv-small")), load_data("mnist5k")
    batch = data.batch(data.panel(5))
    ours, deepfool = search(model, batch), DeepFool().run(model, batch, FREE, Randomness(0))
    assert bool(ours.success.all())
    assert float(ours.distance.mean()) < float(deepfool.distance.nanmean())


@pytest.mark.slow
def test_more_rounds_and_halvings_are_never_farther():
    model = mlp(seed=5)
    batch = labelled(model, images(8))
    coarse, fine, bisected = (
        search(model, batch, rounds=r, halvings=h).distance.nan_to_num(torch.inf)
        for r, h in ((2, 0), (8, 0), (8, 6))
    )
    assert bool((fine <= coarse).all())
    assert bool((bisected <= fine).all())
    assert float(bisected.sum()) < float(coarse.clamp(max=10).sum())


@pytest.mark.slow
def test_a_target_class_is_driven_at():
    model = mlp()
    batch = labelled(model, images(15))
    batch = batch[batch.y != 2]
    aimed_at = search(model, batch, target="2", halvings=0)
    free = search(model, batch)
    reached = model.logits(aimed_at.x_adv).argmax(1) == 2
    assert float(reached[aimed_at.success].float().mean()) > 0.7
    both = aimed_at.success & free.success
    assert float(aimed_at.distance[both].mean()) > float(free.distance[both].mean())


@pytest.mark.slow
@pytest.mark.parametrize("constant", [0.0, 25.0])
def test_scaling_inputs_scales_the_perturbation_and_a_constant_changes_nothing(constant):
    """A scale of 256 is exact; a constant rounds the logits, and a line search may end a step earlier."""
    small, large = mlp(), mlp()
    with torch.no_grad():
        large.network[1].weight /= 256
        large.network[3].bias += constant
    large.box = Box(0.0, 256.0)
    batch = labelled(small, images(40))
    a, b = search(small, batch), search(large, labelled(large, batch.x * 256))
    assert torch.equal(a.success, b.success)
    apart = ((b.distance / (256 * a.distance))[a.success] - 1).abs()
    if not constant:
        assert float(apart.max()) < 1e-4
    assert float(apart.median()) < 1e-2
    assert float((apart < 0.1).double().mean()) >= 0.9


def test_a_radius_is_respected():
    model = mlp()
    batch = labelled(model, images(8))
    free = search(model, batch)
    eps = float(free.distance.nanmedian())
    held = search(model, batch, eps=eps)
    assert bool(held.success[free.distance <= eps].all())
    assert float(held.distance[held.success].max()) <= eps


def test_bad_settings_are_users_errors():
    with pytest.raises(UserError, match="rounds and steps"):
        BoxConstrainedLBFGS(rounds=0)
    with pytest.raises(UserError, match="no target 'nearest'"):
        BoxConstrainedLBFGS(target="nearest")
