"""What is to be proved of a network: no point of an input set reaches an unsafe set of outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import UserError

# The caller's own judgement of a counterexample, an input (1, ...) or (d,): as it accepts it, or None.
Accept = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True)
class Clause:
    """One unsafe set of outputs y: rows . y + offsets <= 0 in each entry; rows (k, outputs), offsets (k,).

    Both are kept in float64, k >= 1. Raises UserError for other shapes, and for NaN or infinity.
    """

    rows: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        if self.rows.dim() != 2 or self.offsets.shape != self.rows.shape[:1]:
            raise UserError(
                f"a clause needs rows (k, outputs) and offsets (k,), not {tuple(self.rows.shape)} "
                f"and {tuple(self.offsets.shape)}"
            )
        if not len(self.rows):
            raise UserError("a clause without rows calls every output unsafe: give it one row or more")
        for name in ("rows", "offsets"):
            part = getattr(self, name).double()
            if not bool(torch.isfinite(part).all()):
                raise UserError(f"the {name} of a clause contain NaN or infinity")
            object.__setattr__(self, name, part)

    def excess(self, outputs: Tensor) -> Tensor:
        """max over the rows of rows . y + offsets, for outputs (n, outputs): (n,), <= 0 where unsafe."""
        return (outputs.to(self.rows) @ self.rows.T + self.offsets).amax(1)


def safest(clauses: Sequence[Clause], rows: Tensor) -> Tensor:
    """Lower bounds (c,) on the clauses' excess by those on all their rows; overflow proves nothing."""
    values = rows + torch.cat([clause.offsets for clause in clauses])
    parts = values.nan_to_num(-torch.inf, -torch.inf, -torch.inf).split([len(one.offsets) for one in clauses])
    return torch.stack([part.amax() for part in parts])


@dataclass(frozen=True)
class Property:
    """Every input between lower and upper (both (c, h, w) or (d,)) keeps out of all unsafe sets.

    It is broken where some input's outputs fall in at least one of the clauses.
    Raises UserError for bounds that cross, are not finite, for no clauses, or clauses of different widths.
    """

    lower: Tensor
    upper: Tensor
    clauses: tuple[Clause, ...]

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise UserError(
                f"input bounds of shapes {tuple(self.lower.shape)} and {tuple(self.upper.shape)}: "
                "give one lower and one upper bound per input"
            )
        if not bool(torch.isfinite(self.lower).all() and torch.isfinite(self.upper).all()):
            raise UserError("every input needs a finite lower and upper bound")
        if bool((self.lower > self.upper).any()):
            raise UserError("an input's lower bound is above its upper bound: the input set is empty")
        if not self.clauses:
            raise UserError("a property without clauses calls no output unsafe: give it one or more")
        if len({clause.rows.shape[1] for clause in self.clauses}) > 1:
            raise UserError("the clauses speak of different numbers of outputs")

    def compares_only(self) -> bool:
        """Whether every row of every clause says that one output is at least another."""
        return all(
            bool((clause.rows.sum(1) == 0).all() and (clause.rows.ne(0).sum(1) == 2).all())
            and not bool(clause.offsets.any())
            for clause in self.clauses
        )

    def excess(self, outputs: Tensor) -> Tensor:
        """min over the clauses of their excess, for outputs (n, outputs): (n,), <= 0 where unsafe."""
        return torch.stack([clause.excess(outputs) for clause in self.clauses]).amin(0)


def robustness(lower: Tensor, upper: Tensor, label: int, classes: int) -> Property:
    """The label wins strictly everywhere between lower and upper: one clause z_label - z_j <= 0 a class j."""
    identity = torch.eye(classes, dtype=torch.float64)
    rows = [identity[label] - identity[j] for j in range(classes) if j != label]
    zero = torch.zeros(1, dtype=torch.float64)
    return Property(lower, upper, tuple(Clause(row[None], zero) for row in rows))
