"""The losses and projections of the defences: closed forms, limits, and the quadratic program they solve."""

from __future__ import annotations

import cvxpy
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from defenses.adversarial_step_ll import AdversarialStepLL
from defenses.base import DEFENSES, Defense
from defenses.gaussian_noise import GaussianNoise
from defenses.gradient_penalty import GradientPenalty
from defenses.interval import IntervalTraining, generalised_cross_entropy
from defenses.l1_sparse import L1Sparse, project_rows
from defenses.mixup import Mixup
from defenses.trades import Trades, divergence
from models.base import Batch
from models.discover import import_modules
from models.errors import UserError
from models.randomness import Randomness

import_modules("defenses")
WITH_EPS = [name for name in DEFENSES if "eps" in DEFENSES[name]().parameters()]


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
        ).double()


def linear(seed: int = 0, classes: int = 2) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).double()


def batch(n: int = 6, classes: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(3)
    x = 0.3 + 0.4 * torch.rand(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    return Batch(x, torch.arange(n) % classes, torch.arange(n))


def value(defense: Defense, net: nn.Module, some: Batch, progress: float = 1.0) -> float:
    return float(defense.loss(net, some, progress, Randomness(0)).detach())


def clean(net: nn.Module, some: Batch) -> float:
    return float(functional.cross_entropy(net(some.x), some.y).detach())


@pytest.mark.parametrize(
    "defense",
    [
        Trades(beta=0.0),
        Trades(eps=0.0, beta=0.0),
        Mixup(alpha=0.0),
        GradientPenalty(beta=0.0),
        GaussianNoise(sigma=0.0),
        AdversarialStepLL(eps=0.0),
        AdversarialStepLL(alpha=1.0),
        L1Sparse(),
    ],
)
def test_without_its_ingredient_a_defence_is_ordinary_training(defense: Defense) -> None:
    net, some = network(), batch(classes=4)
    assert value(defense, net, some) == pytest.approx(clean(net, some), rel=1e-9)


def test_the_gradient_penalty_of_a_linear_two_class_network_has_a_closed_form() -> None:
    """grad_x J = (1 - p_y) (w_j - w_y): its squared norm is known without differentiating."""
    net, some = linear(), batch()
    weight = net[1].weight.detach()
    wrong = 1 - net(some.x).detach().softmax(1).gather(1, some.y[:, None])[:, 0]
    expected = (wrong**2).mean() * (weight[0] - weight[1]).square().sum()
    found = value(GradientPenalty(beta=7.0), net, some) - clean(net, some)
    assert found == pytest.approx(7 * float(expected), rel=1e-9)


def test_the_gradient_penalty_is_differentiated_twice() -> None:
    net, some, defense = network(), batch(classes=4), GradientPenalty(beta=3.0)
    weight = net[3].weight
    (gradient,) = torch.autograd.grad(defense.loss(net, some, 1.0, Randomness(0)), weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            weight += step * direction
        ends.append(value(defense, net, some))
        with torch.no_grad():
            weight -= step * direction
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


def test_the_divergence_is_the_sum_over_classes_and_zero_for_equals() -> None:
    p, q = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.2, 0.3, 0.5]]).log()
    assert float(divergence(p, q)) == pytest.approx(0.5 * np.log(2.5) + 0.2 * np.log(0.4), rel=1e-5)
    assert float(divergence(p, p)) == 0.0


def test_trades_finds_the_corner_that_changes_a_linear_prediction_most() -> None:
    """With two classes the divergence grows with |w . d|: its maximum is at one of two corners."""
    net, some, eps = linear(), batch(), 0.1
    difference = (net[1].weight[0] - net[1].weight[1]).detach().reshape(1, 4, 4)
    p = functional.log_softmax(net(some.x), 1).detach()
    corners = [some.x + sign * eps * difference.sign() for sign in (1, -1)]
    ends = [divergence(p, functional.log_softmax(net(x), 1)).detach() for x in corners]
    worst, least = (part.mean() for part in (torch.maximum(*ends), torch.minimum(*ends)))
    found = value(Trades(eps=eps, beta=1.0, steps=20, step_size=0.02), net, some) - clean(net, some)
    assert float(least) * (1 - 1e-9) <= found <= float(worst) * (1 + 1e-9)


def test_step_ll_moves_along_the_least_likely_classs_row() -> None:
    net, some, eps = linear(classes=2), batch(), 0.1
    weight = net[1].weight.detach().reshape(2, 1, 4, 4)
    target = net(some.x).argmin(1)
    moved = some.x + eps * (weight[target] - weight[1 - target]).sign()
    expected = float(functional.cross_entropy(net(moved), some.y).detach())
    assert value(AdversarialStepLL(eps=eps, alpha=0.0), net, some) == pytest.approx(expected, rel=1e-9)


