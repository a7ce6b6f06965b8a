"""Inputs along curves: their sets against brute force, their lines, and what is settled on them."""

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor, nn

from certify import settle_folded as steps
from certify.ascent import climb
from certify.backward import adaptive_slope, parallel_slope, relax
from certify.case import Case
from certify.curve_envelope import CurveEnvelope
from certify.curved import along_curves
from certify.curves import Curves
from certify.dual import Branches, Dual
from certify.envelope import Envelope, Lines, SharedLines
from certify.exact import settle
from certify.folded import Folded, Targets, folded_network
from certify.graph import trace
from certify.input_set import InputSet
from certify.property import Clause, Property
from certify.turns import Tree
from models.threat import Box, ThreatModel
from tests.certify.planes import least_excess

LOW, HIGH = torch.tensor([-1.0, 0.0, 0.5]).double(), torch.tensor([1.0, 2.0, 0.5]).double()
PLACES = torch.tensor([1, 0, 1, 1, 2])
SLOPE = torch.tensor([1.0, -2.0, 0.5, -1.0, 3.0]).double()
CONSTANT = torch.tensor([-0.5, 0.3, -0.7, 1.5, 0.1]).double()
LEAK = torch.tensor([0.0, 0.1, 0.0, 0.0, 0.2]).double()


def curves() -> Curves:
    return Curves.over(InputSet(LOW, HIGH, (LOW + HIGH) / 2), PLACES, SLOPE, CONSTANT, LEAK)


def points(count: int) -> Tensor:
    return LOW + (HIGH - LOW) * torch.rand(count, 3, dtype=torch.float64)


def test_the_least_value_is_that_of_brute_force_and_stands_at_its_point() -> None:
    torch.manual_seed(0)
    rows, inputs = torch.randn(50, 8, dtype=torch.float64), curves()
    value, x = inputs.least(rows)
    steps_ = torch.linspace(0, 1, 401, dtype=torch.float64)[:, None]
    grid = inputs.along(LOW + (HIGH - LOW) * steps_)
    parts = [[0, 4], [1, 3, 5, 6], [2, 7]]
    brute = sum((grid[:, part] @ rows[:, part].T).amin(0) for part in parts)
    assert (value <= brute + 1e-12).all()
    assert (value >= brute - 0.03).all()
    assert torch.allclose((rows * x).sum(1), value, atol=1e-12)
    assert torch.allclose(inputs.project(x), x, atol=1e-12)


def test_in_single_precision_the_ends_are_minus_one_and_one_and_the_least_values_the_same() -> None:
    torch.manual_seed(1)
    rows, inputs = torch.randn(50, 8, dtype=torch.float64), curves()
    middle, radius = inputs.middle_and_radius()
    standard = inputs.standard()
    value, x = standard.least((rows * radius).float())
    assert x.abs().max() <= 1 + 1e-6
    assert torch.allclose(value.double() + rows @ middle, inputs.least(rows)[0], atol=1e-5)


def test_the_step_goes_down_along_the_curve() -> None:
    torch.manual_seed(2)
    rows, inputs = torch.randn(200, 8, dtype=torch.float64), curves()
    x = inputs.along(0.9 * points(200) + 0.1 * inputs.centre[:3])
    moved = inputs.project(x + 1e-6 * inputs.steepest(rows, x))
    assert (((moved - x) * rows).sum(1) <= 1e-12).all()
    assert (moved - x).abs().sum() > 0


