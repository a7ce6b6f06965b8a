"""`strongest` beside torchattacks' AutoAttack: who breaks more, and in what time.

AutoAttack runs at its defaults, on the zoo with 100 steps a stage too, as in the original.

Skipped where torchattacks is absent (`pip install --no-deps torchattacks==3.5.1`). Both attack the same
images of the same network, one after the other on one thread; what each leaves standing, the
seconds and the ratio stand in extra_info and in the output.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from attacks.strongest import Strongest
from defenses.zoo import ModelName, load
from models.base import Batch, Classifier, frozen
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.liars import zoo as liars

peers = pytest.importorskip("torchattacks")

IMAGES = 100
FEW_IMAGES = 40
# Networks whose weights ship, at radii that leave some images to both; lenet-cifar's data does not ship.
ZOO = [
    ("conv-ramp-wide+interval(epochs=32,eps=0.3,overshoot=1.05,ramp=0.4)", "linf", 0.3),
    ("conv-small", "linf", 0.1),
    ("conv-small+adversarial-fgsm", "linf", 0.15),
    ("conv-small+adversarial-pgd", "l2", 1.5),
    ("conv-small+gaussian-noise", "l2", 1.5),
    ("conv-small+gradient-penalty(epochs=20)", "linf", 0.15),
    ("conv-small+interval(batch_norm=True,epochs=120,eps=0.3,overshoot=1.1)", "linf", 0.3),
    ("conv-small+interval", "linf", 0.12),
    ("conv-small+l1-sparse", "linf", 0.1),
    ("conv-small+mixup", "linf", 0.02),
    ("conv-small+polytope(eps=0.3)", "linf", 0.3),
    ("conv-small+polytope", "linf", 0.15),
    ("conv-small+small-boxes", "linf", 0.15),
    ("fc500-150-10", "linf", 0.05),
    ("fc500-150-10+adversarial-fgsm", "linf", 0.1),
    ("fc500-150-10+adversarial-pgd", "l2", 1.0),
    ("fc500-150-10+polytope", "linf", 0.1),
    ("lenet", "l2", 1.5),
    ("lenet+adversarial-fgsm", "linf", 0.1),
    ("lenet+adversarial-pgd(averaged=True)", "linf", 0.32),
    ("maxout", "l2", 1.0),
    ("mlp-256x2", "linf", 0.03),
    ("mlp-256x4", "linf", 0.03),
    ("mlp-256x6", "linf", 0.03),
    ("mlp-sigmoid", "l2", 0.6),
    ("mlp-tanh", "linf", 0.03),
    ("resnet-small", "linf", 0.05),
]
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


@pytest.mark.parametrize("steps", [None, 100])
@pytest.mark.parametrize(("name", "norm", "eps"), ZOO)
def test_strongest_against_autoattack_on_the_zoo(
    benchmark: BenchmarkFixture, name: str, norm: str, eps: float, steps: int | None
) -> None:
    model, threat = load(ModelName.parse(name)), ThreatModel(norm, eps)
    found = compare(benchmark, model, liars.panel(FEW_IMAGES), threat, steps)
    assert found["missed"] == 0


@pytest.mark.parametrize(("name", "norm", "eps"), MASKED)
def test_strongest_against_autoattack_on_liars(
    benchmark: BenchmarkFixture, name: str, norm: str, eps: float
) -> None:
    model = liars.classifier(liars.liars()[name](), name)
    found = compare(benchmark, model, liars.panel(FEW_IMAGES), ThreatModel(norm, eps))
    assert found["strongest_left"] <= found["autoattack_left"]


def autoattack(model: Classifier, threat: ThreatModel, steps: int | None) -> Any:
    """torchattacks' AutoAttack at its defaults (10 steps a stage), or with `steps` of them."""
    common: dict[str, Any] = {"eps": threat.radius, "norm": threat.norm.capitalize(), "seed": 0}
    if steps is None:
        return peers.AutoAttack(model, n_classes=10, **common)
    stages = [
        peers.APGD(model, steps=steps, **common),
        peers.APGDT(model, steps=steps, n_classes=10, **common),
        peers.FAB(model, steps=steps, n_classes=10, multi_targeted=True, **common),
        peers.Square(model, n_queries=5000, **common),
    ]
    return peers.MultiAttack(stages)


def compare(
    benchmark: BenchmarkFixture,
    model: Classifier,
    batch: Batch,
    threat: ThreatModel,
    steps: int | None = None,
) -> dict[str, float]:
    """Both on the same images: how many each leaves, how many AutoAttack alone breaks, and the times."""
    torch.set_num_threads(1)
    with frozen(model):
        peer = autoattack(model, threat, steps)
        clean = model(batch.x).argmax(1) == batch.y
        start = time.perf_counter()
        points = peer(batch.x[clean], batch.y[clean]).detach()
        seconds = time.perf_counter() - start
        legal = threat.at(threat.radius + 1e-5).contains(batch.x[clean], points)
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
    budget = f"{steps} steps a stage" if steps else "defaults"
    print(f"\n{model.name} {threat.norm} {threat.radius:g}, n = {len(batch)}, {budget}: {found}")
    return found
