"""Bounds by Lagrangian duality on a folded network, for many branches at once, and their ascent."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.folded import Folded, Targets

FIRST_MOMENT, SECOND_MOMENT = 0.9, 0.999


@dataclass
class Branches:
    """b subproblems: a group of targets each, and the ReLU phases that were fixed on the way.

    group (b,) names the targets; sign (b, m) is 1 where z >= 0 is imposed, -1 where z <= 0, 0 where
    free; alpha (b, m) in [0, 1] places the lower line of a free neuron; beta (b, m) >= 0 is the multiplier
    of an imposed phase; weight (b, k) on the simplex mixes the group's functions. Any such numbers are
    valid: Wang et al. 2021, 2103.06624, Theorem 3.1.
    """

    group: Tensor
    sign: Tensor
    alpha: Tensor
    beta: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.group)

    def select(self, rows: Tensor) -> Branches:
        """Some of the branches."""
        return Branches(*(getattr(self, name)[rows] for name in FIELDS))

    @staticmethod
    def join(parts: list[Branches]) -> Branches:
        """The branches of several lists, in order."""
        return Branches(*(torch.cat([getattr(part, name) for part in parts]) for name in FIELDS))

    @staticmethod
    def roots(folded: Folded, targets: Targets, alpha: Tensor | None = None) -> Branches:
        """One branch a group, nothing imposed; lower lines by the smaller triangle unless given (m,)."""
        if alpha is None:
            alpha = (folded.upper >= -folded.lower).to(folded.constant)
        size, shape = len(targets), (len(targets), folded.neurons)
        weight = targets.real / targets.real.sum(1, keepdim=True)
        if targets.anchored:
            weight = torch.zeros_like(weight)
            weight[:, 0] = 1.0
        zero = folded.constant.new_zeros(shape)
        sign = torch.zeros(shape, dtype=torch.int8, device=zero.device)
        device = zero.device
        return Branches(
            torch.arange(size, device=device), sign, alpha.expand(shape).clone(), zero, weight.to(zero)
        )


PARTS = ("value", "q", "t", "x", "violation")
FIELDS = ("group", "sign", "alpha", "beta", "weight")


@dataclass(frozen=True)
class Bound:
    """What a backward pass proves of b branches, and where it is slack.

    value (b,) is at most the mixed target over the branch; q and t (b, m) are the coefficients on a
    and z; x (b, d) are the inputs where the relaxation is least; violation (b, m) says how far a
    is from the neuron's own output there, zero where nobody asked.
    """

    value: Tensor
    q: Tensor
    t: Tensor
    x: Tensor
    violation: Tensor

    def select(self, rows: Tensor) -> Bound:
        """The same for some of the branches."""
        return Bound(*(getattr(self, name)[rows] for name in PARTS))


class Dual:
    """The bound and its ascent direction, on a folded network and targets."""

    def __init__(self, folded: Folded, targets: Targets) -> None:
        self.folded, self.targets = folded, targets
        chord = folded.upper / (folded.upper - folded.lower)
        self.chord = folded.leak + (1 - folded.leak) * chord
        self.intercept = -(1 - folded.leak) * chord * folded.lower

    def bound(self, branches: Branches) -> Bound:
        """Lower bounds on each branch's mixed target, valid for any alpha in [0, 1] and beta >= 0."""
        group, weight = branches.group, branches.weight.unsqueeze(1)
        targets = self.targets
        q = (weight @ targets.neuron_rows[group])[:, 0]
        q, t = self.folded.backward(q, lambda layer, part: self._pulled(branches, layer, part))
        rows = (weight @ targets.input_rows[group])[:, 0] + t @ self.folded.input_rows
        value, x = self.folded.inputs.least(rows)
        free = branches.sign == 0
        value = value + t @ self.folded.constant + (q.clamp(max=0) * free) @ self.intercept
        value = value + (branches.weight * targets.constant[group]).sum(1)
        return Bound(value, q, t, x, torch.zeros_like(q))

    def _pulled(self, branches: Branches, layer: slice, q: Tensor) -> Tensor:
        leak, sign = self.folded.leak[layer], branches.sign[:, layer]
        below = leak + (1 - leak) * branches.alpha[:, layer]
        free = torch.where(q > 0, q * below, q * self.chord[layer])
        beta = branches.beta[:, layer]
        fixed = torch.where(sign > 0, q - beta, leak * q + beta)
        return torch.where(sign == 0, free, fixed)

    def ascent(self, branches: Branches, bound: Bound) -> tuple[Tensor, Tensor, Tensor]:
        """Supergradients of the bound in alpha (b, m), beta (b, m) and weight (b, k).

        The relaxation's own minimiser gives them: one pass forward with the lines that the
        backward pass chose.
        """
        folded, sign = self.folded, branches.sign

        def relaxed(layer: slice, z: Tensor) -> Tensor:
            leak = folded.leak[layer]
            below = (leak + (1 - leak) * branches.alpha[:, layer]) * z
            free = torch.where(bound.q[:, layer] > 0, below, self.chord[layer] * z + self.intercept[layer])
            fixed = torch.where(sign[:, layer] > 0, z, leak * z)
            return torch.where(sign[:, layer] == 0, free, fixed)

        z, a = folded.forward(bound.x, relaxed)
        alpha = (1 - folded.leak) * bound.q.clamp(min=0) * z * (sign == 0)
        beta = -z * sign
        targets, group = self.targets, branches.group
        weight = (targets.input_rows[group] @ bound.x.unsqueeze(2))[..., 0] + targets.constant[group]
        weight = weight + (targets.neuron_rows[group] @ a.unsqueeze(2))[..., 0]
        return alpha, beta, weight


