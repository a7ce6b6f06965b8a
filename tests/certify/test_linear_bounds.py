"""IBP, polytope and crown against closed forms, brute force and planted mistakes."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from certify import entry_bounds
from certify.alpha_crown import AlphaCrown
from certify.backward import adaptive_slope, margins, parallel_slope, relax
from certify.base import CERTIFIERS
from certify.crown import Crown
from certify.crown_ibp import CrownIBP
from certify.graph import trace
from certify.ibp import IntervalBounds, interval_margins
from certify.lp import LinearProgram
from certify.polytope import Polytope, polytope_margins
from certify.prepare import prepare
from certify.rules import activation
from models.base import Batch, Classifier
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.certify.builders import FAMILIES, batch, margins_of, mlp, model, smallest_margins
from tests.certify.planes import small_network

BOUNDS = [IntervalBounds(), Polytope(), Crown(), CrownIBP(), LinearProgram(only_open=False), AlphaCrown()]
NAMES = [bound.name for bound in BOUNDS]
WIDE = Box(-torch.inf, torch.inf)


def run(certifier, judged, data, threat):
    return certifier.run(judged, data, threat, Randomness(0))


def others(data, classes=3):
    return torch.arange(classes) != data.y[:, None]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("certifier", BOUNDS[:4], ids=NAMES[:4])
@pytest.mark.parametrize("box", [Box(0, 1), WIDE], ids=["box", "ball"])
def test_a_linear_network_has_the_dual_norms_closed_form(certifier, norm, box):
    judged, data = model(mlp(72, 3)), batch()
    middle = Batch.of(0.4 + 0.2 * data.x, data.y)
    lower = run(certifier, judged, middle, ThreatModel(norm, 0.1, box)).lower
    weight = judged.network[1].weight.detach().double()
    difference = weight[data.y][:, None] - weight
    order = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    clean = margins_of(judged.network.double(), middle.x.double(), data.y)
    exact = clean - 0.1 * torch.linalg.vector_norm(difference, order, dim=2)
    assert torch.allclose(lower[others(data)], exact[others(data)], atol=1e-9, rtol=0)


@pytest.mark.parametrize("certifier", BOUNDS[:4], ids=NAMES[:4])
def test_a_linear_network_in_the_box_is_exact_for_linf_and_never_looser_than_the_ball(certifier):
    judged, data = model(mlp(72, 3)), batch()
    weight = judged.network[1].weight.detach().double()
    difference = weight[data.y][:, None] - weight
    x = data.x.double().flatten(1)[:, None]
    low, high = (x - 0.3).clamp(min=0), (x + 0.3).clamp(max=1)
    moved = torch.where(difference > 0, low, high)
    bias = judged.network[1].bias.detach().double()
    exact = (difference * moved).sum(2) + bias[data.y][:, None] - bias
    lower = run(certifier, judged, data, ThreatModel("linf", 0.3)).lower
    assert torch.allclose(lower[others(data)], exact[others(data)], atol=1e-9, rtol=0)
    for norm in ("l2", "l1"):
        inside = run(certifier, judged, data, ThreatModel(norm, 0.9)).lower
        outside = run(certifier, judged, data, ThreatModel(norm, 0.9, WIDE)).lower
        assert (inside - outside)[others(data)].min() >= -1e-9


@pytest.mark.parametrize("certifier", BOUNDS[:4], ids=NAMES[:4])
def test_the_whole_cube_is_bounded_by_the_box_alone(certifier):
    judged, data = model("mlp"), batch()
    wide = run(certifier, judged, data, ThreatModel("linf", 2.0)).lower
    wider = run(certifier, judged, data, ThreatModel("linf", 50.0)).lower
    assert torch.equal(wide, wider)


def exact_margins(network, data, threat):
    """The exact minimum of each margin of a two-hidden-layer ReLU network, over all activation patterns."""
    (w1, b1), (w2, b2), (w3, b3) = (
        (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
        for layer in network
        if isinstance(layer, nn.Linear)
    )
    least = np.full((len(data), len(b3)), np.inf)
    lower, upper = (bound.flatten(1).double().numpy() for bound in threat.bounds(data.x.double()))
    patterns = list(itertools.product([0.0, 1.0], repeat=len(b1) + len(b2)))
    for i, j in itertools.product(range(len(data)), range(len(b3))):
        if j == int(data.y[i]):
            continue
        row, constant = w3[data.y[i]] - w3[j], b3[data.y[i]] - b3[j]
        for pattern in patterns:
            first, second = np.array(pattern[: len(b1)]), np.array(pattern[len(b1) :])
            inner = w2 @ (first[:, None] * w1)
            inner_bias = w2 @ (first * b1) + b2
            sign1, sign2 = 1 - 2 * first, 1 - 2 * second
            found = linprog(
                row @ (second[:, None] * inner),
                A_ub=np.concatenate([sign1[:, None] * w1, sign2[:, None] * inner]),
                b_ub=-np.concatenate([sign1 * b1, sign2 * inner_bias]),
                bounds=list(zip(lower[i], upper[i], strict=True)),
            )
            if found.status == 0:
                least[i, j] = min(least[i, j], found.fun + row @ (second * inner_bias) + constant)
    return torch.from_numpy(least)


@pytest.mark.parametrize("seed", range(3))
def test_no_bound_exceeds_the_exact_minimum_and_lp_is_the_tightest(seed):
    torch.manual_seed(seed)
    judged, data = model(mlp(4, 4, 3, 3)), batch(2, (4,), seed)
    threat = ThreatModel("linf", 0.25)
    exact = exact_margins(judged.network, data, threat)
    seen, _ = smallest_margins(judged, data, threat)
    mask = others(data)
    assert (seen - exact)[mask].min() >= -1e-7
    lower = {certifier.name: run(certifier, judged, data, threat).lower for certifier in BOUNDS}
    for name in NAMES:
        assert (exact - lower[name])[mask].min() >= -1e-7, name
    for name in ("ibp", "polytope", "crown", "crown-ibp", "alpha-crown"):
        assert (lower["lp"] - lower[name])[mask].min() >= -1e-9, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("certifier", BOUNDS[:4], ids=NAMES[:4])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_eps_zero_gives_the_exact_margins(certifier, family, norm):
    judged, data = model(family), batch()
    lower = run(certifier, judged, data, ThreatModel(norm, 0.0)).lower
    exact = margins_of(judged.network.double(), data.x.double(), data.y)
    assert torch.allclose(lower[others(data)], exact[others(data)], atol=1e-9, rtol=0)


@pytest.mark.parametrize("certifier", BOUNDS, ids=NAMES)
def test_equal_logits_are_not_certified(certifier):
    network = mlp(72, 4, 3)
    nn.init.zeros_(network[3].weight)
    nn.init.zeros_(network[3].bias)
    found = run(certifier, model(network), batch(), ThreatModel("linf", 0.1))
    assert not found.certified.any()
    assert (found.margin == 0).all()


@pytest.mark.parametrize("certifier", BOUNDS, ids=NAMES)
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_dead_neurons_and_zero_rows_give_no_nan(certifier, eps):
    network = mlp(72, 6, 5, 3)
    with torch.no_grad():
        network[1].weight[:2] = 0.0
        network[1].bias[:2] = torch.tensor([0.0, -0.0])
        network[3].weight[0] = 0.0
        network[3].bias[0] = 0.0
        network[3].bias[1] = -1e6
    judged, data = model(network), batch()
    lower = run(certifier, judged, data, ThreatModel("linf", eps)).lower
    assert not lower.isnan().any()
    least, _ = smallest_margins(judged, data, ThreatModel("linf", eps), samples=4, steps=4)
    assert (least - lower)[others(data)].min() >= -1e-9


@pytest.mark.parametrize("certifier", BOUNDS, ids=NAMES)
def test_permuting_classes_permutes_the_bounds(certifier):
    judged, data = model("mlp"), batch()
    order = torch.tensor([2, 0, 1])
    before = run(certifier, judged, data, ThreatModel("linf", 0.05)).lower
    last = judged.network[-1]
    with torch.no_grad():
        last.weight.copy_(last.weight[order])
        last.bias.copy_(last.bias[order])
    moved = Batch.of(data.x, torch.argsort(order)[data.y])
    after = run(certifier, judged, moved, ThreatModel("linf", 0.05)).lower
    assert torch.allclose(after, before[:, order], atol=1e-9)


@pytest.mark.parametrize("certifier", BOUNDS[:4], ids=NAMES[:4])
def test_normalising_inside_equals_normalising_the_data(certifier):
    inside, data = model("normalised"), batch()
    network = inside.network
    mean, std = network.mean.view(1, 2, 1, 1), network.std.view(1, 2, 1, 1)

    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = network.conv, network.head

        def forward(self, x):
            return self.head((1 - 2 * self.conv(x)).relu().flatten(1))

    # One std for both channels keeps the ball a ball in the data's own units.
    network.std.fill_(0.5)
    scaled = Batch.of((data.x.double() - mean.double()) / std.double(), data.y)
    outer = Classifier(Outside().double().eval(), num_classes=3, box=WIDE)
    middle = Batch.of(0.3 + 0.4 * data.x, data.y)
    scaled = Batch.of((middle.x.double() - mean.double()) / std.double(), data.y)
    theirs = run(certifier, outer, scaled, ThreatModel("linf", 0.2, WIDE)).lower
    network.float()
    ours = run(certifier, inside, middle, ThreatModel("linf", 0.1, WIDE)).lower
    assert torch.allclose(ours, theirs, atol=1e-9)


def algorithm_1(network, x, y, eps):
    """Wong & Kolter 2018, Algorithm 1 as repaired, for one sample in numpy: (classes,) margins."""
    layers = [
        (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
        for layer in network
        if isinstance(layer, nn.Linear)
    ]
    last_weight, last_bias = layers[-1]
    layers[-1] = (last_weight[y] - last_weight, last_bias[y] - last_bias)
    weight, bias = layers[0]
    nu1, gamma = weight.T, [bias]
    lower = x @ nu1 + bias - eps * np.abs(nu1).sum(0)
    upper = x @ nu1 + bias + eps * np.abs(nu1).sum(0)
    nus, lows = [], []
    for weight, bias in layers[1:]:
        unstable = (lower < 0) & (upper > 0)
        slope = np.where(unstable, upper / np.where(unstable, upper - lower, 1), (lower >= 0).astype(float))
        step = slope[:, None] * weight.T
        nus = [nu @ step for nu in nus] + [np.diag(slope)[unstable] @ weight.T]
        lows.append(lower[unstable])
        gamma = [part @ step for part in gamma] + [bias]
        nu1 = nu1 @ step
        psi = x @ nu1 + sum(gamma)
        radius = eps * np.abs(nu1).sum(0)
        below = sum((low[:, None] * np.maximum(-nu, 0)).sum(0) for low, nu in zip(lows, nus, strict=True))
        above = sum((low[:, None] * np.maximum(nu, 0)).sum(0) for low, nu in zip(lows, nus, strict=True))
        lower, upper = psi - radius + below, psi + radius - above
    return lower


def test_without_box_the_polytope_bound_is_algorithm_1():
    judged, data = model("mlp"), batch()
    lower = run(Polytope(clipped=False), judged, data, ThreatModel("linf", 0.05)).lower
    clipped = run(Polytope(), judged, data, ThreatModel("linf", 0.05)).lower
    for i in range(len(data)):
        theirs = torch.from_numpy(
            algorithm_1(judged.network, data.x[i].double().flatten().numpy(), int(data.y[i]), 0.05)
        )
        mask = others(data)[i]
        assert torch.allclose(lower[i][mask], theirs[mask], atol=1e-9, rtol=0)
    assert not torch.allclose(clipped, lower)


@pytest.mark.parametrize("certifier", BOUNDS[1:3], ids=NAMES[1:3])
def test_a_dropped_intercept_is_caught_by_sampling(certifier, monkeypatch):
    lines = activation.ReLU.lines

    def unsound(self, bounds, alpha):
        made = lines(self, bounds, alpha)
        return dataclasses.replace(made, upper_intercept=torch.zeros_like(made.upper_intercept))

    monkeypatch.setattr(activation.ReLU, "lines", unsound)
    judged, data, threat = model("mlp"), batch(), ThreatModel("linf", 0.05)
    lower = run(certifier, judged, data, threat).lower
    least, _ = smallest_margins(judged, data, threat, samples=20, steps=8)
    assert (least - lower)[others(data)].min() < -1e-3


@pytest.mark.parametrize("bound", [interval_margins, polytope_margins], ids=["ibp", "polytope"])
def test_bounds_are_differentiable_in_the_parameters(bound):
    judged, data = model("conv"), batch()
    network = judged.network
    graph = trace(network)
    threat = ThreatModel("linf", 0.02)
    value = bound(graph, data.x, data.y, threat).sum()
    value.backward()
    assert value.dtype == torch.float32
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    weight, step = network[0].weight, 1e-6
    network.double()
    x = data.x.double()
    network.zero_grad()
    graph = trace(network)
    bound(graph, x, data.y, threat).sum().backward()
    expected = float(weight.grad[0, 0, 1, 1])
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0, 1, 1] += sign * step
            ends.append(float(bound(graph, x, data.y, threat).sum()))
            weight[0, 0, 1, 1] -= sign * step
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_every_certificate_here_is_registered():
    assert all(CERTIFIERS[bound.name] is type(bound) for bound in BOUNDS)


def test_past_its_deadline_a_relaxation_is_made_of_intervals_alone():
    graph, x = prepare(model("mlp"), batch(2).x)
    late = relax(graph, x, ThreatModel("linf", 0.1), parallel_slope, adaptive_slope, deadline=-torch.inf)
    plain = relax(graph, x, ThreatModel("linf", 0.1))
    for j, bounds in plain.bounds.items():
        assert torch.equal(late.bounds[j].lower, bounds.lower)
        assert torch.equal(late.bounds[j].upper, bounds.upper)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_a_deadline_halfway_through_a_layer_keeps_what_is_proved(kind, monkeypatch):
    graph, x = prepare(model(kind), batch(2).x)
    threat = ThreatModel("linf", 0.1)
    plain, whole = relax(graph, x, threat), relax(graph, x, threat, adaptive_slope)
    monkeypatch.setattr("certify.entry_bounds.MEMORY", 1)
    monkeypatch.setattr("certify.windows.CHUNK", 1)
    clock = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    last = max(whole.bounds)
    with torch.no_grad():
        relax(graph, x, threat, adaptive_slope)
        looks = next(clock)
        late = relax(graph, x, threat, adaptive_slope, deadline=looks + looks // 2)
    found, interval, linear = (part.bounds[last].lower for part in (late, plain, whole))
    done = found > interval + 1e-9
    assert bool(done.any())
    assert not bool(done.all())
    assert not bool((found > linear + 1e-9)[linear > interval].any())
    assert next(clock) < 2 * looks


def test_neurons_that_one_set_of_slopes_decides_are_not_bounded_by_the_next(monkeypatch):
    asked = []
    inner = entry_bounds.bound_entries

    def counted(relaxation, node, wanted, *rest):
        asked.append(int(wanted.sum()))
        return inner(relaxation, node, wanted, *rest)

    monkeypatch.setattr(entry_bounds, "bound_entries", counted)
    graph = trace(small_network(4, 30, 30, 30, 3, seed=0).double())
    x = torch.rand(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        both = relax(graph, x, ThreatModel("linf", 0.1), parallel_slope, adaptive_slope)
    pairs = list(zip(asked[::2], asked[1::2], strict=True))
    assert any(second < first for first, second in pairs)
    points = x + 0.2 * torch.rand(500, 4, 4, generator=torch.Generator().manual_seed(1), dtype=x.dtype) - 0.1
    for point in points.clamp(0, 1):
        values = graph.values(point)
        for node, bounds in both.bounds.items():
            assert bool(((values[node] >= bounds.lower - 1e-9) & (values[node] <= bounds.upper + 1e-9)).all())


class Mixed(nn.Module):
    """A value that a ReLU reads, whose output a maximum or a sigmoid reads, or that a sigmoid reads too."""

    def __init__(self, ending):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(16, 36), nn.Linear(36, 36)
        self.ending = ending
        self.last = nn.Linear({"maximum": 9, "sigmoid": 36, "both": 72, "relu": 36}[ending], 3)

    def forward(self, x):
        z = self.second(torch.relu(self.first(x.flatten(1))))
        a = torch.relu(z)
        if self.ending == "maximum":
            a = nn.functional.max_pool2d(a.reshape(-1, 1, 6, 6), 2).flatten(1)
        if self.ending == "sigmoid":
            a = torch.sigmoid(a)
        if self.ending == "both":
            a = torch.cat([a, torch.sigmoid(z)], 1)
        return self.last(a)


def both_ends(inner):
    return lambda relaxation, node, wanted, known, deadline, signs=False: inner(
        relaxation, node, wanted, known, deadline
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("network", ["maximum", "sigmoid", "both", "relu", "conv"])
def test_margins_are_those_of_both_ends_of_every_neuron(monkeypatch, network, norm):
    torch.manual_seed(5)
    convolutional = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(54, 40), nn.ReLU(), nn.Linear(40, 3),
    )  # fmt: skip
    side = 8 if network == "conv" else 4
    graph = trace((convolutional if network == "conv" else Mixed(network)).double())
    x = torch.rand(6, 1, side, side, dtype=torch.float64)
    y, threat = torch.arange(6) % 3, ThreatModel(norm, 0.05 if norm == "linf" else 0.3)
    inner, asked = entry_bounds.bound_entries, []

    def spied(relaxation, node, wanted, known, deadline, signs=False):
        found = inner(relaxation, node, wanted, known, deadline, signs)
        whole = inner(relaxation, node, wanted, known, deadline)
        asked.append(bool(((whole.upper < found.upper - 1e-6) & wanted).any()))
        open_ = wanted & (found.lower < 0) & (found.upper > 0)
        assert torch.allclose(found.lower[open_], known.intersect(whole).lower[open_], atol=1e-12)
        assert torch.allclose(found.upper[open_], known.intersect(whole).upper[open_], atol=1e-12)
        return found

    with torch.no_grad():
        monkeypatch.setattr(entry_bounds, "bound_entries", spied)
        ours = margins(relax(graph, x, threat, adaptive_slope), y)
        monkeypatch.setattr(entry_bounds, "bound_entries", both_ends(inner))
        assert torch.allclose(ours, margins(relax(graph, x, threat, adaptive_slope), y), atol=1e-9)
    if network in ("relu", "conv"):
        assert any(asked)
