"""Settles one property of one network: certified, broken with a counterexample, or open with a bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certify.affine_forms import affine_forms
from certify.backward import adaptive_slope, parallel_slope, relax
from certify.bounds import Interval
from certify.case import Case
from certify.counterexample import search
from certify.folded import folded_network
from certify.folding import undecided_counts
from certify.graph import Graph
from certify.ibp import IntervalPass, interval_rows
from certify.input_set import InputSet
from certify.input_splitting import clause_bounds, split_inputs
from certify.lowering import has_maxima, relaxed_without_maxima
from certify.property import safest
from certify.range_branching import RangeBranching
from certify.range_refutation import RangeRefutation
from certify.range_tightening import CELLS, tightened_ranges
from certify.relaxation import Relaxation
from certify.rules.jumps import Jumps
from certify.settle_folded import REFUTED, settle_folded
from certify.shared_maxima import with_shared_maxima
from certify.slopes import climbed
from certify.threads import fitting_threads
from certify.turns import Search, branch, take_turns
from models.enclosure import Enclosure
from models.errors import NotApplicable
from models.randomness import Randomness
from models.threat import ThreatModel

# Beyond this many unstable neurons the folded network's table takes more memory than a laptop has.
NEURONS = 8000

# Steps of the ascent over a network whose maxima are still whole.
CLIMB = 20

# Most that is broken breaks in a few steps from the centre, which cost less than any bound; bounds in turn
# cost less than the whole descent.
BRIEF = 6
LONG, STARTS = 40, 4

# The part of the time that the first bounds may take: what they do not settle may still be broken.
BOUNDING = 0.7

# The part of what is left that folding may take: networks that are too wide for it have ranges.
FOLDING = 0.3

# Entries of the clauses' rows over the widest values that are bounded between two looks at the clock.
ROW_ENTRIES = 2**18

# Up to this many varying inputs affine forms cost less than lines, on networks of so many values or more.
GENERATORS, WIDE = 64, 20_000

# Up to this many inputs, cutting their box is worth more than fixing the phases of ReLUs.
FEW_INPUTS = 16


@dataclass(frozen=True)
class Verdict:
    """What is known of a property.

    status is "certified", "broken" or "open"; witness (1, ...) is the counterexample of a broken
    one; lower (c,) bounds each clause's excess over the input set from below; settled_by names
    the step that decided, and seconds is what it all took.
    """

    status: str
    witness: Tensor | None
    lower: Tensor
    settled_by: str
    seconds: float

    @property
    def bound(self) -> float:
        """The least excess that any clause may have: above 0 for a certified property."""
        return float(self.lower.min())


def settle_case(case: Case, randomness: Randomness) -> str:
    """Runs the steps on `case`, cheapest first, until one decides; returns its name.

    ibp where lines are dear -> descend briefly -> affine forms where few inputs vary -> crown-ibp -> crown
    (with polytope; maxima that channels share are taken once) -> descend -> input-split where inputs are few
    -> alpha -> tighten -> branch -> envelope (linf, where it helps; along curves first) -> branch ->
    refutation (clause by clause, every neuron bounded again in each branch, with a mixed-integer program
    that looks for witnesses) -> branch.
    """
    with fitting_threads(case.graph, case.x):
        return _settled(case, randomness)


def _settled(case: Case, randomness: Randomness) -> str:
    with torch.no_grad():
        if len(_pieces(case, case.graph, case.x)) > 1:
            _bound_by_intervals(case, case.graph, case.x, case.threat)
            if case.done:
                return "ibp"
    if _descended(case, randomness, steps=BRIEF, starts=1, briefly=True):
        return "descent"
    with torch.no_grad():
        question = with_shared_maxima(case.graph, case.x, case.threat)
        if question is not None:
            case.lift = question.lift
        graph, x, threat = question.parts if question else (case.graph, case.x, case.threat)
        known = _bound_by_forms(case, graph, x, threat) if _few_vary(graph, x, threat) else None
        if case.done or case.late:
            return "affine-forms"
        _bound_clauses(case, relax(graph, x, threat, known=known))
        if case.done or case.late:
            return "crown-ibp"
        relaxation = relax(
            graph, x, threat, parallel_slope, adaptive_slope, known=known, deadline=case.share(BOUNDING)
        )
        _bound_clauses(case, relaxation)
        if case.done or case.late:
            return "crown"
        if _descended(case, randomness, steps=LONG, starts=STARTS):
            return "descent"
        if has_maxima(graph) and not case.late:
            # Slopes climb over the maxima themselves first: chains of ReLUs have looser lines.
            _climb(case, relaxation)
            if case.done or case.late:
                return "alpha"
            relaxation = relaxed_without_maxima(
                relaxation, parallel_slope, adaptive_slope, deadline=case.deadline
            )
            if question is None:
                case.graph = relaxation.graph
            _bound_clauses(case, relaxation)
        if case.done or case.late:
            return "crown"
        if _few_inputs(case) and _split_inputs(case):
            return "input-split"
        return _searched(case, relaxation)


def _searched(case: Case, relaxation: Relaxation) -> str:
    """Searches on the folded network, or on ranges where it is too wide to fold or no chain of ReLUs."""
    clauses = [case.prop.clauses[i] for i in case.open.tolist()]
    try:
        if int(undecided_counts(relaxation).sum()) > NEURONS:
            return _on_ranges(case, relaxation)
        folded, targets = folded_network(
            relaxation,
            [clause.rows for clause in clauses],
            [clause.offsets for clause in clauses],
            deadline=case.share(FOLDING),
        )
    except NotApplicable:
        return _on_ranges(case, relaxation)
    return settle_folded(case, folded, targets)


def _few_vary(graph: Graph, x: Tensor, threat: ThreatModel) -> bool:
    """Whether few inputs of a wide network vary, each in an interval of its own."""
    if threat.norm != "linf" or isinstance(threat, Enclosure):
        return False
    low, high = threat.bounds(x)
    wide = sum(shape.numel() for shape in graph.shapes(x)) >= WIDE
    return wide and int((high > low).sum()) <= GENERATORS


def _bound_by_forms(case: Case, graph: Graph, x: Tensor, threat: ThreatModel) -> dict[int, Interval]:
    """Books what affine forms prove of each clause; returns their bounds on every node."""
    known, last = affine_forms(graph, x, threat)
    clauses = list(case.prop.clauses)
    rows = last.least(torch.cat([clause.rows for clause in clauses]).to(x))
    case.lower = torch.maximum(case.lower, safest(clauses, rows))
    return known


def _few_inputs(case: Case) -> bool:
    """Whether cutting the inputs' box is worth more than cutting ranges, as it is not where values jump."""
    jumps = any(isinstance(node.operation, Jumps) for node in case.graph.nodes)
    return case.x[0].numel() <= FEW_INPUTS and case.threat.norm == "linf" and not jumps


