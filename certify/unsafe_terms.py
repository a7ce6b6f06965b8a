"""What unsafe sets speak of beside outputs: sums of inputs, and products of inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.property import Clause
from certify.syntax import Linear

Sum = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Terms:
    """The columns of clauses: outputs, then sums of inputs, then products, each numbered by its order.

    A product is the places of its parts in [inputs, outputs], in order. Products of fewer parts stand first,
    among those of two the squares; each without its last part is one of them, too.
    """

    inputs: int
    outputs: int
    sums: dict[Sum, int]
    monomials: dict[tuple[int, ...], int]

    @staticmethod
    def of(constraints: Iterable[Linear], inputs: int, outputs: int) -> Terms:
        """The terms of all constraints other than bounds on single inputs."""
        sums: dict[Sum, int] = {}
        found: set[tuple[int, ...]] = set()
        for constraint in constraints:
            if constraint.bounds_an_input():
                continue
            if one := tuple(constraint.names("X").items()):
                sums.setdefault(one, len(sums))
            for name in constraint.products():
                places = _places(name, inputs)
                found |= {places[:length] for length in range(2, len(places) + 1)}
        ordered = sorted(found, key=lambda places: (len(places), len(set(places[:2])), places))
        return Terms(inputs, outputs, sums, {places: number for number, places in enumerate(ordered)})

    @property
    def products(self) -> tuple[tuple[int, ...], ...]:
        """The products in the order of their numbers."""
        return tuple(self.monomials)

    def rows(self) -> Tensor:
        """The factors of the inputs in each sum: (sums, inputs)."""
        rows = torch.zeros(len(self.sums), self.inputs, dtype=torch.float64)
        for row, one in zip(rows, self.sums, strict=True):
            for place, factor in one:
                row[place] = factor
        return rows

    def clause(self, constraints: Sequence[Linear]) -> Clause:
        """The set where all constraints hold."""
        width = self.outputs + len(self.sums) + len(self.monomials)
        rows = torch.zeros(len(constraints), width, dtype=torch.float64)
        for row, constraint in zip(rows, constraints, strict=True):
            for place, factor in constraint.names("Y").items():
                row[place] = factor
            if inputs := tuple(constraint.names("X").items()):
                row[self.outputs + self.sums[inputs]] = 1.0
            for name in constraint.products():
                place = self.monomials[_places(name, self.inputs)]
                row[self.outputs + len(self.sums) + place] = constraint.factors[name]
        offsets = [constraint.constant for constraint in constraints]
        return Clause(rows, torch.tensor(offsets, dtype=torch.float64))


def _places(name: str, inputs: int) -> tuple[int, ...]:
    """The places of a product's parts in [inputs, outputs], in order."""
    parts = name[1:].split("*")
    return tuple(sorted(int(part[2:]) + (inputs if part[0] == "Y" else 0) for part in parts))
