"""Best moves in the box for a linear function: the least that gains enough, the greatest gain of a length.

Both are solved exactly by one sort. With s = |slope| and r_i the room between x_i and the bound that the
slope points at, a best move m in [0, r] along the slope's signs has one free parameter:
m_i = min(t, r_i) for linf, min(t s_i, r_i) for l2, and for l1 and l0 the entries in the order of s_i and
of s_i r_i, each to its bound, the last one of l1 in part. Gain and length both rise with that parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moves:
    """The best moves of one sort: entries (n, d) in the order in which they reach their bounds.

    order: which entry stands where; slope and room: |slope| and the way to the bound, float64, sorted.
    """

    norm: str
    order: Tensor
    signs: Tensor
    slope: Tensor
    room: Tensor

    @staticmethod
    def along(x: Tensor, slope: Tensor, norm: str, lower: float, upper: float) -> Moves:
        """The moves from x (n, ...) in [lower, upper] that increase `slope` . x (n, ...)."""
        flat, w = x.flatten(1).double(), slope.flatten(1).double()
        steep, signs = w.abs(), w.sign()
        room = torch.where(w > 0, upper - flat, torch.where(w < 0, flat - lower, 0.0))
        key = {
            "linf": lambda: room,
            "l2": lambda: torch.where(steep > 0, room / steep, torch.inf),
            "l1": lambda: -torch.where(room > 0, steep, 0.0),
            "l0": lambda: -steep * room,
        }[norm]()
        order = key.argsort(stable=True, dim=1)
        return Moves(norm, order, signs, steep.gather(1, order), room.gather(1, order))

    def gaining(self, gain: Tensor) -> tuple[Tensor, Tensor]:
        """The move (n, d) of least norm with slope . move = `gain` (n,) > 0, and whether there is one (n,).

        l0 gains at least that much. Where the box allows less, the move gains all that it allows.
        """
        total = (self.slope * self.room).sum(1)
        wanted = torch.minimum(gain.double(), total)
        if self.norm in ("l1", "l0"):
            before = (self.slope * self.room).cumsum(1) - self.slope * self.room
            left = (wanted[:, None] - before).clamp(min=0)
            part = left / self.slope.clamp(min=1e-300)
            moved = torch.where(left > 0, self.room, 0.0)
            move = torch.minimum(moved, part) if self.norm == "l1" else moved
        else:
            power = 1 if self.norm == "linf" else 2
            move = self._filled(wanted, self.slope * self.room, self.slope**power)
        return self._placed(move), total >= gain.double()

    def within(self, radius: float) -> Tensor:
        """The move (n, d) of norm <= `radius` that gains most."""
        limit = torch.full((len(self.room),), radius, dtype=torch.float64, device=self.room.device)
        if self.norm == "linf":
            return self._placed(self.room.clamp(max=radius))
        if self.norm == "l2":
            reached = self.room.square().sum(1)
            move = self._filled(torch.minimum(limit.square(), reached), self.room.square(), self.slope**2, 2)
        elif self.norm == "l1":
            before = self.room.cumsum(1) - self.room
            move = torch.minimum(self.room, (limit[:, None] - before).clamp(min=0))
        else:
            rank = torch.arange(self.room.shape[1], device=self.room.device)
            move = torch.where(rank < limit[:, None].floor(), self.room, 0.0)
        return self._placed(torch.where(self.slope > 0, move, 0.0))

    def _filled(self, wanted: Tensor, full: Tensor, rate: Tensor, power: int = 1) -> Tensor:
        """min(t w, room), w the slope for l2 and 1 for linf, where the parts sum to `wanted` (n,).

        An entry's part is `full` where it is at its bound and t^power `rate` before.
        """
        weight = self.slope if self.norm == "l2" else torch.ones_like(self.slope)
        bound = torch.where(weight > 0, self.room / weight.clamp(min=1e-300), torch.inf)
        zero = full.new_zeros(len(full), 1)
        done = torch.cat([zero, full.cumsum(1)[:, :-1]], 1)
        free = rate.flip(1).cumsum(1).flip(1)
        # The k-th entry is the last one before its bound when the sum at its own breakpoint suffices.
        reach = done + torch.where(free > 0, bound**power * free, 0.0)
        k = (reach < wanted[:, None]).sum(1, keepdim=True).clamp(max=full.shape[1] - 1)
        left = (wanted[:, None] - done.gather(1, k)).clamp(min=0)
        t = (left / free.gather(1, k).clamp(min=1e-300)) ** (1 / power)
        return torch.minimum(t * weight, self.room)

    def _placed(self, move: Tensor) -> Tensor:
        return torch.zeros_like(move).scatter_(1, self.order, move) * self.signs
