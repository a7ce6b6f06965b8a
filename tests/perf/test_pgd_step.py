"""What a PGD step costs beside one bare forward and backward pass of the same network.

`make perf` prints both in one group; the ratio of the means stands in the second's extra_info and
in the output.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from attacks.losses import cross_entropy
from attacks.pgd import PGD
from attacks.steps import ascend
from defenses.training import new_network
from defenses.zoo import ModelName, load
from models.architecture import MODELS
from models.base import frozen
from models.data import load_data
from models.discover import import_modules
from models.randomness import Randomness
from models.threat import ThreatModel

import_modules("models")

IMAGES = 64
THREAT = ThreatModel("linf", 0.3)


def setting() -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """(one PGD step, one forward and backward pass) of an untrained conv-small on 64 images."""
    network = new_network(MODELS["conv-small"], 0).eval()
    data = load_data("mnist5k")
    batch = data.batch(data.panel(IMAGES))

    def loss(x: Tensor) -> Tensor:
        return cross_entropy(network(x), batch.y)

    def bare() -> Tensor:
        x = batch.x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(x).sum(), x)
        return gradient

    def step() -> Tensor:
        return ascend(loss, batch.x, batch.x, THREAT, steps=1, step_size=0.01)

    def without_parameter_gradients(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with frozen(network):
                return function()

        return run

    return without_parameter_gradients(step), without_parameter_gradients(bare)


def ratio_in_turn(first: Callable[[], object], second: Callable[[], object], rounds: int) -> float:
    """The first's median time over the second's, measured in turn so that both see the same machine."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for function, taken in zip((first, second), times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return median(times[0]) / median(times[1])


@pytest.mark.benchmark(group="pgd step")
def test_bare_forward_and_backward(benchmark: BenchmarkFixture) -> None:
    _, bare = setting()
    gradient = benchmark(bare)
    assert gradient.shape == (IMAGES, 1, 28, 28)
    assert float(gradient.abs().sum()) > 0


@pytest.mark.benchmark(group="pgd step")
def test_pgd_step(benchmark: BenchmarkFixture) -> None:
    """Its time, and its ratio to the bare passes."""
    step, bare = setting()
    ratio = ratio_in_turn(step, bare, rounds=30)
    benchmark.extra_info["ratio to a bare forward and backward"] = round(ratio, 3)
    moved = benchmark(step)
    print(f"\none PGD step costs {ratio:.2f} bare forward and backward passes")
    data = load_data("mnist5k")
    x = data.batch(data.panel(IMAGES)).x
    assert bool(THREAT.contains(x, moved).all())
    assert float((moved - x).abs().max()) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["conv-small+adversarial-pgd", "lenet+adversarial-pgd", "fc500-150-10+adversarial-pgd"]
)
def test_a_whole_pgd_where_images_hold(benchmark: BenchmarkFixture, name: str) -> None:
    """40 steps on the images that survive them, judged, beside the passes that they need, in turn."""
    torch.set_num_threads(1)
    model, data, threat = load(ModelName.parse(name)), load_data("mnist5k"), ThreatModel("linf", 0.1)
    attack, batch = PGD(steps=40, restarts=1), data.batch(data.panel(100))
    batch = batch[(~attack.run(model, batch, threat, Randomness(0)).success).nonzero()[:, 0]]

    def bare() -> None:
        with frozen(model):
            for _ in range(attack.steps):
                x = batch.x.detach().requires_grad_(True)
                torch.autograd.grad(cross_entropy(model(x), batch.y).sum(), x)
            with torch.no_grad():
                model(batch.x)

    def whole() -> None:
        assert not bool(attack.run(model, batch, threat, Randomness(0)).success.any())

    ratio = ratio_in_turn(whole, bare, rounds=7)
    benchmark.extra_info["ratio to the bare passes"] = round(ratio, 3)
    benchmark.pedantic(whole, rounds=1)
    print(f"\n{name}: {len(batch)} images that hold cost {ratio:.2f} times the bare passes")
