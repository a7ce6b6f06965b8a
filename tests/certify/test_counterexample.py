"""The descent that looks for counterexamples first, and what a time limit leaves of it."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from certify import counterexample
from certify import settle as steps
from certify.case import Case
from certify.counterexample import search
from certify.graph import Graph, trace
from certify.input_set import InputSet
from certify.property import Clause, Property
from models.randomness import Randomness
from models.region import Region
from tests.certify.planes import small_network

RIVALS, WEAK = 30, 17


def a_ramp():
    """x from (2,) to RIVALS + 1 outputs: only output WEAK may come up to the first, in one corner."""
    network = nn.Linear(2, RIVALS + 1).double()
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.linspace(-9.0, -5.0, RIVALS + 1))
        network.bias[0], network.bias[WEAK] = 0.0, -0.95
        network.weight[WEAK] = 0.5
    rows = torch.zeros(RIVALS, 1, RIVALS + 1)
    rows[:, 0, 0] = 1.0
    rows[torch.arange(RIVALS), 0, torch.arange(1, RIVALS + 1)] = -1.0
    clauses = tuple(Clause(row, torch.zeros(1)) for row in rows)
    return network, Property(-torch.ones(2), torch.ones(2), clauses)


def asked(monkeypatch):
    """The clauses of each descent, in order."""
    found, descend = [], counterexample._descend
    monkeypatch.setattr(counterexample, "_descend", lambda *given: found.append(given[3]) or descend(*given))
    return found


def box_of(prop):
    region = Region(low=prop.lower.double()[None], high=prop.upper.double()[None])
    return region, InputSet.of(region.centre, region)


@pytest.mark.parametrize("entries", [1, 10**6])
def test_the_clauses_nearest_to_unsafe_come_first(entries, monkeypatch) -> None:
    """One at a time the weak one is first, and the last; together they keep their order."""
    monkeypatch.setattr(counterexample, "ENTRIES", entries)
    network, prop = a_ramp()
    descents = asked(monkeypatch)
    _, inputs = box_of(prop)
    found = search(trace(network), inputs, prop, Randomness(3), steps=40, starts=4)
    assert prop.excess(network(found)) <= 0
    assert descents == [(prop.clauses[WEAK - 1],) if entries == 1 else prop.clauses]


def test_a_descent_ends_with_its_time(monkeypatch) -> None:
    """What cannot be broken is not descended on any more once the time is up."""
    monkeypatch.setattr(counterexample, "ENTRIES", 1)
    network, prop = a_ramp()
    with torch.no_grad():
        network.bias[WEAK] = -3.0
    descents = asked(monkeypatch)
    graph, (_, inputs) = trace(network), box_of(prop)
    assert search(graph, inputs, prop, Randomness(3), steps=40, starts=4) is None
    assert len(descents) == RIVALS
    passes, values = [], Graph.values
    monkeypatch.setattr(Graph, "values", lambda self, x: passes.append(x) or values(self, x))
    assert (
        search(graph, inputs, prop, Randomness(3), steps=40, starts=4, deadline=time.monotonic() - 1) is None
    )
    assert len(descents) == RIVALS + 1
    assert len(passes) == 2


@pytest.mark.parametrize("entries", [1, 10**6])
def test_clauses_are_bounded_in_parts_as_together_and_not_when_it_is_late(entries, monkeypatch) -> None:
    monkeypatch.setattr(steps, "ROW_ENTRIES", entries)
    network = small_network(2, 8, 3, seed=0)
    clauses = tuple(
        Clause(torch.randn(1 + i % 2, 3, generator=torch.Generator().manual_seed(i)), torch.ones(1 + i % 2))
        for i in range(5)
    )
    prop = Property(-torch.ones(2), torch.ones(2), clauses)
    region, _ = box_of(prop)
    graph = trace(network.double())
    relaxation = steps.relax(graph, region.centre, region, steps.parallel_slope, steps.adaptive_slope)

    def bounded(deadline):
        lower = torch.full((5,), -torch.inf, dtype=torch.float64)
        case = Case(graph, region.centre, region, prop, 0.0, lambda point: None, deadline, lower)
        steps._bound_clauses(case, relaxation)
        return case.lower

    found, whole = bounded(torch.inf), steps.clause_bounds(relaxation, prop)[0]
    # One by one, intervals come first, and what they prove is bounded no further.
    proved = (found > 0) & (whole > 0)
    assert bool(((found > whole - 1e-9) | proved).all())
    assert bounded(time.monotonic() - 1).eq(-torch.inf).all()


def a_wide_case(gap, deadline=torch.inf):
    """A hidden layer and RIVALS clauses, the first `gap` above unsafe, the others far: one clause a piece."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, RIVALS + 1)).double()
    with torch.no_grad():
        for layer in (network[0], network[2]):
            layer.weight.copy_(0.3 * torch.randn(layer.weight.shape, generator=generator))
            layer.bias.zero_()
        network[2].bias[0] = 9.0
        network[2].bias[1] = 9.0 - gap
    _, prop = a_ramp()
    prop = Property(prop.lower, prop.upper, prop.clauses)
    region, _ = box_of(prop)
    lower = torch.full((RIVALS,), -torch.inf, dtype=torch.float64)
    graph = trace(network)
    return Case(graph, region.centre, region, prop, 0.0, lambda point: point, deadline, lower)


def test_clauses_that_intervals_prove_cost_no_backward_pass(monkeypatch) -> None:
    """Nor a descent: where clauses come one by one, intervals of all come first."""
    monkeypatch.setattr(steps, "ROW_ENTRIES", 1)
    passes, bounds = [], steps.clause_bounds
    monkeypatch.setattr(steps, "clause_bounds", lambda *given: passes.append(given[1]) or bounds(*given))
    descents = asked(monkeypatch)
    assert steps.settle_case(a_wide_case(9.0), Randomness(3)) == "ibp"
    assert not passes
    assert not descents
    case = a_wide_case(0.6)
    steps.settle_case(case, Randomness(3))
    assert {len(prop.clauses) for prop in passes} == {1}
    assert len(passes) <= 2
    assert bool((case.lower[1:] > 0).all())


def test_a_brief_search_descends_on_the_nearest_clauses_alone(monkeypatch) -> None:
    monkeypatch.setattr(counterexample, "ENTRIES", 1)
    network, prop = a_ramp()
    _, inputs = box_of(prop)
    descents = asked(monkeypatch)
    search(trace(network), inputs, prop, Randomness(3), steps=0, starts=1, briefly=True)
    assert [[int(clause.rows[0].argmin()) for clause in some] for some in descents] == [[WEAK]]


def test_slopes_climb_together_only_as_far_as_they_fit_and_for_open_clauses(monkeypatch) -> None:
    climbs, climb = [], steps.climbed
    monkeypatch.setattr(steps, "climbed", lambda *given: climbs.append(given[2].shape[1]) or climb(*given))
    case = a_wide_case(0.6)
    relaxation = steps.relax(case.graph, case.x, case.threat, steps.adaptive_slope)
    steps._climb(case, relaxation)
    whole = case.lower.clone()
    assert climbs == [RIVALS]
    climbs.clear()
    monkeypatch.setattr(steps, "CELLS", 1)
    case.lower[3:5] = -torch.inf
    steps._climb(case, relaxation)
    assert climbs == [1, 1]
    assert torch.allclose(case.lower, whole)
