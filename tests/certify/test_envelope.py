"""Upper lines of first neurons: never below the neuron, as good as the envelope itself, in every search."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from certify import settle_folded as steps
from certify.ascent import climb, lines_of
from certify.backward import adaptive_slope, parallel_slope, relax
from certify.branching import BranchAndBound
from certify.case import Case
from certify.dual import Branches, Dual
from certify.envelope import Envelope, Lines
from certify.exact import settle
from certify.folded import Folded, Targets, folded_network
from certify.graph import trace
from certify.input_set import InputSet
from certify.property import Clause, Property, robustness
from certify.refutation import Refutation
from certify.supergradient import Ascent
from certify.tighten import tightened
from models.threat import Box, ThreatModel
from tests.certify.planes import least_excess, small_network


def folded_up(
    network: nn.Module, x: Tensor, eps: float, label: int, classes: int, norm: str = "linf"
) -> tuple[Folded, Targets]:
    """The folded network over the ball, and margins of `label` as targets."""
    relaxation = relax(
        trace(network), x, ThreatModel(norm, eps, Box(-9.0, 9.0)), parallel_slope, adaptive_slope
    )
    prop = robustness(x[0], x[0], label, classes)
    return folded_network(
        relaxation, [clause.rows for clause in prop.clauses], [clause.offsets for clause in prop.clauses]
    )


def network(seed: int, *, leak: float = 0.0, inputs: int = 6) -> nn.Module:
    """Two hidden layers of eight, the second of which sees the inputs too by way of stable neurons."""
    torch.manual_seed(seed)
    layers = [nn.Linear(inputs, 8), nn.LeakyReLU(leak), nn.Linear(8, 8), nn.LeakyReLU(leak), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double().requires_grad_(False)


def random_lines(envelope: Envelope, count: int) -> Lines:
    shares = torch.rand(count, *envelope.rows.shape, dtype=envelope.rows.dtype)
    shares[0], shares[1] = 0.0, 1.0
    return Lines(envelope, shares * envelope.rows)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("width", [6, 40])
def test_no_line_is_below_its_neuron_and_each_is_tight_at_a_corner(seed: int, width: int) -> None:
    torch.manual_seed(seed)
    rows = torch.randn(5, width, dtype=torch.float64)
    if width == 40:
        rows *= torch.rand(5, width) < 0.2
    low, high = -torch.rand(width, dtype=torch.float64), torch.rand(width, dtype=torch.float64)
    high[0] = low[0]
    inputs = InputSet(low, high, (low + high) / 2)
    zero, constant = torch.zeros(5, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    folded = Folded(
        inputs, (slice(0, 5),), rows, zero, constant, zero[0], torch.full_like(constant, -9.0), constant + 99
    )
    envelope = Envelope(folded)
    assert (envelope.places is None) == (width == 6)
    lines = random_lines(envelope, 20)
    corners = torch.where(torch.rand(3000, width) < 0.5, low, high)
    if width == 6:
        corners = torch.where(torch.tensor(list(product([True, False], repeat=width))), low, high)
    outputs = (corners @ rows.T + constant).clamp(min=0)
    gaps = torch.stack([lines.values(x.expand(20, -1)) - y for x, y in zip(corners, outputs, strict=True)])
    assert gaps.min() > -1e-12
    if width == 6:
        # What is added to the shares is no more than some corner needs.
        assert gaps.amin(0).max() < 1e-9


def test_pulled_lines_are_the_lines() -> None:
    folded, _ = folded_up(network(3), torch.rand(1, 6, dtype=torch.float64), 0.7, 0, 3)
    lines = random_lines(Envelope(folded), 7)
    weight, x = torch.randn(7, len(lines.envelope.first), dtype=torch.float64), torch.rand(7, 6).double()
    rows, constant = lines.pulled(weight)
    assert torch.allclose((rows * x).sum(1) + constant, (weight * lines.values(x)).sum(1), atol=1e-12)


def envelope_at(rows: Tensor, constant: Tensor, low: Tensor, high: Tensor, x: Tensor) -> float:
    """The concave envelope of relu(rows . x + constant) at x, over all mixtures of corners."""
    corners = torch.where(torch.tensor(list(product([True, False], repeat=len(low)))), low, high)
    values = (corners @ rows + constant).clamp(min=0)
    equal = torch.cat([corners.T, torch.ones(1, len(corners), dtype=corners.dtype)])
    found = linprog(-values.numpy(), A_eq=equal.numpy(), b_eq=torch.cat([x, x.new_ones(1)]).numpy())
    return float(-found.fun)


@pytest.mark.parametrize("seed", range(6))
def test_the_least_line_is_the_concave_envelope(seed: int) -> None:
    """min over lines of -a's bound = the envelope of one neuron at a point: brute force over mixtures."""
    torch.manual_seed(seed)
    rows, low = torch.randn(1, 5, dtype=torch.float64), -torch.rand(5, dtype=torch.float64)
    high, constant = low + torch.rand(5).double() + 0.1, torch.zeros(1, dtype=torch.float64)
    constant -= rows @ ((low + high) / 2) - 0.1
    x = low + torch.rand(5).double() * (high - low)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    folded = Folded(
        InputSet(low, high, (low + high) / 2), (slice(0, 1),), rows, zero, constant, zero[0], constant - 9,
        constant + 9,
    )  # fmt: skip
    lines, rate = Envelope(folded).chords(1), 1.0
    least = torch.inf
    for _ in range(4000):
        least = min(least, float(lines.values(x[None])[0, 0]))
        lines = lines.lowered(x[None], torch.ones(1, 1, dtype=torch.bool), rate)
        rate *= 0.997
    exact = envelope_at(rows[0], constant, low, high, x)
    assert exact - 1e-9 <= least <= exact + 2e-3 * float(rows.abs().sum())


