"""Branching on the ranges of any activation: settles tiny networks as a dense grid does, never says more."""

import time

import pytest
import torch
from torch import nn

from certify import range_branching, range_tightening
from certify import settle as steps
from certify.backward import adaptive_slope, parallel_slope, relax
from certify.exact import Exact, settle
from certify.graph import trace
from certify.property import Clause, Property, robustness
from certify.range_branching import RangeBranching
from certify.range_dual import RangeDual
from certify.range_refutation import RangeRefutation
from certify.range_tightening import tightened_ranges
from certify.ranges import Parts
from models.randomness import Randomness
from models.region import Region
from models.threat import ThreatModel
from tests.certify.builders import batch, model, smallest_margins
from tests.certify.planes import least_excess, small_network
from tests.certify.test_rules import Forward


class Shared(nn.Module):
    """Two activations of the same value, one of them of the ReLU family, and a skip."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 5), nn.Linear(15, 3)

    def forward(self, x):
        z = self.first(x)
        return self.last(torch.cat([torch.tanh(z), torch.relu(z), z.square()], 1))


class Idle(nn.Module):
    """An activation whose value nobody uses."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 5), nn.Linear(5, 3)

    def forward(self, x):
        z = self.first(x)
        torch.sigmoid(z)
        return self.last(torch.tanh(z))


def a_network(activation, seed):
    torch.manual_seed(seed)
    made = {
        "tanh": lambda: nn.Sequential(
            nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
        ),
        "sigmoid": lambda: nn.Sequential(nn.Linear(2, 8), nn.Sigmoid(), nn.Linear(8, 3)),
        "gelu": lambda: nn.Sequential(
            nn.Linear(2, 6), nn.GELU(), nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 3)
        ),
        "softplus": lambda: nn.Sequential(nn.Linear(2, 6), nn.Softplus(3.0), nn.Linear(6, 3)),
        "shared": Shared,
        "idle": Idle,
        "mixed": lambda: nn.Sequential(
            nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 5), nn.Sigmoid(), nn.Linear(5, 3)
        ),
    }[activation]()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.5)
    return made.double()


FAMILIES = ["tanh", "sigmoid", "gelu", "softplus", "shared", "mixed", "idle"]
LOW, HIGH = torch.tensor([-0.4, -0.3]), torch.tensor([0.5, 0.6])


def a_grid(count=400):
    axes = [
        torch.linspace(float(a), float(b), count, dtype=torch.float64) for a, b in zip(LOW, HIGH, strict=True)
    ]
    return torch.cartesian_prod(*axes)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("activation", FAMILIES)
def test_what_a_grid_finds_is_what_is_proved(activation, seed, monkeypatch):
    """Clauses of one row and of two, moved to either side of their least excess."""
    monkeypatch.setattr(steps, "FEW_INPUTS", 0)
    network = a_network(activation, seed)
    with torch.no_grad():
        outputs = network(a_grid())
    generator = torch.Generator().manual_seed(seed)
    for rows in (torch.randn(1, 3, generator=generator), torch.randn(2, 3, generator=generator)):
        least = float(Clause(rows, torch.zeros(len(rows))).excess(outputs).min())
        for gap, status in ((0.05, "certified"), (-0.02, "broken")):
            clause = Clause(rows, torch.full((len(rows),), gap - least, dtype=torch.float64))
            verdict = settle(network, Property(LOW, HIGH, (clause,)), seconds=60)
            assert verdict.status == status
            if status == "broken":
                assert clause.excess(network(verdict.witness.double())) <= 1e-6
            else:
                assert 0 < verdict.bound <= gap + 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_networks_too_large_to_fold_get_the_answers_of_those_that_are_folded(seed, monkeypatch):
    monkeypatch.setattr(steps, "FEW_INPUTS", 0)
    monkeypatch.setattr(steps, "NEURONS", -1)
    network = small_network(2, 6, 5, 3, seed=seed)
    rows = torch.randn(1, 3, generator=torch.Generator().manual_seed(seed))
    plain = Clause(rows, torch.zeros(1))
    least = least_excess(network, LOW.double().tolist(), HIGH.double().tolist(), plain)
    for gap, status in ((0.05, "certified"), (-0.01, "broken")):
        clause = Clause(rows, torch.tensor([gap - least], dtype=torch.float64))
        assert settle(network, Property(LOW, HIGH, (clause,)), seconds=60).status == status


def a_relaxation(activation, seed):
    network = a_network(activation, seed)
    region = Region(low=LOW.double()[None], high=HIGH.double()[None])
    with torch.no_grad():
        return network, relax(trace(network), region.centre, region, parallel_slope, adaptive_slope)


