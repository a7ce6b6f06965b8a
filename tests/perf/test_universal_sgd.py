"""`universal-sgd` beside ART's UniversalPerturbation: which fools more held-out images, and in what time.

Skipped where ART is absent (`pip install '.[peers]'`). Both fit one perturbation on the same images of the
same network in the same ball; ART with the attacks inside that it is fastest with, until 80 % are fooled or
for 20 passes, as by default. Seconds, ratio and rates stand in extra_info and in the output.
"""

from __future__ import annotations

import random
import time
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from attacks.access import GradientAccess
from attacks.universal_sgd import UniversalSGD
from defenses.zoo import ModelName, load
from models.base import Batch, Classifier, frozen
from models.data import load_data
from models.randomness import Randomness
from models.threat import ThreatModel

FITTED, HELD_OUT = 200, 1000
ROUNDS = 5
SETTINGS = [
    ("conv-small", "linf", 0.2),
    ("conv-small", "l2", 4.0),
    ("lenet", "linf", 0.2),
    ("lenet", "l2", 4.0),
]


def theirs(model: Classifier, images: Tensor, threat: ThreatModel, inner: str) -> Tensor:
    """ART's perturbation (1, ...) with the attack `inner` ("fgsm" or "pgd") at the same radius."""
    evasion = pytest.importorskip("art.attacks.evasion")
    estimators = pytest.importorskip("art.estimators.classification")
    order: Any = {"linf": np.inf, "l2": 2}[threat.norm]
    settings: dict[str, Any] = {"eps": threat.radius, "norm": order}
    if inner == "pgd":
        settings |= {"eps_step": threat.radius / 4, "max_iter": 10, "verbose": False}
    random.seed(0)
    np.random.seed(0)
    peer = estimators.PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=model.num_classes,
        clip_values=(0, 1),
        device_type="cpu",
    )
    attack = evasion.UniversalPerturbation(
        peer, attacker=inner, attacker_params=settings, eps=threat.radius, norm=order, verbose=False
    )
    attack.generate(images.numpy())
    return torch.from_numpy(np.asarray(attack.noise)).float()


def fooling(model: Classifier, batch: Batch, v: Tensor) -> float:
    """The share of images whose predicted label v changes."""
    with torch.no_grad():
        return float(
            (model(model.box.clamp(batch.x + v)).argmax(1) != model(batch.x).argmax(1)).float().mean()
        )


@pytest.mark.parametrize(("name", "norm", "eps"), SETTINGS)
@pytest.mark.parametrize("inner", ["fgsm", "pgd"])
def test_universal_sgd_against_art(
    benchmark: BenchmarkFixture, name: str, norm: str, eps: float, inner: str
) -> None:
    """Goal: ten times as fast at no lower a held-out fooling rate."""
    if benchmark.disabled:
        pytest.skip("timings alone: pass --benchmark-enable")
    torch.set_num_threads(1)
    model, data, threat = load(ModelName.parse(name)), load_data("mnist5k"), ThreatModel(norm, eps)
    panel = data.panel(None)
    batch, aside = data.batch(panel[:HELD_OUT]), data.batch(panel[-FITTED:])

    def ours() -> Tensor:
        return UniversalSGD().fit(GradientAccess(model, 0), aside, threat, Randomness(0))

    with frozen(model):
        start = time.perf_counter()
        other = theirs(model, aside.x, threat, inner)
        seconds = time.perf_counter() - start
        mine = benchmark.pedantic(ours, rounds=ROUNDS, iterations=1)
        rates = fooling(model, batch, mine), fooling(model, batch, other)
    fast = median(benchmark.stats.stats.data)
    found = {
        "ours_seconds": round(fast, 3),
        "art_seconds": round(seconds, 2),
        "ratio": round(seconds / fast, 1),
        "ours_held_out": round(rates[0], 3),
        "art_held_out": round(rates[1], 3),
    }
    benchmark.extra_info.update(found)
    print(f"\n{name} {norm} {eps:g}, ART with {inner}, n = {FITTED} and {HELD_OUT}: {found}")
    assert bool(threat.contains(torch.zeros_like(mine), mine.abs()).all())
    assert rates[0] >= rates[1]
