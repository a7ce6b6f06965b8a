"""Refutes that a clause can be broken, bounding every activation's range again in each branch."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certify.dual import Adam
from certify.property import Accept, Clause
from certify.range_dual import Bound, RangeDual
from certify.ranges import Parts
from certify.refutation import CROSSING
from certify.relaxation import Relaxation

CANDIDATES, STARTS = 6, 16
STEPS, FIRST_STEPS, ROUNDS = 4, 25, 3
RATE, FIRST_RATE = 0.15, 0.25

# Slopes that climb together: each end has its own for every activation.
CELLS = 1_000_000


@dataclass
class Branch:
    """What is left where a clause's functions are <= slack and some ranges are narrowed.

    parts is the clause's own branch (1,), value what is proved of its excess. The next ascent of both
    ends of each range starts from lines at alpha (2 m, m) and weights (2 m, k) of the clause's functions.
    """

    parts: Parts
    value: float
    depth: int
    alpha: Tensor
    weights: Tensor


class RangeRefutation:
    """The search for one clause; `run` may be called again to go on where it stopped.

    In each branch every range is ascended from both sides over the inputs that its ranges and the
    assumption leave: min z + sum c_i (function_i - slack), c >= 0. A branch whose ends cross, or whose
    clause's bound rises above slack, holds no input. The others are cut in two, deepest first.
    Source: Kotha et al. 2023, 2302.01404 (INVPROP), section 3, for any activation and in every branch.
    """

    def __init__(
        self, relaxation: Relaxation, clause: Clause, group: int, check: Accept, *, slack: float
    ) -> None:
        self.dual = RangeDual(relaxation, [clause])
        self.clause, self.group, self.check, self.slack = clause, group, check, slack
        self.layout = self.dual.layout
        self.witness: Tensor | None = None
        self.looked_at = 0
        parts = self.layout.roots([clause])
        size = 2 * self.layout.size
        weights = torch.zeros(size, len(clause.offsets), dtype=parts.lower.dtype)
        self.open = [Branch(parts, -torch.inf, 0, parts.alpha.float().expand(size, -1).clone(), weights)]
        self.minimisers: list[Tensor] = []

    @property
    def refuted(self) -> bool:
        """Whether no branch is left, and no witness was found."""
        return self.witness is None and not self.open

    @property
    def unfinished(self) -> bool:
        """Whether a branch is left to look at."""
        return bool(self.open)

    def run(self, deadline: float) -> bool:
        """Goes on until a witness is found or time.monotonic() passes `deadline`; says whether refuted."""
        while self.open and self.witness is None and time.monotonic() < deadline:
            left = self._narrowed(self.open[-1], deadline)
            if left is not None and time.monotonic() > deadline:
                # Half-way ranges are ranges: the branch goes on from here.
                self.open[-1] = left[0]
                break
            self.open.pop()
            self.looked_at += 1
            if left is not None:
                self.open += self._cut(*left)
        self._look(least=0)
        return self.refuted

    def _narrowed(self, branch: Branch, deadline: float) -> tuple[Branch, Bound] | None:
        """The branch with tighter ranges and its bound, None where it holds no input."""
        first = branch.depth == 0
        for turn in range(ROUNDS if first else 1):
            long = first and turn == 0
            tighter = self._tightened(branch, long, deadline)
            if tighter is None:
                return None
            branch, bound = self._bounded(tighter, 40 if long else 15, FIRST_RATE if long else RATE)
            if branch.value > self.slack:
                return None
            if time.monotonic() > deadline:
                break
        return branch, bound

    def _bounded(self, branch: Branch, steps: int, rate: float) -> tuple[Branch, Bound]:
        parts, bound = self.dual.ascended(
            branch.parts, steps=steps, rate=rate, stop=self.slack, deadline=torch.inf
        )
        self.minimisers.append(bound.x[0])
        self._look(least=STARTS)
        return replace(branch, parts=parts, value=max(branch.value, float(bound.value[0]))), bound

    def _tightened(self, branch: Branch, long: bool, deadline: float) -> Branch | None:
        """The branch after one ascent of its ranges' ends, None where they cross."""
        lower, upper = branch.parts.lower[0].clone(), branch.parts.upper[0].clone()
        alpha, weights = branch.alpha.clone(), branch.weights.clone()
        wide = self.layout.undecided(branch.parts)[0]
        for j, place in self.layout.sources.items():
            places = place.start + wide[place].nonzero()[:, 0]
            for some in places.split(max(1, CELLS // (2 * max(1, self.layout.size)))):
                if time.monotonic() > deadline:
                    break
                rows = torch.cat([some, some + self.layout.size])
                ends, alpha[rows], weights[rows] = self._ends(branch, j, some, long)
                below, above = ends.chunk(2)
                lower[some] = torch.maximum(lower[some], below)
                upper[some] = torch.minimum(upper[some], -above)
        room = CROSSING * torch.maximum(lower.abs(), upper.abs()).clamp(min=1.0)
        if bool((lower - upper > room).any()):
            return None
        parts = replace(
            branch.parts, lower=torch.minimum(lower, upper)[None], upper=torch.maximum(lower, upper)[None]
        )
        return replace(branch, parts=parts, alpha=alpha, weights=weights)

    def _ends(self, branch: Branch, j: int, places: Tensor, long: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The best bounds (2 k,) on z and -z of node j at `places`, with their slopes and weights."""
        rows = torch.cat([places, places + self.layout.size])
        alpha, weights = branch.alpha[rows].to(branch.parts.lower), branch.weights[rows]
        steps, rate = (FIRST_STEPS, FIRST_RATE) if long else (STEPS, RATE)
        width = (branch.parts.upper - branch.parts.lower)[0, places].repeat(2)[:, None]
        unit = width / max(abs(branch.value - self.slack) if branch.value > -torch.inf else 1.0, 1e-6)
        best, lines, mixture = torch.full_like(width[:, 0], -torch.inf), alpha, weights
        adams = [Adam.like(alpha), Adam.like(weights)]
        signs = self.layout.one_hot(j, places)
        for step in range(steps + 1):
            leaves = alpha.requires_grad_(step < steps), weights.requires_grad_(step < steps)
            with torch.set_grad_enabled(step < steps):
                value = self._assumed(branch.parts, j, signs, *leaves)
            found = value.detach().nan_to_num(-torch.inf, -torch.inf, -torch.inf)
            better = (found > best)[:, None]
            best = torch.maximum(best, found)
            lines = torch.where(better, alpha.detach(), lines)
            mixture = torch.where(better, weights.detach(), mixture)
            if step == steps:
                break
            slopes = torch.autograd.grad(value, leaves, torch.ones_like(value), allow_unused=True)
            size = rate * (1 - step / steps)
            moves = [
                size * adam.direction(torch.zeros_like(adam.mean) if slope is None else slope)
                for adam, slope in zip(adams, slopes, strict=True)
            ]
            alpha = (alpha.detach() + moves[0]).clamp(0, 1)
            weights = (weights.detach() + unit * moves[1]).clamp(min=0)
        return best, lines.float(), mixture

    def _assumed(self, parts: Parts, j: int, rows: Tensor, alpha: Tensor, weights: Tensor) -> Tensor:
        """Lower bounds (k,) on rows (1, k, ...) over node j where the clause's functions are <= slack."""
        relaxation = self.layout.relaxed(parts, alpha)
        last = len(relaxation.graph.nodes) - 1
        functions = (weights @ self.clause.rows.to(weights))[None]
        starts = {j: rows, last: functions} if j != last else {j: rows + functions}
        return relaxation.lower_sum(starts)[0] + weights @ (self.clause.offsets.to(weights) - self.slack)

    def _cut(self, branch: Branch, bound: Bound) -> list[Branch]:
        """Both halves of the range whose worse half is best, the more open one first."""
        score = self.layout.gaps(branch.parts, bound.x, bound.rows)[0]
        places = score.topk(min(CANDIDATES, len(score))).indices
        repeated = branch.parts.select(torch.zeros(len(places), dtype=torch.long))
        halves = [self.layout.half(repeated, places, side) for side in (0, 1)]
        both, found = self.dual.ascended(
            Parts.join(halves), steps=4, rate=RATE, stop=self.slack, deadline=torch.inf
        )
        ends = found.value.reshape(2, -1)
        best = int((ends.amin(0) + 1e-3 * ends.amax(0)).argmax())
        children = [
            replace(
                branch,
                parts=both.select(torch.tensor([side * len(places) + best])),
                value=max(branch.value, float(ends[side, best])),
                depth=branch.depth + 1,
            )
            for side in (0, 1)
        ]
        return sorted(children, key=lambda child: -child.value)

    def _look(self, least: int) -> None:
        """Descends from the branches' minimisers, once there are `least`."""
        if self.minimisers and len(self.minimisers) >= least and self.witness is None:
            x, self.minimisers = torch.stack(self.minimisers), []
            self.witness = self.dual.unsafe(x, self.check)
