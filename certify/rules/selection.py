"""The largest of groups of entries: what max pooling and maxima over dimensions have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.bounds import Interval, dot, entries
from certify.rules.operation import Pulled, Relaxed
from models.errors import NotApplicable

# Weights of a group that sum to less are taken for none.
NONE = 1e-6


@dataclass(frozen=True)
class Choice:
    """z[winner] <= max z <= slope z[top] + intercept in each group: all (n, *output).

    winner and top are flat places in a sample, 0 <= slope <= 1.
    """

    winner: Tensor
    top: Tensor
    slope: Tensor
    intercept: Tensor


@dataclass(frozen=True)
class Largest(Relaxed):
    """The largest entry of each group; an entry may belong to several groups or to none.

    From below it is the entry with the largest lower bound. From above max z <= max(z_t, g), where t has the
    largest upper bound and g is the largest upper bound elsewhere: on [l_t, u_t] the chord of that, which is
    z_t itself where nothing else can reach l_t. With alpha (n, m, *output) or (n, k, m, *output) it is from
    below the mixture of each group's m entries by these weights.
    """

    mixed = True

    @abstractmethod
    def groups(self, values: Tensor, fill: float) -> Tensor:
        """(n, *input) to the entries of each group, (n, k, *output), with `fill` where a group has fewer."""

    def forward(self, *values: Tensor) -> Tensor:
        return self.groups(values[0], -torch.inf).amax(1)

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.forward(inputs[0].lower), self.forward(inputs[0].upper))

    def members(self, shape: torch.Size) -> Tensor:
        """The flat places (k, *output) of each group's entries in a sample of `shape`, -1 where absent."""
        places = torch.arange(1, shape.numel() + 1, dtype=torch.float64).reshape(1, *shape)
        return self.groups(places, 0.0)[0].to(torch.int64) - 1

    def undecided(self, bounds: Interval) -> Tensor:
        """Entries that may be the largest of a group in which another may be too."""
        lower, upper = self.groups(bounds.lower, -torch.inf), self.groups(bounds.upper, -torch.inf)
        floor, winner = lower.max(1, keepdim=True)
        rest = upper.scatter(1, winner, -torch.inf).amax(1, keepdim=True)
        rivals = (floor < rest) & (upper >= floor)
        places = self.members(bounds.lower.shape[1:]).flatten().to(rivals.device) + 1
        marks = bounds.lower.new_zeros(len(rivals), bounds.lower[0].numel() + 1)
        marks.index_add_(1, places, rivals.flatten(1).to(marks.dtype))
        return (marks[:, 1:] > 0).reshape(bounds.lower.shape)

    def chosen(self, bounds: Interval) -> Choice:
        """The lines of every group."""
        lower, upper = self.groups(bounds.lower, -torch.inf), self.groups(bounds.upper, -torch.inf)
        places = self.members(bounds.lower.shape[1:]).to(lower.device).expand(lower.shape)
        winner, top = lower.argmax(1, keepdim=True), upper.argmax(1, keepdim=True)
        low, high = lower.gather(1, top), upper.gather(1, top)
        rest = upper.scatter(1, top, -torch.inf).amax(1, keepdim=True)
        floor, width = torch.maximum(rest, low), high - low
        flat = width <= 0
        slope = torch.where(flat, 0.0, (high - floor) / torch.where(flat, 1.0, width)).clamp(0, 1)
        intercept = torch.maximum(floor - slope * low, high - slope * high)
        found = (places.gather(1, winner), places.gather(1, top), slope, intercept)
        return Choice(*(part.squeeze(1) for part in found))

    def adaptive(self, bounds: Interval) -> Tensor:
        """All weight on the entry with the largest lower bound: (n, m, *output)."""
        lower = self.groups(bounds.lower, -torch.inf)
        return torch.zeros_like(lower).scatter_(1, lower.argmax(1, keepdim=True), 1.0)

    def pull(self, rows: Tensor, bounds: Interval, alpha: Tensor | None, both: bool = False) -> Pulled:
        choice, shape = self.chosen(bounds), bounds.lower.shape[1:]
        if alpha is None:
            return pull_choice(rows, choice, shape)
        places = self.members(shape).to(rows.device)
        alpha = (alpha if alpha.dim() > rows.dim() else alpha.unsqueeze(1)) * (places >= 0)
        total = alpha.sum(2, keepdim=True)
        none = total <= NONE
        weight = torch.where(none, self.adaptive(bounds).unsqueeze(1), alpha / total.masked_fill(none, 1.0))
        return pull_mixture(rows, choice, places.clamp(min=0), weight, shape)


@dataclass(frozen=True)
class LargestOver(Largest):
    """The largest entry over dimensions after the samples', kept as size 1 or dropped."""

    dims: tuple[int, ...]
    keep: bool

    def _dims(self, dimensions: int) -> tuple[int, ...]:
        """The dimensions counted from the front, in a value of so many; never the samples'."""
        places = tuple(sorted(dim % dimensions for dim in self.dims))
        if 0 in places:
            raise NotApplicable("a maximum or minimum over the samples mixes them: name dimensions >= 1")
        return places

    def forward(self, *values: Tensor) -> Tensor:
        return values[0].amax(self._dims(values[0].dim()), self.keep)

    def groups(self, values: Tensor, fill: float) -> Tensor:
        dims = self._dims(values.dim())
        found = values.movedim(dims, tuple(range(1, 1 + len(dims)))).flatten(1, len(dims))
        if self.keep:
            for dim in dims:
                found = found.unsqueeze(dim + 1)
        return found

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        """1 for either norm: an entry belongs to one group."""
        return constants[0]


def pull_choice(rows: Tensor, choice: Choice, shape: torch.Size) -> Pulled:
    """`Relaxed.pull` of rows (n, k, *output) over groups of entries of a sample of `shape`."""
    below, above = rows < 0, rows.clamp(max=0)
    place = entries(torch.where(below, choice.top.unsqueeze(1), choice.winner.unsqueeze(1)), 2)
    through = entries(torch.where(below, rows * choice.slope.unsqueeze(1), rows), 2)
    back = rows.new_zeros(*rows.shape[:2], shape.numel()).scatter_add(2, place, through)
    return Pulled(back.reshape(*rows.shape[:2], *shape), dot(above, choice.intercept))


def pull_mixture(rows: Tensor, choice: Choice, places: Tensor, weight: Tensor, shape: torch.Size) -> Pulled:
    """`pull_choice` with mixtures below: weight (n, k or 1, m, *output) of entries at places (m, *output)."""
    above = rows.clamp(max=0)
    back = rows.new_zeros(*rows.shape[:2], shape.numel())
    top = entries(above * choice.slope.unsqueeze(1), 2)
    back.scatter_add_(2, entries(choice.top.unsqueeze(1), 2).expand_as(top), top)
    below = (rows - above).unsqueeze(2) * weight
    back = back.index_add(2, places.flatten(), entries(below, 2))
    return Pulled(back.reshape(*rows.shape[:2], *shape), dot(above, choice.intercept))
