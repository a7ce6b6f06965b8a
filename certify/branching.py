"""Branch and bound on the phases of unstable ReLUs: proves a folded network's targets or breaks one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certify.ascent import climb, estimated
from certify.descent import descend
from certify.dual import Bound, Branches, Dual, imposed
from certify.envelope import Lines
from certify.folded import Folded, Targets
from certify.probe import Probe
from certify.property import Accept
from certify.pseudo_costs import PseudoCosts, both

CANDIDATES = 6
STARTS = 16
# Descents take as long as bounds, and find a witness early or seldom: after the first rounds, one in so many.
FIRST_LOOKS, LOOKS = 8, 4
# Twice the branches should raise the worst bound by such a part of what is missing.
STALLED = 0.05
POOL = 200_000_000
WARM_PROGRAM = 400
INFORMATIVE = 0.02
LEAF_STEPS, LEAF_SECONDS = 300, 1.0


@dataclass
class Outcome:
    """What the search ended with: the witness that the caller's check accepted, or the proved bounds.

    lower (c,) bounds each group's largest function from below; open branches are counted, as
    are all that were looked at.
    """

    witness: Tensor | None
    lower: Tensor
    open: int
    looked_at: int


class BranchAndBound:
    """The search for one folded network; `run` may be called again to go on where it stopped.

    Every open branch keeps its bound, its multipliers and the neurons worth splitting. A round takes the
    worst `batch` branches, takes the neurons that promise most by what splits have won so far, tries both
    phases of each without ascent (filtered smart branching, Bunel et al. 2020; De Palma et al. 2021),
    ascends the children from their parent's multipliers, and descends from their relaxed minimisers.
    `record` hears of the branches that are proved. `lines` are upper lines of the first neurons, a set a
    group, that all branches may use.
    """

    def __init__(
        self, folded: Folded, targets: Targets, check: Accept, *, tolerance: float, steps: int = 16,
        rate: float = 0.1, batch: int = 64, deadline: float = torch.inf,
        record: Callable[[Branches], None] = lambda proved: None, lines: Lines | None = None,
    ) -> None:  # fmt: skip
        self.folded, self.targets, self.check, self.record = folded, targets, check, record
        self.tolerance, self.steps, self.rate, self.batch = tolerance, steps, rate, batch
        self.dual = Dual(folded, targets, lines)
        self.probe = Probe(self.dual, tolerance) if Probe.suits(self.dual) else None
        # Programs know nothing of lines, but ends of the search, where every phase is imposed, need none.
        plain = Dual(folded, targets) if lines else None
        self.ends = Probe(plain, tolerance) if plain and Probe.suits(plain) else None
        self.small = self.probe is not None and folded.neurons <= WARM_PROGRAM
        self.lower = folded.constant.new_full((len(targets),), torch.inf)
        self.looked_at, self.rounds, self.searched = 0, 0, 0.0
        self.worst, self.stalled = -torch.inf, False
        self.costs = PseudoCosts(self.dual)
        self.witness: Tensor | None = None
        self.stuck: list[tuple[Tensor, Tensor]] = []
        self._start(deadline)

    def _start(self, deadline: float) -> None:
        roots = self.dual.on_lines(Branches.roots(self.folded, self.targets))
        value, roots, bound = climb(
            self.dual, roots, steps=40, rate=0.25, stop=self.tolerance, deadline=deadline
        )
        self.looked_at += len(roots)
        self.roots = value
        self.pool, self.values = roots.select(torch.zeros(0, dtype=torch.long)), value[:0]
        self.places = torch.zeros(0, min(CANDIDATES, self.folded.neurons), dtype=torch.long)
        self.slopes = value.new_zeros(self.places.shape)
        self._settle(value, roots, bound)

    @property
    def open(self) -> int:
        """The number of branches that nothing is decided about."""
        return len(self.pool) + len(self.stuck)

    @property
    def closed(self) -> float:
        """The part of the way from its root's bound to 0 that every open group has come at least."""
        here = self.pool.group
        if not len(here):
            return 0.0 if self.stuck else 1.0
        return float((1 - self.values / self.roots[here].clamp(max=-1e-9)).clamp(0, 1).min())

    def is_open(self, group: int) -> bool:
        """Whether a branch of this group is undecided."""
        return bool((self.pool.group == group).any()) or any(int(stuck) == group for stuck, _ in self.stuck)

    def drop(self, group: int) -> None:
        """Forgets a group that was settled elsewhere; its bound is then not this search's to give."""
        self._take((self.pool.group == group).nonzero()[:, 0])
        self.stuck = [(place, value) for place, value in self.stuck if int(place) != group]
        self.lower[group] = -torch.inf

    def run(self, deadline: float) -> Outcome:
        """Goes on until every branch is proved, a witness is found, or time.monotonic() passes `deadline`."""
        while self.witness is None and len(self.pool) and (begun := time.monotonic()) < deadline:
            self._round(deadline)
            self._watch()
            if self.stalled:
                self._plunge(deadline)
            self.searched += time.monotonic() - begun
        lower = self.lower.scatter_reduce(0, self.pool.group, self.values, "amin")
        for group, value in self.stuck:
            lower[group] = min(lower[group], value)
        return Outcome(self.witness, lower, self.open, self.looked_at)

    def _watch(self) -> None:
        """Notes, whenever the rounds have doubled, whether the worst bound has hardly risen."""
        self.rounds += 1
        if len(self.pool) and self.rounds >= FIRST_LOOKS and self.rounds.bit_count() == 1:
            worst = float(self.values.min())
            self.stalled = worst - self.worst < STALLED * abs(worst)
            self.worst = worst

    def _round(self, deadline: float) -> None:
        size = min(self.batch, 16) if self.small else self.batch
        size = max(1, min(size, POOL // (CANDIDATES * 2 * 64 * max(1, self.folded.neurons))))
        value, children, bound = self._children(*self._take(self.values.argsort()[:size]))
        if self.probe and self.small:
            self.probe.improve(value, children, bound, deadline)
        self._settle(value, children, bound)

    def _take(self, rows: Tensor) -> tuple[Branches, Tensor, Tensor, Tensor]:
        """Removes branches from the pool: what they are, what is proved of them, and where to split them."""
        rest = torch.ones(len(self.pool), dtype=torch.bool)
        rest[rows] = False
        keep = rest.nonzero()[:, 0]
        taken = self.pool.select(rows), self.values[rows], self.places[rows], self.slopes[rows]
        self.pool, self.values = self.pool.select(keep), self.values[keep]
        self.places, self.slopes = self.places[keep], self.slopes[keep]
        return taken

    def _children(
        self, parents: Branches, proved: Tensor, places: Tensor, slopes: Tensor
    ) -> tuple[Tensor, Branches, Bound]:
        """Both children of each parent, ascended."""
        children, split, slope = self._split(parents, proved, places, slopes)
        value, children, bound = climb(
            self.dual, children, steps=self.steps, rate=self.rate, stop=self.tolerance, goal=self.tolerance
        )
        self.looked_at += len(children)
        # What holds for the parent holds for its children, though their own lines may start lower.
        value = torch.maximum(value, proved.repeat(2))
        rises = (value - proved.repeat(2)).reshape(2, -1)
        self.costs.learn(parents, split, slope, self.tolerance - proved, rises)
        return value, children, bound

    def _plunge(self, deadline: float) -> None:
        """Solves the relaxations of the worst branches exactly, for as long as the program's time lasts.

        Where the ascent has stalled they are often proved by it, or broken at its vertex. Those that are
        worked on stand apart, since a large pool is slow to take from.
        """
        while len(self.pool) and self.witness is None and self._left(deadline) > 0:
            taken = self._take(self.values.argsort()[: self.batch])
            others = self.pool, self.values, self.places, self.slopes
            self.pool, self.values, self.places, self.slopes = taken
            self._follow(deadline)
            self.pool = Branches.join([others[0], self.pool])
            self.values, self.places, self.slopes = (
                torch.cat(pair)
                for pair in zip(others[1:], (self.values, self.places, self.slopes), strict=True)
            )

    def _left(self, deadline: float) -> float:
        """The seconds that the next program may take; 0 or less where none is due."""
        return min(self.probe.limit(self.searched), deadline - time.monotonic()) if self.probe else 0.0

    def _follow(self, deadline: float) -> None:
        """Follows the worst branch down, its relaxation solved before each split; then the next."""
        newest = 0
        while self.probe and len(self.pool) and self.witness is None and (left := self._left(deadline)) > 0:
            here = (
                self.values[-newest:].argmin() + len(self.pool) - newest if newest else self.values.argmin()
            )
            branch, value, *_ = self._take(here[None])
            found = self.probe.solve(branch, left)
            branch, bound = found or (branch, self.dual.bound(branch))
            before, value = len(self.pool), torch.maximum(value, bound.value)
            if not bool(value > self.tolerance):
                self._look(value, branch.group, bound.x)
            self._settle(value, branch, bound)
            if found is None:
                return
            if len(self.pool) > before and self.witness is None:
                self._settle(*self._children(*self._take(torch.tensor([before]))))
            newest = len(self.pool) - before

    def _split(
        self, parents: Branches, proved: Tensor, places: Tensor, slopes: Tensor
    ) -> tuple[Branches, Tensor, Tensor]:
        """Both children of each parent at the best candidate, which that is (b,), and the slope there."""
        count, width = places.shape
        rows = torch.arange(count).repeat_interleave(width)
        repeated = parents.select(rows)
        pairs = [imposed(self.folded, repeated, places.flatten(), slopes.flatten(), sign) for sign in (1, -1)]
        values = torch.stack([estimated(self.dual, children) for children in pairs])
        # What holds for the parent holds for its children: one that starts lower is no worse than the parent.
        values = torch.maximum(values, proved.repeat_interleave(width))
        worth = both(values.amin(0), values.amax(0)).reshape(count, width)
        # Where no candidate helps before its ascent, the order of the places is the better guess.
        gain = worth.amax(1) - worth.amin(1)
        told = gain > INFORMATIVE * worth.amax(1).abs()
        best = torch.where(told, worth.argmax(1), 0) + torch.arange(count) * width
        children = Branches.join([part.select(best) for part in pairs])
        return children, places.flatten()[best], slopes.flatten()[best]

    def _settle(self, value: Tensor, branches: Branches, bound: Bound) -> None:
        """Books proved branches, looks for a witness at the minimisers of the others, and keeps these."""
        value, bound = self._insisted(value, branches, bound)
        proved = value > self.tolerance
        self.lower.scatter_reduce_(0, branches.group[proved], value[proved], "amin")
        self.record(branches.select(proved))
        rows = (~proved).nonzero()[:, 0]
        if not len(rows):
            return
        if self.rounds <= FIRST_LOOKS or not self.rounds % LOOKS:
            self._look(value[rows], branches.group[rows], bound.x[rows])
        branches, value = branches.select(rows), value[rows]
        free = branches.sign == 0
        splittable = free.any(1)
        for row in (~splittable).nonzero()[:, 0].tolist():
            self.stuck.append((branches.group[row], value[row]))
        rows = rows[splittable]
        branches, value = branches.select(splittable), value[splittable]
        if not len(rows):
            return
        places, slopes = self._ranked(branches, bound.select(rows))
        self.pool = Branches.join([self.pool, branches])
        self.values, self.places = torch.cat([self.values, value]), torch.cat([self.places, places])
        self.slopes = torch.cat([self.slopes, slopes])

    def _ranked(self, branches: Branches, bound: Bound) -> tuple[Tensor, Tensor]:
        """Where branches with free neurons are most worth a split: places (b, k), and the slopes there."""
        q, free = bound.q, branches.sign == 0
        seen = (bound.violation > 0).any(1, keepdim=True)
        # Degenerate multipliers leave q at zero where a split still matters.
        weight = q.abs() + 0.1 * q.abs().amax(1, keepdim=True)
        worth = self.costs.worth(branches, q, self.tolerance - bound.value)
        score = torch.where(seen, weight * bound.violation + 1e-6 * worth, worth)
        places = score.masked_fill(~free, -1.0).topk(self.places.shape[1], dim=1).indices
        taken = free.gather(1, places)
        places = torch.where(taken, places, places[:, :1])
        return places, q.gather(1, places)

    def _insisted(self, value: Tensor, branches: Branches, bound: Bound) -> tuple[Tensor, Bound]:
        """The same after a long ascent of the open branches without a neuron to split, which end here.

        Where the linear program has answered there is nothing left to gain.
        """
        if self.small:
            return value, bound
        rows = ((value <= self.tolerance) & (branches.sign != 0).all(1)).nonzero()[:, 0]
        if not len(rows):
            return value, bound
        found, _, last = climb(
            self.dual, branches.select(rows), steps=LEAF_STEPS, rate=0.3, stop=self.tolerance, single=False
        )
        x = bound.x.clone()
        x[rows] = last.x
        value = value.scatter(0, rows, torch.maximum(value[rows], found))
        for row in rows[value[rows] <= self.tolerance].tolist():
            if self.ends and (solved := self.ends.solve(branches.select(torch.tensor([row])), LEAF_SECONDS)):
                value[row], x[row] = torch.maximum(value[row], solved[1].value[0]), solved[1].x[0]
        return value, replace(bound, x=x)

    def _look(self, value: Tensor, group: Tensor, x: Tensor) -> None:
        order = value.argsort()[:STARTS]
        points = descend(self.folded, self.targets, x[order], group[order])
        _, a = self.folded.outputs(points)
        excess = self.targets.values(points, a).amax(2).amin(1)
        for row in excess.argsort().tolist():
            if not excess[row] <= 1e-6:
                break
            found = self.check(points[row])
            if found is not None:
                self.witness = found
                return