@pytest.mark.parametrize("leak", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(6))
def test_bounds_under_lines_hold_and_are_better(seed: int, leak: float) -> None:
    x = torch.rand(1, 6, dtype=torch.float64)
    folded, targets = folded_up(network(seed, leak=leak), x, 0.6, 0, 3)
    roots, dual = Branches.roots(folded, targets), Dual(folded, targets)
    plain, _, _ = climb(dual, roots, steps=100, rate=0.25)
    under, _, _ = climb(dual, roots, steps=100, rate=0.25, enveloped=True)
    points = x + 0.6 * (2 * torch.rand(200_000, 6, dtype=torch.float64) - 1)
    _, outputs = folded.outputs(points)
    seen = targets.values(points, outputs)[:, :, 0].amin(0)
    assert (under <= seen).all()
    assert (under >= plain - 1e-3 * (1 + plain.abs())).all()
    assert (under > plain + 1e-2).any()


def test_the_steps_say_what_the_bound_says() -> None:
    """The working pass under lines, with a phase imposed, is the exact pass of the same numbers."""
    folded, targets = folded_up(network(1), torch.rand(1, 6, dtype=torch.float64), 0.6, 0, 3)
    dual, branches = Dual(folded, targets), Branches.roots(folded, targets)
    branches.sign[:, 0], branches.beta[:, 0] = 1, 0.3
    ascent = Ascent(dual, branches, Envelope(folded))
    assert ascent.lines is not None
    ascent.lines = random_lines(ascent.lines.envelope, len(branches))
    value = torch.where(branches.sign == 0, branches.alpha, branches.beta)
    found = ascent.bound(value, branches.weight)[0]
    assert torch.allclose(found, dual.bound(branches, ascent.lines).value, atol=1e-12)
    assert not torch.allclose(found, dual.bound(branches).value, atol=1e-3)


