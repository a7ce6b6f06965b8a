"""The exact certificate: equal to brute force, legal in its witnesses, and never fooled by a solver."""

import itertools
import time

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from certify import entry_bounds, folding, settle_folded, turns
from certify import settle as steps
from certify.case import Case
from certify.exact import Exact, settle
from certify.property import Clause, Property, robustness
from models.base import Batch, Classifier
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.builders import exact_distance, labelled, random_linear
from tests.certify.builders import batch, model, smallest_margins
from tests.certify.planes import least_excess, small_network

WIDTHS = [(2, 8, 3), (2, 5, 5, 3), (2, 4, 4, 4, 3)]
EPS = {"linf": 0.3, "l2": 0.45, "l1": 0.6}


@pytest.fixture(params=["phases", "inputs"])
def branching(request, monkeypatch):
    """Branches on phases of ReLUs, or on the few inputs."""
    monkeypatch.setattr(steps, "FEW_INPUTS", {"phases": 0, "inputs": 16}[request.param])


def a_rectangle(seed):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(2, generator=generator) - 0.7
    return low, low + 0.2 + torch.rand(2, generator=generator)


def a_property(network, seed):
    """Robustness of the label, or one or two clauses of one to four rows."""
    low, high = a_rectangle(seed)
    if seed % 2:
        with torch.no_grad():
            label = int(network(((low + high) / 2)[None]).argmax())
        return robustness(low, high, label, 3)
    generator = torch.Generator().manual_seed(seed)
    clauses = [
        Clause(torch.randn(k, 3, generator=generator), 0.6 * torch.randn(k, generator=generator))
        for k in (1 + seed // 2 % 4, 2)[: 1 + seed // 8 % 2]
    ]
    return Property(low, high, tuple(clauses))


def brute_force(network, prop):
    ends = prop.lower.double().tolist(), prop.upper.double().tolist()
    return [least_excess(network, *ends, clause) for clause in prop.clauses]


def assert_witness(network, prop, verdict):
    point = verdict.witness
    assert point.dtype == torch.float64
    assert ((point[0] >= prop.lower) & (point[0] <= prop.upper)).all()
    with torch.no_grad():
        outputs = network.double()(point)[0]
    network.float()
    assert any(
        bool((clause.rows.double() @ outputs + clause.offsets.double() <= 1e-12).all())
        for clause in prop.clauses
    )


@pytest.mark.parametrize(
    ("few", "seed"), [(0, seed) for seed in range(100)] + [(16, seed) for seed in range(30)]
)
def test_a_property_on_the_plane_is_what_its_polygons_say(few, seed, monkeypatch):
    monkeypatch.setattr(steps, "FEW_INPUTS", few)
    if few:
        monkeypatch.setattr(steps, "search", lambda *args, **kwargs: None)
    network = small_network(*WIDTHS[seed % 3], seed=seed, leak=0.1 * (seed // 3 % 2))
    prop = a_property(network, seed)
    least = brute_force(network, prop)
    verdict = settle(network, prop, seconds=20)
    assert verdict.status == ("certified" if min(least) > 0 else "broken")
    assert (verdict.lower.numpy() <= np.array(least) + 1e-9).all()
    if verdict.status == "broken":
        assert_witness(network, prop, verdict)
        assert verdict.bound <= 0
    else:
        assert verdict.bound > 0
        assert verdict.witness is None


@pytest.mark.usefixtures("branching")
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("side", [1, -1])
def test_a_property_that_barely_holds_or_fails_is_told_apart(seed, side):
    network = small_network(*WIDTHS[seed % 3], seed=seed)
    low, high = a_rectangle(seed)
    rows = torch.randn(1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    least = least_excess(network, low.tolist(), high.tolist(), Clause(rows, torch.zeros(1)))
    shifted = Clause(rows, torch.tensor([side * 1e-5 - least], dtype=torch.float64))
    prop = Property(low, high, (shifted,))
    verdict = settle(network, prop, seconds=20)
    assert verdict.status == ("certified" if side > 0 else "broken")


def patterns_least(network, low, high, row):
    """The least of row . network(x) over a box of any dimension: a linear program a pattern of phases."""
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    weights = [(a.weight.detach().double().numpy(), a.bias.detach().double().numpy()) for a in linear]
    least = np.inf
    for phases in itertools.product((0.0, 1.0), repeat=sum(len(bias) for _, bias in weights[:-1])):
        slope, shift, cuts, ends, place = np.eye(len(low)), np.zeros(len(low)), [], [], 0
        for weight, bias in weights[:-1]:
            slope, shift = weight @ slope, weight @ shift + bias
            phase = np.array(phases[place : place + len(bias)])
            place += len(bias)
            cuts.append((1 - 2 * phase)[:, None] * slope)
            ends.append((2 * phase - 1) * shift)
            slope, shift = phase[:, None] * slope, phase * shift
        weight, bias = weights[-1]
        found = linprog(
            row @ weight @ slope, np.concatenate(cuts), np.concatenate(ends),
            bounds=list(zip(low, high, strict=True)),
        )  # fmt: skip
        if found.status == 0:
            least = min(least, found.fun + row @ (weight @ shift + bias))
    return least


@pytest.mark.usefixtures("branching")
@pytest.mark.parametrize("seed", range(12))
def test_three_inputs_agree_with_a_linear_program_a_pattern(seed):
    network = small_network(*((3, 6, 3) if seed % 2 else (3, 3, 3, 3)), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(3, generator=generator, dtype=torch.float64) - 0.7
    high = low + 0.6
    row = torch.randn(3, generator=generator, dtype=torch.float64)
    least = patterns_least(network, low.numpy(), high.numpy(), row.numpy())
    for side in (1, -1):
        offset = torch.tensor([side * 1e-3 - least], dtype=torch.float64)
        prop = Property(low, high, (Clause(row[None], offset),))
        verdict = settle(network, prop, seconds=20)
        assert verdict.status == ("certified" if side > 0 else "broken")
        if side < 0:
            assert_witness(network, prop, verdict)


class Stalled:
    """A refutation that takes every turn it is given and gets nowhere."""

    def __init__(self, folded, targets, group, check, *, slack, enveloped):
        self.group, self.witness, self.unfinished, self.looked_at = group, None, True, 0

    def run(self, deadline):
        time.sleep(max(0.0, deadline - time.monotonic()))
        return False


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_a_refutation_that_gets_nowhere_leaves_the_tree_its_turns(seed, monkeypatch):
    network = small_network(2, 8, 8, 3, seed=seed)
    low, high = a_rectangle(seed)
    rows = torch.randn(1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    least = least_excess(network, low.tolist(), high.tolist(), Clause(rows, torch.zeros(1)))
    barely = Clause(rows, torch.tensor([1e-5 - least], dtype=torch.float64))
    monkeypatch.setattr(steps, "FEW_INPUTS", 0)
    monkeypatch.setattr(turns, "FIRST_TURN", 0.05)
    monkeypatch.setattr(settle_folded, "Refutation", Stalled)
    monkeypatch.setattr(settle_folded, "_ask_solver", lambda case, one, end: None)
    # The tree's first turn ends before it begins.
    monkeypatch.setattr(Case, "share", lambda *args: time.monotonic())
    verdict = settle(network, Property(low, high, (barely,)), seconds=20)
    assert (verdict.status, verdict.settled_by) == ("certified", "branch")


def classified(seed, n=6, eps=0.3, norm="linf", widths=(2, 8, 3)):
    network = small_network(*widths, seed=seed)
    judged = Classifier(network, num_classes=widths[-1])
    x = torch.rand(n, widths[0], generator=torch.Generator().manual_seed(seed))
    return judged, labelled(judged, x), ThreatModel(norm, eps)


@pytest.mark.parametrize("seed", range(10))
def test_a_classifier_on_the_plane_is_what_its_polygons_say(seed):
    judged, data, threat = classified(seed, eps=0.15)
    found = Exact(seconds=20).run(judged, data, threat, Randomness(0))
    for i in range(len(data)):
        low, high = (end[0].tolist() for end in threat.bounds(data.x[i : i + 1].double()))
        prop = robustness(torch.tensor(low), torch.tensor(high), int(data.y[i]), 3)
        least = min(least_excess(judged.network, low, high, clause) for clause in prop.clauses)
        assert abs(least) > 1e-4
        assert bool(found.certified[i]) == (least > 0)
        assert bool(found.broken[i]) == (least < 0)
        assert found.margin[i] <= least + 1e-9
    assert threat.contains(data.x, found.witness).all()
    with torch.no_grad():
        errs = judged.logits(found.witness).argmax(1) != data.y
    assert torch.equal(errs, found.broken)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("seed", [0, 2, 8])
def test_other_balls_are_decided_and_no_sample_contradicts(seed, norm):
    judged, data, threat = classified(seed, eps=EPS[norm] / 2, norm=norm, widths=(3, 7, 6, 3))
    found = Exact(seconds=20).run(judged, data, threat, Randomness(0))
    least, points = smallest_margins(judged, data, threat, samples=300, steps=20)
    least[torch.arange(len(data)), data.y] = torch.inf
    assert points > 300
    assert (found.certified ^ found.broken).all()
    assert (found.margin <= least.amin(1) + 1e-9).all()
    assert threat.contains(data.x, found.witness).all()


@pytest.mark.parametrize("norm", EPS)
def test_an_affine_classifier_is_decided_at_its_exact_distance(norm):
    judged = random_linear(4, 10, seed=2)
    data = labelled(judged, 0.4 + 0.2 * torch.rand(8, 10, generator=torch.Generator().manual_seed(3)))
    for i, distance in enumerate(exact_distance(judged, data, norm).tolist()):
        if distance > 0.35:
            continue
        for factor, certified in ((0.999, True), (1.001, False)):
            sample, threat = data[i : i + 1], ThreatModel(norm, factor * distance)
            found = Exact(seconds=5).run(judged, sample, threat, Randomness(0))
            assert found.certified.tolist() == [certified]
            assert found.broken.tolist() == [not certified]


@pytest.mark.parametrize("norm", EPS)
def test_a_larger_ball_never_proves_more(norm):
    judged, data, _ = classified(8, n=5, widths=(3, 7, 6, 3))
    radii = [0.0, 0.1, 0.25, 0.5]
    runs = [Exact(seconds=20).run(judged, data, ThreatModel(norm, eps), Randomness(0)) for eps in radii]
    assert runs[0].certified.all()
    with torch.no_grad():
        logits = judged.logits(data.x).double()
    other = torch.arange(3) != data.y[:, None]
    clean = (logits.gather(1, data.y[:, None]) - logits)[other]
    assert (runs[0].lower[other] <= clean + 1e-5).all()
    for small, large in itertools.pairwise(runs):
        assert not (large.certified & ~small.certified).any()
        assert not (small.broken & ~large.broken).any()
    assert runs[-1].broken.any()


def test_the_answer_does_not_depend_on_the_batch():
    judged, data, threat = classified(5, n=7, eps=0.1)
    whole = Exact(seconds=20).run(judged, data, threat, Randomness(3))
    parts = [Exact(seconds=20).run(judged, data[i : i + 1], threat, Randomness(3)) for i in (6, 2, 0)]
    for i, part in zip((6, 2, 0), parts, strict=True):
        assert part.settled_by[0] == whole.settled_by[i]
        assert torch.equal(part.broken[0], whole.broken[i])
        assert torch.allclose(part.lower[0], whole.lower[i], atol=1e-9)
        assert torch.allclose(part.witness[0], whole.witness[i], atol=1e-6)
    halves = Exact(seconds=20).run(judged, data, threat, Randomness(3), batch_size=3)
    assert halves.settled_by == whole.settled_by


def test_a_shift_of_the_logits_changes_nothing():
    judged, data, threat = classified(6, eps=0.1)
    before = Exact(seconds=20).run(judged, data, threat, Randomness(0))
    with torch.no_grad():
        judged.network[-1].bias.add_(3.0)
    after = Exact(seconds=20).run(judged, data, threat, Randomness(0))
    assert torch.equal(before.certified, after.certified)
    assert torch.equal(before.broken, after.broken)


def test_a_bound_that_is_no_number_leaves_its_clause_open():
    lower = torch.tensor([1.0, torch.nan, -torch.inf, 1e-10], dtype=torch.float64)
    case = steps.Case(None, None, None, None, 1e-9, None, 0.0, lower)
    assert case.open.tolist() == [1, 2, 3]
    assert not case.done


def test_numbers_that_overflow_prove_nothing():
    network = small_network(2, 3, 2, seed=0).double()
    with torch.no_grad():
        network[0].weight.mul_(1e200)
        network[0].bias.zero_()
        network[2].weight.mul_(1e200)
    low, high = torch.full((2,), -1.0), torch.full((2,), 1.0)
    verdict = settle(network, robustness(low, high, 0, 2), seconds=1)
    assert verdict.status in ("open", "broken")
    with pytest.raises(UserError, match="overflow"):
        settle(network, robustness(low + 1, high, 0, 2), seconds=1)


class Forgetful(nn.Module):
    """Computes something else the second time."""

    def __init__(self):
        super().__init__()
        self.calls, self.layer = 0, nn.Linear(2, 2)

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * (1 if self.calls < 2 else -1)


def test_mistakes_are_one_clear_line():
    low, high = torch.zeros(2), torch.ones(2)
    network, prop = small_network(2, 3, 2, seed=0), robustness(low, high, 0, 2)
    for seconds in (0, -1.0, torch.nan):
        with pytest.raises(UserError, match="give a positive one"):
            settle(network, prop, seconds=seconds)
    with pytest.raises(UserError, match="2 outputs but the property speaks of 5"):
        settle(network, robustness(low, high, 0, 5), seconds=1)
    with pytest.raises(UserError, match=r"no input of the property's shape \(3,\)"):
        settle(network, robustness(torch.zeros(3), torch.ones(3), 0, 2), seconds=1)
    with pytest.raises(UserError, match="something else"):
        settle(Forgetful(), prop, seconds=1)
    with torch.no_grad():
        network[0].weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        settle(network, prop, seconds=1)


@pytest.mark.parametrize("family", ["sigmoid", "curved", "joined"])
def test_a_network_beyond_the_relu_family_is_answered_too(family):
    judged, data = model(family), batch(4)
    threat = ThreatModel("linf", 0.15)
    found = Exact(seconds=2).run(judged, data, threat, Randomness(0))
    least, _ = smallest_margins(judged, data, threat, samples=30)
    least[torch.arange(4), data.y] = torch.inf
    assert (found.margin <= least.amin(1) + 1e-9).all()
    for i in range(4):
        prop = robustness(*(end[0] for end in threat.bounds(data.x[i : i + 1])), int(data.y[i]), 3)
        verdict = settle(judged.network, prop, seconds=2)
        assert verdict.status in ("certified", "broken", "open")
        assert verdict.status != "certified" or least[i].amin() > 0


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_a_linear_network_needs_no_neuron(seed):
    """Three rows that no input makes negative together, or by a hair: nothing is left to branch on."""
    network = small_network(2, 2, seed=seed)
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(2))
        network[0].bias.zero_()
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    for gap, allowed in ((0.1, ("certified",)), (1e-9, ("open", "certified")), (-0.01, ("broken",))):
        clause = Clause(rows, torch.tensor([-0.3, 0.3 + gap, -0.5 - seed], dtype=torch.float64))
        verdict = settle(network, Property(torch.zeros(2), torch.ones(2), (clause,)), seconds=3)
        assert verdict.status in allowed


def test_the_models_own_point_settles_a_sample_that_is_misclassified():
    judged, data, threat = classified(7)
    wrong = Batch(data.x, (data.y + 1) % 3, data.index)
    found = Exact().run(judged, wrong, threat, Randomness(0))
    assert found.broken.all()
    assert set(found.settled_by) == {"clean"}
    assert torch.equal(found.witness, data.x)


def test_a_tie_is_neither_a_counterexample_nor_proved():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        network[0].bias.copy_(torch.tensor([0.0, -0.5]))
    x, y = torch.tensor([[0.55, 0.3], [0.9, 0.2]]), torch.tensor([1, 1])
    judged, threat = Classifier(network, num_classes=2), ThreatModel("linf", 0.1)
    found = Exact(seconds=1.0).run(judged, Batch.of(x, y), threat, Randomness(0))
    assert found.certified.tolist() == [False, True]
    assert found.broken.tolist() == [False, False]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_time_limit_is_kept_by_every_step(norm, monkeypatch):
    # Every look at this clock costs 20 ms: a step that does not look would not stop, one that goes on
    # after the limit is seen by how far the clock has run.
    ticks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: 0.02 * next(ticks))
    judged, data, threat = classified(0, n=2, eps=0.5, norm=norm, widths=(40, 200, 200, 200, 10))
    prop = robustness(*(end[0] for end in threat.bounds(data.x[:1])), int(data.y[0]), 10)
    for clause in prop.clauses:
        clause.offsets.add_(60.0)
    assert settle(judged.network, prop, seconds=3).seconds < 6


@pytest.mark.parametrize(("width", "expected"), [(20, 1), (600, 2)])
def test_a_small_network_is_searched_by_one_thread_and_the_callers_number_returns(
    width, expected, monkeypatch
):
    before, seen = torch.get_num_threads(), []
    inner = steps._settled
    monkeypatch.setattr(steps, "_settled", lambda *args: seen.append(torch.get_num_threads()) or inner(*args))
    network = small_network(2, width, 3, seed=0)
    low, high = a_rectangle(0)
    try:
        torch.set_num_threads(2)
        settle(network, robustness(low, low + 1e-3 * (high - low), 0, 3), seconds=5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [expected]


def test_a_network_that_takes_too_long_to_fold_is_settled_on_its_ranges(monkeypatch):
    """The time for folding is over after the first rows: the ranges answer the same."""
    network = small_network(2, 24, 24, 3, seed=3)
    low, high = a_rectangle(3)
    rows = torch.randn(1, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    least = least_excess(network, low.tolist(), high.tolist(), Clause(rows, torch.zeros(1)))
    clause = Clause(rows, torch.tensor([1e-3 - least], dtype=torch.float64))
    asked = []
    ranged = steps._on_ranges
    monkeypatch.setattr(steps, "FEW_INPUTS", 0)
    monkeypatch.setattr(steps, "FOLDING", 0.0)
    monkeypatch.setattr(folding, "ROWS", 1)
    monkeypatch.setattr(steps, "_on_ranges", lambda *args: asked.append(1) or ranged(*args))
    verdict = settle(network, Property(low, high, (clause,)), seconds=20)
    assert (verdict.status, asked) == ("certified", [1])


def test_too_many_undecided_neurons_are_not_folded_at_all(monkeypatch):
    network = small_network(2, 24, 24, 3, seed=3)
    low, high = a_rectangle(3)
    monkeypatch.setattr(steps, "FEW_INPUTS", 0)
    monkeypatch.setattr(steps, "NEURONS", 0)
    monkeypatch.setattr(steps, "folded_network", lambda *args, **settings: pytest.fail("folded in vain"))
    rows = torch.eye(3, dtype=torch.float64)[:1]
    least = least_excess(network, low.tolist(), high.tolist(), Clause(rows, torch.zeros(1)))
    clause = Clause(rows, torch.tensor([1e-3 - least], dtype=torch.float64))
    assert settle(network, Property(low, high, (clause,)), seconds=20).status == "certified"


def test_what_intervals_prove_is_settled_before_any_neuron_is_bounded(monkeypatch):
    network = small_network(2, 8, 3, seed=0)
    low, high = a_rectangle(0)
    monkeypatch.setattr(entry_bounds, "bound_entries", lambda *args: pytest.fail("bounded in vain"))
    far = Clause(torch.eye(3, dtype=torch.float64)[:1], torch.tensor([1e3], dtype=torch.float64))
    verdict = settle(network, Property(low, high, (far,)), seconds=20)
    assert (verdict.status, verdict.settled_by) == ("certified", "crown-ibp")


def test_clauses_that_intervals_over_lines_prove_leave_none_for_lines(monkeypatch):
    """Lines that prove nothing of clauses, but tighten the neurons' bounds until intervals prove them all."""
    monkeypatch.setattr(steps, "ROW_ENTRIES", 1)
    none = torch.full((1, 1), -torch.inf, dtype=torch.float64)
    monkeypatch.setattr(steps, "clause_bounds", lambda *args: none)
    network = small_network(2, 12, 12, 12, 3, seed=0)
    low, high = a_rectangle(0)
    row = torch.eye(3, dtype=torch.float64)[:1]
    least = least_excess(network, low.tolist(), high.tolist(), Clause(row, torch.zeros(1)))
    found = set()
    for margin in np.geomspace(0.05, 20, 24).tolist():
        offset = torch.tensor([margin - least], dtype=torch.float64)
        clauses = tuple(Clause(row * k, offset * k) for k in (1, 2))
        verdict = settle(network, Property(low, high, clauses), seconds=20)
        assert verdict.status == "certified"
        found.add(verdict.settled_by)
    assert {"ibp", "crown"} <= found
