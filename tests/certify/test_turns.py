"""Turns of a tree and of refutations: a solver is asked where a refutation ends without an answer."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from certify import turns
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


def a_case() -> Case:
    """One clause over a square, with all the time in the world."""
    one = torch.ones(2, dtype=torch.float64)
    region = Region(low=-one[None], high=one[None])
    prop = Property(-one, one, (Clause(torch.eye(2), torch.zeros(2)),))
    lower = torch.full((1,), -torch.inf, dtype=torch.float64)
    graph = trace(nn.Linear(2, 2).double())
    return Case(graph, region.centre, region, prop, 0.0, lambda point: point, torch.inf, lower)


class Slow(Exhausted):
    """A refutation that ends in its turn number 5, and notes how long each of them might have been."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(False, unfinished=True)
        self.turns: list[float] = []
        monkeypatch.setattr(turns.time, "monotonic", lambda: 0.0)

    def run(self, deadline: float) -> bool:
        self.turns.append(deadline)
        self.unfinished = len(self.turns) < 5
        self.refuted = not self.unfinished
        return self.refuted


@pytest.mark.parametrize(("least", "first"), [(0.0, 1.0), (0.3, 1.0), (7.0, 7.0)])
def test_turns_double_from_the_least_and_the_solver_has_one(
    least: float, first: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, search, asked = a_case(), Slow(monkeypatch), []

    def solver(case: Case, one: Search, end: float) -> None:
        asked.append(end)

    assert take_turns(case, torch.tensor([0]), Idle(), [search], solver, least=least) == "refutation"
    assert search.turns == [first * 2**k for k in range(5)]
    assert asked == [first * turns.SOLVER_TURN]


@pytest.mark.parametrize("refuted", [True, False])
def test_the_solver_is_asked_where_a_search_ends_without_an_answer(refuted: bool) -> None:
    case, search, asked = a_case(), Exhausted(refuted), []

    def solver(case: Case, search: Search, end: float) -> None:
        asked.append(search)
        case.witness = case.x

    assert take_turns(case, torch.tensor([0]), Idle(), [search], solver) == "refutation"
    assert asked == ([] if refuted else [search])
    assert case.done
