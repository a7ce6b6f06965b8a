"""Proved leaves of a search over ReLU phases, spelled out for every neuron: what a proof file holds of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.ascent import climb
from certify.branching import BranchAndBound
from certify.dual import Branches, Dual
from certify.folded import folded_network
from certify.folding import Undecided, undecided_neurons
from certify.ibp import margin_rows
from certify.relaxation import Relaxation

# A phase that costs nothing still has to be told from none; this times a neuron's bound is lost.
LEAST = 1e-12

STEPS, RATE = 400, 0.3

# More leaves than this make a file that nobody wants.
MOST = 4000


@dataclass(frozen=True)
class Leaves:
    """L parts of the input set of one sample, and what bounds one margin on each.

    classes (L,) names the other class; by the index of the ReLU's node, slopes (L, k) are lower slopes in
    [0, 1] of its k neurons, and phases (L, k) the multipliers of imposed phases: above 0 where z >= 0 is
    imposed, below 0 where z <= 0 is, 0 where the neuron is free. The leaves of a class cover every choice of
    phases.
    """

    classes: Tensor
    slopes: dict[int, Tensor]
    phases: dict[int, Tensor]

    @staticmethod
    def whole(slopes: dict[int, Tensor], classes: Tensor) -> Leaves:
        """One leaf for each of `classes` (L,), without phases; slopes (L, k) by node."""
        return Leaves(classes, slopes, {i: torch.zeros_like(part) for i, part in slopes.items()})

    def single(self) -> Leaves:
        """The same in single precision."""
        slopes, phases = (
            {i: part.float() for i, part in many.items()} for many in (self.slopes, self.phases)
        )
        return Leaves(self.classes, slopes, phases)

    def with_leaves(self, other: Leaves) -> Leaves:
        """Both lists."""
        return Leaves(
            torch.cat([self.classes, other.classes]),
            {i: torch.cat([part, other.slopes[i]]) for i, part in self.slopes.items()},
            {i: torch.cat([part, other.phases[i]]) for i, part in self.phases.items()},
        )


def searched_leaves(
    relaxation: Relaxation, y: Tensor, classes: Tensor, *, tolerance: float, seconds: float
) -> Leaves | None:
    """The leaves of branch and bound for the margins z_y - z_j, j in `classes` (k,), of one sample (n = 1).

    Every leaf proves a margin above `tolerance` with the multipliers that are returned, in single precision.
    None where the search does not end in `seconds`, finds a counterexample, or grows too large.
    """
    groups = [group for group in undecided_neurons(relaxation) if len(group.places)]
    if not groups:
        return None
    rows = margin_rows(y, relaxation.graph.num_classes(relaxation.x), relaxation.x.dtype)[0]
    single = [rows[j : j + 1] for j in classes.tolist()]
    folded, targets = folded_network(relaxation, single, [row.new_zeros(1) for row in single])
    proved: list[Branches] = []
    deadline = time.monotonic() + seconds

    def broken(point: Tensor) -> Tensor | None:
        logits = relaxation.graph.values(point.reshape(relaxation.x.shape))[-1]
        return point if int(logits.argmax()) != int(y) else None

    search = BranchAndBound(
        folded, targets, broken, tolerance=tolerance, deadline=deadline, record=proved.append
    )
    outcome = search.run(deadline)
    if outcome.witness is not None or outcome.open:
        return None
    leaves = _settled(Dual(folded, targets), Branches.join(proved), tolerance)
    return None if leaves is None else _spelled_out(relaxation, leaves, groups, classes)


def _settled(dual: Dual, leaves: Branches, tolerance: float) -> Branches | None:
    """The leaves with multipliers, rounded to single precision, that prove them by themselves."""
    if len(leaves) > MOST:
        return None
    again = (dual.bound(_rounded(leaves)).value <= tolerance / 2).nonzero()[:, 0]
    if len(again):
        _, climbed, _ = climb(dual, leaves.select(again), steps=STEPS, rate=RATE, stop=tolerance)
        for name in ("alpha", "beta"):
            getattr(leaves, name)[again] = getattr(climbed, name)
    leaves = _rounded(leaves)
    return leaves if bool((dual.bound(leaves).value > tolerance / 2).all()) else None


def _rounded(leaves: Branches) -> Branches:
    alpha, beta = leaves.alpha.float().double(), leaves.beta.float().double()
    return Branches(leaves.group, leaves.sign, alpha.clamp(0, 1), beta.clamp(min=LEAST), leaves.weight)


def _spelled_out(
    relaxation: Relaxation, leaves: Branches, groups: list[Undecided], classes: Tensor
) -> Leaves:
    """The multipliers of the undecided neurons among those of all."""
    shapes, start = relaxation.graph.shapes(relaxation.x), 0
    slopes = {i: torch.zeros(len(leaves), shapes[i].numel(), dtype=torch.float64) for i in relaxation.alpha}
    phases = {i: torch.zeros_like(part) for i, part in slopes.items()}
    for group in groups:
        part = slice(start, start + len(group.places))
        start = part.stop
        slopes[group.node][:, group.places] = leaves.alpha[:, part]
        phases[group.node][:, group.places] = leaves.sign[:, part] * leaves.beta[:, part]
    return Leaves(classes[leaves.group], slopes, phases)
