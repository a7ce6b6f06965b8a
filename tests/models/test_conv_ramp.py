"""The ramp of `conv-ramp` is a clamp, and interval bounds lose nothing on it."""

from __future__ import annotations

import torch
from torch import nn

from certify.graph import trace
from certify.ibp import IntervalPass
from models.conv_ramp import ramp
from models.threat import ThreatModel


def test_the_ramp_is_a_clamp_and_its_interval_bounds_are_exact() -> None:
    x = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    layers = nn.Sequential(*ramp(0.4, 0.2))

    def clamp(pixels: torch.Tensor) -> torch.Tensor:
        return ((pixels - 0.4) / 0.2 + 0.5).clamp(0, 1)

    torch.testing.assert_close(layers(x), clamp(x))
    graph = trace(layers)
    passed = IntervalPass(graph, x, ThreatModel("linf", 0.1))
    for i in range(1, len(graph.nodes)):
        found = passed.step(i)
    torch.testing.assert_close(found.lower, clamp((x - 0.1).clamp(0, 1)))
    torch.testing.assert_close(found.upper, clamp((x + 0.1).clamp(0, 1)))
