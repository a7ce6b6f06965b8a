"""Bounds by Lagrangian duality on a folded network, for many branches at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from certify.curve_envelope import envelope_of
from certify.envelope import Lines, SharedLines
from certify.folded import Folded, Targets

# Networks of more entries than this take their steps in single precision.
SINGLE = 2**14

FIRST_MOMENT, SECOND_MOMENT = 0.9, 0.999


@dataclass
class Branches:
    """b subproblems: a group of targets each, and the ReLU phases that were fixed on the way.

    group (b,) names the targets; sign (b, m) is 1 where z >= 0 is imposed, -1 where z <= 0, 0 where
    free; alpha (b, m) in [0, 1] places the lower line of a free neuron; beta (b, m) >= 0 is the multiplier
    of an imposed phase; weight (b, k + s) mixes the group's k functions, on the simplex, and adds multiples
    >= 0 of the s functions that are assumed to be <= 0. Any such numbers are valid: Wang et al. 2021,
    2103.06624, Theorem 3.1.
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
        if targets.assumed is not None:
            weight = torch.cat([weight, weight.new_zeros(size, len(targets.assumed.constant))], 1)
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

    @staticmethod
    def join(parts: list[Bound]) -> Bound:
        """The bounds of several lists, in order."""
        return Bound(*(torch.cat([getattr(part, name) for part in parts]) for name in PARTS))


class Dual:
    """The bound that multipliers prove, on a folded network and targets, in their own precision.

    Where `lines` are given, of each group for the neurons of their envelope, alpha has a second meaning: of
    such a neuron, whose upper line bears the bound, it is the share of that line, and 1 - alpha the chord's.
    """

    def __init__(self, folded: Folded, targets: Targets, lines: Lines | None = None) -> None:
        self.folded, self.targets, self.lines = folded, targets, lines
        chord = folded.upper / (folded.upper - folded.lower)
        self.chord = folded.leak + (1 - folded.leak) * chord
        self.intercept = -(1 - folded.leak) * chord * folded.lower

    @cached_property
    def rough(self) -> Dual:
        """The same in single precision over the box [-1, 1] where the network is large, in linf."""
        folded, targets = self.folded, self.targets
        if folded.inputs.norm != "linf" or folded.input_rows.numel() < SINGLE:
            return self
        single, lines = folded.single(), self.lines
        if lines is not None:
            lines = lines.exactly(envelope_of(single, like=lines.envelope))
        return Dual(single, targets.single(folded.inputs), lines)

    @cached_property
    def working(self) -> Dual:
        """What steps are computed on: `rough` without the inputs that nothing reads."""
        if self.rough is self or self.lines is not None or self.folded.inputs.curved:
            return self.rough
        folded, targets = self.rough.folded, self.rough.targets
        rows = [folded.input_rows, targets.input_rows.flatten(0, 1)]
        rows += [targets.assumed.input_rows] if targets.assumed is not None else []
        seen = torch.stack([(part != 0).any(0) for part in rows]).any(0)
        if bool(seen.all()):
            return self.rough
        return Dual(folded.of_inputs(seen), targets.of_inputs(seen))

    def bound(self, branches: Branches, lines: Lines | None = None) -> Bound:
        """Lower bounds on each branch's mixed target, valid for any alpha in [0, 1] and beta >= 0.

        Where `lines` are given, a line a branch for each neuron of their envelope, they replace its chords.
        """
        rows, q, constant = self.targets.mixed(branches.group, branches.weight)
        q, t = self.folded.backward(q, lambda layer, part: self._pulled(branches, layer, part))
        raised = q.clamp(max=0) * (branches.sign == 0)
        used = lines or (SharedLines(self.lines, branches.group) if self.lines else None)
        if used is not None:
            first, leak = used.envelope.first, self.folded.leak
            taken = raised[:, first] if lines else raised[:, first] * branches.alpha[:, first]
            t[:, first] -= taken * (self.chord - leak)[first]
            raised[:, first] -= taken
            added, heights = used.pulled(taken * used.envelope.bend)
            rows, constant = rows + added, constant + heights
        value, x = self.folded.inputs.least(rows + t @ self.folded.input_rows)
        value = value + t @ self.folded.constant + raised @ self.intercept
        return Bound(value + constant, q, t, x, torch.zeros_like(q))

    def gaps(self, q: Tensor, alpha: Tensor, places: Tensor | slice = slice(None)) -> Tensor:
        """How much of a bound the lines of free neurons `places` may cost, q the coefficients on them."""
        above = -q.clamp(max=0) * self.intercept[places]
        return torch.maximum(above, 0.5 * q.clamp(min=0) * -self.folded.lower[places] * alpha)

    def on_lines(self, branches: Branches) -> Branches:
        """The same with upper lines in the place of chords wherever these bear the bound."""
        if self.lines is None:
            return branches
        first, alpha = self.lines.envelope.first, branches.alpha.clone()
        alpha[:, first] = torch.where(self.bound(branches).q[:, first] < 0, 1.0, alpha[:, first])
        return replace(branches, alpha=alpha)

    def _pulled(self, branches: Branches, layer: slice, q: Tensor) -> Tensor:
        leak, sign = self.folded.leak[layer], branches.sign[:, layer]
        below = leak + (1 - leak) * branches.alpha[:, layer]
        free = torch.where(q > 0, q * below, q * self.chord[layer])
        beta = branches.beta[:, layer]
        fixed = torch.where(sign > 0, q - beta, leak * q + beta)
        return torch.where(sign == 0, free, fixed)


def imposed(folded: Folded, branches: Branches, places: Tensor, slopes: Tensor, sign: int) -> Branches:
    """The branches with one more phase imposed each, at neuron places (b,) of coefficients slopes (b,).

    The new multiplier reproduces the parent's lower line. Where the parent took the chord (slopes < 0) a
    child may start lower, since z may leave its bounds under the other neurons' lines.
    """
    signs, beta, rows = branches.sign.clone(), branches.beta.clone(), torch.arange(len(places))
    leak = folded.leak[places]
    below = leak + (1 - leak) * branches.alpha[rows, places]
    signs[rows, places] = sign
    beta[rows, places] = slopes.clamp(min=0) * (1 - below if sign > 0 else below - leak)
    return Branches(branches.group, signs, branches.alpha, beta, branches.weight)


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
        self.mean.lerp_(gradient, 1 - FIRST_MOMENT)
        self.square.mul_(SECOND_MOMENT).addcmul_(gradient, gradient, value=1 - SECOND_MOMENT)
        ratio = (1 - FIRST_MOMENT**self.count) / (1 - SECOND_MOMENT**self.count) ** 0.5
        return self.mean / self.square.sqrt().mul_(ratio).add_(1e-12)

    def keep(self, rows: Tensor) -> None:
        self.mean, self.square = self.mean[rows], self.square[rows]
