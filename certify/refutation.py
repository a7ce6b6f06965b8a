"""Refutes that a clause can be broken, branch by branch, bounding every neuron again in each of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certify.ascent import climb
from certify.descent import descend
from certify.dual import Bound, Branches, Dual, imposed
from certify.folded import Assumption, Folded, Targets
from certify.property import Accept

# Bounds of a neuron that cross by less may have crossed by rounding alone: no contradiction yet.
CROSSING = 1e-9

CANDIDATES, STARTS = 6, 16
ROUNDS = 3
STEPS, FIRST_STEPS = 8, 25
RATE, FIRST_RATE = 0.1, 0.25
LEAF_STEPS = 300
# Steps under upper lines, of which those of all neurons are worth their time in the root alone.
UNDER_LINES = 12


@dataclass
class Branch:
    """What is left of a folded network where a clause's functions are <= slack and some phases are imposed.

    folded and targets (the clause alone) hold there and only there. root is the clause's own branch
    (1,), with the phases in its sign, and value what is proved of its largest function. The next ascent of
    z and -z of each neuron starts at multipliers (2 m, m), alpha or beta by the neuron's phase, and at
    weights (2 m, k) of the clause's functions.
    """

    folded: Folded
    targets: Targets
    root: Branches
    value: float
    depth: int
    multipliers: Tensor
    weights: Tensor


class Refutation:
    """The search for one clause; `run` may be called again to go on where it stopped.

    In each branch every neuron's bounds are ascended from both sides over the inputs that its
    phases and the assumption leave, min z + sum c_i (function_i - slack), c >= 0, from the
    parent's multipliers; neurons that become stable are folded away. A branch whose bounds cross, or whose
    clause's bound rises above slack, holds no input. The others are split on a phase, deepest first. If
    `enveloped`, the clause, and in the root every neuron, is bounded under envelopes of the first neurons.
    Source: Kotha et al. 2023, 2302.01404 (INVPROP), section 3, in every branch of a branch and bound.
    """

    def __init__(
        self, folded: Folded, targets: Targets, group: int, check: Accept, *, slack: float,
        enveloped: bool = False,
    ) -> None:  # fmt: skip
        self.whole, self.group, self.check = folded, group, check
        self.slack, self.enveloped = slack, enveloped
        self.targets = targets.select(torch.tensor([group]))
        self.witness: Tensor | None = None
        self.looked_at = 0
        self.stuck = 0
        self.open: list[Branch] = [_start(folded, self.targets)]
        self.root = self.open[0]
        self.minimisers: list[Tensor] = []

    @property
    def refuted(self) -> bool:
        """Whether no branch is left, and no witness was found."""
        return self.witness is None and not self.open and not self.stuck

    @property
    def unfinished(self) -> bool:
        """Whether a branch is left to look at."""
        return bool(self.open)

    def run(self, deadline: float) -> bool:
        """Goes on until a witness is found or time.monotonic() passes `deadline`; says whether refuted."""
        while self.open and self.witness is None and time.monotonic() < deadline:
            branch = self.open[-1]
            left = self._narrowed(branch, deadline)
            if left is not None and time.monotonic() > deadline:
                # Half-way bounds are bounds: the branch goes on from here.
                self.open[-1] = left
                break
            self.open.pop()
            self.looked_at += 1
            if left is not None:
                self.root = left if left.depth == 0 else self.root
                self.open += self._split(left)
        self._look(least=0)
        return self.refuted

    def _narrowed(self, branch: Branch, deadline: float) -> Branch | None:
        """The branch under tighter bounds, None where it holds no input."""
        first = branch.depth == 0
        for turn in range(ROUNDS if first else 1):
            long = first and turn == 0
            if long:
                branch = self._bounded(branch, 40, FIRST_RATE)
            if branch.value > self.slack:
                return None
            narrowed = self._tightened(branch, long, deadline)
            if narrowed is None:
                return None
            branch = self._bounded(narrowed, 15, RATE)
            if branch.value > self.slack:
                return None
            if time.monotonic() > deadline:
                break
        return branch

    def _bounded(self, branch: Branch, steps: int, rate: float) -> Branch:
        dual = Dual(branch.folded, branch.targets)
        value, root, bound = climb(dual, branch.root, steps=steps, rate=rate, stop=self.slack)
        if self.enveloped and not float(value[0]) > self.slack:
            under, _, _ = climb(dual, root, steps=UNDER_LINES, rate=RATE, stop=self.slack, enveloped=True)
            value = torch.maximum(value, under)
        self.minimisers.append(bound.x[0])
        self._look(least=STARTS)
        return replace(branch, root=root, value=max(branch.value, float(value[0])))

    def _tightened(self, branch: Branch, long: bool, deadline: float) -> Branch | None:
        """The branch after one ascent of its free neurons' bounds, None where they cross."""
        folded, m = branch.folded, branch.folded.neurons
        rows = (branch.root.sign[0] == 0).repeat(2).nonzero()[:, 0]
        if not len(rows):
            return branch
        width = (folded.upper - folded.lower).repeat(2)[rows, None]
        scale = 1 / max(abs(branch.value - self.slack), 1e-6)
        under = self.enveloped and not branch.depth
        steps = UNDER_LINES if under else FIRST_STEPS if long else STEPS
        value, best, _ = climb(
            Dual(folded, self._sides(branch, rows, width, scale)), _beginning(branch, rows, width, scale),
            steps=steps, rate=FIRST_RATE if long or under else RATE, stop=0.0, deadline=deadline,
            enveloped=under,
        )  # fmt: skip
        ends = torch.cat([folded.lower, -folded.upper])
        ends[rows] = torch.maximum(ends[rows], value * width[:, 0])
        lower, upper = ends[:m], -ends[m:]
        if bool((lower - upper > CROSSING * torch.maximum(lower.abs(), upper.abs()).clamp(min=1.0)).any()):
            return None
        multipliers, weights = branch.multipliers.clone(), branch.weights.clone()
        multipliers[rows] = torch.where(best.sign == 0, best.alpha, best.beta * width).to(multipliers)
        weights[rows] = (best.weight[:, 1:] * scale * width).to(weights)
        branch = replace(branch, multipliers=multipliers, weights=weights)
        return _folded_away(branch, torch.minimum(lower, upper), torch.maximum(lower, upper))

    def _sides(self, branch: Branch, rows: Tensor, width: Tensor, scale: float) -> Targets:
        """z and -z of neurons in units of their width, under the assumption in units of its bound."""
        folded, mine, real = branch.folded, branch.targets, branch.targets.real[0]
        inputs, neurons, constant = (
            torch.cat([part, -part])[rows] / width.reshape(-1, *[1] * (part.dim() - 1))
            for part in (folded.input_rows, folded.neuron_rows, folded.constant)
        )
        assumed = Assumption(
            mine.input_rows[0, real] * scale,
            mine.neuron_rows[0, real] * scale,
            (mine.constant[0, real] - self.slack) * scale,
        )
        constant = constant[:, None]
        real = torch.ones_like(constant, dtype=torch.bool)
        return Targets(inputs[:, None], neurons[:, None], constant, real, assumed)

    def _split(self, branch: Branch) -> list[Branch]:
        """Both phases of the neuron whose worse child is best, the more open one first."""
        dual = Dual(branch.folded, branch.targets)
        bound, root = dual.bound(branch.root), branch.root
        places = _candidates(dual, root, bound)
        if not len(places):
            self._insist(dual, branch)
            return []
        repeated = root.select(torch.zeros(len(places), dtype=torch.long))
        pairs = [imposed(branch.folded, repeated, places, bound.q[0, places], sign) for sign in (1, -1)]
        value, both, _ = climb(dual, Branches.join(pairs), steps=4, rate=RATE, stop=self.slack)
        ends = value.reshape(2, -1)
        best = int((ends.amin(0) + 1e-3 * ends.amax(0)).argmax())
        place = int(places[best])
        roots = [both.select(torch.tensor([side * len(places) + best])) for side in (0, 1)]
        children = [
            _child(branch, root, place, float(value))
            for root, value in zip(roots, ends[:, best], strict=True)
        ]
        return sorted(children, key=lambda child: -child.value)

    def _insist(self, dual: Dual, branch: Branch) -> None:
        """Ascends at length where no phase is left to impose; where that does not do, the branch stays."""
        value, _, _ = climb(dual, branch.root, steps=LEAF_STEPS, rate=0.3, stop=self.slack, single=False)
        if not float(value[0]) > self.slack:
            self.stuck += 1

    def _look(self, least: int) -> None:
        """Descends from the branches' relaxed minimisers, once there are `least`."""
        if not self.minimisers or len(self.minimisers) < least or self.witness is not None:
            return
        x = torch.stack(self.minimisers)
        self.minimisers = []
        points = descend(self.whole, self.targets, x, torch.zeros(len(x), dtype=torch.long))
        _, a = self.whole.outputs(points)
        excess = self.targets.values(points, a).amax(2)[:, 0]
        for row in excess.argsort().tolist():
            if not excess[row] <= 1e-6:
                return
            self.witness = self.check(points[row])
            if self.witness is not None:
                return