def thresholds(seed: int, *behind: int, crumb: float = 0.0, readers: int = 3, leak: float = 0.0) -> nn.Module:
    """Each of two inputs read by `readers` neurons of its own, and dense layers behind."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = nn.Linear(2, 2 * readers)
        mask = torch.eye(2).repeat(readers, 1)
        first.weight.data = torch.where(mask > 0, torch.randn_like(mask).sign() * (0.5 + mask), crumb)
        first.bias.data = torch.randn(2 * readers) * 0.3
        layers: list[nn.Module] = [first, nn.LeakyReLU(leak) if leak else nn.ReLU()]
        widths = [2 * readers, *behind]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers[:-1]).double().eval().requires_grad_(False)


def folded_up(network: nn.Module, outputs: int) -> tuple[Folded, Targets]:
    x = torch.zeros(1, 2, dtype=torch.float64)
    relaxation = relax(
        trace(network), x, ThreatModel("linf", 0.8, Box(-9.0, 9.0)), parallel_slope, adaptive_slope
    )
    rows = torch.eye(outputs, dtype=torch.float64)
    return folded_network(relaxation, [row[None] for row in rows], [torch.zeros(1).double()] * outputs)


@pytest.mark.parametrize("leak", [0.0, 0.1])
@pytest.mark.parametrize("crumb", [0.0, 1e-4, -1e-4])
@pytest.mark.parametrize("seed", range(4))
def test_the_values_along_curves_are_the_network_s_but_for_crumbs(
    seed: int, crumb: float, leak: float
) -> None:
    folded, targets = folded_up(thresholds(seed, 7, 6, 3, crumb=crumb, leak=leak), 3)
    found = along_curves(folded, targets)
    assert found is not None
    moved, aims = found
    x = 1.6 * torch.rand(4000, 2, dtype=torch.float64) - 0.8
    u = moved.inputs.project(torch.cat([x, x.new_zeros(4000, moved.input_rows.shape[1] - 2)], 1))
    assert torch.equal(u[:, :2], x)
    z, a = moved.outputs(u)
    assert ((z >= moved.lower - 1e-9) & (z <= moved.upper + 1e-9)).all()
    gap = targets.values(x, folded.outputs(x)[1]) - aims.values(u, a)
    assert gap.abs().max() < (1e-9 if not crumb else 2e-3)
    assert moved.neurons < folded.neurons


@pytest.mark.parametrize("small", [0.0, 0.6])
@pytest.mark.parametrize("readers", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_no_line_along_curves_is_below_its_neuron(
    seed: int, readers: int, small: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("certify.curve_envelope.SMALL", small)
    folded, targets = folded_up(thresholds(seed, 9, 5, 2, readers=readers), 2)
    moved, _ = along_curves(folded, targets) or pytest.skip("nothing to fold")
    envelope = CurveEnvelope(moved)
    shares = torch.rand(20, *envelope.rows.shape, dtype=torch.float64)
    shares[0], shares[1] = 0.0, 1.0
    lines = Lines(envelope, shares * envelope.rows)
    side = torch.linspace(-0.8, 0.8, 41, dtype=torch.float64)
    x = torch.tensor(list(product(side.tolist(), side.tolist()))).double()
    u = torch.cat([x, x.new_zeros(len(x), moved.input_rows.shape[1] - 2)], 1)
    u = torch.cat([moved.inputs.project(u), moved.inputs.least(torch.randn(200, u.shape[1]).double())[1]])
    neurons = moved.outputs(u)[1][:, envelope.first]
    gaps = torch.stack([lines.values(at.expand(20, -1)) - y for at, y in zip(u, neurons, strict=True)])
    assert gaps.min() > -1e-9
    weight = torch.randn(20, len(envelope.first), dtype=torch.float64)
    rows, constant = lines.pulled(weight)
    at = u[torch.randint(len(u), (20,))]
    assert torch.allclose((rows * at).sum(1) + constant, (weight * lines.values(at)).sum(1), atol=1e-9)
    shared = SharedLines(lines, torch.arange(20) % 5)
    rows, constant = shared.pulled(weight)
    assert torch.allclose((rows * at).sum(1) + constant, (weight * shared.values(at)).sum(1), atol=1e-9)
    own = Lines(envelope, lines.slopes[torch.arange(20) % 5])
    assert torch.allclose(own.values(at), shared.values(at), atol=1e-9)


def test_where_no_neuron_reads_an_input_alone_the_lines_are_those_over_the_box() -> None:
    torch.manual_seed(5)
    box = InputSet(LOW, HIGH, (LOW + HIGH) / 2)
    empty = torch.zeros(0, dtype=torch.float64)
    plain = Curves.over(box, torch.zeros(0, dtype=torch.long), empty, empty, empty)
    rows, constant = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    zero = torch.zeros(4, 4, dtype=torch.float64)
    sets = [
        Folded(given, (slice(0, 4),), rows, zero, constant, zero[0], constant - 9, constant + 9)
        for given in (box, plain)
    ]
    over, along = Envelope(sets[0]), CurveEnvelope(sets[1])
    shares, x = torch.rand(6, 4, 3, dtype=torch.float64), points(6)
    kept = shares.gather(2, along.places.expand(6, -1, -1))
    kept = torch.cat([kept, torch.ones(6, 4, 1, dtype=torch.float64)], 2)
    expected = Lines(over, shares * over.rows).values(x)
    assert torch.allclose(Lines(along, kept * along.rows).values(x), expected, atol=1e-12)


@pytest.mark.parametrize("behind", [(3,), (8, 6, 3)])
@pytest.mark.parametrize("crumb", [0.0, 4e-3])
@pytest.mark.parametrize("seed", range(6))
def test_bounds_along_curves_hold_and_are_better(seed: int, crumb: float, behind: tuple[int, ...]) -> None:
    network = thresholds(seed, *behind, crumb=crumb)
    folded, targets = folded_up(network, 3)
    moved, aims = along_curves(folded, targets) or pytest.skip("nothing to fold")
    plain, _, _ = climb(Dual(folded, targets), Branches.roots(folded, targets), steps=100, rate=0.25)
    dual, roots = Dual(moved, aims), Branches.roots(moved, aims)
    better, _, _ = climb(dual, roots, steps=100, rate=0.25, enveloped=True)
    for row, one, two in zip(torch.eye(3), plain, better, strict=True):
        clause = Clause(row[None].double(), torch.zeros(1).double())
        least = least_excess(network, [-0.8, -0.8], [0.8, 0.8], clause)
        assert float(two) <= least + 1e-9
        assert float(two) >= float(one) - 0.02 * abs(float(one)) - (0.1 if crumb else 1e-3)
        if behind == (3,) and not crumb:
            assert float(two) == pytest.approx(least, abs=1e-9)
    if behind != (3,) and not crumb:
        assert bool((better > plain + 1e-3).any())


def test_only_first_layers_of_this_kind_in_linf_are_taken() -> None:
    network = thresholds(0, 6, 2)
    folded, targets = folded_up(network, 2)
    assert along_curves(folded, targets) is not None
    assert along_curves(replace(folded, inputs=replace(folded.inputs, norm="l2", eps=0.5)), targets) is None
    mixed = network[0].weight
    mixed[:4] = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).double()
    folded, targets = folded_up(network, 2)
    assert along_curves(folded, targets) is None


@pytest.mark.parametrize("loose", [False, True])
@pytest.mark.parametrize("crumb", [0.0, 4e-4])
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (3, 4))])
def test_what_is_settled_along_curves_is_what_brute_force_says(
    seed: int, crumb: float, loose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clauses a little above and below zero, where nothing has a turn before the curves are asked."""
    network = thresholds(seed, 8, 6, 3, crumb=crumb)
    if loose:
        network[0].weight[0] = torch.tensor([0.7, -0.6])
        monkeypatch.setattr("certify.curved.MOST", 0.3)
    torch.manual_seed(seed)
    rows = torch.randn(1 + seed % 2, 3, dtype=torch.float64)
    clause = Clause(rows, torch.zeros(len(rows), dtype=torch.float64))
    least = least_excess(network, [-0.8, -0.8], [0.8, 0.8], clause)
    asked: list[int] = []
    ours, curves_of = steps.branch, steps.along_curves

    def branch(case: Case, tree: Tree, groups: Tensor, until: float) -> bool:
        return case.done if not asked else ours(case, tree, groups, until)

    def counted(folded: Folded, targets: Targets) -> tuple[Folded, Targets] | None:
        asked.append(1)
        return curves_of(folded, targets)

    monkeypatch.setattr("certify.settle.FEW_INPUTS", 0)
    monkeypatch.setattr(steps, "HELPFUL", -1e9)
    monkeypatch.setattr(steps, "branch", branch)
    monkeypatch.setattr(steps, "along_curves", counted)
    low, high = torch.full((2,), -0.8).double(), torch.full((2,), 0.8).double()
    gap = 2e-2 if seed % 2 else 1e-5
    for shift, status in ((gap, "certified"), (-gap, "broken")):
        moved = Clause(rows, torch.full((len(rows),), shift - least, dtype=torch.float64))
        verdict = settle(network, Property(low, high, (moved,)), seconds=20)
        assert verdict.status == status
        assert verdict.bound <= shift + 1e-9
    assert asked