def test_mixups_shares_follow_the_beta_distribution() -> None:
    for alpha in (0.3, 1.0, 4.0):
        generator = torch.Generator().manual_seed(0)
        draws = np.array([Mixup(alpha=alpha).share(generator) for _ in range(4000)])
        assert draws.mean() == pytest.approx(0.5, abs=0.03)
        assert draws.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_gaussian_noise_is_a_samples_own_and_changes_by_epoch() -> None:
    net, some, defense = network(), batch(classes=4), GaussianNoise(sigma=0.5)
    parts = [value(defense, net, some[slice(i, i + 1)]) for i in range(len(some))]
    assert value(defense, net, some) == pytest.approx(float(np.mean(parts)), rel=1e-9)
    assert value(defense, net, some) != float(defense.loss(net, some, 1.0, Randomness(1)))


@pytest.mark.parametrize("radius", [0.5, 2.0, 100.0])
def test_the_l1_projection_is_the_quadratic_programs_solution(radius: float) -> None:
    rows = torch.randn(5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for row, found in zip(rows, project_rows(rows, radius), strict=True):
        point = cvxpy.Variable(12)
        problem = cvxpy.Problem(
            cvxpy.Minimize(cvxpy.sum_squares(point - row.numpy())), [cvxpy.norm1(point) <= radius]
        )
        problem.solve(solver=cvxpy.CLARABEL)
        assert found.abs().sum() <= radius + 1e-9
        np.testing.assert_allclose(found.numpy(), point.value, atol=1e-5)


def test_l1_rows_bound_what_a_perturbation_does_to_the_logits() -> None:
    net, some, gamma, eps = network(), batch(classes=4), 0.7, 0.05
    L1Sparse(gamma=gamma).after_step(net)
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert float(module.weight.abs().flatten(1).sum(1).max()) <= gamma + 1e-12
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        d = eps * torch.randn(some.x.shape, generator=generator, dtype=torch.float64).sign()
        assert float((net(some.x + d) - net(some.x)).abs().max()) <= eps * gamma**2 + 1e-12


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Trades(eps=1.5),
        lambda: Trades(beta=-1),
        lambda: Mixup(alpha=-1),
        lambda: GradientPenalty(beta=-1),
        lambda: GaussianNoise(sigma=-1),
        lambda: L1Sparse(gamma=0),
        lambda: AdversarialStepLL(alpha=2),
    ],
)
def test_impossible_parameters_are_refused_before_any_training(wrong) -> None:
    with pytest.raises(UserError):
        wrong()


@pytest.mark.parametrize("name", WITH_EPS)
def test_every_defence_with_a_radius_refuses_one_beyond_the_box(name: str) -> None:
    for eps in (1.01, 8.0, -0.1, float("nan")):
        with pytest.raises(UserError, match=f"{name} (cannot train at radius|needs eps to be)"):
            DEFENSES[name](eps=eps)
    DEFENSES[name](eps=0.5)


def test_those_with_a_radius_are_the_ones_that_attack_or_prove() -> None:
    assert {"adversarial-fgsm", "adversarial-pgd", "interval", "polytope", "trades"} <= set(WITH_EPS)


@pytest.mark.parametrize("exponent", [0.3, 0.7, 1.0])
def test_generalised_cross_entropy_is_its_formula_and_bounded(exponent: float) -> None:
    logits = 9 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % 5
    share = logits.double().softmax(1).gather(1, y[:, None])[:, 0]
    expected = ((1 - share**exponent) / exponent).mean()
    assert float(generalised_cross_entropy(logits, y, exponent)) == pytest.approx(float(expected), rel=1e-5)
    hopeless = float(generalised_cross_entropy(torch.tensor([[-1e4, 1e4]]), torch.tensor([0]), exponent))
    assert hopeless == pytest.approx(1 / exponent)


def test_generalised_cross_entropy_goes_to_cross_entropy() -> None:
    logits, y = torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 4
    plain = float(functional.cross_entropy(logits, y))
    assert float(generalised_cross_entropy(logits, y, 0.0)) == plain
    assert float(generalised_cross_entropy(logits, y, 1e-4)) == pytest.approx(plain, rel=1e-3)


def test_interval_training_without_a_radius_is_generalised_cross_entropy_of_its_exponent() -> None:
    net, some = network(), batch(classes=4)
    expected = float(generalised_cross_entropy(net(some.x), some.y, 0.7).detach())
    assert value(IntervalTraining(eps=0.0, exponent=0.7), net, some) == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx(clean(net, some), rel=1e-2)
