"""`polytope` beside the package convex-adversarial: the same bound, and in what time.

Skipped where the package is absent (`pip install --no-deps convex-adversarial==0.4.4`). Without box and
interval bounds both compute Wong & Kolter's number; the package runs in its own single precision for the
time and in double precision for the comparison. The suite's time is that of the registered certificate,
which uses the box and interval bounds and so needs fewer rows, in double precision.
"""

from __future__ import annotations

import copy
import time

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from certify.ibp import margin_rows
from certify.polytope import Polytope
from defenses.zoo import ModelName, load
from models.base import frozen
from models.data import load_data
from models.randomness import Randomness
from models.threat import ThreatModel

IMAGES = 64
SETTINGS = [("conv-small+polytope", 0.1), ("conv-small+adversarial-pgd", 0.05), ("fc500-150-10", 0.01)]


def contiguous(network: nn.Module) -> nn.Module:
    """A copy whose weights lie in the order that the package's views expect."""
    return copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


@pytest.mark.parametrize(("name", "eps"), SETTINGS)
def test_polytope_against_convex_adversarial(benchmark: BenchmarkFixture, name: str, eps: float) -> None:
    package = pytest.importorskip("convex_adversarial")
    torch.set_num_threads(1)
    model, data, threat = load(ModelName.parse(name)), load_data("mnist5k"), ThreatModel("linf", eps)
    batch = data.batch(data.panel(IMAGES))

    def peer(network: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            dual = package.DualNetwork(network, x, eps)
            return dual(margin_rows(batch.y, 10, x.dtype))

    with frozen(model):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            peer(contiguous(model.network), batch.x)
            times.append(time.perf_counter() - start)
        exact = peer(contiguous(model.network).double(), batch.x.double())
    start = time.perf_counter()
    ours = Polytope(clipped=False).run(model, batch, threat, Randomness(0)).lower
    plain = time.perf_counter() - start
    benchmark.pedantic(Polytope().run, args=(model, batch, threat, Randomness(0)), rounds=3)
    difference = float((ours - exact)[torch.isfinite(ours)].abs().max())
    found = {
        "peer_ms_an_image": round(1000 * min(times) / IMAGES, 2),
        "ours_ms_an_image": round(1000 * benchmark.stats.stats.min / IMAGES, 2),
        "without_box_and_intervals_ms": round(1000 * plain / IMAGES, 2),
        "times_faster": round(min(times) / benchmark.stats.stats.min, 2),
        "largest_difference": f"{difference:.1e}",
    }
    benchmark.extra_info.update(found)
    print(f"\n{name} linf {eps:g}, n = {IMAGES}: {found}")
    assert difference < 1e-5
