"""Settles one property of one network: certified, broken with a counterexample, or open with a bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certify.ascent import climb
from certify.backward import adaptive_slope, parallel_slope, relax
from certify.branching import BranchAndBound
from certify.counterexample import search
from certify.descent import descend
from certify.dual import Branches, Dual
from certify.folded import Folded, Targets, folded_network
from certify.graph import Graph
from certify.input_set import InputSet
from certify.input_splitting import clause_bounds, split_inputs
from certify.lowering import without_max_pool
from certify.mixed_integer import feasible_point
from certify.property import Property
from certify.refutation import Refutation
from certify.tighten import tightened
from models.errors import NotApplicable
from models.randomness import Randomness
from models.threat import ThreatModel

# Beyond this many unstable neurons the folded network's table takes more memory than a laptop has.
NEURONS = 8000

# Up to this many neurons a refutation, which keeps a square table a branch, has the memory that it needs.
REFUTED = 1500

# Up to this many neurons the mixed-integer program is worth its time. A clause's turns double from the first,
# and the program has one of its own.
MIXED_INTEGER = 300
FIRST_TURN, PROGRAM_TURN = 1.0, 4.0

# The tree's turn, in turns of all clauses: at least the first, and the second times the cube of the part of
# the way that it has come. Bounds rise with the logarithm of the branches: half the way is far from half the
# work.
TREE_LEAST, TREE_MOST = 0.25, 8.0

# Up to this many inputs, cutting their box is worth more than fixing the phases of ReLUs.
FEW_INPUTS = 16

# The caller's own judgement of a counterexample (1, ...): as it accepts it, or None.
Accept = Callable[[Tensor], Tensor | None]


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


@dataclass
class Case:
    """One property on its way through the steps: what is asked, and what is known so far."""

    graph: Graph
    x: Tensor
    threat: ThreatModel
    prop: Property
    tolerance: float
    accept: Accept
    deadline: float
    lower: Tensor
    witness: Tensor | None = None

    @property
    def open(self) -> Tensor:
        """The clauses (k,) that nothing is proved of."""
        return (~(self.lower > self.tolerance)).nonzero()[:, 0]

    @property
    def done(self) -> bool:
        """Whether every clause is proved, or a counterexample is known."""
        return self.witness is not None or not len(self.open)

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self.deadline

    def check(self, point: Tensor) -> Tensor | None:
        """`point` (d,) as an input (1, ...) where it breaks the property for the caller too."""
        return self.accept(point.reshape(self.x.shape))


def settle_case(case: Case, randomness: Randomness) -> str:
    """Runs the steps on `case`, cheapest first, until one decides; returns its name.

    descend -> crown (with polytope) -> input-split where inputs are few -> alpha -> tighten -> branch ->
    refutation (clause by clause, every neuron bounded again in each branch, with a mixed-integer program that
    looks for witnesses) -> branch.
    """
    inputs = InputSet.of(case.x, case.threat)
    found = search(case.graph, inputs, case.prop, randomness)
    case.witness = None if found is None else case.check(found)
    if case.done:
        return "descent"
    with torch.no_grad():
        case.graph = without_max_pool(case.graph, case.x)
        relaxation = relax(case.graph, case.x, case.threat, parallel_slope, adaptive_slope)
        case.lower = torch.maximum(case.lower, clause_bounds(relaxation, case.prop)[0])
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
            return "crown"
        if folded.neurons > NEURONS:
            return "crown"
        return _on_folded(case, folded, targets)


def _split_inputs(case: Case) -> bool:
    """Branches on the inputs for most of the time; where it does not end, what it proved is kept."""
    split = split_inputs(
        case.graph, case.prop, case.check, tolerance=case.tolerance, deadline=_share(case, 0.7)
    )
    case.witness, case.lower = split.witness, torch.maximum(case.lower, split.lower)
    return case.done


def _on_folded(case: Case, folded: Folded, targets: Targets) -> str:
    """The steps on the folded network; books what they find in the case."""
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
    folded, targets = tightened(folded, targets, steps=25, rate=0.25, deadline=_share(case, 0.3))
    tree = BranchAndBound(folded, targets, case.check, tolerance=case.tolerance, deadline=case.deadline)
    if _branch(case, tree, groups, _share(case, 0.05, 2.0)):
        return "tighten" if tree.looked_at <= len(targets) else "branch"
    if step := _refute(case, folded, targets, groups, tree):
        return step
    _branch(case, tree, groups, case.deadline)
    return "branch"


def _refute(case: Case, folded: Folded, targets: Targets, groups: Tensor, tree: BranchAndBound) -> str:
    """Refutes the clauses that `tree` left open in turns that grow, between which the tree goes on.

    A clause that was refuted is dropped from the tree, one that the tree has proved is refuted no further.
    Returns the step that decided the case, "" where none has.
    """
    if folded.neurons > REFUTED:
        return ""
    waiting = [
        Refutation(folded, targets, group, case.check, slack=2 * case.tolerance)
        for group in range(len(targets))
        if tree.is_open(group)
    ]
    seconds = FIRST_TURN
    while waiting and not case.late:
        begun = time.monotonic()
        for one in list(waiting):
            _refute_one(case, one, seconds, groups, tree)
            if not one.open:
                waiting.remove(one)
            if case.done or case.late:
                return "refutation" if case.done else ""
        turn = (time.monotonic() - begun) * max(TREE_LEAST, TREE_MOST * tree.closed**3)
        if _branch(case, tree, groups, min(case.deadline, time.monotonic() + turn)):
            return "branch"
        waiting = [one for one in waiting if tree.is_open(one.group)]
        seconds *= 2
    return ""


def _refute_one(case: Case, one: Refutation, seconds: float, groups: Tensor, tree: BranchAndBound) -> None:
    """One clause's turn; books what it finds."""
    if one.run(min(case.deadline, time.monotonic() + seconds)):
        place = groups[one.group]
        case.lower[place] = max(float(case.lower[place]), one.slack)
        tree.drop(one.group)
    elif one.witness is None and one.open and seconds == PROGRAM_TURN and not case.late:
        _ask_solver(case, one, time.monotonic() + seconds)
    if one.witness is not None:
        case.witness = one.witness


def _branch(case: Case, tree: BranchAndBound, groups: Tensor, until: float) -> bool:
    outcome = tree.run(until)
    case.witness = outcome.witness
    case.lower[groups] = torch.maximum(case.lower[groups], outcome.lower)
    return case.done


def _share(case: Case, fraction: float, least: float = 0.0) -> float:
    """A time.monotonic() that leaves the rest of the time for later steps."""
    now = time.monotonic()
    return min(case.deadline, now + max(least, fraction * (case.deadline - now)))


def _ask_solver(case: Case, one: Refutation, end: float) -> None:
    """Looks for a witness by mixed-integer programming; what it calls infeasible is not believed.

    A little more than zero is asked for first, since the solver's point is only as good as its tolerance.
    """
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
        if case.witness is None and case.prop.excess(case.graph.values(point.reshape(case.x.shape))[-1]) <= 0:
            case.witness = case.check(point)
