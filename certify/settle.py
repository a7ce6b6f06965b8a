"""Settles one property of one network: certified, broken with a counterexample, or open with a bound."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certify.ascent import climb, lines_of
from certify.backward import Relaxation, adaptive_slope, parallel_slope, relax
from certify.branching import BranchAndBound
from certify.case import Case
from certify.counterexample import search
from certify.descent import descend
from certify.dual import Branches, Dual
from certify.envelope import Envelope, Lines
from certify.folded import Folded, Targets, folded_network
from certify.input_set import InputSet
from certify.input_splitting import clause_bounds, split_inputs
from certify.lowering import has_maxima, relaxed_without_maxima
from certify.mixed_integer import feasible_point
from certify.range_branching import RangeBranching
from certify.range_refutation import RangeRefutation
from certify.range_tightening import tightened_ranges
from certify.refutation import Refutation
from certify.separable import separated
from certify.slopes import climbed
from certify.tighten import tightened
from certify.turns import Search, branch, take_turns
from models.errors import NotApplicable
from models.randomness import Randomness

# Beyond this many unstable neurons the folded network's table takes more memory than a laptop has.
NEURONS = 8000

# Up to this many neurons a refutation, which keeps a square table a branch, has the memory that it needs.
REFUTED = 1500

# Up to this many neurons the mixed-integer program is worth its time.
MIXED_INTEGER = 300

# Steps of the ascent over a network whose maxima are still whole.
CLIMB = 20

# Most that is broken breaks in a few steps from the centre, which cost less than any bound; bounds in turn
# cost less than the whole descent.
BRIEF = 6
LONG, STARTS = 40, 4

# The part of the time that the first bounds may take: what they do not settle may still be broken.
BOUNDING = 0.7

# Entries of the clauses' rows over the widest values that are bounded between two looks at the clock.
ROW_ENTRIES = 2**18

# Steps of the ascent under envelopes, which cost some ten times as much as others; and the part of a bound
# that they have to win before every neuron is bounded so.
ENVELOPE, HELPFUL = 12, 0.02

# Entries of upper lines that a tree may keep.
LINE_ENTRIES = 20_000_000

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

    descend briefly -> crown (with polytope) -> descend -> input-split where inputs are few -> alpha ->
    tighten -> branch -> envelope (linf, where it helps) -> branch -> refutation (clause by clause, every
    neuron bounded again in each branch, with a mixed-integer program that looks for witnesses) -> branch.
    """
    if _descended(case, randomness, steps=BRIEF, starts=1):
        return "descent"
    with torch.no_grad():
        relaxation = relax(
            case.graph, case.x, case.threat, parallel_slope, adaptive_slope, deadline=case.share(BOUNDING)
        )
        _bound_clauses(case, relaxation)
        if case.done or case.late:
            return "crown"
        if _descended(case, randomness, steps=LONG, starts=STARTS):
            return "descent"
        if has_maxima(case.graph) and not case.late:
            # Slopes climb over the maxima themselves first: chains of ReLUs have looser lines.
            case.lower = torch.maximum(case.lower, _climbed(case, relaxation))
            if case.done or case.late:
                return "alpha"
            relaxation = relaxed_without_maxima(
                relaxation, parallel_slope, adaptive_slope, deadline=case.deadline
            )
            case.graph = relaxation.graph
            _bound_clauses(case, relaxation)
        if case.done or case.late:
            return "crown"
        if case.x[0].numel() <= FEW_INPUTS and case.threat.norm == "linf" and _split_inputs(case):
            return "input-split"
        clauses = [case.prop.clauses[i] for i in case.open.tolist()]
        try:
            folded, targets = folded_network(
                relaxation, [clause.rows for clause in clauses], [clause.offsets for clause in clauses]
            )
        except NotApplicable:
            return _on_ranges(case, relaxation)
        if folded.neurons > NEURONS:
            return _on_ranges(case, relaxation)
        return _on_folded(case, folded, targets)


def _descended(case: Case, randomness: Randomness, *, steps: int, starts: int) -> bool:
    """Descends on the clauses that are open; says whether what it found settles the case."""
    prop = replace(case.prop, clauses=tuple(case.prop.clauses[i] for i in case.open.tolist()))
    inputs = InputSet.of(case.x, case.threat)
    found = search(case.graph, inputs, prop, randomness, steps=steps, starts=starts, deadline=case.share(0.3))
    case.witness = None if found is None else case.check(found)
    return case.done


