"""Our attacks beside Foolbox's: the same network, images, steps and thread; the ratios of the seconds.

Skipped where Foolbox is absent (`pip install '.[peers]'`). Each pair runs in turn, and the median of the
rounds counts; what either achieved, the seconds and the ratio (how often ours fits into theirs) stand in
extra_info and in the output.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from attacks.cw import CarliniWagner
from attacks.deepfool import DeepFool
from attacks.pgd import PGD
from attacks.rotation_translation import RotationTranslation, spatial_worst_case
from defenses.zoo import ModelName, load
from models.base import Batch, Classifier
from models.data import load_data
from models.poses import Poses
from models.randomness import Randomness
from models.threat import ThreatModel

ROUNDS = 3
Result = tuple[torch.Tensor, torch.Tensor]
"""Points (n, ...) and where they fool (n,)."""


@pytest.fixture(autouse=True)
def measuring(benchmark: BenchmarkFixture) -> None:
    """Minutes that a run of the tests need not spend."""
    if benchmark.disabled:
        pytest.skip("timings alone: pass --benchmark-enable")


def setting(name: str, images: int) -> tuple[Classifier, Any, Batch]:
    """(network, the same for Foolbox, correctly classified images)."""
    foolbox = pytest.importorskip("foolbox")
    torch.set_num_threads(1)
    model, data = load(ModelName.parse(name)), load_data("mnist5k")
    model.requires_grad_(False)
    batch = data.batch(data.panel(images))
    right = model(batch.x).argmax(1) == batch.y
    return model, foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu"), batch[right]


def compare(
    benchmark: BenchmarkFixture, ours: Callable[[], Any], theirs: Callable[[], Any]
) -> tuple[Any, Any]:
    """Runs both in turn and notes the seconds and their ratio; the last results."""
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    results: dict[str, Any] = {}
    for _ in range(ROUNDS):
        for name, run in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            results[name] = run()
            times[name].append(time.perf_counter() - start)
    seconds = {name: median(values) for name, values in times.items()}
    benchmark.extra_info.update({f"{name}_seconds": round(value, 3) for name, value in seconds.items()})
    benchmark.extra_info["ratio"] = round(seconds["theirs"] / seconds["ours"], 2)
    benchmark.pedantic(ours, rounds=1, iterations=1)
    return results["ours"], results["theirs"]


def tell(benchmark: BenchmarkFixture, **found: float) -> None:
    """Adds what either achieved and prints all."""
    benchmark.extra_info.update({name: round(value, 4) for name, value in found.items()})
    print(f"\n{benchmark.name}: {dict(benchmark.extra_info)}")


def distances(model: Classifier, batch: Batch, points: torch.Tensor) -> tuple[float, float]:
    """(success rate, mean l2 of the successes) of points (n, ...)."""
    fooled = model(points).argmax(1) != batch.y
    away = ThreatModel("l2", None).distance(batch.x, points)
    return float(fooled.double().mean()), float(away[fooled].mean())


@pytest.mark.benchmark(group="beside foolbox")
def test_deepfool(benchmark: BenchmarkFixture) -> None:
    """Goal: twice as fast at an equal mean l2."""
    foolbox = pytest.importorskip("foolbox")
    model, peer, batch = setting("lenet", 100)
    attack = foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02)
    ours, theirs = compare(
        benchmark,
        lambda: DeepFool().run(model, batch, ThreatModel("l2", None), Randomness(0)).x_adv,
        lambda: attack(peer, batch.x, batch.y, epsilons=None)[1],
    )
    mine, other = distances(model, batch, ours), distances(model, batch, theirs)
    tell(benchmark, ours_rate=mine[0], ours_l2=mine[1], theirs_rate=other[0], theirs_l2=other[1])
    assert mine[0] >= other[0]
    assert mine[1] <= 1.01 * other[1]


@pytest.mark.benchmark(group="beside foolbox")
def test_cw(benchmark: BenchmarkFixture) -> None:
    """Goal: twice as fast at full success and no larger mean l2; Foolbox at 9 x 200 steps of 0.01."""
    foolbox = pytest.importorskip("foolbox")
    model, peer, batch = setting("conv-small", 60)
    attack = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=9, steps=200, stepsize=0.01)
    ours, theirs = compare(
        benchmark,
        lambda: CarliniWagner().run(model, batch, ThreatModel("l2", None), Randomness(0)).x_adv,
        lambda: attack(peer, batch.x, batch.y, epsilons=None)[1],
    )
    mine, other = distances(model, batch, ours), distances(model, batch, theirs)
    tell(benchmark, ours_rate=mine[0], ours_l2=mine[1], theirs_rate=other[0], theirs_l2=other[1])
    assert mine[0] == 1.0
    assert mine[1] <= other[1]


@pytest.mark.benchmark(group="beside foolbox")
def test_pgd_on_an_undefended_network(benchmark: BenchmarkFixture) -> None:
    """Goal: three times as fast, since what is broken leaves; 40 steps without a random start."""
    foolbox = pytest.importorskip("foolbox")
    model, peer, batch = setting("conv-small", 200)
    eps, attack = 0.3, foolbox.attacks.LinfPGD(steps=40, rel_stepsize=0.1, random_start=False)
    ours, theirs = compare(
        benchmark,
        lambda: PGD(restarts=1).run(model, batch, ThreatModel("linf", eps), Randomness(0)).success,
        lambda: attack(peer, batch.x, batch.y, epsilons=eps)[2],
    )
    tell(benchmark, ours_rate=float(ours.double().mean()), theirs_rate=float(theirs.double().mean()))
    assert int(ours.sum()) >= int(theirs.sum())


@pytest.mark.benchmark(group="beside foolbox")
@pytest.mark.parametrize("name", ["conv-small", "lenet"])
@pytest.mark.parametrize("part", [1.0, 0.5])
def test_rotation_grid(benchmark: BenchmarkFixture, name: str, part: float) -> None:
    """Goal: five times as fast on the grid of 31 x 5 x 5 poses of +-30 degrees and +-3 pixels.

    Half of these limits leave many images standing, for which both must ask about all 775 poses.
    """
    foolbox = pytest.importorskip("foolbox")
    model, peer, batch = setting(name, 50)
    pixels = 3 * part
    attack = foolbox.attacks.SpatialAttack(
        max_translation=pixels, max_rotation=30 * part, num_translations=5, num_rotations=31, grid_search=True
    )
    poses = Poses(30 * part, pixels / 28)
    ours, theirs = compare(
        benchmark,
        lambda: spatial_worst_case(model, batch, RotationTranslation(), poses=poses).success,
        lambda: attack(peer, batch.x, batch.y)[2],
    )
    tell(benchmark, ours_rate=float(ours.double().mean()), theirs_rate=float(theirs.double().mean()))
    assert int(ours.sum()) >= 0.95 * int(theirs.sum())


@pytest.mark.benchmark(group="beside foolbox")
def test_a_curve_of_eight_radii(benchmark: BenchmarkFixture) -> None:
    """Goal: 1.5 times the cost of one radius: the smallest perturbation answers all radii at once.

    Foolbox's time is that of its PGD at the same eight radii, which it runs one by one.
    """
    foolbox = pytest.importorskip("foolbox")
    model, peer, batch = setting("conv-small+adversarial-pgd", 60)
    radii = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]
    attack = foolbox.attacks.LinfPGD(steps=40, rel_stepsize=0.1, random_start=False)

    def nearest(eps: float | None) -> torch.Tensor:
        return CarliniWagner().run(model, batch, ThreatModel("linf", eps), Randomness(0)).distance

    def curve() -> torch.Tensor:
        found = nearest(None)
        return torch.stack([found <= radius for radius in radii])

    ours, theirs = compare(benchmark, curve, lambda: attack(peer, batch.x, batch.y, epsilons=radii)[2])
    seconds: dict[str, list[float]] = {"curve": [], "point": []}
    for _ in range(ROUNDS):
        for name, eps in (("curve", None), ("point", 0.2)):
            start = time.perf_counter()
            nearest(eps)
            seconds[name].append(time.perf_counter() - start)
    tell(
        benchmark,
        ratio_to_one_radius=median(seconds["curve"]) / median(seconds["point"]),
        ours_broken=float(ours.double().mean()),
        theirs_broken=float(theirs.double().mean()),
    )
    assert bool((ours.long().sum(1).diff() >= 0).all())
    assert int(ours.sum()) >= int(theirs.sum())
