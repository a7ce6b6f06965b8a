"""Linear programs for single branches of a search, in a share of its time."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from certify.dual import Bound, Branches, Dual
from certify.warm_program import WarmProgram

# Of the search's time; what a solution has taken counts so many times where it proves its branch, where it
# does not, and where it does not come.
SHARE, PROVED, OPEN, FAILED = 0.5, 0.2, 2.0, 4.0

# What a solution may take: so many seconds, and so much of the search's time.
SECONDS, LONGEST = 1.0, 0.25

# Of a round's branches so many over the number of neurons are solved where the network is small.
PROGRAMS = 2000

# Beyond this many neurons a program takes longer than most searches.
NEURONS = 1500


class Probe:
    """Solves the relaxation of single branches exactly, warm from one to the next.

    An ascent that has not converged minimises its Lagrangian at some corner of the input set; the program's
    vertex is where the relaxation itself is least, and in a branch that is broken often breaks it. `dual` is
    the search's own, of groups of one function each, in linf; above `enough` a branch is proved.
    """

    def __init__(self, dual: Dual, enough: float) -> None:
        self.dual, self.enough, self.spent = dual, enough, 0.0
        self.program: WarmProgram | None = None

    @staticmethod
    def suits(dual: Dual) -> bool:
        """Whether the programs of this search are small enough, and of a kind that can be solved."""
        single = dual.targets.constant.shape[1] == 1 and dual.targets.assumed is None and dual.lines is None
        inputs = dual.folded.inputs
        return single and inputs.norm == "linf" and not inputs.curved and dual.folded.neurons <= NEURONS

    def limit(self, searched: float) -> float:
        """The seconds that a solution may take after `searched` seconds of search; 0 while none is due."""
        return SECONDS + LONGEST * searched if self.spent <= SHARE * searched else 0.0

    def solve(self, branch: Branches, left: float) -> tuple[Branches, Bound] | None:
        """One branch with the program's multipliers, and its bound with the vertex as x (1, d); or None.

        Stops after `left` seconds.
        """
        started = time.monotonic()
        if self.program is None:
            self.program = WarmProgram(self.dual.folded, self.dual.targets)
        found = self._asked(branch, max(left, 1e-3), self.enough)
        # A solver that stops early may do so at multipliers that prove less than it says.
        rest = left - (time.monotonic() - started)
        if found and self.program.early and not bool(found[1].value > self.enough) and rest > 0:
            found = self._asked(branch, rest, float("inf"))
        weight = FAILED if found is None else PROVED if bool(found[1].value > self.enough) else OPEN
        self.spent += (time.monotonic() - started) * weight
        return found

    def _asked(self, branch: Branches, seconds: float, enough: float) -> tuple[Branches, Bound] | None:
        assert self.program is not None
        answers = self.program.solve(int(branch.group[0]), branch.sign[0], branch.alpha[0], seconds, enough)
        if not answers:
            return None
        (answer,) = answers
        alpha, beta = (torch.nan_to_num(part[None], 0.0, 0.0, 0.0) for part in (answer.alpha, answer.beta))
        solved = replace(branch, alpha=alpha.clamp(0, 1), beta=beta.clamp(min=0))
        bound = self.dual.bound(solved)
        if not bool(bound.value.isfinite()):
            return None
        return solved, replace(bound, x=answer.x[None], violation=answer.violation[None])

    def improve(self, value: Tensor, branches: Branches, bound: Bound, until: float) -> None:
        """Solves the few open branches nearest to a proof, up to time `until`; what is found is put in place.

        Where the folded network is small a warm linear program costs little more than an ascent,
        and proves what the ascent's last digits leave open; the larger, the fewer are solved.
        """
        most = max(1, PROGRAMS // max(1, self.dual.folded.neurons))
        nearest = value.argsort(descending=True)
        for row in nearest[value[nearest] <= self.enough][:most].tolist():
            left = until - time.monotonic()
            if left <= 0:
                return
            found = self.solve(branches.select(torch.tensor([row])), left)
            if found is None:
                continue
            branch, exact = found
            if value[row] < exact.value[0]:
                value[row] = exact.value[0]
                branches.alpha[row], branches.beta[row] = branch.alpha[0], branch.beta[0]
                for name in ("value", "q", "t"):
                    getattr(bound, name)[row] = getattr(exact, name)[0]
            # A vertex of the program: where the relaxation is tight it is the witness itself.
            bound.x[row], bound.violation[row] = exact.x[0], exact.violation[0]
