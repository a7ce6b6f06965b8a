"""Branch and bound on the ranges of any activation's inputs: sigmoid, tanh, GELU, ReLU and their mixtures."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from certify.branching import Outcome
from certify.property import Accept, Clause
from certify.range_dual import RangeDual
from certify.ranges import Parts
from certify.relaxation import Relaxation

CANDIDATES = 6
STARTS = 16
INFORMATIVE = 0.02

# A parent's multipliers are near its child's best: a child needs fewer steps than the root.
ROOT_STEPS, STEPS = 40, 8
ROOT_RATE, RATE = 0.25, 0.2
LEAF_STEPS = 300

# Entries of bounds and slopes that all open branches may keep, their roots, and that one round may work on.
POOL, ROOTS, ROUND = 200_000_000, 50_000_000, 4_000_000


class RangeBranching:
    """The search for one sample's clauses over a relaxation of its network.

    A branch narrows the range of some activations' inputs, and draws their lines anew there; that an
    input keeps to its narrowed range enters the bound by a multiplier >= 0. A round takes the worst
    branches, tries to cut the range of each candidate without ascent, keeps the one whose worse half is
    best, ascends both halves from their parent's slopes and multipliers, and descends on the network from
    their minimisers. Candidates are the activations that the gap comes from: at the minimiser x the bound
    lies below the network's own value by the sum over them of |row| times the distance to the line.
    Source: Shi et al. 2024, 2405.21063 (GenBaB), section 3, with other candidates and multipliers.
    """

    def __init__(
        self, relaxation: Relaxation, clauses: list[Clause], check: Accept, *, tolerance: float,
        deadline: float = torch.inf,
    ) -> None:  # fmt: skip
        self.check, self.tolerance = check, tolerance
        self.dual = RangeDual(relaxation, clauses)
        self.layout = self.dual.layout
        self.witness: Tensor | None = None
        self.looked_at = 0
        self.lower = relaxation.x.new_full((len(clauses),), torch.inf)
        self.pool, self.values = self.layout.roots(clauses, range(0)), self.lower[:0]
        self.places, self.roots = torch.zeros(0, CANDIDATES, dtype=torch.long), -self.lower
        self._plant(clauses, deadline)

    def _plant(self, clauses: list[Clause], deadline: float) -> None:
        """Settles the roots, few at a time; the clauses that it does not come to stay unbounded."""
        entries = max(1, self.layout.size)
        size, most = max(1, ROUND // entries), max(1, ROOTS // entries)
        for start in range(0, len(clauses), size):
            done = self.witness is not None or time.monotonic() > deadline
            if start and (done or start >= most):
                self.lower[start:] = -torch.inf
                return
            some = range(len(clauses))[start : start + size]
            known = self.lower.new_full((len(some),), -torch.inf)
            self._settle(self.layout.roots(clauses, some), known, ROOT_STEPS, ROOT_RATE, deadline)

    @property
    def closed(self) -> float:
        """The part of the way from its root's bound to 0 that every open clause has come at least."""
        here = self.pool.clause
        if not len(here):
            return 1.0
        return float((1 - self.values / self.roots[here].clamp(max=-1e-9)).clamp(0, 1).min())

    def is_open(self, group: int) -> bool:
        """Whether a branch of this clause is undecided."""
        return bool((self.pool.clause == group).any())

    def drop(self, group: int) -> None:
        """Forgets a clause that was settled elsewhere; its bound is then not this search's to give."""
        keep = (self.pool.clause != group).nonzero()[:, 0]
        self.pool, self.values, self.places = self.pool.select(keep), self.values[keep], self.places[keep]
        self.lower[group] = -torch.inf

    def run(self, deadline: float) -> Outcome:
        """Goes on until every branch is proved, a witness is found, or time.monotonic() passes `deadline`."""
        room = POOL // max(1, self.layout.size)
        while self.witness is None and 0 < len(self.pool) < room and time.monotonic() < deadline:
            self._round(deadline)
        lower = self.lower.scatter_reduce(0, self.pool.clause, self.values, "amin")
        return Outcome(self.witness, lower, len(self.pool), self.looked_at)

    def _round(self, deadline: float) -> None:
        size = max(1, min(64, ROUND // (2 * CANDIDATES * max(1, self.layout.size))))
        order = self.values.argsort()
        taken, rest = order[:size], order[size:]
        parents, places, values = self.pool.select(taken), self.places[taken], self.values[taken]
        self.pool, self.values, self.places = self.pool.select(rest), self.values[rest], self.places[rest]
        self._settle(self._cut(parents, values, places), values.repeat(2), STEPS, RATE, deadline)

    def _cut(self, parents: Parts, values: Tensor, places: Tensor) -> Parts:
        """Both halves of each parent (known to reach `values`) at the candidate whose worse half is best."""
        count, width = places.shape
        repeated = parents.select(torch.arange(count).repeat_interleave(width))
        pairs = [self.layout.half(repeated, places.flatten(), side) for side in (0, 1)]
        # A half is as safe as its parent, even where its lines start lower.
        known = values.repeat_interleave(width)
        ends = torch.stack([torch.maximum(self.dual.bound(half).value, known) for half in pairs])
        worse = (ends.amin(0) + 1e-3 * ends.amax(0)).reshape(count, width)
        # Where no candidate helps before its ascent, the order of the places is the better guess.
        told = worse.amax(1) - worse.amin(1) > INFORMATIVE * worse.amax(1).abs()
        best = torch.where(told, worse.argmax(1), 0) + torch.arange(count) * width
        return Parts.join([half.select(best) for half in pairs])

    def _settle(self, parts: Parts, known: Tensor, steps: int, rate: float, deadline: float) -> None:
        """Ascends branches that are `known` to reach (b,), books the proved ones and keeps the others."""
        parts, bound = self.dual.ascended(
            parts, steps=steps, rate=rate, stop=self.tolerance, deadline=deadline
        )
        value = torch.maximum(bound.value, known)
        new = self.roots[parts.clause].isinf()
        self.roots[parts.clause[new]] = value[new]
        self.looked_at += len(parts)
        proved = value > self.tolerance
        self.lower.scatter_reduce_(0, parts.clause[proved], value[proved], "amin")
        rows = (~proved).nonzero()[:, 0]
        if not len(rows):
            return
        if self.witness is None:
            worst = rows[value[rows].argsort()[:STARTS]]
            self.witness = self.dual.unsafe(bound.x[worst], self.check, deadline)
        parts, value = parts.select(rows), value[rows]
        score = self.layout.gaps(parts, bound.x[rows], {i: part[rows] for i, part in bound.rows.items()})
        if steps < LEAF_STEPS and bool((tight := (score <= 0).all(1)).any()):
            # Nothing is lost between the lines: what is missing is missing in the multipliers.
            self._settle(parts.select(tight), value[tight], LEAF_STEPS, ROOT_RATE, deadline)
            parts, value, score = parts.select(~tight), value[~tight], score[~tight]
        places = score.topk(min(CANDIDATES, score.shape[1]), dim=1).indices
        self.pool, self.values = Parts.join([self.pool, parts]), torch.cat([self.values, value])
        self.places = torch.cat([self.places[:, : places.shape[1]], places])
