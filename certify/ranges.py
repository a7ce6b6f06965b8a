"""Branches that narrow the ranges of activations' inputs, and the backward pass that makes use of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from certify.bounds import Interval, dot
from certify.property import Clause
from certify.relaxation import Relaxation
from certify.rules.operation import Pulled, Relaxed, spread
from models.errors import NotApplicable


@dataclass(frozen=True)
class Parts:
    """b branches of one sample over m bounded entries of its network.

    clause (b,) names what is to be proved; lower and upper (b, m) are the ranges; alpha (b, m) in [0, 1]
    places the lines; pressure (b, m) is the multiplier of a range's end, its upper one where positive, its
    lower one where negative; weight (b, k) mixes a clause's rows, on the simplex.
    """

    clause: Tensor
    lower: Tensor
    upper: Tensor
    alpha: Tensor
    pressure: Tensor
    weight: Tensor

    FIELDS: ClassVar[tuple[str, ...]] = ("clause", "lower", "upper", "alpha", "pressure", "weight")
    FREE: ClassVar[tuple[str, ...]] = ("alpha", "pressure", "weight")

    def __len__(self) -> int:
        return len(self.clause)

    def select(self, rows: Tensor | slice) -> Parts:
        """Some of the branches."""
        return Parts(*(getattr(self, name)[rows] for name in self.FIELDS))

    @staticmethod
    def join(parts: list[Parts]) -> Parts:
        """The branches of several lists, in order."""
        return Parts(*(torch.cat([getattr(part, name) for part in parts]) for name in Parts.FIELDS))

    def replaced(self, rows: Tensor, other: Parts) -> Parts:
        """The same with `other` in the places `rows`."""
        return Parts(*(getattr(self, name).index_copy(0, rows, getattr(other, name)) for name in self.FIELDS))


@dataclass(frozen=True)
class Pressed(Relaxation):
    """A relaxation with a multiplier on the ends of its ranges, which notes the rows that come by.

    pressure, by the relaxed node's index (n, *input): what z - u <= 0 is counted with where it is positive,
    l - z <= 0 where negative. seen: the rows (n, k, *output) on each relaxed node.
    """

    pressure: Mapping[int, Tensor] = field(default_factory=dict)
    seen: dict[int, Tensor] = field(default_factory=dict)

    def pull(self, i: int, rows: Tensor, both: bool) -> Pulled:
        self.seen[i] = rows.detach()
        pulled = super().pull(i, rows, both)
        if i not in self.pressure:
            return pulled
        pressure, bounds = self.pressure[i], self.bounds[self.graph.nodes[i].inputs[0]]
        end = torch.where(pressure > 0, bounds.upper, bounds.lower)
        return Pulled(
            pulled.rows + spread(pressure, pulled.rows), pulled.constant - dot(pressure.unsqueeze(1), end)
        )


class Layout:
    """Where each activation's inputs stand among the m entries of `Parts`; one input has one place.

    Raises NotApplicable, naming it, for a relaxed operation whose inputs have no ranges to branch on.
    """

    def __init__(self, relaxation: Relaxation) -> None:
        self.relaxation = relaxation
        self.activations: dict[int, Relaxed] = {}
        self.sources: dict[int, slice] = {}
        start = 0
        for i, node in enumerate(relaxation.graph.nodes):
            if not isinstance(node.operation, Relaxed):
                continue
            if not node.operation.ranged:
                raise NotApplicable(f"{type(node.operation).__name__} has no ranges to branch on")
            self.activations[i] = node.operation
            if node.inputs[0] not in self.sources:
                size = relaxation.bounds[node.inputs[0]].lower.numel()
                self.sources[node.inputs[0]] = slice(start, start + size)
                start += size
        self.size = start
        self.lower, self.upper = (
            torch.cat([relaxation.x.new_zeros(0), *(end.flatten() for end in ends)])
            for ends in (
                [relaxation.bounds[j].lower for j in self.sources],
                [relaxation.bounds[j].upper for j in self.sources],
            )
        )

        self._latest: tuple[Tensor, Tensor, dict[int, Interval]] = (self.lower, self.upper, {})

    def _source(self, i: int) -> int:
        return self.relaxation.graph.nodes[i].inputs[0]

    def _place(self, i: int) -> slice:
        return self.sources[self._source(i)]

    def _shaped(self, j: int, part: Tensor) -> Tensor:
        return part[:, self.sources[j]].reshape(-1, *self.relaxation.bounds[j].lower.shape[1:])

    def roots(self, clauses: list[Clause], some: range | None = None) -> Parts:
        """One branch for each of some clauses, or of all; nothing narrowed."""
        some = range(len(clauses)) if some is None else some
        count, most = len(some), max(len(clause.offsets) for clause in clauses)
        alpha = torch.full_like(self.lower, 0.5)
        for i in self.activations:
            if i in self.relaxation.alpha:
                alpha[self._place(i)] = self.relaxation.alpha[i].flatten()
        weight = self.lower.new_zeros(count, most)
        for row, group in enumerate(some):
            own = len(clauses[group].offsets)
            weight[row, :own] = 1 / own
        lower, upper, alpha = (part.expand(count, -1).clone() for part in (self.lower, self.upper, alpha))
        return Parts(
            torch.tensor(some, dtype=torch.long), lower, upper, alpha, torch.zeros_like(alpha), weight
        )

    def pressed(self, parts: Parts) -> Pressed:
        """The relaxation of every branch, with a row of its own each."""
        whole, same = self.relaxation, torch.zeros(len(parts), dtype=torch.long)
        bounds = self._bounds(parts)
        alpha, pressure = (
            {i: self._shaped(self._source(i), part) for i in self.activations}
            for part in (parts.alpha, parts.pressure)
        )
        alpha = {i: part for i, part in alpha.items() if i in whole.alpha}
        threat = whole.threat.select(same)
        return Pressed(whole.graph, whole.x[same], threat, bounds, alpha, pressure=pressure)

    def relaxed(self, parts: Parts, alpha: Tensor) -> Relaxation:
        """The relaxation of one branch with lines at alpha (k, m) for k rows."""
        places = {i: self._shaped(self._source(i), alpha)[None] for i in self.relaxation.alpha}
        return replace(self.relaxation, bounds=self._bounds(parts), alpha=places)

    def one_hot(self, j: int, places: Tensor) -> Tensor:
        """Rows (1, 2 k, *shape) over node j: the entries at `places` (k,) of the m, and their negatives."""
        shape = self.relaxation.bounds[j].lower.shape[1:]
        rows = self.lower.new_zeros(len(places), shape.numel())
        rows[torch.arange(len(places)), places - self.sources[j].start] = 1.0
        return torch.cat([rows, -rows]).reshape(1, -1, *shape)

    def undecided(self, parts: Parts) -> Tensor:
        """The entries (b, m) whose tighter ranges would tighten their lines."""
        bounds = self._bounds(parts)
        return self._gathered(
            {i: part.undecided(bounds[self._source(i)]) for i, part in self.activations.items()}
        ).bool()

    def _bounds(self, parts: Parts) -> dict[int, Interval]:
        """The ranges by node: the same objects while an ascent leaves them alone, for what they know."""
        lower, upper, bounds = self._latest
        if lower is not parts.lower or upper is not parts.upper:
            bounds = {
                j: Interval(self._shaped(j, parts.lower), self._shaped(j, parts.upper)) for j in self.sources
            }
            self._latest = parts.lower, parts.upper, bounds
        return bounds

    def half(self, parts: Parts, places: Tensor, side: int) -> Parts:
        """The lower (side 0) or upper half of each branch's range at its own place (b,)."""
        rows = torch.arange(len(parts))
        lower, upper, pressure = parts.lower.clone(), parts.upper.clone(), parts.pressure.clone()
        ends = Interval(lower[rows, places], upper[rows, places])
        middle = ends.centre
        for i, activation in self.activations.items():
            place = self._place(i)
            here = (places >= place.start) & (places < place.stop)
            middle = torch.where(here, activation.cut(ends)[side], middle)
        (upper, lower)[side][rows, places] = middle
        pressure[rows, places] = 0.0
        return Parts(parts.clause, lower, upper, parts.alpha, pressure, parts.weight)

    def steepness(self, seen: Mapping[int, Tensor]) -> Tensor:
        """How much a unit of each activation counts in a branch's row (b, m)."""
        return self._gathered({i: self.activations[i].felt(rows[:, 0]) for i, rows in seen.items()})

    def _gathered(self, parts: Mapping[int, Tensor]) -> Tensor:
        count = len(next(iter(parts.values())))
        found = self.lower.new_zeros(count, self.size)
        for i, part in parts.items():
            found[:, self._place(i)] += part.reshape(len(part), -1)
        return found

    def moved(self, parts: Parts, moves: list[Tensor], scale: Tensor) -> Parts:
        """The branches after one step by `moves` of what is free, in its order.

        Multipliers move in units of `scale` (b, m), where a range was cut.
        """
        alpha, pressure, weight = moves
        narrowed = (parts.lower > self.lower) | (parts.upper < self.upper)
        unit = scale + 0.05 * scale.amax(1, keepdim=True)
        mixed = parts.weight * weight.exp()
        return Parts(
            parts.clause,
            parts.lower,
            parts.upper,
            (parts.alpha + alpha).clamp(0, 1),
            torch.where(narrowed, parts.pressure + unit * pressure, 0.0),
            mixed / mixed.sum(1, keepdim=True),
        )

    def gaps(self, parts: Parts, x: Tensor, seen: Mapping[int, Tensor]) -> Tensor:
        """What each entry's lines cost a bound (b, m): at x (b, d), and a tenth of it in the middle."""
        pressed = self.pressed(parts)
        values = self.relaxation.graph.values(x.reshape(-1, *self.relaxation.x.shape[1:]))
        found = {}
        for i, rows in ((i, seen[i][:, 0]) for i in self.activations if i in seen):
            activation, bounds = self.activations[i], pressed.bounds[self._source(i)]
            alpha, decides = pressed.alpha.get(i), activation.undecided(bounds)
            # x need not keep to the ranges, outside of which the lines enclose nothing.
            reached = torch.minimum(torch.maximum(values[self._source(i)], bounds.lower), bounds.upper)
            gap = activation.gap(rows, reached, bounds, alpha)
            found[i] = (gap + 0.1 * activation.gap(rows, bounds.centre, bounds, alpha)) * decides
        return self._gathered(found)


def mixed_rows(clauses: list[Clause], parts: Parts) -> tuple[Tensor, Tensor]:
    """Each branch's mixture of its clause's rows (b, 1, outputs), and of its offsets (b,)."""
    shape = (len(clauses), parts.weight.shape[1])
    table, offsets = parts.weight.new_zeros(*shape, clauses[0].rows.shape[1]), parts.weight.new_zeros(shape)
    for place, clause in enumerate(clauses):
        count = len(clause.offsets)
        table[place, :count], offsets[place, :count] = clause.rows.to(table), clause.offsets.to(table)
    rows = parts.weight.unsqueeze(1) @ table[parts.clause]
    return rows, (parts.weight * offsets[parts.clause]).sum(1)
