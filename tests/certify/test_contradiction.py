"""What is concluded from the assumption that a target fails holds wherever it does fail."""

import torch
from torch import nn

from certify.backward import adaptive_slope, parallel_slope, relax
from certify.contradiction import assume_broken
from certify.folded import folded_network
from certify.graph import trace
from models.region import Region
from tests.certify.builders import mlp

FOREVER = float("inf")


def folded(net, row, offset, radius=1.0, centre=0.0):
    """A network over the square around `centre`, folded, with the target row . outputs + offset."""
    low = torch.full((1, 2), centre - radius, dtype=torch.float64)
    region = Region(low=low, high=low + 2 * radius)
    relaxation = relax(trace(net), region.centre, region, parallel_slope, adaptive_slope)
    rows = torch.tensor([row], dtype=torch.float64)
    return region, folded_network(relaxation, [rows], [torch.tensor([offset], dtype=torch.float64)])


def network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return mlp(2, 10, 10, 2).double().requires_grad_(False)


def grid(region, count=150):
    line = torch.linspace(0, 1, count, dtype=torch.float64)
    return region.low + (region.high - region.low) * torch.cartesian_prod(line, line)


def test_bounds_hold_wherever_the_target_fails():
    smaller = 0
    for seed in range(20):
        net = network(seed)
        region, (whole, targets) = folded(net, [1.0, -1.0], 0.0)
        points = grid(region)
        least = float(targets.values(points, whole.outputs(points)[1]).min())
        region, (whole, targets) = folded(net, [1.0, -1.0], 0.1 - least)
        slack = 0.15
        assumed = assume_broken(whole, targets, 0, slack=slack, deadline=FOREVER)
        assert not assumed.refuted
        value = targets.values(points, whole.outputs(points)[1])[:, 0, 0]
        failing = points[value <= slack]
        z, a = assumed.folded.outputs(failing)
        assert (z >= assumed.folded.lower - 1e-9).all()
        assert (z <= assumed.folded.upper + 1e-9).all()
        assert torch.allclose(assumed.targets.values(failing, a)[:, 0, 0], value[value <= slack], atol=1e-9)
        smaller += assumed.folded.neurons < whole.neurons
    assert smaller > 10


def test_a_target_that_fails_somewhere_is_never_refuted_and_a_clear_one_is():
    refuted = 0
    for seed in range(20):
        net = network(seed)
        region, (whole, targets) = folded(net, [1.0, -1.0], 0.0, radius=0.4)
        points = grid(region)
        least = float(targets.values(points, whole.outputs(points)[1]).min())
        _, (whole, targets) = folded(net, [1.0, -1.0], -least, radius=0.4)
        assert not assume_broken(whole, targets, 0, slack=1e-9, deadline=FOREVER).refuted
        _, (whole, targets) = folded(net, [1.0, -1.0], 0.3 - least, radius=0.4)
        refuted += assume_broken(whole, targets, 0, slack=1e-9, deadline=FOREVER).refuted
    assert refuted > 10


def test_an_assumption_that_leaves_one_point_is_no_contradiction():
    """z = w . x and the target |w|_1 - z: 0 at one corner, where the bounds of z meet up to rounding."""
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.rand(1, 2, generator=generator, dtype=torch.float64) + 0.1
        net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
        net = net.double().requires_grad_(False)
        net[0].weight.copy_(torch.cat([weight, -weight, 0.7 * weight]))
        net[2].weight.copy_(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]))
        _, (whole, targets) = folded(net, [-1.0, 0.0], float(weight.sum()))
        assert not assume_broken(whole, targets, 0, slack=1e-12, deadline=FOREVER).refuted, seed
