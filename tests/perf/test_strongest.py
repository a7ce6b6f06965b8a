"""`strongest` beside torchattacks' AutoAttack at its defaults: who breaks more, and in what time.

Skipped where torchattacks is absent (`pip install --no-deps torchattacks==3.5.1`). Both attack the same
images of the same network, one after the other on one thread; what each leaves standing, the
seconds and the ratio stand in extra_info and in the output.
"""

from __future__ import annotations

import time

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from attacks.strongest import Strongest
from defenses.zoo import ModelName, load
from models.base import Batch, Classifier, frozen
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.liars import zoo as liars

IMAGES = 100
MASKED_IMAGES = 40
SETTINGS = [
    ("lenet", "linf", 0.1),
    ("lenet+adversarial-pgd", "linf", 0.3),
    ("lenet+adversarial-pgd", "l2", 1.5),
    ("conv-small+adversarial-pgd", "linf", 0.3),
    ("conv-small+adversarial-pgd", "l2", 2.0),
    ("conv-small+polytope", "linf", 0.1),
    ("fc500-150-10+adversarial-pgd", "linf", 0.3),
]
# Liars, whose gradients say little: random search does much of AutoAttack's work there. It fails on the
# detached layer.
MASKED = [
    ("k-winners-take-all", "linf", 0.1),
    ("k-winners-take-all", "linf", 0.2),
    ("k-winners-take-all", "l2", 1.5),
    ("quantised input", "linf", 0.1),
    ("double normalisation", "linf", 0.1),
    ("zero gradients", "linf", 0.1),
]


@pytest.mark.parametrize(("name", "norm", "eps"), SETTINGS)
def test_strongest_against_autoattack(benchmark: BenchmarkFixture, name: str, norm: str, eps: float) -> None:
    found = compare(benchmark, load(ModelName.parse(name)), liars.panel(IMAGES), ThreatModel(norm, eps))
    assert found["missed"] == 0


@pytest.mark.parametrize(("name", "norm", "eps"), MASKED)
def test_strongest_against_autoattack_on_liars(
    benchmark: BenchmarkFixture, name: str, norm: str, eps: float
) -> None:
    model = liars.classifier(liars.liars()[name](), name)
    found = compare(benchmark, model, liars.panel(MASKED_IMAGES), ThreatModel(norm, eps))
    assert found["strongest_left"] <= found["autoattack_left"]


def compare(
    benchmark: BenchmarkFixture, model: Classifier, batch: Batch, threat: ThreatModel
) -> dict[str, float]:
    """Both on the same images: how many each leaves, how many AutoAttack alone breaks, and the times."""
    torchattacks = pytest.importorskip("torchattacks")
    torch.set_num_threads(1)
    norm, eps = threat.norm, threat.radius
    with frozen(model):
        peer = torchattacks.AutoAttack(model, norm=norm.capitalize(), eps=eps, n_classes=10, seed=0)
        clean = model(batch.x).argmax(1) == batch.y
        start = time.perf_counter()
        points = peer(batch.x[clean], batch.y[clean]).detach()
        seconds = time.perf_counter() - start
        legal = threat.at(eps + 1e-5).contains(batch.x[clean], points)
        broken = ~clean
        broken[clean] = (model(points).argmax(1) != batch.y[clean]) & legal
    ours = benchmark.pedantic(
        Strongest().run, args=(model, batch, threat, Randomness(0)), rounds=1, iterations=1
    )
    missed = int((broken & ~ours.success).sum())
    ratio = benchmark.stats.stats.mean / seconds
    found = {
        "autoattack_left": int((~broken).sum()),
        "strongest_left": int((~ours.success).sum()),
        "missed": missed,
        "autoattack_seconds": round(seconds, 2),
        "ratio": round(ratio, 3),
    }
    benchmark.extra_info.update(found)
    print(f"\n{model.name} {norm} {eps:g}, n = {len(batch)}: {found}")
    return found