def _bound_clauses(case: Case, relaxation: Relaxation) -> None:
    """Books what the relaxation's lines prove of each clause, of few clauses at a time until it is late."""
    clauses = case.prop.clauses
    widest = max(shape.numel() for shape in relaxation.graph.shapes(relaxation.x))
    most = max(len(clause.offsets) for clause in clauses)
    size = max(1, ROW_ENTRIES // (widest * most))
    for start in range(0, len(clauses), size):
        if case.late:
            return
        part = slice(start, start + size)
        found = clause_bounds(relaxation, replace(case.prop, clauses=clauses[part]))[0]
        case.lower[part] = torch.maximum(case.lower[part], found)


def _climbed(case: Case, relaxation: Relaxation) -> Tensor:
    """Bounds (c,) on the clauses by slopes optimised for each of their rows."""
    rows = torch.cat([clause.rows for clause in case.prop.clauses]).to(case.x)[None]
    last = len(relaxation.graph.nodes) - 1
    found = climbed(
        relaxation, last, rows, CLIMB, 0.25, lambda samples, best: torch.full_like(samples, case.late).bool()
    )[0]
    parts = found.split([len(clause.offsets) for clause in case.prop.clauses])
    values = [(part + clause.offsets).amax() for part, clause in zip(parts, case.prop.clauses, strict=True)]
    return torch.stack(values).nan_to_num(-torch.inf, -torch.inf, -torch.inf)


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


def _on_folded(case: Case, folded: Folded, targets: Targets) -> str:
    """The steps on the folded network; books what they find in the case."""
    folded, targets, case.lift = separated(folded, targets)
    groups = case.open
    roots = Branches.roots(folded, targets)
    dual = Dual(folded, targets)
    value, _, bound = climb(dual, roots, steps=20, rate=0.25, stop=case.tolerance)
    case.lower[groups] = torch.maximum(case.lower[groups], value)
    if case.done:
        return "alpha"
    _look(case, folded, targets, bound.x, torch.arange(len(targets)))
    if case.done or case.late:
        return "alpha"
    keep = (value <= case.tolerance).nonzero()[:, 0]
    groups, targets = groups[keep], targets.select(keep)
    folded, targets = tightened(folded, targets, steps=25, rate=0.25, deadline=case.share(0.3))
    tree = BranchAndBound(folded, targets, case.check, tolerance=case.tolerance, deadline=case.deadline)
    if branch(case, tree, groups, case.share(0.01, 2.0)):
        return "tighten" if tree.looked_at <= len(targets) else "branch"
    begun, taken = time.monotonic(), 0.0
    if narrowed := _enveloped(case, folded, targets, groups):
        # A refutation begins with the same for its own clause, and more than once.
        taken = 2 * (time.monotonic() - begun)
        folded, targets, lines = narrowed
        if case.done:
            return "envelope"
        groups = case.open
        tree = BranchAndBound(
            folded, targets, case.check, tolerance=case.tolerance, deadline=case.deadline, lines=lines
        )
        if branch(case, tree, groups, case.share(0.05, 2.0)):
            return "envelope" if tree.looked_at <= len(targets) else "branch"
    elif branch(case, tree, groups, case.share(0.05)):
        return "branch"
    refutations: list[Search] = []
    if folded.neurons <= REFUTED:
        refutations = [
            Refutation(folded, targets, group, case.check, slack=2 * case.tolerance, enveloped=bool(narrowed))
            for group in range(len(targets))
            if tree.is_open(group)
        ]
    return take_turns(case, groups, tree, refutations, _ask_solver, least=taken)


def _enveloped(
    case: Case, folded: Folded, targets: Targets, groups: Tensor
) -> tuple[Folded, Targets, Lines | None] | None:
    """The network, the open targets and their upper lines, by envelopes of first neurons where these help."""
    if folded.inputs.norm != "linf" or not folded.neurons or case.late:
        return None
    still = (case.lower[groups] <= case.tolerance).nonzero()[:, 0]
    groups, targets = groups[still], targets.select(still)
    dual, roots, until = Dual(folded, targets), Branches.roots(folded, targets), case.share(0.1)
    plain, _, _ = climb(dual, roots, steps=ENVELOPE, rate=0.25, deadline=until)
    value, _, _ = climb(dual, roots, steps=ENVELOPE, rate=0.25, deadline=until, enveloped=True)
    case.lower[groups] = torch.maximum(case.lower[groups], value)
    if not bool((value - plain > HELPFUL * plain.abs()).any()):
        return None
    until = case.share(0.3)
    folded, targets = tightened(folded, targets, steps=ENVELOPE, rate=0.25, deadline=until, enveloped=True)
    dual, roots, lines = Dual(folded, targets), Branches.roots(folded, targets), None
    if folded.neurons and Envelope(folded).rows.numel() * len(targets) <= LINE_ENTRIES:
        value, lines = lines_of(dual, roots, steps=LONG, rate=0.25, deadline=case.share(0.1))
        case.lower[groups] = torch.maximum(case.lower[groups], value)
    left = (case.lower[groups] <= case.tolerance).nonzero()[:, 0]
    return folded, targets.select(left), lines.select(left) if lines else None


def _ask_solver(case: Case, one: Search, end: float) -> None:
    """Looks for a witness by mixed-integer programming; what it calls infeasible is not believed.

    A little more than zero is asked for first, since the solver's point is only as good as its tolerance.
    """
    assert isinstance(one, Refutation)
    folded, targets = one.root.folded, one.root.targets
    if folded.inputs.norm != "linf" or folded.neurons > MIXED_INTEGER:
        return
    for slack in (1e-3, 1e-5):
        seconds = (end - time.monotonic()) / 2
        if seconds <= 0:
            return
        answer = feasible_point(folded, replace(targets, constant=targets.constant + slack), 0, seconds)
        if answer.point is not None:
            point = torch.from_numpy(answer.point).to(folded.constant)[None]
            _look(case, folded, targets, point, torch.tensor([0]))
        if case.witness is not None or not answer.infeasible:
            return


def _look(case: Case, folded: Folded, targets: Targets, x: Tensor, group: Tensor) -> None:
    points = descend(folded, targets, x, group)
    for point in torch.cat([folded.inputs.project(x), points]):
        if case.witness is None and case.prop.excess(case.graph.values(case.lifted(point))[-1]) <= 0:
            case.witness = case.check(point)
