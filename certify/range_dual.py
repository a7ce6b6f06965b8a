"""Bounds by multipliers over branches that narrow ranges, their ascent, and descent from their minimisers."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certify.dual import Adam
from certify.input_set import InputSet
from certify.property import Accept, Clause
from certify.ranges import Layout, Parts, Pressed, mixed_rows
from certify.relaxation import Relaxation

# Steps of the descent, how far its first ones go in units of the set, and the last ones in units of these: a
# long step leaves the valley that a minimiser lies in, a short one stays in it.
DESCENT, FIRST, LAST = 20, (1.0, 0.05), 1e-2


@dataclass(frozen=True)
class Bound:
    """What a backward pass proves of b branches: value (b,) is at most each clause's excess there.

    x (b, d) are the inputs where the linear function is least; rows are the coefficients (b, 1, ...) on
    each relaxed node's output.
    """

    value: Tensor
    x: Tensor
    rows: dict[int, Tensor]


class RangeDual:
    """The bound that lines and multipliers prove of one sample's clauses, branch by branch."""

    def __init__(self, relaxation: Relaxation, clauses: list[Clause]) -> None:
        self.relaxation, self.clauses = relaxation, clauses
        self.layout = Layout(relaxation)
        self.inputs = InputSet.of(relaxation.x, relaxation.threat)

    def bound(self, parts: Parts) -> Bound:
        """Lower bounds on each branch's clause, valid for any alpha in [0, 1], any pressure, any weight."""
        with torch.no_grad():
            pressed, plane, shift = self._plane(parts)
            value, x = self.inputs.least(plane)
            value = torch.nan_to_num(value + shift, -torch.inf, -torch.inf, -torch.inf)
        return Bound(value, x, pressed.seen)

    def _plane(self, parts: Parts) -> tuple[Pressed, Tensor, Tensor]:
        """Linear functions (b, d) and constants (b,) nowhere above each branch's mixed clause."""
        rows, offsets = mixed_rows(self.clauses, parts)
        pressed = self.layout.pressed(parts)
        plane, shift = pressed.planes(len(self.relaxation.graph.nodes) - 1, rows)
        return pressed, plane.flatten(2)[:, 0], shift[:, 0] + offsets

    def ascended(
        self, parts: Parts, *, steps: int, rate: float, stop: float, deadline: float
    ) -> tuple[Parts, Bound]:
        """The parts at the best bound that `steps` steps of Adam meet; those above `stop` leave."""
        best, value = parts, torch.full_like(parts.weight[:, 0], -torch.inf)
        live, current = torch.arange(len(parts)), parts
        adams = [Adam.like(getattr(parts, name)) for name in Parts.FREE]
        for step in range(steps):
            found, gradients, scale = self._slopes(current)
            better = found > value[live]
            value[live[better]] = found[better]
            best = best.replaced(live[better], current.select(better))
            keep = value[live] <= stop
            if not bool(keep.any()) or time.monotonic() > deadline:
                break
            size = rate * (1 - step / steps)
            moves = [size * adam.direction(part) for adam, part in zip(adams, gradients, strict=True)]
            current = self.layout.moved(current, moves, scale)
            if not bool(keep.all()):
                live, current = live[keep], current.select(keep)
                for adam in adams:
                    adam.keep(keep)
        if steps:
            last = self.bound(current).value
            best = best.replaced(live[last > value[live]], current.select(last > value[live]))
        return best, self.bound(best)

    def _slopes(self, parts: Parts) -> tuple[Tensor, list[Tensor], Tensor]:
        """Bounds (b,), their supergradients in what is free, and how much each activation counts (b, m)."""
        leaves = [getattr(parts, name).detach().requires_grad_(True) for name in Parts.FREE]
        with torch.enable_grad():
            pressed, plane, shift = self._plane(replace(parts, **dict(zip(Parts.FREE, leaves, strict=True))))
            least, x = self.inputs.least(plane.detach())
            value = (plane * x).sum(1) + shift
            found = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        gradients = [
            torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)
        ]
        bound = torch.nan_to_num(least + shift.detach(), -torch.inf, -torch.inf, -torch.inf)
        return bound, gradients, self.layout.steepness(pressed.seen)

    def unsafe(self, x: Tensor, check: Accept, deadline: float = torch.inf) -> Tensor | None:
        """A point that `check` accepts as a counterexample, met by descent on the network from x (b, d).

        The descent ends when time.monotonic() has passed `deadline`.
        """
        shape, graph = self.relaxation.x.shape[1:], self.relaxation.graph
        first = torch.tensor(FIRST, dtype=x.dtype).repeat_interleave(len(x))[:, None]
        x = x.repeat(len(FIRST), 1)
        for step in range(DESCENT + 1):
            x = x.detach().requires_grad_(True)
            with torch.enable_grad():
                outputs = graph.values(x.reshape(-1, *shape))[-1]
                excess = torch.stack([clause.excess(outputs) for clause in self.clauses]).amin(0)
                (slope,) = torch.autograd.grad(excess.sum(), x)
            for row in (excess <= 0).nonzero()[:, 0].tolist():
                found = check(x[row].detach())
                if found is not None:
                    return found
            if time.monotonic() > deadline:
                return None
            size = first * LAST ** (step / DESCENT)
            x = self.inputs.project(x.detach() + size * self.inputs.steepest(slope, x))
        return None
