"""Bounds through windows are the bounds through whole planes, entry by entry."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import certify.entry_bounds
from certify.backward import adaptive_slope, margins, parallel_slope, relax
from certify.effort import backward_multiplications
from certify.graph import trace
from certify.rules.operation import Relaxed
from certify.view import SHARE, View, views
from models.base import Batch, Classifier
from models.region import Region
from models.threat import Box, ThreatModel

SHAPE = (2, 12, 14)


class Residual(nn.Module):
    """Two sums whose branches see windows of different sizes, one of them strided."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.first, self.second = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 1)
        self.short = nn.Conv2d(4, 4, 1, stride=2)
        self.head = nn.Linear(4 * 6 * 7, 3)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-0.2, 0.2)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = F.relu(self.norm(self.stem((x - 0.4) / 0.7)))
        x = F.relu(self.second(F.relu(self.first(x))) - self.short(x))
        return self.head(x.flatten(1))


def flat(*layers):
    network = nn.Sequential(*layers, nn.Flatten())
    return nn.Sequential(network, nn.Linear(network(torch.zeros(1, *SHAPE)).shape[1], 3))


FAMILIES = {
    "strided": lambda: flat(
        nn.Conv2d(2, 6, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2), nn.ReLU()
    ),
    "dilated": lambda: flat(
        nn.Conv2d(2, 4, 3, padding=2, dilation=2), nn.LeakyReLU(0.1), nn.Conv2d(4, 4, 2), nn.ReLU()
    ),
    "grouped": lambda: flat(
        nn.Conv2d(2, 4, (3, 2), padding=(0, 1), groups=2), nn.Tanh(),
        nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1, bias=False), nn.Softplus(),
    ),
    "pooled": lambda: flat(
        nn.Conv2d(2, 4, 2, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 3, 2, padding=1), nn.ReLU()
    ),
    "overlapping": lambda: flat(
        nn.Conv2d(2, 3, 2), nn.ReLU(), nn.MaxPool2d((2, 3), 1, 1, dilation=(2, 1)),
        nn.Conv2d(3, 3, 2), nn.ReLU(),
    ),
    "averaged": lambda: flat(
        nn.Conv2d(2, 4, 2), nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 3, 2), nn.ReLU()
    ),
    "pointwise": lambda: flat(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.Conv2d(3, 3, 1, padding=1),
        nn.Conv2d(3, 2, 1, stride=2, padding=1), nn.Tanh(),
    ),
    "residual": Residual,
}  # fmt: skip

THREATS = {
    "linf": ThreatModel("linf", 0.05),
    "l2": ThreatModel("l2", 0.4),
    "l1": ThreatModel("l1", 0.8),
    "unboxed": ThreatModel("linf", 0.05, Box(-torch.inf, torch.inf)),
}


def prepared(family):
    torch.manual_seed(5)
    network = FAMILIES[family]().double().eval()
    x = torch.rand(3, *SHAPE, dtype=torch.double)
    # Images of zeros and ones have their bounds at the box.
    x[1] = (x[1] > 0.5).double()
    return trace(network), x


