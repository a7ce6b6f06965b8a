"""The steps on a folded network: tighter bounds, trees, envelopes and refutations."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from certify.ascent import climb, lines_of
from certify.branching import BranchAndBound
from certify.case import Case
from certify.curved import along_curves
from certify.descent import descend
from certify.dual import Branches, Dual
from certify.envelope import Lines
from certify.folded import Folded, Targets
from certify.mixed_integer import feasible_point
from certify.refutation import Refutation
from certify.separable import separated
from certify.tighten import tightened
from certify.turns import Search, branch, take_turns

# Up to this many neurons a refutation, which keeps a square table a branch, has the memory that it needs.
REFUTED = 1500

# Up to this many neurons the mixed-integer program is worth its time.
MIXED_INTEGER = 300

# Steps of the ascent under envelopes, which cost some ten times as much as others; and the part of a bound
# that they have to win before every neuron is bounded so.
ENVELOPE, HELPFUL = 12, 0.02

# The part of the time that searches along curves may take.
ALONG_CURVES = 0.75

# Steps of the ascent of a tree's lines, and the entries that it may keep of them.
LINE_STEPS, LINE_ENTRIES = 40, 40_000_000


def settle_folded(case: Case, folded: Folded, targets: Targets) -> str:
    """Runs the steps on the folded network, books what they find in the case; returns the one that decides.

    alpha -> tighten -> branch -> along curves, where first neurons read one input each, envelope (linf, where
    it helps) -> branch -> refutation -> branch.
    """
    folded, targets, back = separated(folded, targets)
    forth = case.lift
    case.lift = lambda points: forth(back(points))
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
    step = _on_curves(case, folded, targets, groups)
    if case.done or case.late:
        return step
    for group in (case.lower[groups] > case.tolerance).nonzero()[:, 0].tolist():
        tree.drop(group)
    return _searched(case, folded, targets, groups, tree)


def _on_curves(case: Case, folded: Folded, targets: Targets, groups: Tensor) -> str:
    """The same along the curves of the inputs, where envelopes over these help, for most of the time.

    What is asked there may be a little harder: the rest of the time is for the question itself.
    """
    still = (case.lower[groups] <= case.tolerance).nonzero()[:, 0]
    targets = targets.select(still)
    found = along_curves(folded, targets)
    if found is None:
        return ""
    roots = Branches.roots(folded, targets)
    plain, _, _ = climb(Dual(folded, targets), roots, steps=ENVELOPE, rate=0.25, deadline=case.share(0.1))
    lift, size = case.lift, len(folded.inputs.lower)
    case.lift = lambda points: lift(points[:, :size])
    whole, case.deadline = case.deadline, case.share(ALONG_CURVES)
    step = _searched(case, *found, groups[still], None, plain)
    case.deadline = whole
    if not case.done:
        case.lift = lift
    return step


def _searched(
    case: Case, folded: Folded, targets: Targets, groups: Tensor, tree: BranchAndBound | None,
    plain: Tensor | None = None,
) -> str:  # fmt: skip
    """Envelopes and a tree on their lines where these help, else the old `tree`, if any; then refutations."""
    begun, taken = time.monotonic(), 0.0
    if narrowed := _enveloped(case, folded, targets, groups, plain):
        # A refutation begins with the same for its own clause, and more than once.
        taken = 2 * (time.monotonic() - begun)
        folded, targets, lines = narrowed
        if case.done:
            return "envelope"
        groups = groups[case.lower[groups] <= case.tolerance]
        tree = BranchAndBound(
            folded, targets, case.check, tolerance=case.tolerance, deadline=case.deadline, lines=lines
        )
        if branch(case, tree, groups, case.share(0.05, 2.0)):
            return "envelope" if tree.looked_at <= len(targets) else "branch"
    elif tree is None or branch(case, tree, groups, case.share(0.05)):
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
    case: Case, folded: Folded, targets: Targets, groups: Tensor, plain: Tensor | None
) -> tuple[Folded, Targets, Lines | None] | None:
    """The network, the open targets and their upper lines, by envelopes of first neurons where these help.

    They help where they raise some bound by more than HELPFUL above `plain`, one without envelopes.
    """
    if folded.inputs.norm != "linf" or not folded.neurons or case.late:
        return None
    still = (case.lower[groups] <= case.tolerance).nonzero()[:, 0]
    groups, targets = groups[still], targets.select(still)
    dual, roots, until = Dual(folded, targets), Branches.roots(folded, targets), case.share(0.1)
    if plain is None:
        plain, _, _ = climb(dual, roots, steps=ENVELOPE, rate=0.25, deadline=until)
    value, _, _ = climb(dual, roots, steps=ENVELOPE, rate=0.25, deadline=until, enveloped=True)
    case.lower[groups] = torch.maximum(case.lower[groups], value)
    if not bool((value - plain > HELPFUL * plain.abs()).any()):
        return None
    until = case.share(0.3)
    folded, targets = tightened(folded, targets, steps=ENVELOPE, rate=0.25, deadline=until, enveloped=True)
    dual, roots, lines = Dual(folded, targets), Branches.roots(folded, targets), None
    if 0 < folded.input_rows.numel() * len(targets) <= LINE_ENTRIES:
        value, lines = lines_of(dual, roots, steps=LINE_STEPS, rate=0.25, deadline=case.share(0.1))
        case.lower[groups] = torch.maximum(case.lower[groups], value)
    left = (case.lower[groups] <= case.tolerance).nonzero()[:, 0]
    return folded, targets.select(left), lines.select(left) if lines else None


def _ask_solver(case: Case, one: Search, end: float) -> None:
    """Looks for a witness by mixed-integer programming; what it calls infeasible is not believed.

    A little more than zero is asked for first, since the solver's point is only as good as its tolerance.
    """
    assert isinstance(one, Refutation)
    folded, targets = one.root.folded, one.root.targets
    if folded.inputs.norm != "linf" or folded.inputs.curved or folded.neurons > MIXED_INTEGER:
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
