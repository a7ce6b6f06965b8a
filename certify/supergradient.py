"""The bound of many branches in the precision of their steps, and where it rises."""

from __future__ import annotations

import torch
from torch import Tensor

from certify.dual import Branches, Dual
from certify.envelope import Envelope, Lines, SharedLines

STATE = ("group", "free", "phase", "other", "cut", "beta_side", "top", "rows", "q", "constant")


class Ascent:
    """Branches on their way up: the bound of multipliers and its supergradient, in the working precision.

    The multipliers are one tensor (b, m): alpha where a neuron is free, beta where its phase is
    imposed. Nothing that this class says is a proof. What a step costs beside its products is many
    small operations: those that a network without leaks or branches without phases do not need are left out.
    """

    def __init__(self, dual: Dual, branches: Branches, envelope: Envelope | None = None) -> None:
        self.dual, targets, folded = dual, dual.targets, dual.folded
        self.lines: Lines | SharedLines | None = envelope.chords(len(branches)) if envelope else None
        if dual.lines and not envelope:
            self.lines = SharedLines(dual.lines, branches.group)
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
        self.lines = self.lines.select(rows) if self.lines else None

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
        cut = self.cut.masked_fill(q > 0, 0.0)
        if self.lines:
            rows, constant = self._under_lines(self.lines, value, rows, constant, q, t, cut)
        rows = torch.addmm(rows, t, folded.input_rows)
        least, x = folded.inputs.least(rows)
        bound = constant + least + t @ folded.constant + (q * cut).sum(1)
        return bound, q, line, cut, x

    def _under_lines(
        self, lines: Lines | SharedLines, value: Tensor, rows: Tensor, constant: Tensor, q: Tensor, t: Tensor,
        cut: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The rows and constants with the lines in the place of chords, which leave t and cut."""
        first, leak = lines.envelope.first, self.dual.folded.leak
        share = self._share(lines, value)
        weight = q[:, first] * self.used(lines, q) * share
        t[:, first] -= weight * (self.dual.chord - leak)[first]
        cut[:, first] *= 1 - share
        added, heights = lines.pulled(weight * lines.envelope.bend)
        return rows + added, constant + heights

    def used(self, lines: Lines | SharedLines, q: Tensor) -> Tensor:
        """Where upper lines of the envelope's neurons bear the bound: (b, k)."""
        first = lines.envelope.first
        return self.free[:, first] & (q[:, first] < 0)

    def _share(self, lines: Lines | SharedLines, value: Tensor) -> Tensor:
        """The part of each upper line that is not the chord (b, k): lines of a branch's own stand alone."""
        share = value[:, lines.envelope.first]
        return torch.ones_like(share) if isinstance(lines, Lines) else share

    def slopes(self, value: Tensor, q: Tensor, line: Tensor, cut: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Supergradients in the multipliers (b, m) and the weights: the relaxation's minimiser gives them."""
        folded, targets = self.dual.folded, self.dual.targets
        z = torch.addmm(folded.constant, x, folded.input_rows.T)
        a = torch.empty_like(z)
        gains = None
        if self.lines:
            cut, gains = self._above(self.lines, value, q, cut, x, z)
        for layer, (seen, weights) in zip(folded.layers, folded.earlier, strict=True):
            if weights.numel():
                z[:, layer].addmm_(a[:, seen], weights.T)
            a[:, layer] = torch.addcmul(cut[:, layer], line[:, layer], z[:, layer])
        up = q.clamp(min=0)
        up = up * (1 - folded.leak) if self.leaky else up
        up = (torch.where(self.free, up, -self.beta_side) if self.imposed else up).mul_(z)
        if gains is not None:
            up += gains
        assumed, parts = targets.assumed, []
        if self.steady:
            parts.append(torch.zeros_like(self.constant)[:, None])
        else:
            own = (targets.input_rows[self.group] @ x.unsqueeze(2))[..., 0] + targets.constant[self.group]
            parts.append(own + (targets.neuron_rows[self.group] @ a.unsqueeze(2))[..., 0])
        if assumed is not None:
            parts.append(x @ assumed.input_rows.T + a @ assumed.neuron_rows.T + assumed.constant)
        return up, torch.cat(parts, 1)

    def _above(
        self, lines: Lines | SharedLines, value: Tensor, q: Tensor, cut: Tensor, x: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """What upper lines add to chord z (b, m) at x, and what shares of them gain."""
        first, leak, used = lines.envelope.first, self.dual.folded.leak, self.used(lines, q)
        chord = self.cut[:, first]
        above = lines.envelope.bend * lines.values(x) + (leak - self.dual.chord)[first] * z[:, first] - chord
        raised = torch.where(used, chord + self._share(lines, value) * above, cut[:, first])
        cut = cut.index_copy(1, first, raised)
        if isinstance(lines, Lines):
            return cut, None
        return cut, torch.zeros_like(z).index_copy_(1, first, q[:, first] * used * above)