@pytest.mark.parametrize("activation", FAMILIES)
def test_no_input_of_a_branch_lies_below_its_bound_whatever_the_multipliers(activation):
    _, relaxation = a_relaxation(activation, seed=5)
    clause = Clause(torch.tensor([[1.0, -1.0, 0.3], [0.2, 0.5, -1.0]]), torch.tensor([0.1, -0.2]))
    dual = RangeDual(relaxation, [clause])
    layout, generator = dual.layout, torch.Generator().manual_seed(2)
    points = a_grid(60)
    with torch.no_grad():
        values = relaxation.graph.values(points)
        z = torch.cat([values[j].flatten(1) for j in layout.sources], 1)
        excess = clause.excess(values[-1])
    root, seen = layout.roots([clause]), 0
    for _ in range(40):
        parts = root
        for _ in range(3):
            place = torch.randint(layout.size, (1,), generator=generator)
            parts = layout.half(parts, place, int(torch.randint(2, (1,), generator=generator)))
        draw = torch.rand(3, 1, layout.size, generator=generator, dtype=torch.float64)
        weight = torch.rand(1, 2, generator=generator, dtype=torch.float64)
        parts = Parts(
            parts.clause, parts.lower, parts.upper, draw[0], (draw[1] - 0.5) * 4 * (draw[2] > 0.5),
            weight / weight.sum(),
        )  # fmt: skip
        inside = ((z >= parts.lower) & (z <= parts.upper)).all(1)
        if bool(inside.any()):
            seen += 1
            assert float(dual.bound(parts).value) <= float(excess[inside].min()) + 1e-9
    assert seen >= 10


@pytest.mark.parametrize("activation", FAMILIES)
def test_the_ascent_of_a_cut_branch_gains_and_leaves_its_start_alone(activation):
    _, relaxation = a_relaxation(activation, seed=1)
    clause = Clause(torch.tensor([[1.0, -1.0, 0.3]]), torch.zeros(1))
    dual = RangeDual(relaxation, [clause])
    root = dual.layout.roots([clause])
    place = dual.layout.gaps(root, dual.bound(root).x, dual.bound(root).rows).argmax(1)
    gains = []
    for side in (0, 1):
        half = dual.layout.half(root, place, side)
        start = dual.bound(half).value
        _, found = dual.ascended(half, steps=30, rate=0.2, stop=torch.inf, deadline=torch.inf)
        gains.append(float(found.value - start))
        assert float(dual.bound(half).value) == float(start)
    assert min(gains) >= 0
    assert max(gains) > 1e-3


@pytest.mark.parametrize("activation", FAMILIES)
def test_tightened_ranges_hold_what_the_network_reaches_and_are_no_wider(activation):
    _, relaxation = a_relaxation(activation, seed=3)
    with torch.no_grad():
        tighter = tightened_ranges(relaxation, time.monotonic() + 60)
        values = relaxation.graph.values(a_grid(100))
    for j, known in relaxation.bounds.items():
        assert (tighter.bounds[j].lower >= known.lower).all()
        assert (tighter.bounds[j].upper <= known.upper).all()
        assert (values[j] >= tighter.bounds[j].lower - 1e-9).all()
        assert (values[j] <= tighter.bounds[j].upper + 1e-9).all()


def test_rows_that_climb_together_fit_the_memory_where_no_slope_is_free(monkeypatch):
    """Lines of hard swish have no free slopes: rows over a wide value are large all the same."""
    climbed, seen = range_tightening.climbed, []

    def watched(relaxation, node, rows, *settings):
        seen.append(rows.numel())
        return climbed(relaxation, node, rows, *settings)

    torch.manual_seed(0)
    layers = [nn.Linear(4, 60), nn.Hardswish(), nn.Linear(60, 50), nn.Hardswish(), nn.Linear(50, 3)]
    network = nn.Sequential(*layers).double()
    x = torch.rand(1, 4, dtype=torch.float64)
    relaxation = relax(trace(network), x, ThreatModel("linf", 0.5), adaptive_slope)
    whole = tightened_ranges(relaxation, steps=2)
    monkeypatch.setattr(range_tightening, "climbed", watched)
    monkeypatch.setattr(range_tightening, "CELLS", 600)
    parts = tightened_ranges(relaxation, steps=2)
    assert len(seen) > 5
    assert max(seen) <= 600
    for node, known in whole.bounds.items():
        torch.testing.assert_close(parts.bounds[node].lower, known.lower)
        torch.testing.assert_close(parts.bounds[node].upper, known.upper)


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("activation", FAMILIES)
def test_refutation_keeps_every_input_at_which_the_clause_fails(activation, rows):
    """A clause that fails somewhere cannot be refuted: every range keeps the failing inputs' values."""
    _, relaxation = a_relaxation(activation, seed=4)
    generator = torch.Generator().manual_seed(7)
    table = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        values = relaxation.graph.values(a_grid(200))
        excess = (values[-1] @ table.T).amax(1)
        clause = Clause(table, torch.full((rows,), -float(excess.sort().values[400]), dtype=torch.float64))
        failing = clause.excess(values[-1]) <= 0
        assert 300 <= int(failing.sum()) <= 500
        search = RangeRefutation(relaxation, clause, 0, lambda point: None, slack=0.0)
        narrowed, _ = search._narrowed(search.open[0], time.monotonic() + 60)
    layout = search.layout
    z = torch.cat([values[j].flatten(1) for j in layout.sources], 1)[failing]
    assert (z >= narrowed.parts.lower - 1e-9).all()
    assert (z <= narrowed.parts.upper + 1e-9).all()
    widths = (narrowed.parts.upper - narrowed.parts.lower).sum() / (layout.upper - layout.lower).sum()
    assert float(widths) < 0.9
    search.run(time.monotonic() + 1)
    assert not search.refuted