def _descended(case: Case, randomness: Randomness, *, steps: int, starts: int, briefly: bool = False) -> bool:
    """Descends on the clauses that are open; says whether what it found settles the case."""
    prop = replace(case.prop, clauses=tuple(case.prop.clauses[i] for i in case.open.tolist()))
    inputs = InputSet.of(case.x, case.threat)
    found = search(
        case.graph, inputs, prop, randomness,
        steps=steps, starts=starts, deadline=case.share(0.3), briefly=briefly,
    )  # fmt: skip
    case.witness = None if found is None else case.check(found)
    return case.done


def _bound_clauses(case: Case, relaxation: Relaxation) -> None:
    """Books what the relaxation proves of each clause, of few clauses at a time until it is late.

    Where that takes several turns, intervals over its bounds come first, and lines for what these leave open.
    """
    pieces = _pieces(case, relaxation.graph, relaxation.x)
    if len(pieces) > 1:
        _bound_by_intervals(case, relaxation.graph, relaxation.x, relaxation.threat, relaxation.bounds)
        pieces = _pieces(case, relaxation.graph, relaxation.x, case.open)
    for part in pieces:
        if case.late:
            return
        some = tuple(case.prop.clauses[i] for i in part.tolist())
        found = clause_bounds(relaxation, replace(case.prop, clauses=some))[0]
        case.lower[part] = torch.maximum(case.lower[part], found)


