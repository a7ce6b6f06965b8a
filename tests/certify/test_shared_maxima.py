"""Maxima that channels share: the same question where filters read one pixel, else a harder one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import certify.settle as steps
from certify.alpha_crown import AlphaCrown
from certify.backward import adaptive_slope, parallel_slope, relax
from certify.base import Certifier
from certify.crown import Crown
from certify.exact import settle
from certify.graph import trace
from certify.input_splitting import clause_bounds
from certify.property import Property, robustness
from certify.shared_maxima import Question, with_shared_maxima
from models.base import Batch, Classifier
from models.randomness import Randomness
from models.region import Region
from models.threat import ThreatModel

SIZE = 6


class Thresholds(nn.Module):
    """Filters of one pixel each, but for crumbs; then pooled, then a network."""

    def __init__(
        self, seed: int, *, crumbs: float = 0.0, mixed: int = 0, relu_first: bool = False, padding: int = 0
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(1, 6, 3, padding=padding)
        weight = crumbs * torch.rand(6, 9) / 8
        taps = torch.randint(0, 9, (6,))[[0, 0, 2, 3, 2, 5]]
        weight[torch.arange(6), taps] = torch.tensor([1.0, 1.5, -1.0, 1.0, -0.7, 1e-4])
        weight[:mixed] = torch.randn(mixed, 9) / 3
        self.first.weight.data = weight.reshape(6, 1, 3, 3)
        self.first.bias.data = -torch.rand(6) * weight.sum(1)
        self.pool, self.relu_first = nn.MaxPool2d(2), relu_first
        side = (SIZE + 2 * padding - 2) // 2
        self.rest = nn.Sequential(nn.Flatten(), nn.Linear(6 * side**2, 12), nn.ReLU(), nn.Linear(12, 3))

    def pooled(self, x: Tensor) -> Tensor:
        if self.relu_first:
            return self.pool(torch.relu(self.first(x)))
        return torch.relu(self.pool(self.first(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.pooled(x))


class Pooled(nn.Module):
    """The pooled entries themselves, as outputs."""

    def __init__(self, network: Thresholds) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.pool(self.network.first(x)).flatten(1)


def around(seed: int, eps: float) -> tuple[Tensor, Region]:
    x = torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)).double()
    return x, Region(low=(x - eps).clamp(0, 1), high=(x + eps).clamp(0, 1))


def points(region: Region, count: int) -> Tensor:
    """Random points, of which half are corners."""
    share = torch.rand(count, *region.low.shape[1:], dtype=torch.float64)
    share[::2] = share[::2].round()
    return region.low + share * (region.high - region.low)


def asked(network: nn.Module, x: Tensor, threat: ThreatModel) -> Question | None:
    with torch.no_grad():
        return with_shared_maxima(trace(network.double()), x, threat)


def lifted(question: Question, inputs: Tensor, share: float) -> Tensor:
    """The question's points at `inputs`, every crumb at `share` of its range."""
    assert isinstance(question.threat, Region)
    more = question.threat.high[:, inputs[0].numel() :] * share
    return torch.cat([inputs.flatten(1), more.expand(len(inputs), -1)], 1)


@torch.no_grad()
def held(network: nn.Module, question: Question, region: Region) -> float:
    """Asserts that crumbs at their ends hold the outputs from both sides; returns how far these are apart."""
    inside = points(region, 500)
    truth = network(inside)
    low, high = (question.graph.values(lifted(question, inside, share))[-1] for share in (-1.0, 1.0))
    assert bool((low - 1e-12 <= truth).all())
    assert bool((truth <= high + 1e-12).all())
    return float((high - low).amax())


