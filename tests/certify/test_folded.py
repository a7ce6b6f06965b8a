"""The folded network is the network, on every input of the set."""

import pytest
import torch

from certify.backward import adaptive_slope, parallel_slope, relax
from certify.folded import folded_network
from certify.graph import trace
from certify.lowering import without_maxima
from certify.tighten import tightened
from models.errors import NotApplicable
from models.threat import ThreatModel
from tests.certify.builders import batch, model

FAMILIES = [
    "mlp", "leaky", "conv", "residual", "batch-norm", "max-pool", "average-pool", "normalised", "rearranged",
    "clamped",
]  # fmt: skip
EPS = {"linf": 0.1, "l2": 0.5, "l1": 1.0}
ROWS = [torch.tensor([[1.0, -1.0, 0.0]]), torch.tensor([[0.0, 2.0, 1.0], [-1.0, 0.5, 0.0]])]
OFFSETS = [torch.tensor([0.25]), torch.tensor([-0.5, 3.0])]


def relaxed(family, threat, intervals_only=False):
    network = model(family).network.double()
    x = batch(1).x.double()
    graph = without_maxima(trace(network), x)
    slopes = () if intervals_only else (parallel_slope, adaptive_slope)
    with torch.no_grad():
        relaxation = relax(graph, x, threat, *slopes)
        folded, targets = folded_network(relaxation, ROWS, OFFSETS)
    return network, x, folded, targets


def some_points(x, threat, n=200):
    many = x.expand(n, *x.shape[1:])
    noise = torch.randn(many.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reach = threat.radius * torch.rand(n, generator=torch.Generator().manual_seed(2)).reshape(-1, 1, 1, 1)
    return torch.cat([x, threat.project(many, many + 4 * reach * noise.sign()), threat.project(many, noise)])


def assert_equal(network, folded, targets, points):
    with torch.no_grad():
        z, a = folded.outputs(points.flatten(1))
        values = targets.values(points.flatten(1), a)
        outputs = network(points)
    assert ((z >= folded.lower - 1e-9) & (z <= folded.upper + 1e-9)).all()
    for group, (rows, offsets) in enumerate(zip(ROWS, OFFSETS, strict=True)):
        wanted = outputs @ rows.double().T + offsets.double()
        size = wanted.abs().amax().clamp(min=1.0)
        assert (values[:, group, : len(rows)] - wanted).abs().max() <= 1e-9 * size
        assert torch.isneginf(values[:, group, len(rows) :]).all()


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_folded_and_tightened_are_the_network(family, norm):
    threat = ThreatModel(norm, EPS[norm])
    network, x, folded, targets = relaxed(family, threat, intervals_only=family != "residual")
    points = some_points(x, threat)
    assert folded.neurons > 0
    assert_equal(network, folded, targets, points)
    with torch.no_grad():
        smaller, moved = tightened(folded, targets, steps=3, rate=0.25, deadline=torch.inf)
    assert smaller.neurons <= folded.neurons
    assert_equal(network, smaller, moved, points)


@pytest.mark.parametrize("little", [-1.0, 1.1])
@pytest.mark.parametrize("family", ["conv", "max-pool"])
def test_large_layers_are_tried_first_and_left_where_little_is_won(family, little, monkeypatch):
    threat = ThreatModel("linf", EPS["linf"])
    network, x, folded, targets = relaxed(family, threat, intervals_only=True)
    with torch.no_grad():
        everywhere, _ = tightened(folded, targets, steps=3, rate=0.25, deadline=torch.inf)
        for name, value in (("LARGE", 0), ("TRIED", 3), ("LITTLE", little)):
            monkeypatch.setattr(f"certify.tighten.{name}", value)
        tried, moved = tightened(folded, targets, steps=3, rate=0.25, deadline=torch.inf)
    assert_equal(network, tried, moved, some_points(x, threat))
    if little < 0:
        assert torch.allclose(tried.lower, everywhere.lower)
        assert torch.allclose(tried.upper, everywhere.upper)
    else:
        assert everywhere.neurons <= tried.neurons < folded.neurons


@pytest.mark.parametrize("family", ["mlp", "residual", "leaky"])
def test_neurons_that_tighter_bounds_decide_are_folded_away(family):
    threat = ThreatModel("linf", EPS["linf"])
    network, x, folded, targets = relaxed(family, threat)
    centre = folded.outputs(x.flatten(1))[0][0]
    some = torch.rand(folded.neurons, generator=torch.Generator().manual_seed(0)) < 0.5
    some[folded.layers[-1]] = True
    # Around the centre alone each neuron's sign is its own: true of a small enough set.
    lower = torch.where(some & (centre > 0), 0.0, folded.lower)
    upper = torch.where(some & (centre < 0), 0.0, folded.upper)
    smaller, moved = folded.tightened(lower, upper, targets)
    assert smaller.neurons == int((~some).sum())
    assert [layer.stop for layer in smaller.layers][-1:] in ([smaller.neurons], [])
    assert_equal(network, smaller, moved, x + 1e-7 * (some_points(x, threat) - x))


def test_a_layer_reads_earlier_layers_only():
    _, _, folded, _ = relaxed("residual", ThreatModel("linf", 0.1))
    for layer in folded.layers:
        assert (folded.neuron_rows[layer, layer.start :] == 0).all()
    assert ((folded.lower < 0) & (folded.upper > 0)).all()


def test_the_backward_pass_is_the_adjoint_of_the_forward_pass():
    _, x, folded, _ = relaxed("residual", ThreatModel("linf", 0.1))
    generator = torch.Generator().manual_seed(0)
    slope = torch.rand(4, folded.neurons, generator=generator, dtype=torch.float64)
    q = torch.randn(4, folded.neurons, generator=generator, dtype=torch.float64)
    points = x.flatten(1) + 0.1 * torch.randn(4, x[0].numel(), generator=generator, dtype=torch.float64)
    _, a = folded.forward(points, lambda layer, z: slope[:, layer] * z)
    _, t = folded.backward(q, lambda layer, part: slope[:, layer] * part)
    ours = (points * (t @ folded.input_rows)).sum(1) + t @ folded.constant
    assert ((q * a).sum(1) - ours).abs().max() <= 1e-9


@pytest.mark.parametrize(("family", "name"), [("sigmoid", "Sigmoidal"), ("curved", "Softplus")])
def test_what_is_no_relu_is_refused_by_name(family, name):
    with pytest.raises(NotApplicable, match=name):
        relaxed(family, ThreatModel("linf", 0.1))
