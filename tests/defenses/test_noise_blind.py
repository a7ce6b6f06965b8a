"""Noise-blind training: what each kind is, the adversary's optimum and its gradient, and fresh probes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.noise_blind import KINDS, NoiseBlind, best_probe, perturbed, with_features
from defenses.training import train
from defenses.zoo import ModelName
from models.base import Batch
from models.data import Dataset
from models.errors import UserError
from models.randomness import Randomness
from models.recipe import Recipe


def toy(seed: int = 0, n: int = 600) -> Dataset:
    """n images of 10x10 whose brighter third tells their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    pixels = torch.randint(0, 90, (n, 1, 9, 9), generator=generator)
    for label in range(3):
        pixels[labels == label, :, 3 * label : 3 * label + 3] += 120
    return Dataset("toy", pixels.to(torch.uint8), labels, 3)


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(81, 24), nn.ReLU(), nn.Linear(24, 3))


def batch(seed: int = 0, n: int = 600) -> Batch:
    return toy(seed, n).batch(torch.arange(n))


def test_every_kind_is_what_it_says_and_all_are_as_frequent() -> None:
    net, some = network(), batch()
    x, kinds = perturbed(net, some, 0.1, Randomness(0))
    counts = torch.bincount(kinds, minlength=5)
    assert bool((counts - 120).abs().max() <= 40)
    moved = {name: (x - some.x)[kinds == i] for i, name in enumerate(KINDS)}
    assert float(moved["clean"].abs().max()) == 0
    assert float(moved["fgsm"].abs().max()) == pytest.approx(0.1, rel=1e-4)
    interior = (some.x > 0.3) & (some.x < 0.7)
    noise = moved["noise"][interior[kinds == 3]]
    assert float(noise.std()) == pytest.approx(0.1, rel=0.05)
    fooled = kinds == 2
    assert bool((net(x)[fooled].argmax(1) != some.y[fooled]).double().mean() > 0.9)
    assert bool((moved["rotation"].flatten(1).abs().amax(1) > 0.01).double().mean() > 0.9)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1


def test_kinds_belong_to_the_sample_and_change_by_epoch() -> None:
    net, some = network(), batch(n=40)
    x, kinds = perturbed(net, some, 0.1, Randomness(0))
    parts = [perturbed(net, some[i : i + 1], 0.1, Randomness(0)) for i in range(40)]
    assert torch.equal(kinds, torch.cat([part[1] for part in parts]))
    assert torch.allclose(x, torch.cat([part[0] for part in parts]), atol=1e-5)
    assert not torch.equal(kinds, perturbed(net, some, 0.1, Randomness(1))[1])


def test_the_features_are_what_the_last_layer_reads() -> None:
    net, some = network(), batch(n=10)
    logits, hidden = with_features(net, some.x)
    assert torch.equal(logits, net(some.x))
    assert torch.equal(net[3](hidden), logits)
    assert not net[3]._forward_pre_hooks


def features(n: int = 80, d: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(n) % 5
    hidden = torch.randn(n, d, generator=generator, dtype=torch.float64)
    hidden[:, 0] += kinds * 0.5
    return hidden, kinds


def test_the_adversary_guesses_where_there_is_nothing_to_see_and_wins_where_there_is() -> None:
    _, kinds = features()
    blind = torch.zeros(80, 6, dtype=torch.float64)
    assert float(best_probe(blind, kinds)) == pytest.approx(math.log(5), rel=1e-6)
    telling = functional.one_hot(kinds, 5).double()
    assert float(best_probe(telling, kinds).detach()) < 0.2
    hidden, _ = features()
    found = float(best_probe(hidden, kinds))
    assert found < math.log(5)
    generator = torch.Generator().manual_seed(1)
    scaled = (hidden - hidden.mean(0)) / hidden.std(0)
    for spread in (0.01, 0.1, 1.0):
        rival = spread * torch.randn(6, 5, generator=generator, dtype=torch.float64)
        value = functional.cross_entropy(scaled @ rival, kinds) + 5e-4 * rival.square().sum()
        assert found < float(value)


def test_what_reaches_the_features_is_the_slope_of_the_adversarys_optimum() -> None:
    """Central differences of the minimum itself, which is solved anew at both ends."""
    hidden, kinds = features()
    scale = hidden.std(0)
    leaf = hidden.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(best_probe(leaf, kinds), leaf)
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(hidden.shape, generator=generator, dtype=torch.float64)
    # The scaling to mean 0 and variance 1 is not differentiated: a direction that leaves both alone.
    centred = (hidden - hidden.mean(0)) / scale
    direction -= direction.mean(0)
    direction -= centred * (direction * centred).sum(0) / centred.square().sum(0)
    ends = [float(best_probe(hidden + step * direction, kinds)) for step in (1e-4, -1e-4)]
    slope = (ends[0] - ends[1]) / 2e-4
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-3, abs=1e-6)


def test_the_loss_is_the_tasks_less_the_adversarys() -> None:
    net, some = network(), batch(n=100)
    x, kinds = perturbed(net, some, 0.1, Randomness(0))
    logits, hidden = with_features(net, x)
    task, adversary = functional.cross_entropy(logits, some.y), best_probe(hidden, kinds)
    for weight, progress in ((0.0, 1.0), (0.7, 0.0), (0.7, 0.3)):
        rise = 2 / (1 + math.exp(-10 * progress)) - 1
        expected = float((task - weight * rise * adversary).detach())
        found = NoiseBlind(weight=weight).loss(net, some, progress, Randomness(0))
        assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


def fresh_probe(net: nn.Module) -> tuple[float, float]:
    """How well a new probe, fitted on frozen features, names the kind of unseen images; and the task."""
    parts = []
    for seed in (1, 2):
        some = batch(seed)
        x, kinds = perturbed(net, some, 0.1, Randomness(seed))
        logits, hidden = with_features(net, x)
        parts.append((hidden.detach(), kinds, float((logits.argmax(1) == some.y).double().mean())))
    (fit, fit_kinds, _), (held, held_kinds, task) = parts
    mean, deviation = fit.mean(0), fit.std(0).clamp(min=1e-6)
    probe = nn.Linear(fit.shape[1], 5)
    nn.init.zeros_(probe.weight)
    optimizer = torch.optim.Adam(probe.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        functional.cross_entropy(probe((fit - mean) / deviation), fit_kinds).backward()
        optimizer.step()
    found = probe((held - mean) / deviation).argmax(1)
    return float((found == held_kinds).double().mean()), task


@pytest.mark.slow
def test_a_fresh_probe_falls_towards_guessing_while_the_task_holds() -> None:
    results = []
    for weight in (0.0, 1.0):
        net = network()
        recipe = Recipe(epochs=30, batch_size=300, learning_rate=1e-2)
        for _ in train(net, NoiseBlind(weight=weight), recipe, toy(), seed=0):
            pass
        results.append(fresh_probe(net))
    (seeing, task), (blind, blind_task) = results
    assert blind < seeing - 0.1
    assert blind_task > task - 0.05


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("linear-3-7+noise-blind", "no hidden features"),
        ("nin+noise-blind", "no hidden features"),
        ("conv-small+noise-blind(eps=1.5)", "images lie in"),
    ],
)
def test_impossible_parameters_are_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ModelName.parse(text).parts()
    with pytest.raises(UserError, match="weight to be a number from 0 up"):
        NoiseBlind(weight=-1.0)