@pytest.mark.parametrize("family", ["sigmoid", "curved", "joined", "bent"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_bounds_of_other_families_and_norms_stay_below_what_attacks_reach(family, norm):
    judged, data = model(family), batch(3)
    threat = ThreatModel(norm, {"linf": 0.1, "l2": 0.4, "l1": 0.8}[norm])
    found = Exact(seconds=2).run(judged, data, threat, Randomness(0))
    least, _ = smallest_margins(judged, data, threat, samples=30)
    least[torch.arange(3), data.y] = torch.inf
    assert (found.margin <= least.amin(1) + 1e-9).all()


def test_a_robust_tanh_network_is_certified_where_no_lines_alone_do():
    network, (low, high) = a_network("tanh", 11), (LOW.double(), HIGH.double())
    with torch.no_grad():
        label = int(network(((low + high) / 2)[None]).argmax())
        outputs = network(a_grid())
        rest = outputs.scatter(1, torch.full((len(outputs), 1), label), -torch.inf).amax(1)
        shift = 0.05 - float((outputs[:, label] - rest).min())
        network[-1].bias[label] += shift
        region = Region(low=low[None], high=high[None])
        lines = relax(trace(network), region.centre, region, parallel_slope, adaptive_slope)
        prop = robustness(low, high, label, 3)
        alone = torch.cat([lines.lower(len(lines.graph.nodes) - 1, c.rows[None])[0] for c in prop.clauses])
    assert float(alone.min()) < 0
    verdict = settle(network, prop, seconds=60)
    assert verdict.status == "certified"
    assert 0 < verdict.bound <= 0.05 + 1e-9


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.stack([x.var(1), x.std(1)], 1),
        lambda x: torch.stack([torch.where(x[:, 0] > x[:, 1], x[:, 1], x[:, 0].sin()), x[:, 0].abs()], 1),
    ],
    ids=["variance", "choice"],
)
def test_values_that_are_one_number_a_sample_are_settled(function):
    network = Forward(function)
    spread = network(a_grid()) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    for gap, status in ((0.1, "certified"), (-0.05, "broken")):
        offset = gap - spread.min()[None]
        clause = Clause(torch.tensor([[1.0, -1.0]]), offset)
        assert settle(network, Property(LOW, HIGH, (clause,)), seconds=60).status == status


def a_tree(monkeypatch, deadline, entries=1):
    """The search for four clauses of a tanh network, each root in a piece of its own."""
    network = a_network("tanh", 3).double()
    region = Region(low=-torch.ones(1, 2).double(), high=torch.ones(1, 2).double())
    relaxation = relax(trace(network), region.centre, region, parallel_slope, adaptive_slope)
    rows = torch.randn(4, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    clauses = [Clause(row, torch.full((1,), -0.3)) for row in rows]
    monkeypatch.setattr(range_branching, "ROUND", entries)
    return RangeBranching(relaxation, clauses, lambda point: None, tolerance=1e-9, deadline=deadline)


def test_roots_are_bounded_in_pieces_as_together(monkeypatch):
    """What is kept of four clauses at once is more than what a piece takes on networks of many neurons."""
    sizes, honest = [], RangeDual.ascended
    monkeypatch.setattr(
        RangeDual,
        "ascended",
        lambda self, parts, **how: sizes.append(len(parts)) or honest(self, parts, **how),
    )
    apart = a_tree(monkeypatch, torch.inf)
    assert max(sizes) == 1
    together = a_tree(monkeypatch, torch.inf, entries=10**6)
    assert torch.allclose(apart.lower, together.lower)
    assert torch.allclose(apart.roots, together.roots)
    assert apart.pool.clause.sort().values.equal(together.pool.clause.sort().values)


def test_roots_that_time_or_memory_do_not_reach_prove_nothing(monkeypatch):
    late = a_tree(monkeypatch, -torch.inf)
    assert late.run(-torch.inf).lower[1:].eq(-torch.inf).all()
    monkeypatch.setattr(range_branching, "ROOTS", 1)
    full = a_tree(monkeypatch, torch.inf)
    assert full.run(-torch.inf).lower[1:].eq(-torch.inf).all()
    assert not any(full.is_open(group) for group in (1, 2, 3))
