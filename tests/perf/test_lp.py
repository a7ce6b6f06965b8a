"""The exact linear program of every class: a warm HiGHS model a sample beside a fresh cvxpy problem a class.

Both solve the same folded network for the nine other classes of the same images; the seconds a class, the
ratio and the largest difference of what they prove stand in extra_info and in the output.
"""

from __future__ import annotations

import time

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from certify.backward import adaptive_slope, parallel_slope, relax
from certify.lp import known_margins, solved_margins
from certify.prepare import prepare
from defenses.zoo import ModelName, load
from models.data import load_data
from models.threat import ThreatModel

IMAGES = 6
SETTINGS = [
    ("fc500-150-10", 0.02),
    ("fc500-150-10+adversarial-pgd", 0.05),
    ("conv-small+polytope", 0.1),
]


@pytest.mark.parametrize(("name", "eps"), SETTINGS)
def test_warm_against_fresh(benchmark: BenchmarkFixture, name: str, eps: float) -> None:
    """Ten times where solving dominates; on a small program, writing it down is what remains."""
    if benchmark.disabled:
        pytest.skip("timings alone: pass --benchmark-enable")
    torch.set_num_threads(1)
    data, threat = load_data("mnist5k"), ThreatModel("linf", eps)
    batch = data.batch(data.panel(IMAGES))
    graph, x = prepare(load(ModelName.parse(name)), batch.x)
    with torch.no_grad():
        relaxation = relax(graph, x, threat, parallel_slope, adaptive_slope)
        known = known_margins(relaxation, batch.y)

    def solved(solver: str) -> Tensor:
        pieces = []
        for i in range(IMAGES):
            one, classes = slice(i, i + 1), torch.arange(10)
            others = classes[classes != batch.y[i]]
            with torch.no_grad():
                sample = relaxation.select(one)
                pieces.append(solved_margins(sample, batch.y[one], known[one], others, solver, 60.0))
        return torch.cat(pieces)

    start = time.perf_counter()
    fresh = solved("cvxpy")
    seconds = time.perf_counter() - start
    warm = benchmark.pedantic(solved, args=("highs",), rounds=3, iterations=1)
    difference = float((warm - fresh).abs().max())
    ratio = seconds / benchmark.stats.stats.min
    found = {
        "fresh_ms_a_class": round(1000 * seconds / IMAGES / 9, 1),
        "warm_ms_a_class": round(1000 * benchmark.stats.stats.min / IMAGES / 9, 1),
        "ratio": round(ratio, 1),
        "largest_difference": f"{difference:.1e}",
    }
    benchmark.extra_info.update(found)
    print(f"\n{name} linf {eps:g}, n = {IMAGES}: {found}")
    assert difference < 1e-6