@pytest.mark.parametrize("relu_first", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
def test_without_crumbs_it_is_the_network_itself(relu_first: bool, padding: int) -> None:
    for seed in range(5):
        network = Thresholds(seed, relu_first=relu_first, padding=padding).double()
        x, region = around(seed, 0.2)
        question = asked(network, x, region)
        assert question is not None
        inside = points(region, 200)
        said = question.graph.values(lifted(question, inside, 0.0))[-1]
        # The channel of weight 1e-4 is a constant here, up to its range.
        assert torch.allclose(said, network(inside), atol=1e-4)
        assert torch.equal(question.lift(lifted(question, inside, 0.0)), inside.flatten(1))


@pytest.mark.parametrize("crumbs", [0.0, 0.01])
@pytest.mark.parametrize("mixed", [0, 2])
@pytest.mark.parametrize("padding", [0, 1])
def test_what_crumbs_may_do_holds_every_pooled_entry(crumbs: float, mixed: int, padding: int) -> None:
    reached = 0
    for seed in range(8):
        network = Pooled(Thresholds(seed, crumbs=crumbs, mixed=mixed, padding=padding)).double()
        x, region = around(seed, 0.2)
        question = asked(network, x, region)
        if question is None:
            continue
        reached += 1
        assert held(network, question, region) <= 0.1
    assert reached >= 4


def test_maxima_hold_where_many_pixels_cannot_move() -> None:
    for seed in range(6):
        network = Pooled(Thresholds(seed, crumbs=0.01)).double()
        x, region = around(seed, 0.2)
        still = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
        region = Region(low=torch.where(still, x, region.low), high=torch.where(still, x, region.high))
        question = asked(network, x, region)
        assert question is not None
        held(network, question, region)


def test_channels_share_maxima_and_so_bounds_are_tighter() -> None:
    gains = []
    for seed in range(6):
        network = Thresholds(seed).double()
        x, region = around(seed, 0.3)
        label = int(network(x).argmax())
        prop = robustness(region.low[0], region.high[0], label, 3)
        question = asked(network, x, region)
        assert question is not None
        graph = trace(network)
        with torch.no_grad():
            plain, shared = (
                clause_bounds(relax(*parts, parallel_slope, adaptive_slope), prop).amin()
                for parts in ((graph, x, region), question.parts)
            )
        gains.append(float(shared - plain))
    assert min(gains) > 0.0


def test_other_networks_and_balls_are_left_alone() -> None:
    x, region = around(0, 0.2)
    ordinary = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    behind = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 4, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    without = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    for network in (ordinary, behind, without):
        assert asked(network, x, region) is None
    assert asked(Thresholds(0), x, ThreatModel(norm="l2", eps=0.5)) is None


def property_of(network: nn.Module, seed: int, eps: float) -> tuple[Property, Region]:
    x, region = around(seed, eps)
    return robustness(region.low[0], region.high[0], int(network.double()(x).argmax()), 3), region


@pytest.mark.parametrize("crumbs", [0.0, 0.02])
@pytest.mark.parametrize("relu_first", [False, True])
def test_exact_answers_are_those_of_the_network(
    crumbs: float, relu_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = []
    for seed in range(6):
        network = Thresholds(seed, crumbs=crumbs, mixed=seed % 3, relu_first=relu_first)
        prop, region = property_of(network, seed, 0.25)
        found = settle(network, prop, seconds=20)
        if found.status == "certified":
            with torch.no_grad():
                outputs = network(points(region, 4000))
            assert bool((prop.excess(outputs) > 0).all())
        cases.append((network, prop, found.status))
    monkeypatch.setattr(steps, "with_shared_maxima", lambda *parts: None)
    for network, prop, status in cases:
        other = settle(network, prop, seconds=20).status
        assert {status, other} != {"certified", "broken"}
    assert {"certified", "broken"} <= {status for _, _, status in cases}


def test_crumbs_that_decide_are_not_swept_away() -> None:
    """A liar: what is left out of the maxima is all that the logits look at."""
    network = Thresholds(1, crumbs=0.01)
    twin = copy.deepcopy(network)
    twin.first.weight.data[twin.first.weight.abs() < 0.01] = 0.0

    x, region = around(3, 0.3)
    twin.double()
    network.double()

    def gap(images: Tensor) -> Tensor:
        return (network.pooled(images) - twin.pooled(images)).flatten(1).sum(1, keepdim=True)

    middle = float(gap(points(region, 4000)).detach().median())

    class Liar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.twin = network, twin

        def forward(self, x: Tensor) -> Tensor:
            gap = (self.network.pooled(x) - self.twin.pooled(x)).flatten(1).sum(1, keepdim=True)
            return torch.cat([1e4 * (gap - middle), 0 * gap], 1)

    liar = Liar()
    assert asked(liar, x, region) is not None
    for label in range(2):
        prop = robustness(region.low[0], region.high[0], label, 2)
        assert settle(liar, prop, seconds=5).status != "certified"


@pytest.mark.parametrize("certifier", [Crown(), AlphaCrown(steps=5)])
def test_crown_takes_shared_maxima_once_whatever_the_batch(certifier: Certifier) -> None:
    """Of three samples the second moves nowhere, so that nothing is shared there."""
    network = Thresholds(2, crumbs=0.01, mixed=1).double()
    x = torch.cat([around(seed, 0.2)[0] for seed in range(3)])
    radius = torch.tensor([0.25, 0.0, 0.25]).double().reshape(-1, 1, 1, 1)
    region = Region(low=(x - radius).clamp(0, 1), high=(x + radius).clamp(0, 1))
    model = Classifier(network, num_classes=3)
    batch = Batch.of(x, network(x).argmax(1))
    whole = certifier.bound(model, batch, region, Randomness(0))
    shared = 0
    for i in range(3):
        one = slice(i, i + 1)
        single = certifier.bound(model, batch[one], region.select(one), Randomness(0))
        assert torch.allclose(single, whole[one], atol=1e-12)
        inside = network(points(region.select(one), 4000))
        margins = inside[:, [int(batch.y[i])]] - inside
        others = torch.arange(3) != batch.y[i]
        assert bool((margins.amin(0)[others] >= whole[i][others] - 1e-9).all())
        shared += asked(network, x[one], region.select(one)) is not None
    assert shared == 2
