"""Max pooling as ReLUs: the same function, and an adjoint that is one."""

import pytest
import torch
from torch import nn

import certify.rivals
from certify.backward import adaptive_slope, parallel_slope, relax
from certify.crown import Crown
from certify.graph import trace
from certify.lowering import Pick, relaxed_without_maxima, without_maxima
from certify.lp import LinearProgram, triangles
from certify.polytope import Polytope
from certify.prepare import prepare
from certify.rivals import members, rivals
from certify.rules.pooling import MaxPool
from certify.rules.selection import Largest
from models.randomness import Randomness
from models.region import Region
from models.threat import ThreatModel
from tests.certify.builders import batch, model

POOLS = {
    "plain": nn.MaxPool2d(2),
    "three with padding": nn.MaxPool2d(3, stride=2, padding=1),
    "overlapping": nn.MaxPool2d(3, stride=1),
    "oblong": nn.MaxPool2d((1, 4), stride=(2, 1), padding=(0, 2)),
    "dilated": nn.MaxPool2d(2, stride=1, dilation=(2, 3)),
    "one": nn.MaxPool2d(1),
}


def lowered(pool, x, before=None):
    network = nn.Sequential(*([before] if before else []), pool, nn.Flatten()).double()
    graph = trace(network)
    return graph, without_maxima(graph, x)


@pytest.mark.parametrize("shift", [0.0, -5.0])
@pytest.mark.parametrize("name", POOLS)
def test_the_function_is_the_same(name, shift):
    x = torch.randn(7, 2, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + shift
    graph, without = lowered(POOLS[name], x)
    assert not any(isinstance(node.operation, MaxPool) for node in without.nodes)
    assert (graph.values(x)[-1] - without.values(x)[-1]).abs().max() <= 1e-12


def test_two_pools_in_a_network():
    x = torch.randn(5, 2, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.manual_seed(0)
    before = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(3, 4, 2))
    graph, without = lowered(nn.MaxPool2d(2, 1), x, before)
    assert (graph.values(x)[-1] - without.values(x)[-1]).abs().max() <= 1e-12
    assert {without.nodes[i].operation for i in without.tail} == {
        graph.nodes[i].operation for i in graph.tail
    }


def test_a_graph_without_pooling_is_left_alone():
    graph = trace(nn.Sequential(nn.Linear(3, 2), nn.ReLU()).double())
    assert without_maxima(graph, torch.zeros(1, 3, dtype=torch.float64)) is graph


@pytest.mark.parametrize("seed", range(5))
def test_a_pick_and_its_adjoint(seed):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, 2 * 3 * 4, (5, 3), generator=generator)
    pick, shape = Pick(index), torch.Size((2, 3, 4))
    value = torch.randn(6, *shape, generator=generator, dtype=torch.float64)
    rows = torch.randn(6, 8, 5, 3, generator=generator, dtype=torch.float64)
    (back,) = pick.transpose(rows, shape)
    ours = (rows * pick.forward(value)[:, None]).flatten(2).sum(2)
    theirs = (back * value[:, None]).flatten(2).sum(2)
    assert back.shape == (6, 8, *shape)
    assert (ours - theirs).abs().max() <= 1e-12


@pytest.mark.parametrize(("norm", "order"), [("linf", torch.inf), ("l2", 2)])
def test_the_lipschitz_constant_of_a_pick_is_the_matrix_norm(norm, order):
    index = torch.tensor([0, 1, 1, 1, 3])
    matrix = torch.zeros(5, 4, dtype=torch.float64)
    matrix[torch.arange(5), index] = 1.0
    found = Pick(index).lipschitz(norm, [torch.tensor(1.0, dtype=torch.float64)], [torch.Size((4,))])
    assert float(found) == pytest.approx(float(torch.linalg.matrix_norm(matrix, order)))


def relaxed(network, x, threat):
    graph = trace(network)
    with torch.no_grad():
        return graph, relax(graph, x, threat, parallel_slope, adaptive_slope)


