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
from models.base import frozen
from models.data import load_data
from models.randomness import Randomness
from models.threat import ThreatModel

IMAGES = 100
SETTINGS = [
    ("lenet", "linf", 0.1),
    ("lenet+adversarial-pgd", "linf", 0.3),
    ("lenet+adversarial-pgd", "l2", 1.5),
    ("conv-small+adversarial-pgd", "linf", 0.3),
    ("conv-small+adversarial-pgd", "l2", 2.0),
    ("conv-small+polytope", "linf", 0.1),
    ("fc500-150-10+adversarial-pgd", "linf", 0.3),
]


@pytest.mark.parametrize(("name", "norm", "eps"), SETTINGS)
def test_strongest_against_autoattack(benchmark: BenchmarkFixture, name: str, norm: str, eps: float) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    torch.set_num_threads(1)
    data, model, threat = load_data("mnist5k"), load(ModelName.parse(name)), ThreatModel(norm, eps)
    batch = data.batch(data.panel(IMAGES))
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
    print(f"\n{name} {norm} {eps:g}, n = {IMAGES}: {found}")
    assert missed == 0