def test_supergradients_under_lines_are_finite_differences() -> None:
    folded, targets = folded_up(network(4, leak=0.1), torch.rand(1, 6, dtype=torch.float64), 0.6, 0, 3)
    dual, branches = Dual(folded, targets), Branches.roots(folded, targets)
    ascent = Ascent(dual, branches, Envelope(folded))
    assert ascent.lines is not None
    ascent.lines = random_lines(ascent.lines.envelope, len(branches))
    value = 0.2 + 0.6 * torch.rand(branches.alpha.shape, dtype=torch.float64)
    bound, *rest = ascent.bound(value, branches.weight)
    up, _ = ascent.slopes(value, *rest)
    direction = torch.randn(value.shape, dtype=torch.float64)
    ahead = ascent.bound(value + 1e-7 * direction, branches.weight)[0]
    assert torch.allclose((ahead - bound) / 1e-7, (up * direction).sum(1), atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_tightened_bounds_hold_and_are_tighter(seed: int) -> None:
    x = torch.rand(1, 6, dtype=torch.float64)
    folded, targets = folded_up(network(seed), x, 0.6, 0, 3)
    loose, _ = tightened(folded, targets, steps=60, rate=0.25, deadline=torch.inf)
    tight, moved = tightened(folded, targets, steps=60, rate=0.25, deadline=torch.inf, enveloped=True)
    points = x + 0.6 * (2 * torch.rand(100_000, 6, dtype=torch.float64) - 1)
    z, outputs = tight.outputs(points)
    assert (z >= tight.lower - 1e-9).all()
    assert (z <= tight.upper + 1e-9).all()
    _, before = folded.outputs(points)
    assert torch.allclose(moved.values(points, outputs), targets.values(points, before), atol=1e-9)
    last = (tight.upper - tight.lower)[tight.layers[-1]].sum()
    assert last < 0.97 * (loose.upper - loose.lower)[loose.layers[-1]].sum()


def test_refutations_under_lines_look_at_fewer_branches() -> None:
    counts = {False: 0, True: 0}
    for seed in range(4):
        x = torch.rand(1, 12, dtype=torch.float64)
        folded, targets = folded_up(network(seed, inputs=12), x, 0.4, 0, 3)
        points = torch.where(torch.rand(100_000, 12) < 0.5, folded.inputs.lower, folded.inputs.upper)
        # The least value at random corners is raised to a little above zero.
        lowest = targets.values(points, folded.outputs(points)[1]).amin(0)
        raised = targets.constant - lowest + 0.01
        targets = Targets(targets.input_rows, targets.neuron_rows, raised, targets.real)
        for enveloped in counts:
            search = Refutation(folded, targets, 0, lambda point: None, slack=1e-6, enveloped=enveloped)
            search.run(torch.inf)
            counts[enveloped] += search.looked_at
    assert counts[True] < 0.8 * counts[False]


def test_lines_prove_what_chords_do_not() -> None:
    """A network whose first layer mixes 100 inputs, at what chords do not prove and lines do."""
    torch.manual_seed(2)
    layers = [nn.Linear(100, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)]
    net, x = nn.Sequential(*layers).double().requires_grad_(False), torch.rand(1, 100, dtype=torch.float64)
    folded, targets = folded_up(net, x, 0.14, int(net(x).argmax()), 3)
    plain, _ = tightened(folded, targets, steps=12, rate=0.25, deadline=torch.inf)
    under, moved = tightened(folded, targets, steps=12, rate=0.25, deadline=torch.inf, enveloped=True)
    assert under.neurons < plain.neurons
    value, _, _ = climb(Dual(under, moved), Branches.roots(under, moved), steps=40, rate=0.25, enveloped=True)
    loose, _, _ = climb(Dual(folded, targets), Branches.roots(folded, targets), steps=200, rate=0.25)
    assert value[0] > 0 > loose[0]
    assert value[1] > 0.5 * loose[1]


@pytest.mark.parametrize("inputs", [60, 400])
def test_inputs_that_stand_still_or_are_not_read_do_no_harm(inputs: int) -> None:
    """Large enough for single precision, with fixed inputs, unread ones, and weights that it rounds to 0."""
    torch.manual_seed(1)
    layers = [nn.Linear(inputs, 600), nn.ReLU(), nn.Linear(600, 8), nn.ReLU(), nn.Linear(8, 3)]
    net = nn.Sequential(*layers).double().requires_grad_(False)
    net[0].weight[:, :5], net[0].weight[:, 5] = 0.0, 1e-300
    if inputs == 400:
        net[0].weight.mul_(torch.rand(600, inputs) < 0.1)
    x = torch.rand(1, inputs, dtype=torch.float64)
    folded, targets = folded_up(net, x, 0.3, 0, 3)
    still = torch.arange(inputs) % 3 == 0
    low, high = torch.where(still, x[0], folded.inputs.lower), torch.where(still, x[0], folded.inputs.upper)
    # The last neuron, which is 0 or nearly so, reads others by weights that single precision rounds to 0.
    rows, neuron_rows, constant = (
        part.clone() for part in (folded.input_rows, folded.neuron_rows, folded.constant)
    )
    rows[-1], neuron_rows[-1, :3], constant[-1] = 0.0, 1e-300, 0.0
    neuron_rows[-1, 3:] = 0.0
    folded = replace(
        folded, inputs=InputSet(low, high, x[0]), input_rows=rows, neuron_rows=neuron_rows, constant=constant
    )
    dual, roots = Dual(folded, targets), Branches.roots(folded, targets)
    assert dual.working.folded.inputs.lower.shape != dual.rough.folded.inputs.lower.shape
    plain, _, _ = climb(dual, roots, steps=40, rate=0.25)
    under, _, _ = climb(dual, roots, steps=40, rate=0.25, enveloped=True)
    points = low + (high - low) * torch.rand(20_000, inputs, dtype=torch.float64)
    assert (under <= targets.values(points, folded.outputs(points)[1])[:, :, 0].amin(0)).all()
    assert (under > plain).all()


@pytest.mark.parametrize("leak", [0.0, 0.1])
@pytest.mark.parametrize("inputs", [6, 60])
def test_the_ascent_with_shares_of_lines_is_the_derivative(inputs: int, leak: float) -> None:
    """Each group's own lines, dense and sparse; alpha is the share where an upper line bears the bound."""
    net = network(2, leak=leak, inputs=inputs)
    if inputs == 60:
        net[0].weight.mul_(torch.rand(8, 60) < 0.3)
    folded, targets = folded_up(net, torch.rand(1, inputs, dtype=torch.float64), 0.6, 0, 3)
    envelope = Envelope(folded)
    assert (envelope.places is None) == (inputs == 6)
    dual = Dual(folded, targets, random_lines(envelope, len(targets)))
    branches = Branches.roots(folded, targets).select(torch.tensor([1, 0, 1, 1, 0]))
    branches.alpha = 0.1 + 0.8 * torch.rand(branches.alpha.shape, dtype=torch.float64)
    branches.sign[0, 0], branches.beta[0, 0] = 1, 0.3
    branches.sign[2, 1], branches.beta[2, 1] = -1, 0.2
    value = torch.where(branches.sign == 0, branches.alpha, branches.beta)
    ascent = Ascent(dual, branches)
    bound, *rest = ascent.bound(value, branches.weight)
    assert torch.allclose(bound, dual.bound(branches).value, atol=1e-12)
    up, _ = ascent.slopes(value, *rest)
    for column in range(value.shape[1]):
        ends = []
        for side in (1e-7, -1e-7):
            moved = value.clone()
            moved[:, column] += side
            ends.append(ascent.bound(moved, branches.weight)[0])
        assert torch.allclose((ends[0] - ends[1]) / 2e-7, up[:, column], atol=1e-5)
    for alpha, same in ((1.0, dual.lines), (0.0, None)):
        branches.alpha = torch.where(rest[0] < 0, alpha, branches.alpha)
        plain = Dual(folded, targets)
        lines = same.select(branches.group) if same else None
        assert torch.allclose(dual.bound(branches).value, plain.bound(branches, lines).value, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_a_tree_on_lines_starts_from_their_bound_and_is_right(seed: int) -> None:
    x = torch.rand(1, 12, dtype=torch.float64)
    folded, targets = folded_up(network(seed, inputs=12), x, 0.4, 0, 3)
    roots = Branches.roots(folded, targets)
    value, lines = lines_of(Dual(folded, targets), roots, steps=60, rate=0.25, deadline=torch.inf)
    points = torch.where(torch.rand(200_000, 12) < 0.5, folded.inputs.lower, folded.inputs.upper)
    least = targets.values(points, folded.outputs(points)[1])[:, :, 0].amin(0)
    assert (value <= least).all()
    trees = []
    for part in (lines, None):
        moved = targets.constant - least[:, None] - 0.05
        shifted = Targets(targets.input_rows, targets.neuron_rows, moved, targets.real)
        tree = BranchAndBound(folded, shifted, lambda point: point, tolerance=1e-6, lines=part)
        trees.append(tree)
        # The least value is now -0.05 or less: a tree that proves anything here is wrong.
        assert tree.run(torch.inf).witness is not None
        raised = replace(shifted, constant=moved + 0.15)
        tree = BranchAndBound(folded, raised, lambda point: None, tolerance=1e-6, lines=part)
        outcome = tree.run(torch.inf)
        found = raised.values(points, folded.outputs(points)[1])[:, :, 0].amin(0)
        assert (outcome.lower <= found).all()
    assert (trees[0].roots >= value - least - 0.05 - 1e-3).all()
    assert (trees[0].roots > trees[1].roots + 1e-3).any()


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("seed", [1, 2, 5, 8, 9, 22])
def test_what_is_settled_on_envelopes_is_what_brute_force_says(
    seed: int, single: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clauses a hair above and below zero, where the tree has no turn before envelopes are asked."""
    net = small_network(*[(2, 8, 3), (2, 8, 8, 3), (2, 5, 5, 5, 3)][seed % 3], seed=seed)
    stream = torch.Generator().manual_seed(seed)
    low = torch.rand(2, generator=stream, dtype=torch.float64) - 0.7
    high = low + 0.4 + torch.rand(2, generator=stream, dtype=torch.float64)
    rows = torch.randn(1 + seed % 2, 3, generator=stream, dtype=torch.float64)
    clause = Clause(rows, torch.zeros(len(rows), dtype=torch.float64))
    least = least_excess(net, low.tolist(), high.tolist(), clause)
    turns: list[int] = []
    ours = steps.branch

    def branch(case: Case, tree: BranchAndBound, groups: Tensor, until: float) -> bool:
        turns.append(1)
        return case.done if len(turns) == 1 else ours(case, tree, groups, until)

    monkeypatch.setattr("certify.settle.FEW_INPUTS", 0)
    monkeypatch.setattr(steps, "HELPFUL", -1e9)
    monkeypatch.setattr(steps, "branch", branch)
    monkeypatch.setattr("certify.dual.SINGLE", 1 if single else 2**14)
    gap = 2e-2 if seed % 2 else 2e-6
    for shift, status in ((gap, "certified"), (-gap, "broken")):
        turns.clear()
        moved = Clause(rows, torch.full((len(rows),), shift - least, dtype=torch.float64))
        verdict = settle(net, Property(low, high, (moved,)), seconds=20)
        assert verdict.status == status
        assert verdict.bound <= shift + 1e-9


@pytest.mark.parametrize(
    ("mixed", "curves", "asked"),
    [
        (True, True, True),
        pytest.param(False, False, False, marks=pytest.mark.slow),
        pytest.param(False, True, True, marks=pytest.mark.slow),
    ],
)
def test_envelopes_are_asked_only_where_first_neurons_mix_inputs(
    mixed: bool, curves: bool, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neuron that reads one input has no better line than its chord, but those that read curves have."""
    if not curves:
        monkeypatch.setattr(steps, "along_curves", lambda folded, targets: None)
    torch.manual_seed(3)
    first = nn.Linear(12, 24).double()
    if not mixed:
        first.weight.data = torch.cat([torch.eye(12), -torch.eye(12)]).double()
        first.bias.data = torch.cat([torch.full((12,), -0.5), torch.full((12,), 0.4)]).double()
    layers = [first, nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)]
    net, x = nn.Sequential(*layers).double().requires_grad_(False), torch.full((12,), 0.5).double()
    seen: list[bool] = []
    ours = steps.tightened

    def counted(folded: Folded, targets: Targets, *, enveloped: bool = False, **rest: float):
        seen.append(enveloped)
        return ours(folded, targets, enveloped=enveloped, **rest)

    monkeypatch.setattr(steps, "tightened", counted)
    monkeypatch.setattr(steps, "branch", lambda case, tree, groups, until: case.done)
    prop = robustness(x - 0.4, x + 0.4, int(net(x[None]).argmax()), 3)
    settle(net, replace(prop, clauses=tuple(_barely(net, clause) for clause in prop.clauses)), seconds=3)
    assert seen[0] is False
    assert (True in seen) == asked


def _barely(net: nn.Module, clause: Clause) -> Clause:
    """The clause moved so that no corner, nor where a neuron above turns, fails it: by a little."""
    points = torch.tensor([0.1, 0.4, 0.5, 0.9]).double()[torch.randint(0, 4, (200_000, 12))]
    return Clause(clause.rows, 0.02 - (net(points) @ clause.rows.double().T).amin(0))