@pytest.mark.parametrize("pairs", [0, 4096])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("seed", range(3))
def test_ruled_out_entries_never_win_in_the_threat_set(seed, norm, pairs, monkeypatch):
    monkeypatch.setattr("certify.rivals.PAIRS", pairs)
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(36, 20), nn.Unflatten(1, (4, 5)),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(4, 3),
    ).double()  # fmt: skip
    x, threat = torch.rand(1, 2, 8, 8, dtype=torch.float64), ThreatModel(norm, 0.05)
    graph, relaxation = relaxed(network, x, threat)
    pruned, whole = without_maxima(graph, x, relaxation), without_maxima(graph, x)
    with torch.no_grad():
        noise = torch.rand(500, *x.shape[1:], dtype=torch.float64) * 2 - 1
        noise[::2] = noise[::2].sign()
        points = threat.project(x.expand_as(noise), x + (0.05 if norm == "linf" else 0.5) * noise)
        assert torch.allclose(pruned.values(points)[-1], network(points), atol=1e-12)
    places = [i for i, node in enumerate(graph.nodes) if isinstance(node.operation, Largest)]
    found = [rivals(relaxation, i) for i in places]
    everything = [
        members(graph.nodes[i].operation, graph.shapes(x)[graph.nodes[i].inputs[0]]) for i in places
    ]
    assert all(int(part.count.min()) >= 1 for part in found)
    assert sum(int(part.count.sum()) for part in found) < sum(int(part.count.sum()) for part in everything)
    assert len(pruned.nodes) <= len(whole.nodes)