def _bound_by_intervals(
    case: Case, graph: Graph, x: Tensor, threat: ThreatModel, known: Mapping[int, Interval] | None = None
) -> None:
    """Books what intervals prove of each open clause: all of them for hardly more than one pass."""
    intervals = IntervalPass(graph, x, threat).run(known)
    for part in _pieces(case, graph, x, case.open):
        if case.late:
            return
        some = [case.prop.clauses[i] for i in part.tolist()]
        rows = interval_rows(intervals, x, torch.cat([clause.rows for clause in some]).to(x)[None])[0]
        case.lower[part] = torch.maximum(case.lower[part], safest(some, rows))


def _pieces(case: Case, graph: Graph, x: Tensor, some: Tensor | None = None) -> tuple[Tensor, ...]:
    """The clauses, or some of them, in pieces between which one looks at the clock; none of none."""
    some = torch.arange(len(case.prop.clauses)) if some is None else some
    widest = max(shape.numel() for shape in graph.shapes(x))
    most = max(len(clause.offsets) for clause in case.prop.clauses)
    return some.split(max(1, ROW_ENTRIES // (widest * most))) if len(some) else ()


def _climb(case: Case, relaxation: Relaxation) -> None:
    """Books what slopes optimised for each row of a clause prove, of few clauses at a time until it is late.

    Of all clauses where these climb together, else of those that are open.
    """
    last = len(relaxation.graph.nodes) - 1
    slopes = sum(part.lower.numel() for part in relaxation.bounds.values())
    most = max(len(clause.offsets) for clause in case.prop.clauses)
    size = max(1, CELLS // max(1, slopes * most))
    groups = torch.arange(len(case.prop.clauses))
    for part in (groups if size >= len(groups) else case.open).split(size):
        if case.late:
            return
        some = [case.prop.clauses[i] for i in part.tolist()]
        rows = torch.cat([clause.rows for clause in some]).to(case.x)[None]
        found = climbed(
            relaxation, last, rows, CLIMB, 0.25,
            lambda samples, best: torch.full_like(samples, case.late).bool(),
        )[0]  # fmt: skip
        case.lower[part] = torch.maximum(case.lower[part], safest(some, found))


def _split_inputs(case: Case) -> bool:
    """Branches on the inputs for most of the time; where it does not end, what it proved is kept."""
    split = split_inputs(
        case.graph, case.prop, case.check, tolerance=case.tolerance, deadline=case.share(0.7)
    )
    case.witness, case.lower = split.witness, torch.maximum(case.lower, split.lower)
    return case.done


def _on_ranges(case: Case, relaxation: Relaxation) -> str:
    """Tighter ranges, then branches that cut them: for any activation, and for networks too large to fold."""
    relaxation = tightened_ranges(relaxation, case.share(0.3))
    if case.late:
        return "crown"
    groups = case.open
    clauses = [case.prop.clauses[i] for i in groups.tolist()]
    try:
        tree = RangeBranching(
            relaxation, clauses, case.check, tolerance=case.tolerance, deadline=case.deadline
        )
    except NotApplicable:
        return "crown"
    if branch(case, tree, groups, case.share(0.05, 1.0)):
        return "alpha" if tree.looked_at <= len(groups) else "branch"
    refutations: list[Search] = []
    if tree.layout.size <= REFUTED:
        refutations = [
            RangeRefutation(relaxation, clause, group, case.check, slack=2 * case.tolerance)
            for group, clause in enumerate(clauses)
            if tree.is_open(group)
        ]
    return take_turns(case, groups, tree, refutations)
