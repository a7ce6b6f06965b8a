"""What is known of a value: an interval for each entry, and the least value of a row over the threat set."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from certify.few import Few
from models.enclosure import Enclosure
from models.threat import ThreatModel

# Beyond this, an end of an interval that is no larger than others are gets lost beside its centre.
FAR, LOST = 1e8, 1e-6


@dataclass(frozen=True)
class Interval:
    """Entrywise bounds lower <= value <= upper, both (n, ...)."""

    lower: Tensor
    upper: Tensor
    _known: dict[tuple[Hashable, str], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def known(self, function: Hashable, name: str, compute: Callable[[Interval], Tensor]) -> Tensor:
        """What `compute` says of a function on these bounds, computed once for an ascent of many steps.

        Several functions may have the same value, and so its bounds, as their input.
        """
        key = function, name
        if key not in self._known:
            self._known[key] = compute(self)
        return self._known[key]

    @property
    def centre(self) -> Tensor:
        return (self.upper + self.lower) / 2

    @property
    def radius(self) -> Tensor:
        return (self.upper - self.lower) / 2

    @staticmethod
    def around(centre: Tensor, radius: Tensor) -> Interval:
        """centre -+ radius, and a little more where a centre of that size has lost digits that count."""
        reach = torch.where(radius > FAR, radius * (1 + LOST), radius)
        return Interval(centre - reach, centre + reach)

    @staticmethod
    def one_end(bound: Tensor, negated: Tensor) -> Interval:
        """What is known of values of which `bound` is below each, or below its negative where `negated`."""
        return Interval(bound.masked_fill(negated, -torch.inf), (-bound).masked_fill(~negated, torch.inf))

    def widened(self, slack: float) -> Interval:
        """Both ends moved outwards by slack (1 + |end|)."""
        lower, upper = self.lower, self.upper
        return Interval(lower - slack * (1 + lower.abs()), upper + slack * (1 + upper.abs()))

    def intersect(self, other: Interval) -> Interval:
        """The entries that satisfy both: never looser than either."""
        return Interval(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))


def entries(values: Tensor, first: int) -> Tensor:
    """All dimensions from `first` on as one, of size 1 where there are none."""
    return values.flatten(first) if values.dim() > first else values.unsqueeze(first)


def dot(rows: Tensor, values: Tensor) -> Tensor:
    """rows . values: (n, k, ...) with (n, ...) or (n, k, ...) gives (n, k)."""
    if values.dim() == rows.dim() and values.shape[1] == rows.shape[1]:
        return entries(rows * values, 2).sum(2)
    return (entries(rows, 2) @ entries(values, 1).unsqueeze(2)).squeeze(2)


def spread(tensor: Tensor, rows: Tensor) -> Tensor:
    """(n, ...) as (n, 1, ...) beside rows (n, k, ...); what has k already is left alone."""
    return tensor if tensor.dim() == rows.dim() else tensor.unsqueeze(1)


def least_over_interval(rows: Tensor, interval: Interval) -> Tensor:
    """min of rows . v over lower <= v <= upper: rows (n, k, ...), result (n, k)."""
    return dot(rows, interval.centre) - dot(rows.abs(), interval.radius)


def range_over_threat(rows: Tensor, x: Tensor, threat: ThreatModel) -> Interval:
    """Bounds on rows . x' over the threat set around x: rows (n, k, ...), result (n, k).

    Exact for linf, where ball and box meet in a box, where few entries may move, and for an enclosure in no
    box. For l2 and l1 it is the better of the ball alone, rows . x -+ eps ||rows||_q by the dual norm q, and
    the enclosing box alone.
    """
    if isinstance(threat, Enclosure):
        return Interval.around(*threat.reach(rows))
    return range_over_ball(rows, x, Interval(*threat.bounds(x)), threat, Few.of(threat, x.shape[1:]))


def range_over_ball(
    rows: Tensor, x: Tensor, box: Interval, threat: ThreatModel, few: Few | None = None
) -> Interval:
    """`range_over_threat` for a ball, given the box (n, ...) that encloses what it shares with its own.

    Where `few` entries may move it says of the whole input which, and x and rows may be a part of it.
    """
    if few is not None:
        ends = (rows * spread(box.lower - x, rows), rows * spread(box.upper - x, rows))
        least, most = few.most(-torch.minimum(*ends)), few.most(torch.maximum(*ends))
        return Interval(dot(rows, x) - least, dot(rows, x) + most)
    enclosing = Interval.around(dot(rows, box.centre), dot(rows.abs(), box.radius))
    if threat.norm == "linf" or threat.eps is None:
        return enclosing
    order = {"l2": 2.0, "linf": torch.inf}[threat.dual_norm]
    length = torch.linalg.vector_norm(rows.flatten(2), order, dim=2)
    return enclosing.intersect(Interval.around(dot(rows, x), threat.eps * length))
