"""Two searches by turns: a tree over all clauses, and a refutation of each clause by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from certify.case import Case

# A clause's turns double from the first; a solver, where there is one, has a turn of its own after the one
# that is so many times the first.
FIRST_TURN, SOLVER_TURN = 1.0, 4.0

# The tree's turn, in turns of all clauses: at least the first, and the second times the cube of the part of
# the way that it has come. Bounds rise with the logarithm of the branches: half the way is far from half the
# work.
TREE_LEAST, TREE_MOST = 0.25, 8.0


class Found(Protocol):
    """What a tree's run ended with: a witness (1, ...), or bounds lower (c,) on the clauses."""

    witness: Tensor | None
    lower: Tensor


class Tree(Protocol):
    """A branch and bound over several clauses, which goes on where it stopped."""

    looked_at: int

    @property
    def closed(self) -> float:
        """The part of the way from its root's bound to 0 that every open clause has come at least."""

    def run(self, deadline: float) -> Found:
        """Goes on until time.monotonic() passes `deadline`."""

    def is_open(self, group: int) -> bool:
        """Whether a branch of this clause is undecided."""

    def drop(self, group: int) -> None:
        """Forgets a clause that was settled elsewhere."""


class Search(Protocol):
    """A refutation of clause `group`, which goes on where it stopped."""

    group: int
    slack: float
    witness: Tensor | None

    @property
    def unfinished(self) -> bool:
        """Whether a branch is left to look at."""

    def run(self, deadline: float) -> bool:
        """Goes on until time.monotonic() passes `deadline`; says whether the clause is refuted."""


Solver = Callable[[Case, Search, float], None]


def branch(case: Case, tree: Tree, groups: Tensor, until: float) -> bool:
    """The tree's turn; books what it finds of the clauses `groups` (c,), says whether the case is done."""
    outcome = tree.run(until)
    case.witness = outcome.witness
    case.lower[groups] = torch.maximum(case.lower[groups], outcome.lower)
    return case.done


def take_turns(
    case: Case, groups: Tensor, tree: Tree, waiting: Sequence[Search], solver: Solver | None = None, *,
    least: float = 0.0,
) -> str:  # fmt: skip
    """Refutes clauses in turns that grow, between which the tree goes on; alone where none is `waiting`.

    A clause that was refuted is dropped from the tree, one that the tree has proved is refuted no further.
    The first turns take `least` seconds at least. Returns the step that decided the case, or "branch".
    """
    first = max(least, FIRST_TURN)
    waiting, seconds = list(waiting), first
    while waiting and not case.late:
        begun = time.monotonic()
        for one in list(waiting):
            _refute(case, one, seconds, groups, tree, solver, on_the_way=seconds == SOLVER_TURN * first)
            if not one.unfinished:
                waiting.remove(one)
            if case.done:
                return "refutation"
            if case.late:
                return "branch"
        turn = (time.monotonic() - begun) * max(TREE_LEAST, TREE_MOST * tree.closed**3)
        if branch(case, tree, groups, min(case.deadline, time.monotonic() + turn)):
            return "branch"
        waiting = [one for one in waiting if tree.is_open(one.group)]
        seconds *= 2
    branch(case, tree, groups, case.deadline)
    return "branch"


def _refute(
    case: Case, one: Search, seconds: float, groups: Tensor, tree: Tree, solver: Solver | None, *,
    on_the_way: bool,
) -> None:  # fmt: skip
    """One clause's turn; books what it finds. A solver is asked `on_the_way` or where a search ends open."""
    if one.run(min(case.deadline, time.monotonic() + seconds)):
        place = groups[one.group]
        case.lower[place] = max(float(case.lower[place]), one.slack)
        tree.drop(one.group)
    elif solver and one.witness is None and (on_the_way or not one.unfinished) and not case.late:
        solver(case, one, time.monotonic() + seconds)
    if one.witness is not None:
        case.witness = one.witness