@dataclass
class Adam:
    """Adam's direction for one tensor of variables. Source: Kingma & Ba 2015, 1412.6980, Algorithm 1."""

    mean: Tensor
    square: Tensor
    count: int = 0

    @staticmethod
    def like(variables: Tensor) -> Adam:
        return Adam(torch.zeros_like(variables), torch.zeros_like(variables))

    def direction(self, gradient: Tensor) -> Tensor:
        """The step of size about one up the gradients seen so far."""
        self.count += 1
        self.mean = FIRST_MOMENT * self.mean + (1 - FIRST_MOMENT) * gradient
        self.square = SECOND_MOMENT * self.square + (1 - SECOND_MOMENT) * gradient.square()
        mean = self.mean / (1 - FIRST_MOMENT**self.count)
        return mean / ((self.square / (1 - SECOND_MOMENT**self.count)).sqrt() + 1e-12)

    def keep(self, rows: Tensor) -> None:
        self.mean, self.square = self.mean[rows], self.square[rows]


def climb(
    dual: Dual,
    branches: Branches,
    *,
    steps: int,
    rate: float,
    stop: float = torch.inf,
    goal: float | None = None,
    deadline: float = torch.inf,
) -> tuple[Tensor, Branches, Bound]:
    """The best bound (b,) that `steps` steps of ascent meet, the branches at it, and its pass.

    Branches whose bound is above `stop` leave; all stop when time.monotonic() passes `deadline`. alpha
    moves by `rate` a step at most, beta by `rate` times its neuron's coefficient. With a `goal` the step
    along Adam's direction is the one that would reach it if the bound were linear (Polyak's rule, which
    needs no schedule); without, the rate shrinks tenfold.
    """
    value = branches.weight.new_full((len(branches),), -torch.inf)
    best, last = branches.select(torch.arange(len(branches))), None
    live, moving = torch.arange(len(branches)), branches
    adam = [Adam.like(part) for part in (branches.alpha, branches.beta, branches.weight)]
    for step in range(steps + 1):
        bound = dual.bound(moving)
        better = (bound.value > value[live]) & bound.value.isfinite()
        last = _record(last, bound, live, better)
        chosen = live[better]
        value[chosen] = bound.value[better]
        for name in FIELDS[2:]:
            getattr(best, name)[chosen] = getattr(moving, name)[better]
        rows = (value[live] <= stop).nonzero()[:, 0]
        if step == steps or not len(rows) or time.monotonic() > deadline:
            break
        if len(rows) < len(live):
            live, moving, bound = live[rows], moving.select(rows), bound.select(rows)
            for part in adam:
                part.keep(rows)
        limit = rate if goal is not None else rate * 0.1 ** (step / max(1, steps - 1))
        missing = None if goal is None else goal + 1e-4 * (1 + bound.value.abs()) - bound.value
        moving = _ascended(dual, moving, bound, adam, limit, missing)
    assert last is not None
    return value, best, last


def _ascended(
    dual: Dual, branches: Branches, bound: Bound, adam: list[Adam], limit: float, missing: Tensor | None
) -> Branches:
    """The branches after one step: alpha clipped to [0, 1], beta to [0, inf), the weight on the simplex."""
    up_alpha, up_beta, up_weight = dual.ascent(branches, bound)
    scale = bound.q.abs()
    scale = scale + 0.05 * scale.amax(1, keepdim=True) if scale.shape[1] else scale
    blocked = ((branches.alpha >= 1) & (up_alpha > 0)) | ((branches.alpha <= 0) & (up_alpha < 0))
    up_alpha = up_alpha.masked_fill(blocked, 0.0)
    up_beta = (up_beta * scale).masked_fill((branches.beta <= 0) & (up_beta < 0), 0.0)
    alpha, beta = adam[0].direction(up_alpha), adam[1].direction(up_beta)
    size = torch.full_like(bound.value, limit)
    if missing is not None:
        rise = (up_alpha * alpha).sum(1) + (up_beta * beta).sum(1)
        size = torch.where(rise > 0, missing / rise.clamp(min=1e-300), size).clamp(min=0.0, max=limit)
    weight = branches.weight
    if weight.shape[1] > 1:
        step = limit * adam[2].direction(up_weight)
        weight = _anchored_step(weight, step) if dual.targets.anchored else _simplex_step(weight, step)
    return Branches(
        branches.group,
        branches.sign,
        (branches.alpha + size[:, None] * alpha).clamp(0, 1),
        (branches.beta + size[:, None] * scale * beta).clamp(min=0) * (branches.sign != 0),
        weight,
    )


def _record(last: Bound | None, bound: Bound, live: Tensor, better: Tensor) -> Bound:
    if last is None:
        return Bound(*(getattr(bound, name).clone() for name in PARTS))
    rows = live[better]
    for name in PARTS:
        getattr(last, name)[rows] = getattr(bound, name)[better]
    return last


def _anchored_step(weight: Tensor, step: Tensor) -> Tensor:
    """The first weight stays one, the others move and stay non-negative."""
    moved = (weight + step).clamp(min=0)
    moved[:, 0] = 1.0
    return moved


def _simplex_step(weight: Tensor, step: Tensor) -> Tensor:
    """Multiplicative step on the simplex; zero entries (padding) stay zero."""
    scaled = weight * step.exp()
    return scaled / scaled.sum(1, keepdim=True)
