"""One property on its way through the steps that may settle it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from certify.graph import Graph
from certify.property import Accept, Property
from models.threat import ThreatModel


@dataclass
class Case:
    """One property on its way through the steps: what is asked, and what is known so far.

    lift takes points (b, d') of the inputs that the steps work on to points (b, d) of the network's.
    """

    graph: Graph
    x: Tensor
    threat: ThreatModel
    prop: Property
    tolerance: float
    accept: Accept
    deadline: float
    lower: Tensor
    witness: Tensor | None = None
    lift: Callable[[Tensor], Tensor] = field(default=lambda points: points)

    @property
    def open(self) -> Tensor:
        """The clauses (k,) that nothing is proved of."""
        return (~(self.lower > self.tolerance)).nonzero()[:, 0]

    @property
    def done(self) -> bool:
        """Whether every clause is proved, or a counterexample is known."""
        return self.witness is not None or not len(self.open)

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self.deadline

    def check(self, point: Tensor) -> Tensor | None:
        """`point` (d',) as an input (1, ...) where it breaks the property for the caller too."""
        return self.accept(self.lifted(point))

    def lifted(self, point: Tensor) -> Tensor:
        """`point` (d',) as an input (1, ...) of the network."""
        return self.lift(point[None]).reshape(self.x.shape)

    def share(self, fraction: float, least: float = 0.0) -> float:
        """A time.monotonic() that leaves the rest of the time for later steps."""
        now = time.monotonic()
        return min(self.deadline, now + max(least, fraction * (self.deadline - now)))
