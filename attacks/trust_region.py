"""The point of a hyperplane nearest to x, within the box and a trust region around the point one stands at.

Problem: min_u ||u - x||_p subject to lower <= u <= upper, b . (u - z) = gain, ||u - z||_2 <= radius.

Given the multipliers of the last two the entries are independent. With `level` that of the hyperplane, in
units of the trust region's, v = z + level b, and `pull` in [0, 1] for how little the trust region holds,

    l2    u = clip(v + pull (x - z), lower, upper)
    linf  u = clip(v, max(lower, x - t), min(upper, x + t)),  t from that of pull = 0 to that of pull = 1
    l1    u = clip(x + sign(v - x) max(|v - x| - t, 0), lower, upper),  t ~ pull / (1 - pull)
    l0    u = clip(v, lower, upper) where that is worth t^2 / 2 more than x to the Lagrangian, x elsewhere.

b . u rises with level and ||u - z||_2 with pull, while ||u - x||_p falls: one root within another. At
pull = 0 u is the least l2 move onto the hyperplane, at pull = 1 the answer without a trust region; both have
closed forms. The set is convex, so the segment between the two sides of the outer root holds a point of
length `radius` that is no worse than they are on average. l0 is not convex: there the answer is the best
point of this form, which need not be the best of all.

Source: Brendel, Rauber, Kuemmerer, Ustyuzhaninov, Bethge 2019, 1907.01003, eq. 3 and its dual.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from models.threat import ThreatModel, per_sample, vector_norm

TURNS = dict.fromkeys(("l2", "linf", "l1"), (100, 40)) | {"l0": (25, 8)}
"""Most evaluations of the inner and of the outer root; those of l0 are at jumps, and bisected alone."""
EXACT = 1e-12
"""What the hyperplane may be missed by, of what the whole box gains."""
FARTHEST, FINEST = 1e12, 1e-6
"""The range of levels, in widths of the box where the largest entry of b is 1."""


@dataclass(frozen=True)
class Subproblem:
    """The problem of n samples, flat and in float64: points (n, d), the others (n,).

    loose (n,) and tight (n,): the linf distance of the answer at pull = 0 and at pull = 1.
    """

    norm: str
    lower: float
    upper: float
    x: Tensor
    z: Tensor
    slope: Tensor
    gain: Tensor
    radius: Tensor
    loose: Tensor
    tight: Tensor

    def entries(self, pull: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """The minimiser u (n, d) of the Lagrangian, and which of its entries move with `level`."""
        x, v, pull = self.x, self.z + level[:, None] * self.slope, pull[:, None]
        if self.norm == "l2":
            v = v + pull * (x - self.z)
            u = v.clamp(self.lower, self.upper)
            return u, u == v
        if self.norm == "linf":
            reach = self.loose[:, None] + pull * (self.tight - self.loose)[:, None]
            u = v.clamp((x - reach).clamp(min=self.lower), (x + reach).clamp(max=self.upper))
            return u, u == v
        threshold = self.radius[:, None] / x.shape[1] ** 0.5 * pull / (1 - pull)
        if self.norm == "l1":
            moved = v - x
            soft = moved - moved.clamp(-threshold, threshold)
            u = (x + soft).clamp(self.lower, self.upper)
            return u, (u > self.lower) & (u < self.upper) & (soft != 0)
        u = v.clamp(self.lower, self.upper)
        kept = (x - v).square() - (u - v).square() > threshold**2
        return torch.where(kept, u, x), kept & (u == v)

    def onto(self, pull: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """The minimiser (n, d) that gains `gain` (for l0 at least that), and its level, sought from `level`.

        Newton's steps on a monotone, piecewise linear function, within a bracket that is also bisected.
        """
        high = torch.full_like(level, FARTHEST * (self.upper - self.lower))
        low, unit = -high, FINEST * (self.upper - self.lower)
        accurate = EXACT * (self.upper - self.lower) * self.slope.abs().sum(1)
        squares = self.slope.square()
        for turn in range(TURNS[self.norm][0]):
            u, moving = self.entries(pull, level)
            short = self.gain - (self.slope * (u - self.z)).sum(1)
            low, high = torch.where(short > 0, level, low), torch.where(short > 0, high, level)
            done = (short.abs() <= accurate) | (high - low <= 1e-9 * high.abs())
            if bool(done.all()):
                break
            newton = level + short / torch.where(moving, squares, 0.0).sum(1)
            # The bracket spans many orders of magnitude on both sides of 0.
            middle = torch.sinh((torch.asinh(low / unit) + torch.asinh(high / unit)) / 2) * unit
            usable = (newton > low) & (newton < high) & (turn % 3 < 2)
            level = torch.where(done, level, torch.where(usable, newton, middle))
        level = torch.where(short.abs() <= accurate, level, high)
        return self.entries(pull, level)[0], level

    def between(self, near: Tensor, far: Tensor) -> Tensor:
        """The minimiser of length `radius`, where `near` (n, d) is shorter and `far` longer: pull 0 and 1."""
        low, high = torch.zeros_like(self.radius), torch.ones_like(self.radius)
        under, over = ((u - self.z).norm(dim=1) - self.radius for u in (near, far))
        level, last = torch.zeros_like(low), torch.zeros_like(low)
        for turn in range(TURNS[self.norm][1]):
            share = under / (under - over)
            share = torch.where(share.isfinite() & (turn % 3 < 2), share, 0.5).clamp(0.01, 0.99)
            pull = low + share * (high - low)
            u, level = self.onto(pull, level)
            length = (u - self.z).norm(dim=1) - self.radius
            held = length <= 0
            # Illinois: an end that stays twice counts half.
            over = torch.where(held & (last < 0), over / 2, over)
            under = torch.where(~held & (last > 0), under / 2, under)
            low, under = torch.where(held, pull, low), torch.where(held, length, under)
            high, over = torch.where(held, high, pull), torch.where(held, over, length)
            near, far = torch.where(held[:, None], u, near), torch.where(held[:, None], far, u)
            last = torch.where(held, -1.0, 1.0).to(low)
            same = self.norm == "l0" and bool(((near != self.x).sum(1) == (far != self.x).sum(1)).all())
            if same or bool((length.abs() <= 1e-4 * self.radius).all()):
                break
        return near if self.norm == "l0" else self._filled(near, far)

    def _filled(self, near: Tensor, far: Tensor) -> Tensor:
        """The point of length `radius` on the segments from `near` to `far` (n, d)."""
        way, start = far - near, near - self.z
        a, b = way.square().sum(1), (way * start).sum(1)
        room = (self.radius.square() - start.square().sum(1)).clamp(min=0)
        # The stable form of the quadratic's larger root: nothing cancels for b > 0.
        root = (b.square() + a * room).sqrt()
        share = torch.where(b > 0, room / (b + root).clamp(min=1e-300), (root - b) / a.clamp(min=1e-300))
        return near + share.clamp(0, 1)[:, None] * way


def onto_from(threat: ThreatModel, x: Tensor, slope: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """The move (n, ...) from x of least norm with slope . move = `gain` of either sign; is there one (n,)."""
    ahead = torch.where(gain < 0, -1.0, 1.0).to(slope)
    return threat.nearest_gain(x, slope * per_sample(ahead, slope), gain.abs())


def nearest_in_trust(
    threat: ThreatModel, x: Tensor, z: Tensor, slope: Tensor, gain: Tensor, radius: Tensor
) -> Tensor:
    """The solution u (n, ...) in float64; where there is none, the way to the hyperplane cut to `radius`.

    x and z (n, ...) lie in the box; slope (n, ...), gain (n,) and radius (n,) are the problem's b and others.
    """
    shape, x, z, slope = x.shape, x.double(), z.double(), slope.double()
    steepest = slope.flatten(1).abs().amax(1)
    safe = torch.where(steepest > 0, steepest, 1.0)
    slope, gain, radius = slope / per_sample(safe, slope), gain.double() / safe, radius.double()
    least, there = onto_from(ThreatModel("l2", None, threat.box), z, slope, gain)
    length = vector_norm(least, "l2")
    near = z + least * per_sample((radius / length.clamp(min=1e-300)).clamp(max=1), z)
    free, _ = onto_from(threat, x, slope, gain - (slope * (x - z)).flatten(1).sum(1))
    free = x + free
    solvable = there & (length <= radius)
    reached = solvable & (vector_norm(free - z, "l2") <= radius)
    u = torch.where(per_sample(reached, x), free, near)
    open_ = (solvable & ~reached).nonzero()[:, 0]
    if len(open_):
        reaches = (vector_norm(point - x, "linf") for point in (near, free))
        parts = (t[open_].flatten(1) for t in (x, z, slope)), (t[open_] for t in (gain, radius, *reaches))
        problem = Subproblem(threat.norm, threat.box.lower, threat.box.upper, *chain(*parts))
        found = problem.between(near[open_].flatten(1), free[open_].flatten(1))
        u[open_] = found.reshape(-1, *shape[1:])
    return u
