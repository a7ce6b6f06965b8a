"""What a bound costs against width and depth: seconds an image, and the exponent of a power law through them.

Networks 784-width x depth-10 with ReLU, weights drawn at random; eps leaves about a third of the neurons
undecided. The table of docs/cost.md comes from here.
"""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from certify.base import CERTIFIERS
from models.base import Classifier
from models.data import load_data
from models.discover import import_modules
from models.randomness import Randomness
from models.threat import ThreatModel

import_modules("certify")

IMAGES = 16
METHODS = ("ibp", "polytope", "crown", "alpha-crown")
WIDTHS, DEPTH = (64, 128, 256, 512, 1024), 3
DEPTHS, WIDTH = (2, 3, 5, 8, 12), 128


def network(width: int, depth: int) -> Classifier:
    """784-width x depth-10 with He weights, drawn from the shape alone."""
    generator = torch.Generator().manual_seed(1000 * depth + width)
    widths = [784, *[width] * depth, 10]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        layer = nn.utils.skip_init(nn.Linear, before, after)
        nn.init.normal_(layer.weight, std=(2 / before) ** 0.5, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return Classifier(nn.Sequential(*layers[:-1]).eval(), num_classes=10).eval()


def seconds(method: str, width: int, depth: int) -> float:
    """The least of three runs, an image."""
    data, judged = load_data("mnist5k"), network(width, depth)
    batch, threat = data.batch(data.panel(IMAGES)), ThreatModel("linf", 0.01 / depth)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        CERTIFIERS[method]().run(judged, batch, threat, Randomness(0))
        times.append(time.perf_counter() - start)
    return min(times) / IMAGES


def exponent(sizes: tuple[int, ...], times: list[float]) -> float:
    """The slope of a straight line through (log size, log time), by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


@pytest.mark.parametrize("method", METHODS)
def test_cost_against_width_and_depth(benchmark: BenchmarkFixture, method: str) -> None:
    if benchmark.disabled:
        pytest.skip("timings alone: pass --benchmark-enable")
    torch.set_num_threads(1)
    by_width = [seconds(method, width, DEPTH) for width in WIDTHS]
    by_depth = [seconds(method, WIDTH, depth) for depth in DEPTHS]
    benchmark.pedantic(seconds, args=(method, WIDTHS[0], DEPTH), rounds=1)
    for name, sizes, times in (("width", WIDTHS, by_width), ("depth", DEPTHS, by_depth)):
        slope = exponent(sizes, times)
        benchmark.extra_info[f"exponent in {name}"] = round(slope, 2)
        cells = " | ".join(f"{1000 * value:.2f}" for value in times)
        print(f"\n| {name} | `{method}` | {cells} | {slope:.1f} |")