def _start(folded: Folded, targets: Targets) -> Branch:
    root, m = Branches.roots(folded, targets), folded.neurons
    multipliers = root.alpha[0].float().expand(2 * m, m).clone()
    return Branch(
        folded, targets, root, -torch.inf, 0, multipliers, torch.zeros(2 * m, int(targets.real[0].sum()))
    )


def _beginning(branch: Branch, rows: Tensor, width: Tensor, scale: float) -> Branches:
    """Where the ascent of some sides starts, in units of `width` (r, 1) and `scale`."""
    sign = branch.root.sign.expand(len(rows), -1)
    multipliers = branch.multipliers[rows].to(width)
    own = torch.ones_like(width)
    weight = torch.cat([own, branch.weights[rows].to(width) / (scale * width)], 1)
    return Branches(
        torch.arange(len(rows)),
        sign,
        torch.where(sign == 0, multipliers, 0.0),
        torch.where(sign == 0, 0.0, multipliers / width),
        weight,
    )


def _folded_away(branch: Branch, lower: Tensor, upper: Tensor) -> Branch:
    """The branch under bounds lower, upper (m,), with the neurons that these decide folded away."""
    keep = (lower < 0) & (upper > 0)
    folded, targets = branch.folded.tightened(lower, upper, branch.targets)
    branch = replace(branch, folded=folded, targets=targets)
    if bool(keep.all()):
        return branch
    root, both = branch.root, keep.repeat(2)
    return replace(
        branch,
        root=Branches(root.group, root.sign[:, keep], root.alpha[:, keep], root.beta[:, keep], root.weight),
        multipliers=branch.multipliers[both][:, keep],
        weights=branch.weights[both],
    )


def _child(branch: Branch, root: Branches, place: int, value: float) -> Branch:
    multipliers = branch.multipliers.clone()
    multipliers[:, place] = 0.0
    return replace(
        branch, root=root, value=max(value, branch.value), depth=branch.depth + 1, multipliers=multipliers
    )


def _candidates(dual: Dual, root: Branches, bound: Bound) -> Tensor:
    """The free neurons (k,) whose lines leave the largest gaps."""
    free = root.sign[0] == 0
    count = min(CANDIDATES, int(free.sum()))
    return dual.gaps(bound.q[0], root.alpha[0]).masked_fill(~free, -1.0).topk(count).indices
