"""The Brendel-Bethge attack: its subproblem against other solvers, its steps by hand, affine distances."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from attacks.brendel_bethge import BrendelBethge
from attacks.fmn import FastMinimumNorm
from attacks.trust_region import nearest_in_trust
from defenses.zoo import ModelName, load
from models.base import margin
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel, vector_norm
from tests.attacks.test_fmn import distance_in_the_box
from tests.builders import Asked, exact_distance, images, labelled, linear, mlp, random_linear

NORMS = ["l2", "linf", "l1", "l0"]


def search(model, batch, norm, eps=None, **settings):
    return BrendelBethge(**settings).run(model, batch, ThreatModel(norm, eps, model.box), Randomness(0))


def solved_by_slsqp(x, z, slope, gain, radius, norm, start):
    """The problem for one sample of numpy vectors, its norm written with auxiliary bounds t on |u - x|."""
    d, bounded = len(x), {"l2": 0, "linf": 1, "l1": len(x)}[norm]
    spread = np.ones((d, 1)) if norm == "linf" else np.eye(d)
    sides = np.block([[-np.eye(d), spread], [np.eye(d), spread]]) if bounded else None
    constraints = [
        {"type": "eq", "fun": lambda u: slope @ (u[:d] - z) - gain},
        {"type": "ineq", "fun": lambda u: radius**2 - ((u[:d] - z) ** 2).sum()},
    ]
    if bounded:
        constraints.append({"type": "ineq", "fun": lambda u: sides @ u - np.r_[-x, x]})
    away = np.abs(start - x)
    u = np.r_[start, {"l2": [], "linf": [away.max()], "l1": away}[norm]]
    result = minimize(
        lambda u: u[d:].sum() if bounded else ((u - x) ** 2).sum(),
        u,
        bounds=[(0, 1)] * d + [(0, None)] * bounded,
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    u = result.x[:d]
    feasible = abs(slope @ (u - z) - gain) < 1e-6 and ((u - z) ** 2).sum() <= radius**2 + 1e-7
    return u if feasible else None


def problems(n, d, seed=0):
    """Random x, z, slope, gain and radius: corners, entries of z left at x, and z near the hyperplane."""
    generator = torch.Generator().manual_seed(seed)
    x, z = (torch.rand(n, d, generator=generator).double() for _ in range(2))
    x[: n // 3] = (x[: n // 3] > 0.5).double()
    kept = torch.rand(n // 3, d, generator=generator) > 0.4
    z[n // 3 : 2 * (n // 3)] = torch.where(kept, x[n // 3 : 2 * (n // 3)], z[n // 3 : 2 * (n // 3)])
    slope = 3 * torch.randn(n, d, generator=generator).double()
    gain = 0.1 * torch.randn(n, generator=generator).double()
    return x, z, slope, gain, 0.05 + 0.6 * torch.rand(n, generator=generator).double()


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_the_subproblem_against_slsqp(norm):
    x, z, slope, gain, radius = problems(36, 8)
    u = nearest_in_trust(ThreatModel(norm, None), x, z, slope, gain, radius)
    ours, held, compared = vector_norm(u - x, norm), (u - z).norm(dim=1), 0
    assert bool((held <= radius * (1 + 1e-9)).all())
    assert bool(((u >= -1e-12) & (u <= 1 + 1e-12)).all())
    for i in range(len(x)):
        starts = [t[i].numpy() for t in (z, u)]
        sample = x[i].numpy(), z[i].numpy(), slope[i].numpy(), float(gain[i]), float(radius[i])
        theirs = [solved_by_slsqp(*sample, norm, start) for start in starts]
        theirs = [float(vector_norm((torch.tensor(v) - x[i])[None], norm)) for v in theirs if v is not None]
        if not theirs:
            continue
        assert abs(float(slope[i] @ (u[i] - z[i]) - gain[i])) < 1e-6
        assert float(ours[i]) <= min(theirs) + 1e-4
        compared += 1
    assert compared >= 25
    # The trust region is what holds most of them.
    assert int((held > 0.999 * radius).sum()) >= 15


def test_scaling_the_slope_or_the_space_scales_the_answer():
    x, z, slope, gain, radius = problems(30, 20, seed=1)
    for norm in ("l2", "linf", "l1", "l0"):
        plain = nearest_in_trust(ThreatModel(norm, None), x, z, slope, gain, radius)
        steep = nearest_in_trust(ThreatModel(norm, None), x, z, 1e4 * slope, 1e4 * gain, radius)
        torch.testing.assert_close(steep, plain, atol=1e-7, rtol=0)
        wide = ThreatModel(norm, None, Box(0.0, 256.0))
        large = nearest_in_trust(wide, 256 * x, 256 * z, slope, 256 * gain, 256 * radius)
        torch.testing.assert_close(large / 256, plain, atol=1e-7, rtol=0)


def fewest(x, z, slope, gain, radius):
    """The least number of entries of u unlike x, by all subsets; the others are put back."""
    least = None
    for changed in product((False, True), repeat=len(x)):
        mask = torch.tensor(changed)
        base = torch.where(mask, z, x)
        missing = float(gain - slope @ (base - z))
        sign = 1.0 if missing >= 0 else -1.0
        inner = sign * torch.where(mask, slope, 0.0)
        move, there = ThreatModel("l2", None).nearest_gain(
            base[None], inner[None], torch.tensor([abs(missing)])
        )
        if bool(there) and float((base + move[0] - z).norm()) <= radius + 1e-9:
            least = min(sum(changed), least if least is not None else len(x))
    return least


def test_the_subproblem_in_l0_is_near_the_best_of_all_subsets():
    x, z, slope, gain, radius = problems(24, 7, seed=2)
    z, radius = (
        torch.where(torch.rand(24, 7, generator=torch.Generator().manual_seed(5)) > 0.5, x, z),
        2 * radius,
    )
    gain = (slope * (x - z)).sum(1).clamp(min=0) + gain.abs() * 0.3
    u = nearest_in_trust(ThreatModel("l0", None), x, z, slope, gain, radius)
    excess = []
    for i in range(len(x)):
        least = fewest(x[i], z[i], slope[i], gain[i], float(radius[i]))
        if least is not None:
            assert float((u[i] - z[i]).norm()) <= float(radius[i]) * (1 + 1e-9)
            assert float(slope[i] @ (u[i] - z[i])) >= float(gain[i]) - 1e-6
            excess.append(int((u[i] != x[i]).sum()) - least)
    assert len(excess) >= 12
    assert min(excess) >= 0
    assert sum(more == 0 for more in excess) >= 0.6 * len(excess)


def test_without_a_solution_the_step_goes_towards_the_hyperplane():
    x, z = torch.zeros(1, 3).double(), torch.tensor([[0.5, 0.5, 0.5]]).double()
    slope, far = torch.tensor([[1.0, 0.0, 0.0]]).double(), torch.tensor([0.4]).double()
    for norm in NORMS:
        u = nearest_in_trust(ThreatModel(norm, None), x, z, slope, far, torch.tensor([0.1]).double())
        torch.testing.assert_close(u, torch.tensor([[0.6, 0.5, 0.5]]).double())
        none = nearest_in_trust(ThreatModel(norm, None), x, z, 0 * slope, far, torch.tensor([0.1]).double())
        torch.testing.assert_close(none, z)


@pytest.mark.parametrize(("momentum", "sample"), [(0.0, 4), (0.8, 4), (0.8, 7)])
def test_the_steps_are_the_papers(momentum, sample):
    """The points asked about, against the formulas spelt out with autograd and SLSQP."""
    model = mlp(classes=3, inputs=12).double()
    model.network[2] = nn.Tanh()
    with torch.no_grad():
        model.network[1].weight *= 3
    batch = labelled(model, images(8).double())[sample : sample + 1]
    network, model.network = model.network, Asked(model.network)
    settings = {"steps": 4, "radius": 0.3, "final": 0.5, "failure": 0.7}
    search(model, batch, "l2", momentum=momentum, **settings)
    asked = [point.flatten() for point in model.network.differentiated[-4:]]
    x, normal, nearest = batch.x.flatten(), None, float("inf")
    radius = 0.3 * float((asked[0] - x).norm())
    for step in range(3):
        z = asked[step].clone().requires_grad_(True)
        value = -margin(network(z.reshape(1, 1, 3, 4)), batch.y)[0]
        (slope,) = torch.autograd.grad(value, z)
        normal = slope if normal is None else momentum * normal + (1 - momentum) * slope
        distance = float((z.detach() - x).norm())
        nearer = bool(value > 0) and distance < nearest
        nearest = distance if nearer else nearest
        if step:
            radius *= (1.0 if nearer else 0.7) * 0.5**0.25
        gain = -float(value.detach()) * (0.9 if value > 0 else 1.1)
        at = asked[step].numpy()
        expected = solved_by_slsqp(x.numpy(), at, normal.numpy(), gain, radius, "l2", at)
        # What the attack adds for rounding is of the order of 1e-4.
        torch.testing.assert_close(asked[step + 1], torch.tensor(expected), atol=2e-4, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("corners", [False, True])
def test_affine_distances_within_the_box(norm, corners):
    model, x = random_linear(5, 30), images(30, (30,))
    batch = labelled(model, (x > 0.5).float() if corners else x)
    result = search(model, batch, norm, steps=30 if norm == "l0" else 60)
    exact = distance_in_the_box(model, batch, norm)
    assert bool(result.success.all())
    ratio = result.distance / exact
    assert float(ratio.min()) >= 1 - 1e-5
    assert float(ratio.quantile(0.9)) <= (1.0 if norm == "l0" else 1.01)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_affine_distances_where_the_box_is_far(norm):
    model = random_linear(4, 20, box=Box(-6.0, 7.0))
    batch = labelled(model, images(20, (20,)))
    ratio = search(model, batch, norm, steps=60).distance / exact_distance(model, batch, norm)
    assert float(ratio.min()) >= 1 - 1e-5
    assert float(ratio.max()) <= 1.01


def test_nearer_than_its_start_and_fmn_on_a_trained_network():
    model, data = load(ModelName.parse("conv-small")), load_data("mnist5k")
    batch = data.batch(data.panel(8))
    ours, start = search(model, batch, "l2", steps=100), search(model, batch, "l2", steps=1, halvings=0)
    theirs = FastMinimumNorm(steps=100).run(model, batch, ThreatModel("l2", None), Randomness(0))
    assert bool(ours.success.all())
    assert float(ours.distance.mean()) < 0.95 * float(start.distance.mean())
    assert float(ours.distance.mean()) < float(theirs.distance.mean())


def test_a_sample_leaves_once_its_trust_region_is_small():
    """13 halvings after the last nearer point."""
    model = random_linear(2, 10)
    batch = labelled(model, images(10, (10,)))
    assert int(search(model, batch, "l2", failure=0.5, final=1.0).backward.max()) <= 40
    assert int(search(model, batch, "l2", failure=1.0, final=1.0).backward.min()) >= 200


def test_one_run_gives_the_curve_and_an_eps_ends_it_early():
    model = mlp(classes=5, inputs=24, hidden=24)
    batch = labelled(model, images(40, (1, 3, 8)))
    free = search(model, batch, "l2", steps=50)
    for quantile in (0.3, 0.7):
        eps = float(free.distance.quantile(quantile))
        held = search(model, batch, "l2", eps=eps, steps=50)
        assert torch.equal(held.success, free.distance <= eps)
        done = held.success & held.clean
        assert float(held.backward[done].double().mean()) < 0.7 * float(free.backward[done].double().mean())


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_scaling_inputs_scales_the_perturbation(norm):
    small, large = mlp(), mlp()
    with torch.no_grad():
        large.network[1].weight /= 256
    large.box = Box(0.0, 256.0)
    batch = labelled(small, images(10))
    a = search(small, batch, norm, steps=30)
    b = search(large, labelled(large, batch.x * 256), norm, steps=30)
    assert torch.equal(a.success, b.success)
    torch.testing.assert_close(b.distance / 256, a.distance, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("constant", [-100.0, 20.0])
def test_a_constant_on_the_logits_changes_nothing(constant):
    model = mlp()
    batch = labelled(model, images(15))
    plain = search(model, batch, "l2", steps=50)
    with torch.no_grad():
        model.network[3].bias += constant
    moved = search(model, batch, "l2", steps=50)
    assert torch.equal(plain.success, moved.success)
    torch.testing.assert_close(plain.distance, moved.distance, rtol=2e-2, atol=3e-3)


def test_no_gradient_is_no_number():
    model = linear(torch.zeros(3, 6), torch.tensor([2.0, 0, 0]))
    result = search(model, labelled(model, images(5, (6,))), "l2", steps=20)
    assert not bool(result.success.any())
    assert bool(torch.isfinite(result.x_adv).all())


def test_bad_settings_are_users_errors():
    for bad in ({"radius": 0.0}, {"final": 1.5}, {"failure": 0.0}):
        with pytest.raises(UserError, match="brendel-bethge needs radius > 0"):
            BrendelBethge(**bad)
    for bad in ({"momentum": 1.0}, {"overshoot": 0.5}):
        with pytest.raises(UserError, match="brendel-bethge needs momentum in"):
            BrendelBethge(**bad)