@pytest.mark.parametrize("seed", range(2))
def test_what_ends_open_along_curves_goes_on_as_it_was(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question along curves that is far too hard leaves time for the question itself."""
    network = thresholds(seed, 6, 5, 3)
    rows = torch.eye(3, dtype=torch.float64)[:1]
    clause = Clause(rows, torch.zeros(1, dtype=torch.float64))
    least = least_excess(network, [-0.8, -0.8], [0.8, 0.8], clause)
    asked: list[int] = []
    ours, curves_of = steps.branch, steps.along_curves

    def hard(folded: Folded, targets: Targets) -> tuple[Folded, Targets] | None:
        asked.append(1)
        moved, aims = curves_of(folded, targets) or pytest.skip("nothing to fold")
        return moved, replace(aims, constant=aims.constant - 100)

    monkeypatch.setattr("certify.settle.FEW_INPUTS", 0)
    monkeypatch.setattr(steps, "HELPFUL", -1e9)
    monkeypatch.setattr(steps, "branch", lambda *turn: turn[0].done if len(asked) == 0 else ours(*turn))
    monkeypatch.setattr(steps, "along_curves", hard)
    low, high = torch.full((2,), -0.8).double(), torch.full((2,), 0.8).double()
    moved = Clause(rows, torch.full((1,), 1e-3 - least, dtype=torch.float64))
    assert settle(network, Property(low, high, (moved,)), seconds=5).status == "certified"
    assert asked
