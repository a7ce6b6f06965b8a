"""Functions that jump: lines on both sides of every threshold, choices, and branches that decide them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import evaluate
from certify.bounds import Interval
from certify.crown import Crown
from certify.exact import Exact, settle
from certify.graph import trace
from certify.ibp import IntervalBounds
from certify.lipschitz import Lipschitz
from certify.property import Clause, Property
from certify.rules.activation import ReLU
from certify.rules.jumps import KINDS, ROUNDING, Jumps
from certify.rules.product import Product
from models.base import Batch, Classifier
from models.errors import NotApplicable, UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.certify.builders import margins_of

WIDE = Box(-torch.inf, torch.inf)


def ranges(count: int = 400) -> Interval:
    """Ranges of all widths, some with ends at thresholds and some a hair beside them."""
    generator = torch.Generator().manual_seed(3)
    centre = 6 * torch.rand(count, generator=generator, dtype=torch.float64) - 3
    width = 10 ** (4 * torch.rand(count, generator=generator, dtype=torch.float64) - 3)
    lower, upper = centre - width / 2, centre + width / 2
    lower[:60] = (2 * lower[:60]).round() / 2
    upper[40:100] = torch.maximum((2 * upper[40:100]).round() / 2, lower[40:100])
    lower[100:120] = upper[100:120]
    lower[120:140] -= 1e-6
    return Interval(lower, upper)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [None, 0.0, 0.3, 1.0])
def test_lines_enclose_what_lies_on_either_side_of_a_threshold(kind: str, place: float | None) -> None:
    jumps, bounds = Jumps(kind), ranges()
    alpha = None if place is None else torch.full_like(bounds.lower, place)
    lines, ends = jumps.lines(bounds, alpha), jumps.interval(bounds)
    reach = ROUNDING * (1 + torch.maximum(bounds.lower.abs(), bounds.upper.abs()))
    parts = torch.cat([torch.linspace(0, 1, 301, dtype=torch.float64), torch.tensor([1e-7, 1 - 1e-7])])
    z = bounds.lower + parts[:, None] * (bounds.upper - bounds.lower)
    nearby = (2 * z).round() / 2
    for points in (z, *(nearby + side * reach for side in (-1.0, 0.0, 1.0))):
        inside = (points >= bounds.lower) & (points <= bounds.upper)
        below = lines.lower_slope * points + lines.lower_intercept
        above = lines.upper_slope * points + lines.upper_intercept
        for moved in (-reach, 0 * reach, reach):
            value = jumps.forward(points + 0.999 * moved)
            assert bool((below <= value + 1e-12)[inside].all())
            assert bool((above >= value - 1e-12)[inside].all())
            assert bool(((ends.lower <= value) & (ends.upper >= value))[inside].all())


def test_one_jump_has_the_lines_of_the_smaller_gaps() -> None:
    bounds = Interval(torch.tensor([-1.0, -3.0]).double(), torch.tensor([3.0, 1.0]).double())
    lines = Jumps("above").lines(bounds, None)
    assert torch.allclose(lines.lower_slope, torch.tensor([1 / 3, 0.0]).double(), atol=1e-3)
    assert torch.allclose(lines.upper_slope, torch.tensor([0.0, 1 / 3]).double(), atol=1e-3)
    assert torch.allclose(lines.upper_intercept, torch.tensor([1.0, 1.0]).double(), atol=1e-3)
    assert torch.allclose(lines.lower_intercept, torch.zeros(2).double(), atol=1e-3)


def test_stairs_lie_between_two_lines_one_step_apart() -> None:
    bounds = Interval(torch.tensor([-2.3]).double(), torch.tensor([4.1]).double())
    for kind, shift in (("floor", 0.0), ("round", 0.5), ("ceil", 1.0)):
        lines = Jumps(kind).lines(bounds, None)
        assert torch.equal(lines.upper_slope, torch.ones(1).double())
        assert torch.equal(lines.lower_slope, torch.ones(1).double())
        assert float(lines.upper_intercept) == pytest.approx(shift, abs=1e-3)
        assert float(lines.lower_intercept) == pytest.approx(shift - 1, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_cuts_leave_branches_that_are_decided_or_next_to_nothing(kind: str) -> None:
    jumps, parts = Jumps(kind), [Interval(torch.tensor([-1.7]).double(), torch.tensor([2.9]).double())]
    for _ in range(12):
        halves = []
        for part in parts:
            if not bool(jumps.undecided(part)) or float(part.upper - part.lower) < 1e-3:
                halves.append(part)
                continue
            end, start = jumps.cut(part)
            assert bool((part.lower < start) & (start <= end) & (end < part.upper))
            halves += [Interval(part.lower, end), Interval(start, part.upper)]
        parts = halves
    assert not any(bool(jumps.undecided(part)) for part in parts)
    assert len(parts) == 1 + len(jumps.forward(torch.linspace(-1.7, 2.9, 1000)).unique()[1:])
    for part in parts:
        # What is left of a range is one value, whatever rounding makes of its ends.
        ends, inside = jumps.interval(part), torch.linspace(float(part.lower), float(part.upper), 99)
        assert bool(ends.lower == ends.upper)
        assert bool((jumps.forward(inside[1:-1]) == ends.lower).all())


def test_a_range_that_no_cut_has_ended_is_open_on_both_sides_of_a_threshold() -> None:
    """A value on a threshold, or a hair off, may be on either side, unless a branch says which."""
    for kind, place in (("above", 0.0), ("at least", 0.0), ("round", 2.5), ("floor", -3.0), ("ceil", 4.0)):
        for hair in (0.0, 1e-6, -1e-6):
            here = torch.tensor([place + hair]).double()
            assert bool(Jumps(kind).undecided(Interval(here, here)))
            assert bool(Jumps(kind).undecided(Interval(here - 1, here)))
            assert bool(Jumps(kind).undecided(Interval(here, here + 1)))


class Chosen(nn.Module):
    """A linear layer, a function of it, and a linear layer."""

    def __init__(self, function) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.register_buffer("mask", torch.tensor([True, False, True, True, False]))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return self.last(self.function(self, z, self.second(z)))


CALLS = {
    "sign": lambda net, z, w: torch.sign(z) + w.sgn(),
    "floor": lambda net, z, w: torch.floor(3 * z) - (4 * w).floor(),
    "ceil": lambda net, z, w: (2 * z).ceil(),
    "round": lambda net, z, w: (5 * z).round() / 5 + torch.round(w, decimals=1),
    "whole parts": lambda net, z, w: z // 0.3 + torch.floor_divide(w, 0.2),
    "comparisons": lambda net, z, w: (z > 0.1) * w + (w > 0.2) * z + (z >= w) * 0.5 + (w <= z) * 0.1,
    "turned comparisons": lambda net, z, w: (z < 0.1) * w + z.lt(w) * z + torch.ge(z, 0.1) * w,
    "equal": lambda net, z, w: ((2 * z).round() == (2 * w).round()) * w + torch.eq(z.floor(), -1.0) * z,
    "not equal": lambda net, z, w: torch.where((2 * z).round().ne(w.round()), z, w) + (w.ceil() != 1) * z,
    "no division by nothing": lambda net, z, w: torch.where(w.relu() == 0, 0.3, z / (1 + w.relu())),
    "conditions": lambda net, z, w: (((z > 0) & ~(w > 0.1)) | z.le(-0.4)) * w,
    "conditions as numbers": lambda net, z, w: (z > 0).to(torch.float64) + (w > 0).type_as(z),
    "choices": lambda net, z, w: torch.where(z > 0.1, z, w) - torch.where(w < 0, 0.5, z),
    "a constant otherwise": lambda net, z, w: torch.where(z < w, w, 2.0),
    "choices by a constant": lambda net, z, w: torch.where(net.mask, z, w) + torch.where(net.mask, 0.25, w),
    "a constant chosen": lambda net, z, w: torch.where(net.mask, z, 0.7) + w.masked_fill(net.mask, -1.0),
    "chosen by a method": lambda net, z, w: z.where(w > 0.1, w) + w.where(net.mask, 0.25),
    "filled": lambda net, z, w: z.masked_fill(w < 0, 0.3),
    "hard shrinking": lambda net, z, w: F.hardshrink(z, 0.2) + F.hardshrink(w, 0.0),
    "threshold": lambda net, z, w: F.threshold(z, 0.2, -0.4) + F.threshold(w, -0.1, 0.5),
    "heaviside": lambda net, z, w: torch.heaviside(z, torch.tensor(1.0, dtype=torch.float64)) * w,
    "integers": lambda net, z, w: torch.fake_quantize_per_tensor_affine(z, 0.1, 3, 0, 15),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_pytorchs_and_no_point_lies_beyond_a_bound(name: str) -> None:
    network = Chosen(CALLS[name]).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(3, 6, generator=generator, dtype=torch.float64)
    assert torch.allclose(trace(network, like=x).values(x)[-1], network(x), atol=1e-12)
    judged, data = Classifier(network, num_classes=3), Batch.of(x, network(x).argmax(1))
    others = torch.arange(3) != data.y[:, None]
    for eps in (0.02, 0.3):
        draws = 2 * torch.rand(4000, 3, 6, generator=generator, dtype=torch.float64) - 1
        draws[:500] = draws[:500].sign()
        points = (x + eps * draws).clamp(0, 1).flatten(0, 1)
        least = margins_of(network, points, data.y.repeat(4000)).reshape(4000, 3, 3).amin(0)
        for certifier in (IntervalBounds(), Crown()):
            lower = certifier.run(judged, data, ThreatModel("linf", eps), Randomness(0)).lower
            # PyTorch rounds to multiples of a scale in single precision, whatever it is given.
            slack = 1e-6 if name == "integers" else 1e-9
            assert float((least - lower)[others].min()) >= -slack


def test_a_choice_by_sign_is_the_leaky_relu_that_it_spells_out() -> None:
    spelled = Chosen(
        lambda net, z, w: torch.where(z > 0, z, 0.1 * z) + torch.where(w < 0, 0, w) + z * (z > 0).type_as(z)
    )
    found = [node.operation for node in trace(spelled, like=torch.rand(1, 6)).nodes]
    assert [one.leak for one in found if isinstance(one, ReLU)] == [0.1, 0.0, 0.0]
    assert not any(isinstance(one, Jumps | Product) for one in found)
    others = (
        lambda net, z, w: torch.where(z > 0, z, 1.5 * z),
        lambda net, z, w: torch.where(z > 0.1, z, 0.1 * z),
        lambda net, z, w: torch.where(z > 0, w, 0.1 * z),
        lambda net, z, w: z * (w > 0),
    )
    for other in others:
        found = [node.operation for node in trace(Chosen(other), like=torch.rand(1, 6)).nodes]
        assert any(isinstance(one, Jumps) for one in found)


class Step(nn.Module):
    """Logits 0 and 1 where x >= 1/2, else -1: right by definition at 1/2, wrong a hair below."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0 * x, torch.where(x >= 0.5, 1.0, -1.0)], 1)


