"""`crown` beside auto_LiRPA: the same bound, and in what time.

Skipped where auto_LiRPA is absent or does not import beside this torch. Both bound the nine margins of each
image with the box, by backward linear bounds with adaptive slopes in every layer. The bounds are compared
where neither uses interval bounds; the times are those of each at its defaults, where both let interval
bounds decide which neurons need rows: auto_LiRPA's in single, the suite's in double precision.
"""

from __future__ import annotations

import copy
import time

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from certify.backward import adaptive_slope, margins, relax
from certify.crown import Crown
from certify.ibp import margin_rows
from certify.prepare import prepare
from defenses.zoo import ModelName, load
from models.base import frozen
from models.data import load_data
from models.randomness import Randomness
from models.threat import ThreatModel

IMAGES = 64
SETTINGS = [("conv-small+polytope", 0.1), ("conv-small+adversarial-pgd", 0.05), ("fc500-150-10", 0.01)]


@pytest.mark.parametrize(("name", "eps"), SETTINGS)
def test_crown_against_auto_lirpa(benchmark: BenchmarkFixture, name: str, eps: float) -> None:
    package = pytest.importorskip("auto_LiRPA", exc_type=ImportError)
    torch.set_num_threads(1)
    model, data, threat = load(ModelName.parse(name)), load_data("mnist5k"), ThreatModel("linf", eps)
    batch = data.batch(data.panel(IMAGES))

    def peer(x: Tensor, **options: bool) -> tuple[Tensor, float]:
        lower, upper = threat.bounds(x)
        network = copy.deepcopy(model.network).to(memory_format=torch.contiguous_format)
        bounded = package.BoundedModule(network, x, bound_opts=options)
        region = package.perturbations.PerturbationLpNorm(norm=float("inf"), eps=eps, x_L=lower, x_U=upper)
        start = time.perf_counter()
        with torch.no_grad():
            found, _ = bounded.compute_bounds(
                x=(package.BoundedTensor(x, region),), C=margin_rows(batch.y, 10, x.dtype), method="CROWN",
                bound_upper=False,
            )  # fmt: skip
        return found, time.perf_counter() - start

    with frozen(model):
        seconds = min(peer(batch.x)[1] for _ in range(3))
        theirs, _ = peer(batch.x, sparse_intermediate_bounds=False)
    graph, x = prepare(model, batch.x)

    with torch.no_grad():
        ours = margins(relax(graph, x, threat, adaptive_slope, intervals=False), batch.y)
    benchmark.pedantic(Crown().run, args=(model, batch, threat, Randomness(0)), rounds=3)
    found = {
        "peer_ms_an_image": round(1000 * seconds / IMAGES, 2),
        "ours_ms_an_image": round(1000 * benchmark.stats.stats.min / IMAGES, 2),
        "times_faster": round(seconds / benchmark.stats.stats.min, 2),
        "largest_difference": f"{float((ours - theirs).abs().max()):.1e}",
    }
    benchmark.extra_info.update(found)
    print(f"\n{name} linf {eps:g}, n = {IMAGES}: {found}")
    assert (ours - theirs).abs().max() < 1e-4 * max(1.0, float(ours.abs().max()))