def test_of_equal_entries_one_is_kept():
    network = nn.Sequential(nn.Linear(2, 6), nn.Unflatten(1, (2, 3)), nn.AdaptiveMaxPool1d(1)).double()
    with torch.no_grad():
        network[0].weight[:3], network[0].bias[:3] = network[0].weight[0].clone(), 0.3
    x = torch.zeros(1, 2, dtype=torch.float64)
    graph, relaxation = relaxed(network, x, Region(low=x - 1, high=x + 1))
    found = rivals(relaxation, len(graph.nodes) - 1)
    assert int(found.count[0]) == 1
    pruned, points = without_maxima(graph, x, relaxation), 2 * torch.rand(300, 2, dtype=torch.float64) - 1
    assert torch.allclose(pruned.values(points)[-1], network(points), atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_bounds_over_the_maxima_are_kept_where_they_become_relus(seed):
    """They hold what the network reaches, and what follows them is no looser than without them."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 3),
    ).double()  # fmt: skip
    x, threat = torch.rand(1, 1, 8, 8, dtype=torch.float64), ThreatModel("linf", 0.1)
    graph, relaxation = relaxed(network, x, threat)
    kept = relaxed_without_maxima(relaxation, parallel_slope, adaptive_slope)
    fresh = relax(kept.graph, x, threat, parallel_slope, adaptive_slope)
    with torch.no_grad():
        points = threat.project(
            x.expand(300, -1, -1, -1), x + 0.1 * (2 * torch.rand(300, 1, 8, 8) - 1).sign()
        )
        values = kept.graph.values(points)
        assert torch.allclose(values[-1], graph.values(points)[-1], atol=1e-12)
    tighter = 0.0
    for j, bounds in kept.bounds.items():
        assert (values[j] >= bounds.lower - 1e-9).all()
        assert (values[j] <= bounds.upper + 1e-9).all()
        tighter += float(
            (fresh.bounds[j].upper - fresh.bounds[j].lower - bounds.upper + bounds.lower).sum().detach()
        )
    assert tighter > 0.1


def test_entries_that_relus_never_see_are_left_out_and_bounds_are_those_of_what_is_left():
    network = nn.Sequential(
        nn.Unflatten(1, (3, 2)), nn.AdaptiveMaxPool1d(1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1)
    ).double()
    low = torch.tensor([[-5.0, -0.1, -3.0, -2.0, -1.0, 0.2]], dtype=torch.float64)
    high = torch.tensor([[3.0, 0.0, -1.0, -0.5, 4.0, 0.3]], dtype=torch.float64)
    x = (low + high) / 2
    graph, relaxation = relaxed(network, x, Region(low=low, high=high))
    pool = next(i for i, node in enumerate(graph.nodes) if isinstance(node.operation, Largest))
    assert rivals(relaxation, pool).count.tolist() == [1, 1, 2]
    kept = relaxed_without_maxima(relaxation, parallel_slope, adaptive_slope)
    with torch.no_grad():
        points = low + (high - low) * torch.rand(500, 6, dtype=torch.float64)
        values = kept.graph.values(points)
        assert torch.allclose(values[-1], network(points), atol=1e-12)
    for j, bounds in kept.bounds.items():
        assert (values[j] >= bounds.lower - 1e-9).all()
        assert (values[j] <= bounds.upper + 1e-9).all()


def test_a_maximum_that_more_than_relus_read_keeps_what_is_below_zero():
    class Network(nn.Module):
        def forward(self, x):
            most = x.amax(1, keepdim=True)
            return torch.relu(most) + most

    low, high = torch.tensor([[-5.0, -0.1]]).double(), torch.tensor([[3.0, 0.0]]).double()
    graph, relaxation = relaxed(Network(), (low + high) / 2, Region(low=low, high=high))
    assert rivals(relaxation, 1).count.tolist() == [2]
    points = low + (high - low) * torch.rand(500, 2, dtype=torch.float64)
    assert torch.allclose(without_maxima(graph, low, relaxation).values(points)[-1], Network()(points))


def test_maxima_stay_where_nobody_makes_a_program():
    """The rewritten network has more neurons: bounding them too took lenet ten times as long."""
    judged, data, threat = model("max-pool"), batch(3), ThreatModel("linf", 0.3)
    graph, x = prepare(judged, data.x)
    wide, known = triangles(graph, x, threat, data.y, neurons=0)
    assert wide.graph is graph
    other = torch.arange(3) != data.y[:, None]
    for certifier in (Polytope(), Crown(), LinearProgram(neurons=0)):
        found = certifier.run(judged, data, threat, Randomness(0)).lower
        assert bool((known >= found - 1e-9)[other].all())
    assert torch.equal(found[other], known[other])
    lowered, better = triangles(graph, x, threat, data.y, neurons=10**6)
    assert not any(isinstance(node.operation, MaxPool) for node in lowered.graph.nodes)
    assert bool((better >= known).all())


def test_entries_are_compared_until_it_is_late(monkeypatch):
    """Every pass of two rows takes a second of this clock: after the limit no pair is compared."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(3, 32), nn.ReLU(), nn.Unflatten(1, (2, 4, 4)), nn.MaxPool2d(2), nn.Flatten()
    )
    x = torch.rand(1, 3, dtype=torch.float64)
    relaxation = relax(trace(network.double()), x, ThreatModel("linf", 0.3), adaptive_slope)
    clock, passes, honest = [0.0], [], type(relaxation).range

    def bounded(self, node, rows):
        clock[0] += 1
        passes.append(rows.shape[1])
        return honest(self, node, rows)

    monkeypatch.setattr(type(relaxation), "range", bounded)
    monkeypatch.setattr(certify.rivals, "rows_at_once", lambda *given: 2)
    monkeypatch.setattr(certify.rivals.time, "monotonic", lambda: clock[0])
    node = len(relaxation.graph.nodes) - 2
    whole = rivals(relaxation, node)
    assert max(passes) <= 2
    assert len(passes) > 3
    passes.clear()
    late = rivals(relaxation, node, clock[0] + 1.5)
    assert len(passes) == 2
    assert bool((late.count >= whole.count).all())
