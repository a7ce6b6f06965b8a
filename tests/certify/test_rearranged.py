"""Windows behind rearranged inputs: the bounds of the network that takes the planes themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from certify import entry_bounds
from certify.backward import adaptive_slope, margins, parallel_slope, relax
from certify.effort import backward_multiplications
from certify.graph import trace
from certify.rearranged import behind_rearrangement
from certify.view import views
from models.base import Batch, Classifier
from models.region import Region
from models.threat import ThreatModel

SHAPE = (2, 14, 12)


class Rearranged(nn.Module):
    """A network of planes behind what it takes."""

    def __init__(self, network: nn.Module, way: str) -> None:
        super().__init__()
        self.network, self.way = network, way
        torch.manual_seed(5)
        self.mean, self.scale = torch.rand(1, *SHAPE).double(), 0.5 + torch.rand(SHAPE).double()

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "channels last":
            return self.network(x.permute(0, 3, 1, 2))
        if self.way == "turned twice":
            return self.network(x.transpose(2, 3).transpose(1, 2).permute(0, 3, 1, 2).transpose(2, 3))
        if self.way == "each pixel scaled":
            return self.network((x - self.mean) * self.scale)
        if self.way == "in a row":
            return self.network(x[:, 3:].reshape(-1, *SHAPE))
        return self.network(x[:, 3:].reshape(-1, *SHAPE)) + x[:, :1]


WAYS = ("channels last", "turned twice", "each pixel scaled", "in a row", "in a row with others")


def planes() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(),
        nn.Conv2d(5, 4, 1), nn.Tanh(), nn.Flatten(), nn.Linear(80, 3),
    ).double().eval()  # fmt: skip


def asked(way: str) -> tuple[nn.Module, Tensor, Region, Tensor, Region]:
    """The network and its box, and the box of its planes."""
    generator = torch.Generator().manual_seed(3)
    low = torch.rand(3, *SHAPE, generator=generator, dtype=torch.float64)
    high = low + 0.1 * torch.rand(3, *SHAPE, generator=generator, dtype=torch.float64)
    network, ends = Rearranged(planes(), way), [low, high]
    if way == "channels last":
        ends = [end.permute(0, 2, 3, 1) for end in ends]
    elif way == "turned twice":
        ends = [end.transpose(2, 3).permute(0, 2, 3, 1).transpose(1, 2).transpose(2, 3) for end in ends]
    elif way == "each pixel scaled":
        ends = [end / network.scale + network.mean for end in ends]
    elif way.startswith("in a row"):
        ends = [torch.cat([end.new_full((3, 3), 0.5), end.flatten(1)], 1) for end in ends]
    outside, inside = Region(low=ends[0], high=ends[1]), Region(low=low, high=high)
    return network, outside.centre, outside, inside.centre, inside


@pytest.mark.parametrize("slope", [adaptive_slope, parallel_slope])
@pytest.mark.parametrize("way", WAYS)
def test_bounds_are_those_of_the_planes_and_windows_find_them(way, slope, monkeypatch):
    network, x, outside, inner, inside = asked(way)
    y, met = torch.tensor([0, 1, 2]), []
    with torch.no_grad():
        expected = margins(relax(trace(planes()), inner, inside, slope), y)
        rows = entry_bounds._rows
        monkeypatch.setattr(entry_bounds, "_rows", lambda *given: met.append(given[1]) or rows(*given))
        graph = trace(network, like=x)
        found = relax(graph, x, outside, slope)
        torch.testing.assert_close(margins(found, y), expected, rtol=0, atol=1e-9)
        monkeypatch.setattr(entry_bounds, "behind_rearrangement", lambda *given: None)
        assert not met
        torch.testing.assert_close(margins(relax(graph, x, outside, slope), y), expected, rtol=0, atol=1e-9)
        assert met


def test_cost_is_that_of_the_windows():
    plain, turned = planes().float(), Rearranged(planes(), "channels last").float()
    x = torch.rand(1, *SHAPE)
    costs = [
        backward_multiplications(Classifier(network, num_classes=3), Batch.of(images, torch.tensor([0])))
        for network, images in ((plain, x), (turned, x.permute(0, 2, 3, 1)))
    ]
    assert costs[0] == costs[1]


def test_what_sees_the_inputs_in_two_ways_or_in_another_norm_has_no_plane():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            turned = x.permute(0, 3, 1, 2)
            return (torch.relu(self.first(turned)) + self.second(0.5 * x.permute(0, 3, 1, 2))).flatten(1)

    x = torch.rand(1, 14, 12, 2, dtype=torch.float64)
    graph = trace(Twice().double())
    both = next(i for i, node in enumerate(graph.nodes) if type(node.operation).__name__ == "Sum")
    alone = min(i for i, node in enumerate(graph.nodes) if type(node.operation).__name__ == "Conv2d")
    with torch.no_grad():
        relaxation = relax(graph, x, ThreatModel("linf", 0.1))
        assert behind_rearrangement(relaxation, both) is None
        reduced, place = behind_rearrangement(relaxation, alone)
        assert views(reduced.graph, reduced.x, place) is not None
        assert behind_rearrangement(relax(graph, x, ThreatModel("l2", 0.1)), alone) is None