def bounds_of(graph, x, threat, slopes, intervals):
    relaxation = relax(graph, x, threat, *slopes, intervals=intervals)
    return relaxation, margins(relaxation, torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("intervals", [True, False])
@pytest.mark.parametrize("slopes", [(parallel_slope,), (adaptive_slope,), (parallel_slope, adaptive_slope)])
@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_windows_change_no_bound(family, threat, slopes, intervals, monkeypatch):
    graph, x = prepared(family)
    found, lower = bounds_of(graph, x, THREATS[threat], slopes, intervals)
    assert any(views(graph, x, node) for node in found.bounds), "no layer was bounded through windows"
    monkeypatch.setattr(certify.entry_bounds, "views", lambda *args: None)
    wanted, least = bounds_of(graph, x, THREATS[threat], slopes, intervals)
    # Whole planes bound some decided entries besides, which intervals behind a max pooling may use.
    lucky = intervals and family in ("pooled", "overlapping")
    torch.testing.assert_close(lower, least, rtol=0, atol=1e-4 if lucky else 1e-10)
    for node, bound in wanted.bounds.items():
        readers = [part.operation for part in graph.nodes if node in part.inputs]
        reader = next(operation for operation in readers if isinstance(operation, Relaxed))
        open_ = reader.undecided(bound) & (not lucky)
        torch.testing.assert_close(found.bounds[node].lower[open_], bound.lower[open_], rtol=0, atol=1e-10)
        torch.testing.assert_close(found.bounds[node].upper[open_], bound.upper[open_], rtol=0, atol=1e-10)


def test_a_box_of_its_own_for_every_pixel_reaches_its_window(monkeypatch):
    graph, x = prepared("strided")
    radius = 0.1 * torch.rand(*SHAPE, dtype=torch.double)
    threat = Region(low=x - radius, high=x + radius)
    found = margins(relax(graph, x, threat, adaptive_slope), torch.tensor([0, 1, 2]))
    monkeypatch.setattr(certify.entry_bounds, "views", lambda *args: None)
    wanted = margins(relax(graph, x, threat, adaptive_slope), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_pass_through_windows_as_through_planes(family, monkeypatch):
    graph, x = prepared(family)
    parameters = [node.operation.weight() for node in graph.nodes if hasattr(node.operation, "weight")]

    def slopes():
        lower = margins(relax(graph, x, THREATS["linf"], parallel_slope), torch.tensor([0, 1, 2]))
        return torch.autograd.grad(lower.sum(), parameters)

    found = slopes()
    monkeypatch.setattr(certify.entry_bounds, "views", lambda *args: None)
    for mine, theirs in zip(found, slopes(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)


def test_a_view_is_where_the_gradient_reaches():
    graph, x = prepared("strided")
    last = next(i for i, shape in reversed(list(enumerate(graph.shapes(x)))) if len(shape) == 3)
    seen = views(graph, x, last)
    source = x[:1].clone().requires_grad_()
    row, column = 1, 2
    value = source
    for node in graph.nodes[1 : last + 1]:
        # Without rectifiers every entry of the window has a part in the value.
        if hasattr(node.operation, "weight"):
            value = node.operation.forward(value)
    value[0, 0, row, column].backward()
    places = source.grad[0].abs().sum(0).nonzero()
    for axis, position in enumerate((row, column)):
        start = position * seen[0].stride[axis] + seen[0].shift[axis]
        end = start + seen[0].size[axis] - 1
        assert int(places[:, axis].min()) == max(0, start)
        assert int(places[:, axis].max()) == min(SHAPE[1 + axis] - 1, end)


def test_windows_are_left_where_they_would_not_pay_or_do_not_apply():
    torch.manual_seed(0)
    large = nn.Sequential(nn.Conv2d(2, 2, 11), nn.ReLU(), nn.Conv2d(2, 2, 2), nn.ReLU(), nn.Flatten())
    other = nn.Sequential(nn.ConvTranspose2d(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten())
    x = torch.rand(1, *SHAPE)
    assert 11 * 11 < SHAPE[1] * SHAPE[2] * SHARE < 12 * 12
    assert views(trace(large), x, 3) is None
    assert views(trace(large), x, 1) == {0: View(size=(11, 11)), 1: View()}
    assert views(trace(other), x, 3) is None


def test_a_pattern_on_the_plane_is_no_constant_of_a_window():
    class Patterned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)
            self.register_buffer("pattern", torch.rand(10, 12))

        def forward(self, x):
            return self.head(F.relu(self.conv(x) * self.pattern)).flatten(1)

    graph = trace(Patterned())
    assert all(views(graph, torch.rand(1, *SHAPE), node) is None for node in range(3, len(graph.nodes)))


def test_the_effort_counts_what_a_window_holds():
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.ReLU(),
        nn.Conv2d(2, 3, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(192, 5),
        nn.ReLU(),
    )
    x = torch.rand(1, 1, 12, 12)
    planes, first, second = 2 * 10 * 10, 9 * 2, 2 * 9 * 3
    # An entry of the second layer sees 3 x 3 of the first; one of the last layer sees all of both.
    dense = 5 * (first * 10 * 10 + second * 8 * 8 + 192 * 5)
    expected = planes * first + 192 * (second + first * 9) + dense
    batch = Batch.of(x, torch.zeros(1, dtype=torch.int64))
    assert backward_multiplications(Classifier(network, num_classes=5), batch) == expected
