"""Where an adversary may stand: a norm ball around each input, cut by the box of valid inputs.

The one owner of geometry: no other module clamps inputs or measures perturbations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.eps import parse_eps
from models.errors import UserError
from models.hyperplane import Moves
from models.norms import BALLS, unknown_norm
from models.randomness import Randomness

NORMS = BALLS
DUAL_NORM = {"linf": "l1", "l2": "l2", "l1": "linf"}


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshapes (n,) to (n, 1, ..., 1) so that it broadcasts over inputs of `like`'s shape."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def vector_norm(delta: Tensor, norm: str) -> Tensor:
    """The norm of each sample of `delta` (n, ...): shape (n,), in delta's own dtype.

    l0, which is no norm but is called one, counts the entries that are not zero.
    """
    flat = delta.flatten(1)
    if norm == "l0":
        return (flat != 0).sum(1).to(delta.dtype)
    if norm == "linf":
        return flat.abs().amax(1) if flat.shape[1] else flat.new_zeros(len(flat))
    return flat.norm(p=2 if norm == "l2" else 1, dim=1)


@dataclass(frozen=True)
class Box:
    """The valid inputs: every entry lies in [lower, upper]."""

    lower: float = 0.0
    upper: float = 1.0

    def __post_init__(self) -> None:
        if not self.lower < self.upper:
            raise UserError(f"a box needs lower < upper, not [{self.lower}, {self.upper}]")

    @property
    def width(self) -> float:
        return self.upper - self.lower

    def clamp(self, x: Tensor) -> Tensor:
        """The nearest point of the box."""
        return x.clamp(self.lower, self.upper)

    def contains(self, x: Tensor) -> Tensor:
        """Whether each sample (n, ...) lies in the box: bool (n,)."""
        return ((x >= self.lower) & (x <= self.upper)).flatten(1).all(1)

    def tangent(self, x: Tensor, direction: Tensor) -> Tensor:
        """`direction` without the entries that point out of the box at x: its part along which x can move."""
        outwards = ((x <= self.lower) & (direction < 0)) | ((x >= self.upper) & (direction > 0))
        return direction.masked_fill(outwards, 0.0)


UNIT_BOX = Box(0.0, 1.0)


@dataclass(frozen=True)
class ThreatModel:
    """The set {x' : ||x' - x||_norm <= eps, x' in box}; eps=None asks for the smallest perturbation.

    eps is in input units (the box's own), for l0 a number of entries; inputs have shape (n, ...).
    Raises UserError for an unknown norm or a bad eps.
    """

    norm: str
    eps: float | None
    box: Box = UNIT_BOX

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise unknown_norm(self.norm, NORMS)
        object.__setattr__(self, "eps", parse_eps(self.eps))

    @property
    def dual_norm(self) -> str:
        """The norm q with 1/p + 1/q = 1: max over the unit ball of g.delta is ||g||_q; l0 has none."""
        if self.norm not in DUAL_NORM:
            raise UserError(f"{self.norm} has no dual norm: choose {', '.join(DUAL_NORM)}")
        return DUAL_NORM[self.norm]

    @property
    def radius(self) -> float:
        """eps, or infinity where the smallest perturbation is asked for."""
        return math.inf if self.eps is None else self.eps

    def at(self, eps: float | None) -> ThreatModel:
        """The same norm and box at another radius."""
        return ThreatModel(self.norm, eps, self.box)

    def select(self, samples: slice | Tensor) -> ThreatModel:
        """The threat of some of the samples: the same for all, here."""
        return self

    def count(self, places: int) -> int:
        """How many of so many entries may change at once: all of them but for l0."""
        return int(min(self.radius, places)) if self.norm == "l0" else places

    def distance(self, x: Tensor, other: Tensor) -> Tensor:
        """||other - x|| of each sample in float64: shape (n,)."""
        return vector_norm(other.double() - x.double(), self.norm)

    def contains(self, x: Tensor, other: Tensor) -> Tensor:
        """Whether each `other` is a legal move from `x`, decided in float64 without tolerance: bool (n,)."""
        return (self.distance(x, other) <= self.radius) & self.box.contains(other)

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest box around ball and box, as (lower, upper) in x's dtype, rounded inwards.

        For linf every point between the two is exactly inside the ball in real arithmetic.
        """
        if self.eps is None or self.norm == "l0":
            free = self.radius >= 1
            ends = (self.box.lower, self.box.upper)
            return (torch.full_like(x, ends[0]), torch.full_like(x, ends[1])) if free else (x, x)
        exact = x.double()
        lower, upper = (exact - self.eps).to(x.dtype), (exact + self.eps).to(x.dtype)
        up = torch.full_like(x, math.inf)
        lower = torch.where(exact - lower.double() > self.eps, torch.nextafter(lower, up), lower)
        upper = torch.where(upper.double() - exact > self.eps, torch.nextafter(upper, -up), upper)
        return lower.clamp(min=self.box.lower), upper.clamp(max=self.box.upper)

    def project(self, x: Tensor, other: Tensor) -> Tensor:
        """The point of the set nearest to `other` (linf, l1, l0), or the scaled and clipped one (l2).

        The result satisfies `contains` exactly: radii are shrunk by what rounding may add.
        """
        return self.projection(x)(other)

    def projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """`project` for a fixed x, with what depends on x alone computed once."""
        if self.norm == "linf" or self.eps is None:
            lower, upper = self.bounds(x)
            return lambda other: torch.clamp(other, lower, upper)
        if self.norm == "l0":
            count = torch.full((len(x),), self.eps, device=x.device)
            return lambda other: self._project_l0(x, other, count)
        place = self._project_l1 if self.norm == "l1" else self._project_l2
        radius = torch.full((len(x),), self.eps * (1 - 1e-6), dtype=torch.float64, device=x.device)
        # Rounding x' moves each entry by up to half a unit in the last place of its magnitude.
        entries = x[0].numel() ** (1.0 if self.norm == "l1" else 0.5) if len(x) else 0.0
        slack = torch.finfo(x.dtype).eps * entries * (vector_norm(x, "linf").double() + self.eps)
        safe = (radius - slack).clamp(min=0)

        def project(other: Tensor) -> Tensor:
            moved = place(x, other, radius)
            legal = self.contains(x, moved)
            if not bool(legal.all()):
                moved = torch.where(per_sample(legal, x), moved, place(x, other, safe))
            return torch.where(per_sample(self.contains(x, other), x), other, moved)

        return project

    def shrink(self, x: Tensor, other: Tensor, radius: Tensor) -> Tensor:
        """`other` projected on balls of one radius a sample (n,) and on the box, up to rounding."""
        if self.norm == "linf":
            reach = per_sample(radius.to(x.dtype), x)
            return self.box.clamp(torch.maximum(torch.minimum(other, x + reach), x - reach))
        place = {"l2": self._project_l2, "l1": self._project_l1, "l0": self._project_l0}[self.norm]
        return place(x, other, radius.double())

    def _project_l0(self, x: Tensor, other: Tensor, radius: Tensor) -> Tensor:
        """The floor(radius) entries whose clipped change removes most of ||other - x||_2^2; x elsewhere."""
        moved = self.box.clamp(other)
        saved = ((other - x).double().square() - (other - moved).double().square()).flatten(1)
        rank = saved.argsort(stable=True, dim=1, descending=True).argsort(1)
        kept = (rank < radius.floor()[:, None]).reshape(x.shape)
        return torch.where(kept, moved, x)

    def _project_l2(self, x: Tensor, other: Tensor, radius: Tensor) -> Tensor:
        delta = other - x
        length = vector_norm(delta.double(), "l2").clamp(min=1e-300)
        scale = (radius / length).clamp(max=1.0).to(x.dtype)
        return self.box.clamp(x + delta * per_sample(scale, x))

    def _project_l1(self, x: Tensor, other: Tensor, radius: Tensor) -> Tensor:
        """Exact projection on the l1 ball within the box: the multiplier by one sort of where slopes change.

        Source: Croce, Hein 2021, 2103.01208.
        """
        lower, upper = (self.box.lower - x).double(), (self.box.upper - x).double()
        delta = (other - x).double()
        size, room = delta.abs().flatten(1), torch.where(delta < 0, -lower, upper).flatten(1)
        # As the multiplier falls an entry moves from its size on, until it is at its bound.
        place, order = torch.cat([size, (size - room).clamp(min=0)], 1).sort(dim=1, descending=True)
        moving = torch.where(order < size.shape[1], 1.0, -1.0).to(size).cumsum(1)
        ahead = torch.cat([place[:, 1:], torch.zeros_like(place[:, :1])], 1)
        length = (moving * (place - ahead)).cumsum(1)
        last = (length < radius[:, None]).sum(1, keepdim=True).clamp(max=place.shape[1] - 1)
        over = (length.gather(1, last) - radius[:, None]).clamp(min=0)
        level = per_sample((ahead.gather(1, last) + over / moving.gather(1, last).clamp(min=1))[:, 0], x)
        moved = delta.sign() * (delta.abs() - level).clamp(min=0)
        moved = torch.maximum(torch.minimum(moved, upper), lower)
        return self.box.clamp((x.double() + moved).to(x.dtype))

    def sample(self, x: Tensor, index: Tensor, randomness: Randomness) -> Tensor:
        """A random legal point for each sample: uniform in the linf or l2 ball, then clipped to the box.

        For l1, a uniform point on a random sparse face; for l0, uniform values at eps random entries.
        `index` (n,) names each sample's stream.
        """
        if self.eps is None:
            raise UserError("random starts need an eps: the threat model has none")
        if self.norm == "linf":
            lower, upper = self.bounds(x)
            return lower + (upper - lower) * randomness.uniform(index, x.shape[1:]).to(x)
        if self.norm == "l0":
            rank = randomness.child("keep").uniform(index, x.shape[1:]).flatten(1).argsort(1).argsort(1)
            value = self.box.lower + self.box.width * randomness.uniform(index, x.shape[1:]).to(x)
            return torch.where((rank < int(self.eps)).reshape(x.shape), self.box.clamp(value), x)
        direction = randomness.normal(index, x.shape[1:]).to(x)
        if self.norm == "l1":
            keep = randomness.child("keep").uniform(index, x.shape[1:]).to(x) < 0.05
            direction = direction.sign() * direction.square() * keep
        dimensions = x[0].numel()
        radius = randomness.child("radius").uniform(index, (1,))[:, 0].to(x) ** (1 / dimensions)
        length = vector_norm(direction, self.norm).clamp(min=1e-12)
        return self.project(x, x + direction * per_sample(self.eps * radius / length, x))

    def steepest(self, gradient: Tensor) -> Tensor:
        """The unit-norm direction of greatest first-order increase: max g.delta over ||delta|| <= 1.

        sign(g) for linf, g/||g||_2 for l2, the largest entry alone for l1 and l0; zero where g is zero.
        """
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l2":
            length = vector_norm(gradient, "l2")
            safe = torch.where(length > 0, length, torch.ones_like(length))
            return gradient / per_sample(safe, gradient)
        flat = gradient.flatten(1)
        top = flat.abs().argmax(1, keepdim=True)
        one = torch.zeros_like(flat).scatter_(1, top, flat.gather(1, top).sign())
        return one.reshape(gradient.shape)

    def furthest(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The point of the set where gradient . x' is greatest: what the box blocks is spent elsewhere."""
        move = Moves.along(x, gradient, self.norm, self.box.lower, self.box.upper).within(self.radius)
        return self.project(x, (x.double() + move.reshape(x.shape)).to(x.dtype))

    def nearest_gain(self, x: Tensor, gradient: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        """The least move within the box that raises gradient . x' by `gain` (n,) > 0, whatever eps is.

        Returns it (n, ...) in float64, and whether the box allows that gain (n,): where it does not,
        the move gains all it can.
        """
        moves = Moves.along(x, gradient, self.norm, self.box.lower, self.box.upper)
        move, enough = moves.gaining(gain)
        return move.reshape(x.shape), enough


def check_reach(threat: ThreatModel, x: Tensor) -> None:
    """Raises UserError for a ball that reaches farther than the box is wide: eps is in other units than x."""
    entries = x[0].numel() if len(x) else 1
    most = {"linf": 1.0, "l2": entries**0.5, "l1": float(entries)}.get(threat.norm, math.inf)
    if threat.eps is not None and threat.eps > most * threat.box.width * (1 + 1e-6):
        raise UserError(
            f"{threat.norm} eps = {threat.eps:g} reaches beyond the box [{threat.box.lower:g}, "
            f"{threat.box.upper:g}]: write it in the units of the inputs, like 8/255"
        )
