"""Neurons that alone read an input become inputs: the same values, the same question, nothing relaxed."""

import pytest
import torch
from torch import nn

from certify.backward import parallel_slope, relax
from certify.dual import Branches, Dual
from certify.exact import Exact, settle
from certify.folded import folded_network
from certify.graph import trace
from certify.property import robustness
from certify.separable import separated
from models.base import Batch, Classifier
from models.conv_ramp import ramp
from models.randomness import Randomness
from models.threat import Box, ThreatModel

ROWS = [torch.tensor([[1.0, -1.0, 0.0]]), torch.tensor([[0.0, 2.0, 1.0], [-1.0, 0.5, 0.0]])]
OFFSETS = [torch.tensor([0.25]), torch.tensor([-0.5, 3.0])]


def ramped(seed, *behind):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*ramp(0.5, 0.3), nn.Flatten(), *(layer() for layer in behind)).double().eval()


def hidden(seed):
    return ramped(seed, lambda: nn.Linear(16, 12), nn.ReLU, lambda: nn.Linear(12, 3))


def leaky(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        scale = nn.Conv2d(1, 1, 1)
        scale.weight.data.fill_(-2.0)
        scale.bias.data.fill_(1.0)
        return nn.Sequential(scale, nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(16, 3)).double().eval()


def image(seed):
    return 0.3 + 0.4 * torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(seed)).double()


def folded_of(network, x, threat):
    with torch.no_grad():
        relaxation = relax(trace(network), x, threat, parallel_slope)
        return folded_network(relaxation, ROWS, OFFSETS)


def values(folded, targets, points):
    return targets.values(points, folded.outputs(points)[1])


@pytest.mark.parametrize("make", [hidden, leaky])
@pytest.mark.parametrize("seed", range(3))
def test_both_ways_the_values_stay(make, seed):
    threat, x = ThreatModel("linf", 0.25), image(seed)
    folded, targets = folded_of(make(seed), x, threat)
    fewer, moved, lift = separated(folded, targets)
    assert fewer.neurons < folded.neurons
    ends, draws = fewer.inputs, torch.rand(400, len(fewer.inputs.lower), dtype=torch.float64)
    points = ends.lower + draws * (ends.upper - ends.lower)
    points[:100] = torch.where(draws[:100] > 0.5, ends.upper, ends.lower)
    back = lift(points)
    assert (back >= folded.inputs.lower).all()
    assert (back <= folded.inputs.upper).all()
    assert torch.allclose(values(fewer, moved, points), values(folded, targets, back), atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_every_input_of_the_network_has_a_point(seed):
    threat, x = ThreatModel("linf", 0.25), image(seed)
    folded, targets = folded_of(ramped(seed, lambda: nn.Linear(16, 3)), x, threat)
    fewer, moved, _ = separated(folded, targets)
    draws = torch.rand(2000, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = values(folded, targets, folded.inputs.lower + draws * (folded.inputs.upper - folded.inputs.lower))
    root = Branches.roots(fewer, moved)
    assert (
        Dual(fewer, moved).bound(root).value <= (found.clamp(min=-1e9) * root.weight).sum(2).amin(0) + 1e-9
    ).all()


def test_behind_a_ramp_alone_the_bound_is_the_closed_form():
    threat, x = ThreatModel("linf", 0.25), image(0)
    network = ramped(0, lambda: nn.Linear(16, 3))
    folded, targets = folded_of(network, x, threat)
    fewer, moved, lift = separated(folded, targets)
    assert fewer.neurons == 0
    ends = [network[:5](end).flatten() for end in threat.bounds(x)]
    for group, (rows, offsets) in enumerate(zip(ROWS, OFFSETS, strict=True)):
        mixed = (rows.double() @ network[-1].weight).mean(0)
        shift = (rows.double() @ network[-1].bias + offsets).mean()
        least = torch.minimum(mixed * ends[0], mixed * ends[1]).sum() + shift
        bound = Dual(fewer, moved).bound(Branches.roots(fewer, moved))
        assert bound.value[group].item() == pytest.approx(least.item(), abs=1e-9)
        point = lift(bound.x[group : group + 1])
        logits = network(point.reshape(1, 1, 4, 4))[0]
        assert ((rows.double() @ logits) + offsets).mean().item() == pytest.approx(least.item(), abs=1e-9)


def test_what_something_else_reads_too_stays():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.ramp, self.out = ramped(1), nn.Linear(16, 3).double()

        def forward(self, x):
            return self.out(self.ramp(x)) + x.flatten(1)[:, :3]

    x = image(1)
    folded, targets = folded_of(Twice(), x, ThreatModel("linf", 0.25))
    fewer, moved, _ = separated(folded, targets)
    assert 0 < fewer.neurons < folded.neurons
    assert (fewer.input_rows[:, :3] != 0).any(0).sum() + (moved.input_rows[..., :3] != 0).any() > 0


def test_other_norms_stay_as_they_are():
    folded, targets = folded_of(hidden(0), image(0), ThreatModel("l2", 0.5))
    fewer, moved, lift = separated(folded, targets)
    assert fewer is folded
    assert moved is targets
    points = torch.rand(3, 16)
    assert lift(points) is points


def corners_least(network, x, threat, label):
    low, high = network[:5](threat.bounds(x)[0]), network[:5](threat.bounds(x)[1])
    signs = (torch.arange(2**16)[:, None] >> torch.arange(16)) & 1
    flat = torch.where(signs.bool(), high.flatten(), low.flatten())
    logits = network[5:](flat.reshape(-1, 1, 4, 4))
    others = [j for j in range(3) if j != label]
    return (logits[:, [label]] - logits[:, others]).amin()


@pytest.mark.parametrize("seed", range(6))
def test_exact_agrees_with_every_corner_behind_a_ramp(seed):
    # The margins of a network that is linear behind its ramp are least at corners of the ramp's range.
    x = image(seed)
    network = ramped(seed, lambda: nn.Linear(16, 3))
    label = int(network(x).argmax())
    for eps in (0.05, 0.1, 0.2, 0.3):
        threat = ThreatModel("linf", eps)
        least = corners_least(network, x, threat, label).item()
        low, high = threat.bounds(x)
        verdict = settle(network, robustness(low[0], high[0], label, 3), seconds=20)
        assert verdict.status == ("certified" if least > 0 else "broken")
        if verdict.witness is not None:
            assert (verdict.witness >= low).all()
            assert (verdict.witness <= high).all()
            assert network(verdict.witness).argmax() != label


def test_a_sample_behind_a_ramp_is_settled_with_a_legal_witness():
    network = hidden(4).float()
    x = torch.cat([image(seed) for seed in range(12)]).float()
    y = network(x).argmax(1)
    model = Classifier(network, num_classes=3, box=Box(0.0, 1.0))
    threat = ThreatModel("linf", 0.1)
    found = Exact(seconds=20).decide(model, Batch.of(x, y), threat, Randomness(0))
    assert "open" not in found.settled_by
    assert found.found.any()
    assert not found.found.all()
    assert threat.contains(x, found.witness).all()
    assert (network(found.witness).argmax(1) != y).equal(found.found)
    assert (found.lower[~found.found] > 0).all()
