"""What the exact pair search of the saliency map attack costs: 100 small images, and one large one."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from attacks.pairs import best_pair


@pytest.mark.benchmark(group="jsma pair search")
@pytest.mark.parametrize(("images", "features"), [(100, 28 * 28), (1, 224 * 224 * 3)])
def test_pair_search(benchmark: BenchmarkFixture, images: int, features: int) -> None:
    """Goals: under 20 ms for 100 images of 28x28, under 0.2 s for one of 224x224x3."""
    generator = torch.Generator().manual_seed(0)
    a, c = (torch.randn(images, features, generator=generator) for _ in range(2))
    free = torch.ones(images, features, dtype=torch.bool)
    p, q, score = benchmark(best_pair, a, c, free)
    assert bool(torch.isfinite(score).all())
    rows = torch.arange(images)
    assert torch.equal((a[rows, p] + a[rows, q]) * (c[rows, p] + c[rows, q]), score)
