"""The ascent of many branches' dual bounds at once: steps in single precision, proof in double."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from certify.curve_envelope import envelope_of
from certify.dual import Adam, Bound, Branches, Dual
from certify.envelope import Envelope, Lines
from certify.supergradient import Ascent

# In single precision a branch goes on until it is this far above what it has to reach.
MARGIN = 1e-4

# Branches that ascend together: enough for fast products, few enough for the cache.
ROWS = 128

# Entries of the envelope's lines that move together, for the same reason; and how fast, in units of the rate.
CELLS = 2_000_000
LINE_RATE = 2.0


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
    enveloped: bool = False,
) -> tuple[Tensor, Branches, Bound]:
    """The best bound (b,) that `steps` steps of ascent meet, the branches at it, and its pass.

    The bound is `dual`'s own, whatever precision the steps take: single where the network is large, if
    `single` allows it. Branches whose bound is above
    `stop` leave; all stop when time.monotonic() passes `deadline`. alpha moves by `rate` a step at most, beta
    by `rate` times its neuron's coefficient. With a `goal` the step along Adam's direction is the one that
    would reach it if the bound were linear (Polyak's rule, which needs no schedule); without, the
    rate shrinks tenfold. If `enveloped`, upper lines of the first neurons ascend too, from chords, and the
    bound is the one under the last of them: linf only.
    """
    parts = [
        part[:2] for part in _ascended(dual, branches, steps, rate, stop, goal, deadline, single, enveloped)
    ]
    best = Branches.join([part for part, _ in parts])
    bound = Bound.join([part for _, part in parts])
    value = torch.where(bound.value.isnan(), -torch.inf, bound.value)
    return value, best, replace(bound, value=value)


def lines_of(
    dual: Dual, branches: Branches, *, steps: int, rate: float, deadline: float
) -> tuple[Tensor, Lines]:
    """Bounds (b,) under upper lines that ascend too, and the lines: one for each of the first neurons."""
    values, lines = [], []
    for _, bound, part in _ascended(dual, branches, steps, rate, torch.inf, None, deadline, True, True):
        assert part is not None
        values.append(bound.value)
        lines.append(part)
    value = torch.cat(values).nan_to_num(-torch.inf, torch.inf, -torch.inf)
    return value, Lines(lines[0].envelope, torch.cat([part.slopes for part in lines]))


def _ascended(
    dual: Dual, branches: Branches, steps: int, rate: float, stop: float, goal: float | None,
    deadline: float, single: bool, enveloped: bool,
) -> Iterator[tuple[Branches, Bound, Lines | None]]:  # fmt: skip
    """Branches, few at a time: at their best, with its exact pass, and their lines if `enveloped`."""
    working = (dual.rough if enveloped else dual.working) if single else dual
    exact = envelope_of(dual.folded) if enveloped else None
    rough = envelope_of(working.folded, like=exact) if exact else None
    size = max(1, min(ROWS, CELLS // max(1, rough.rows.numel()))) if rough else ROWS
    for rows in torch.arange(len(branches)).split(size):
        best, lines = branches.select(rows), exact.chords(len(rows)) if exact else None
        if steps:
            best, last = _climbed(working, best, steps, rate, stop, goal, deadline, rough)
            lines = last.exactly(exact) if last and exact else None
        yield best, dual.bound(best, lines), lines


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
    dual: Dual, start: Branches, steps: int, rate: float, stop: float, goal: float | None, deadline: float,
    envelope: Envelope | None,
) -> tuple[Branches, Lines | None]:  # fmt: skip
    """The branches at the best bound that the working precision sees; with an envelope, at the last."""
    single = dual.folded.constant.dtype == torch.float32
    beyond = stop + MARGIN if single else stop
    ascent = Ascent(dual, start, envelope)
    value, weight = _variables(ascent, start)
    last = envelope.chords(len(start)) if envelope else None
    best, best_value, best_weight = torch.full_like(weight[:, 0], -torch.inf), value.clone(), weight.clone()
    live = torch.arange(len(start))
    adam = [Adam.like(value), Adam.like(weight)]
    for step in range(steps + 1):
        bound, *passed = ascent.bound(value, weight)
        better = ((bound > best[live]) | bool(last)) & bound.isfinite()
        chosen = live[better]
        best[chosen], best_value[chosen], best_weight[chosen] = bound[better], value[better], weight[better]
        rows = (best[live] <= beyond).nonzero()[:, 0]
        over = step == steps or not len(rows) or time.monotonic() > deadline
        if last and isinstance(ascent.lines, Lines) and (over or len(rows) < 0.8 * len(live)):
            last.slopes[live] = ascent.lines.slopes
        if over:
            break
        if len(rows) < 0.8 * len(live):
            live, value, weight, bound = live[rows], value[rows], weight[rows], bound[rows]
            passed = [part[rows] for part in passed]
            ascent.keep(rows)
            for part in adam:
                part.keep(rows)
        limit = rate if goal is not None else rate * 0.1 ** (step / max(1, steps - 1))
        missing = None if goal is None else goal + 1e-4 * (1 + bound.abs()) - bound
        value, weight = _step(ascent, value, weight, passed, adam, limit, missing)
    return _legal(start, best_value.double(), best_weight.double(), dual.targets.constant.shape[1]), last


def _step(
    ascent: Ascent, value: Tensor, weight: Tensor, passed: list[Tensor], adam: list[Adam], limit: float,
    missing: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The multipliers after one step: alpha clipped to [0, 1], beta to [0, inf), weights kept legal."""
    q, _, _, x = passed
    up, up_weight = ascent.slopes(value, *passed)
    if isinstance(ascent.lines, Lines):
        ascent.lines = ascent.lines.lowered(x, ascent.used(ascent.lines, q), LINE_RATE * limit)
    free, scale = ascent.free, None
    if ascent.imposed:
        scale = q.abs()
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
