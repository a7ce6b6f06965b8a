"""The ascent of many branches' dual bounds at once: steps in single precision, proof in double."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor

from certify.dual import Adam, Bound, Branches, Dual

# In single precision a branch goes on until it is this far above what it has to reach.
MARGIN = 1e-4

# Branches that ascend together: enough for fast products, few enough for the cache.
ROWS = 128

STATE = ("group", "free", "phase", "other", "cut", "beta_side", "top", "rows", "q", "constant")


class Ascent:
    """Branches on their way up: the bound of multipliers and its supergradient, in the working precision.

    The multipliers are one tensor (b, m): alpha where a neuron is free, beta where its phase is
    imposed. Nothing that this class says is a proof. What a step costs beside its products is many
    small operations: those that a network without leaks or branches without phases do not need are left out.
    """

    def __init__(self, dual: Dual, branches: Branches) -> None:
        self.dual, targets, folded = dual, dual.targets, dual.folded
        self.group, self.free = branches.group, branches.sign == 0
        self.imposed, self.leaky = not bool(self.free.all()), bool(folded.leak.any())
        side = branches.sign.to(folded.constant)
        self.phase = torch.where(branches.sign > 0, 1.0, folded.leak).to(folded.constant)
        self.other = torch.where(self.free, dual.chord, self.phase)
        self.cut = dual.intercept * self.free
        self.beta_side = side
        self.top = torch.ones_like(side).masked_fill_(~self.free, torch.inf)
        self.steady = targets.constant.shape[1] == 1
        if self.steady:
            group = branches.group
            self.rows, self.q = targets.input_rows[group, 0], targets.neuron_rows[group, 0]
            self.constant = targets.constant[group, 0]
        else:
            self.rows = self.q = self.constant = branches.weight[:, :1]

    def keep(self, rows: Tensor) -> None:
        """Forgets all but some of the branches."""
        for name in STATE:
            setattr(self, name, getattr(self, name)[rows])

    def _mixed(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assumed = self.dual.targets.assumed
        if not self.steady:
            return self.dual.targets.mixed(self.group, weight)
        if assumed is None:
            return self.rows, self.q.clone(), self.constant
        extra = weight[:, 1:]
        return (
            torch.addmm(self.rows, extra, assumed.input_rows),
            torch.addmm(self.q, extra, assumed.neuron_rows),
            self.constant + extra @ assumed.constant,
        )

    def bound(self, value: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Bounds (b,) of multipliers `value` (b, m), and what `slopes` asks for: q, lines, their cuts, x."""
        folded, leak = self.dual.folded, self.dual.folded.leak
        rows, q, constant = self._mixed(weight)
        below = torch.lerp(leak, torch.ones_like(leak), value) if self.leaky else value
        if self.imposed:
            below, push = torch.where(self.free, below, self.phase), self.beta_side * value
        line, t = torch.empty_like(q), torch.empty_like(q)
        for layer, (seen, weights) in zip(reversed(folded.layers), reversed(folded.earlier), strict=True):
            part = q[:, layer]
            torch.where(part > 0, below[:, layer], self.other[:, layer], out=line[:, layer])
            torch.mul(part, line[:, layer], out=t[:, layer])
            if self.imposed:
                t[:, layer] -= push[:, layer]
            if weights.numel():
                q[:, seen].addmm_(t[:, layer], weights)
        rows = torch.addmm(rows, t, folded.input_rows)
        if rows.dtype == torch.float32:
            least, x = -torch.linalg.vector_norm(rows, 1, dim=1), rows.sign().neg_()
        else:
            least, x = folded.inputs.least(rows)
        cut = self.cut.masked_fill(q > 0, 0.0)
        bound = constant + least + t @ folded.constant + (q * cut).sum(1)
        return bound, q, line, cut, x

    def slopes(self, q: Tensor, line: Tensor, cut: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Supergradients in the multipliers (b, m) and the weights: the relaxation's minimiser gives them."""
        folded, targets = self.dual.folded, self.dual.targets
        z = torch.addmm(folded.constant, x, folded.input_rows.T)
        a = torch.empty_like(z)
        for layer, (seen, weights) in zip(folded.layers, folded.earlier, strict=True):
            if weights.numel():
                z[:, layer].addmm_(a[:, seen], weights.T)
            a[:, layer] = torch.addcmul(cut[:, layer], line[:, layer], z[:, layer])
        up = q.clamp(min=0)
        up = up * (1 - folded.leak) if self.leaky else up
        up = (torch.where(self.free, up, -self.beta_side) if self.imposed else up).mul_(z)
        assumed, parts = targets.assumed, []
        if self.steady:
            parts.append(torch.zeros_like(self.constant)[:, None])
        else:
            own = (targets.input_rows[self.group] @ x.unsqueeze(2))[..., 0] + targets.constant[self.group]
            parts.append(own + (targets.neuron_rows[self.group] @ a.unsqueeze(2))[..., 0])
        if assumed is not None:
            parts.append(x @ assumed.input_rows.T + a @ assumed.neuron_rows.T + assumed.constant)
        return up, torch.cat(parts, 1)


def climb(
    dual: Dual,
    branches: Branches,
    *,
    steps: int,
    rate: float,
    stop: float = torch.inf,
    goal: float | None = None,
    deadline: float = torch.inf,
    single: bool = True,
) -> tuple[Tensor, Branches, Bound]:
    """The best bound (b,) that `steps` steps of ascent meet, the branches at it, and its pass.

    The bound is `dual`'s own, whatever precision the steps take: single where the network is large, if
    `single` allows it. Branches whose bound is above
    `stop` leave; all stop when time.monotonic() passes `deadline`. alpha moves by `rate` a step at most, beta
    by `rate` times its neuron's coefficient. With a `goal` the step along Adam's direction is the one that
    would reach it if the bound were linear (Polyak's rule, which needs no schedule); without, the
    rate shrinks tenfold.
    """
    working = dual.working if single else dual
    parts = []
    for rows in torch.arange(len(branches)).split(ROWS):
        start = branches.select(rows)
        best = _climbed(working, start, steps, rate, stop, goal, deadline) if steps else start
        parts.append((best, dual.bound(best)))
    best = Branches.join([part for part, _ in parts])
    bound = Bound.join([part for _, part in parts])
    value = torch.where(bound.value.isnan(), -torch.inf, bound.value)
    return value, best, replace(bound, value=value)


def estimated(dual: Dual, branches: Branches) -> Tensor:
    """What the steps' precision says of each branch's bound (b,): to choose by, no proof."""
    working, found = dual.working, []
    for rows in torch.arange(len(branches)).split(ROWS):
        part = branches.select(rows)
        ascent = Ascent(working, part)
        value, weight = _variables(ascent, part)
        found.append(ascent.bound(value, weight)[0])
    return torch.cat(found).to(dual.folded.constant)


def _variables(ascent: Ascent, start: Branches) -> tuple[Tensor, Tensor]:
    """The multipliers (b, m) and weights of `start` in the ascent's precision."""
    kind = ascent.cut
    return torch.where(ascent.free, start.alpha, start.beta).to(kind), start.weight.to(kind)


def _climbed(
    dual: Dual, start: Branches, steps: int, rate: float, stop: float, goal: float | None, deadline: float
) -> Branches:
    """The branches at the best bound that the working precision sees."""
    single = dual.folded.constant.dtype == torch.float32
    beyond = stop + MARGIN if single else stop
    ascent = Ascent(dual, start)
    value, weight = _variables(ascent, start)
    best, best_value, best_weight = torch.full_like(weight[:, 0], -torch.inf), value.clone(), weight.clone()
    live = torch.arange(len(start))
    adam = [Adam.like(value), Adam.like(weight)]
    for step in range(steps + 1):
        bound, *lines = ascent.bound(value, weight)
        better = (bound > best[live]) & bound.isfinite()
        chosen = live[better]
        best[chosen], best_value[chosen], best_weight[chosen] = bound[better], value[better], weight[better]
        rows = (best[live] <= beyond).nonzero()[:, 0]
        if step == steps or not len(rows) or time.monotonic() > deadline:
            break
        if len(rows) < 0.8 * len(live):
            live, value, weight, bound = live[rows], value[rows], weight[rows], bound[rows]
            lines = [part[rows] for part in lines]
            ascent.keep(rows)
            for part in adam:
                part.keep(rows)
        limit = rate if goal is not None else rate * 0.1 ** (step / max(1, steps - 1))
        missing = None if goal is None else goal + 1e-4 * (1 + bound.abs()) - bound
        value, weight = _step(ascent, value, weight, lines, adam, limit, missing)
    return _legal(start, best_value.double(), best_weight.double(), dual.targets.constant.shape[1])


def _step(
    ascent: Ascent, value: Tensor, weight: Tensor, lines: list[Tensor], adam: list[Adam], limit: float,
    missing: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The multipliers after one step: alpha clipped to [0, 1], beta to [0, inf), weights kept legal."""
    up, up_weight = ascent.slopes(*lines)
    free, scale = ascent.free, None
    if ascent.imposed:
        scale = lines[0].abs()
        scale = (scale + 0.05 * scale.amax(1, keepdim=True)).masked_fill_(free, 1.0)
        up *= scale
    top = ascent.top
    up.masked_fill_(torch.where(up < 0, value, top - value) <= 0, 0.0)
    move = adam[0].direction(up)
    size: Tensor | float = limit
    if missing is not None:
        rise = (up * move).sum(1)
        size = torch.where(rise > 0, missing / rise.clamp(min=1e-30), limit).clamp(min=0.0, max=limit)[
            :, None
        ]
    move *= size
    if scale is not None:
        move *= scale
    value = torch.minimum(move.add_(value).clamp_(min=0), top)
    own = ascent.dual.targets.constant.shape[1]
    if weight.shape[1] > 1:
        step = limit * adam[1].direction(up_weight)
        mixed = weight[:, :own] if own == 1 else _simplex_step(weight[:, :own], step[:, :own])
        weight = torch.cat([mixed, (weight[:, own:] + step[:, own:]).clamp(min=0)], 1)
    return value, weight


def _legal(start: Branches, value: Tensor, weight: Tensor, own: int) -> Branches:
    """Branches of multipliers that are valid in double precision too."""
    free = start.sign == 0
    value, weight = (torch.nan_to_num(part, 0.0, 0.0, 0.0).clamp(min=0) for part in (value, weight))
    mixed = weight[:, :own] / weight[:, :own].sum(1, keepdim=True)
    return Branches(
        start.group,
        start.sign,
        torch.where(free, value, start.alpha).clamp(0, 1),
        torch.where(free, 0.0, value),
        torch.cat([mixed, weight[:, own:]], 1),
    )


def _simplex_step(weight: Tensor, step: Tensor) -> Tensor:
    """Multiplicative step on the simplex; zero entries (padding) stay zero."""
    scaled = weight * step.exp()
    return scaled / scaled.sum(1, keepdim=True)