@pytest.mark.parametrize("certifier", [IntervalBounds(), Crown(), Exact(seconds=2)], ids=lambda one: one.name)
def test_what_stands_on_a_threshold_is_not_certified(certifier) -> None:
    judged = Classifier(Step(), num_classes=2)
    x = torch.tensor([[0.5], [0.5 + 1e-7], [0.6], [0.45]])
    found = certifier.run(
        judged, Batch.of(x, judged.logits(x).argmax(1)), ThreatModel("linf", 0.0), Randomness(0)
    )
    assert found.certified.tolist() == [False, False, True, True]


class Binary(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0).type_as(x)


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.round()


@pytest.mark.parametrize("layer", [Binary, Rounded])
@pytest.mark.parametrize("seed", range(4))
def test_exact_settles_what_jumps_as_a_grid_does(seed: int, layer: type[nn.Module]) -> None:
    """Every clause is moved to either side of the least value on a fine grid of the plane."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 5), layer(), nn.Linear(5, 3)).double()
    low, high = torch.tensor([-0.6, -0.5]), torch.tensor([0.7, 0.4])
    ends = zip(low.tolist(), high.tolist(), strict=True)
    grid = torch.cartesian_prod(*(torch.linspace(*pair, 700, dtype=torch.float64) for pair in ends))
    with torch.no_grad():
        outputs = network(grid)
    row = torch.randn(1, 3, generator=torch.Generator().manual_seed(seed))
    least = float((outputs @ row.double().T).min())
    for gap, status in ((0.02, "certified"), (-0.02, "broken")):
        clause = Clause(row, torch.tensor([gap - least], dtype=torch.float64))
        verdict = settle(network, Property(low, high, (clause,)), seconds=20)
        assert verdict.status == status
        if status == "broken":
            assert float(clause.excess(network(verdict.witness.double())).detach()) <= 1e-6


def test_rounded_inputs_are_certified_up_to_the_next_level() -> None:
    """A 1-bit input moves by nothing until eps reaches the threshold, and by a whole level from there."""
    network = nn.Sequential(nn.Flatten(), Rounded(), nn.Linear(4, 2))
    with torch.no_grad():
        network[2].weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
        network[2].bias.copy_(torch.tensor([0.0, 0.5]))
    x = torch.tensor([[0.9, 0.1, 0.2, 0.3]])[:, None, None]
    for eps, certified in ((0.39, 1.0), (0.41, 0.0)):
        result = evaluate(network, x, [0], eps=eps, attacks=["strongest"], certificates=["ibp", "crown"])
        assert (result.certified, result.attacked) == (certified, certified)


def test_what_has_no_constant_or_no_rule_is_refused_by_name() -> None:
    x = torch.rand(2, 6)
    judged = Classifier(Chosen(CALLS["sign"]), num_classes=3)
    with pytest.raises(NotApplicable, match="jumps has no Lipschitz constant"):
        Lipschitz().run(
            judged, Batch.of(x, judged.logits(x).argmax(1)), ThreatModel("l2", 0.1), Randomness(0)
        )
    refused = {
        "trunc": lambda net, z, w: torch.trunc(z),
        "rounds to float16": lambda net, z, w: z.to(torch.float16),
        "needs the arguments condition, input, other": lambda net, z, w: torch.where(z > 0),
        "value at 0": lambda net, z, w: torch.heaviside(z, torch.tensor(0.5)),
        "threshold below 0": lambda net, z, w: F.hardshrink(z, -0.5),
    }
    for message, function in refused.items():
        with pytest.raises(UserError, match=message):
            trace(Chosen(function), like=x)
