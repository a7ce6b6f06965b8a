"""Turns of a tree and of refutations: a solver is asked where a refutation ends without an answer."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from certify.branching import Outcome
from certify.graph import trace
from certify.property import Clause, Property
from certify.turns import Case, Search, take_turns
from models.region import Region


@dataclass
class Exhausted:
    """A refutation that has looked at every branch; `refuted` says whether all were empty."""

    refuted: bool
    group: int = 0
    slack: float = 1e-6
    witness: Tensor | None = None
    unfinished: bool = False

    def run(self, deadline: float) -> bool:
        return self.refuted


class Idle:
    """A tree that finds nothing."""

    looked_at, closed = 0, 0.0

    def run(self, deadline: float) -> Outcome:
        return Outcome(None, torch.full((1,), -torch.inf, dtype=torch.float64), 1, 0)

    def is_open(self, group: int) -> bool:
        return True

    def drop(self, group: int) -> None:
        pass


@pytest.mark.parametrize("refuted", [True, False])
def test_the_solver_is_asked_where_a_search_ends_without_an_answer(refuted: bool) -> None:
    one = torch.ones(2, dtype=torch.float64)
    region, asked = Region(low=-one[None], high=one[None]), []
    prop = Property(-one, one, (Clause(torch.eye(2), torch.zeros(2)),))
    lower = torch.full((1,), -torch.inf, dtype=torch.float64)
    graph = trace(nn.Linear(2, 2).double())
    case = Case(graph, region.centre, region, prop, 0.0, lambda point: point, torch.inf, lower)
    case.deadline = float("inf")
    search = Exhausted(refuted)

    def solver(case: Case, search: Search, end: float) -> None:
        asked.append(search)
        case.witness = one[None]

    assert take_turns(case, torch.tensor([0]), Idle(), [search], solver) == "refutation"
    assert asked == ([] if refuted else [search])
    assert case.done
