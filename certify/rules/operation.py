"""What a certificate asks of one operation: its value, its interval, and how a linear bound passes back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from certify.bounds import Interval, dot, entries, spread
from models.errors import NotApplicable

# What pairs of a sample's values a step may make: all are kept for all samples of a batch, in every layer.
MOST_ENTRIES = 2**18


class Operation(ABC):
    """One step of a network, from values (n, ...) to a value (n, ...); samples never mix.

    `diagonal` says that each output entry depends on one input entry alone, by a factor.
    Tensors are read from the network at each call, so that a graph follows its training.
    """

    diagonal: ClassVar[bool] = False

    @abstractmethod
    def forward(self, *values: Tensor) -> Tensor:
        """The operation itself."""

    @abstractmethod
    def interval(self, *inputs: Interval) -> Interval:
        """Bounds on every output entry when each input entry lies anywhere in its interval."""

    @abstractmethod
    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        """An upper bound on the output's Lipschitz constant, given the inputs' own, in `norm` linf or l2.

        shapes (without samples) are the inputs'; results are 0-dimensional.
        """

    def gain(self, gain: Tensor, norm: str) -> Tensor | None:
        """The `norm` of each output's row in x -> operation(gain * x): (1, *output shape), None if unknown.

        `gain` (1, *input shape) is non-negative; an upper bound on the norm may be returned.
        """
        return None


@dataclass(frozen=True)
class Single:
    """Single entries: rows (n, k, *input) . in + constant, which is (n, k) or 0."""

    rows: Tensor
    constant: Tensor | float


class Affine(Operation):
    """out = sum_i M_i in_i + c.

    `copies` says that each output entry is one input entry or a constant.
    """

    copies: ClassVar[bool] = False

    @abstractmethod
    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        """M_i^T rows for each input: rows (n, k, *output shape) to (n, k, *input shape); shapes lack n."""

    @abstractmethod
    def constant(self, rows: Tensor) -> Tensor | float:
        """rows . c: (n, k), or 0 where there is no constant."""

    def distinct(self, wanted: Tensor) -> Tensor:
        """Enough of the `wanted` entries (n, *shape) for `mirrored` to bound them all."""
        return wanted

    def mirrored(self, found: Interval) -> Interval:
        """Bounds on the `distinct` entries with what they say of the others."""
        return found

    def single(self, places: Tensor, shape: torch.Size, source: torch.Size) -> Single | None:
        """The output entries at flat places (n, k) as functions of the one input; None where no way is short.

        shape and source are the output's and the input's shapes in a sample.
        """
        return None


@dataclass(frozen=True)
class Lines:
    """Two lines that enclose an elementwise function on an interval, as functions of its input z.

    lower_slope z + lower_intercept <= f(z) <= upper_slope z + upper_intercept. Each is
    (n, ...) or (n, k, ...); an intercept of None is zero. `parallel` says the slopes are equal.
    """

    lower_slope: Tensor
    lower_intercept: Tensor | None
    upper_slope: Tensor
    upper_intercept: Tensor
    parallel: bool = False


@dataclass(frozen=True)
class Pulled:
    """rows . in + constant is below the pulled rows . out: rows (n, k, *input), constant (n, k).

    `opposite` is the constant for the negated rows, where those pull to the negated result.
    """

    rows: Tensor
    constant: Tensor
    opposite: Tensor | None = None


class Relaxed(Operation):
    """Not affine: bounded from both sides, given bounds on its one input.

    `antisymmetric` says that without alpha, rows and -rows pull to rows of opposite sign;
    `free_slope` that alpha makes a difference; `mixed` that it does to those who climb, and is otherwise
    left out; `ranged` that its inputs have ranges to branch on, for which `gap` and `felt` are written.
    """

    antisymmetric: ClassVar[bool] = False
    free_slope: ClassVar[bool] = False
    mixed: ClassVar[bool] = False
    ranged: ClassVar[bool] = False

    @abstractmethod
    def pull(self, rows: Tensor, bounds: Interval, alpha: Tensor | None, both: bool = False) -> Pulled:
        """Passes rows (n, k, *output) back through a linear bound of the operation.

        Non-negative entries of rows follow the lower bound, others the upper one. alpha in [0, 1],
        (n, *input) or (n, k, *input), places the free lower slope. `both` asks for `opposite`.
        """

    def adaptive(self, bounds: Interval) -> Tensor:
        """The alpha (n, *input) that is expected to leave the smallest gap: touching in the middle."""
        return torch.full_like(bounds.lower, 0.5)

    def cut(self, bounds: Interval) -> tuple[Tensor, Tensor]:
        """Where an entry's range is best cut: the end of the lower part and the start of the upper one.

        Both (n, *input) inside the range; the parts may overlap, and leave nothing out.
        """
        return bounds.centre, bounds.centre

    def gap(self, rows: Tensor, z: Tensor, bounds: Interval, alpha: Tensor | None) -> Tensor:
        """By input entry (n, *input), from rows . value at z to the bound that rows (n, *output) follow."""
        raise NotImplementedError

    def felt(self, rows: Tensor) -> Tensor:
        """How much each input entry counts where rows (n, *output) pass: (n, *input)."""
        raise NotImplementedError

    @abstractmethod
    def undecided(self, bounds: Interval) -> Tensor:
        """Input entries whose tighter bounds would tighten the relaxation: bool (n, *input)."""


def chord(function: Callable[[Tensor], Tensor], flat: Tensor, bounds: Interval) -> Tensor:
    """The slope between an interval's ends, or `flat` where it is too short to have one.

    Any slope is valid; one that rounding spoils would only be loose.
    """
    width = bounds.upper - bounds.lower
    short = width <= 1e-9 * (1 + bounds.lower.abs())
    return torch.where(
        short, flat, (function(bounds.upper) - function(bounds.lower)) / torch.where(short, 1.0, width)
    )


def tangent_place(lower: Tensor, upper: Tensor, alpha: Tensor, last: Tensor) -> Tensor:
    """Where a line touches: l + alpha (u - l), at most `last`, with alpha's slope beyond that too.

    An ascent that came too far would otherwise see no way back.
    """
    place = lower + alpha * (upper - lower)
    return place + (torch.minimum(place, last) - place).detach()


def pull_lines(rows: Tensor, lines: Lines, both: bool) -> Pulled:
    """`Relaxed.pull` for an elementwise function between two lines."""
    negative = rows.clamp(max=0)
    constant = dot(negative, lines.upper_intercept)
    if lines.lower_intercept is not None:
        constant = constant + dot(rows - negative, lines.lower_intercept)
    below = rows * spread(lines.lower_slope, rows)
    if not lines.parallel:
        below = torch.addcmul(below, negative, spread(lines.upper_slope - lines.lower_slope, rows))
        return Pulled(below, constant)
    if not both:
        return Pulled(below, constant)
    opposite = dot(negative, lines.upper_intercept) - dot(rows, lines.upper_intercept)
    if lines.lower_intercept is not None:
        opposite = opposite - dot(negative, lines.lower_intercept)
    return Pulled(below, constant, opposite)


def pull_overlap(pulled: Pulled, lines: Lines, weight: Tensor) -> Pulled:
    """`pulled` less weight (upper line - lower line)(z), which no legal z makes negative; weight >= 0.

    weight is (n, *input) or (n, k, *input): the multiplier of the constraint that z keeps to its bounds.
    """
    weight = spread(weight, pulled.rows)
    rows = pulled.rows + weight * spread(lines.lower_slope - lines.upper_slope, pulled.rows)
    constant = pulled.constant - entries(weight * spread(lines.upper_intercept, pulled.rows), 2).sum(2)
    if lines.lower_intercept is not None:
        constant = constant + entries(weight * spread(lines.lower_intercept, pulled.rows), 2).sum(2)
    return Pulled(rows, constant)


def repeated(shape: torch.Size, whole: torch.Size) -> float:
    """How often an entry of `shape` is repeated to broadcast to `whole`: shapes without samples."""
    return math.prod(whole) / max(1, math.prod(shape))


def gathered(rows: Tensor, shape: torch.Size) -> Tensor:
    """Rows (n, k, *whole) over a value that was broadcast, as rows (n, k, *shape) over the value itself."""
    places = [place + 2 for place, size in enumerate(shape) if size != rows.shape[place + 2]]
    return rows.sum(places, keepdim=True) if places else rows


def broadcast_shape(values: Sequence[Tensor], purpose: str) -> torch.Size:
    """The shape without samples that values (n, ...) broadcast to, dimension by dimension.

    Raises NotApplicable, saying what they are for, where they do not fit or samples would be broadcast.
    """
    try:
        whole = torch.broadcast_shapes(*(value.shape for value in values))
    except RuntimeError:
        whole = torch.Size(())
    if len({value.dim() for value in values}) > 1 or whole[:1] != values[0].shape[:1]:
        shapes = " and ".join(str(tuple(value.shape[1:])) for value in values)
        raise NotApplicable(
            f"values of shapes {shapes} are {purpose}: the certificates need shapes that broadcast, with as "
            "many dimensions each"
        )
    return whole[1:]


def check_enlarged(shape: torch.Size, before: int) -> None:
    """Raises NotApplicable where a step makes far more entries of a sample than it has `before` it."""
    if shape.numel() > max(MOST_ENTRIES, 4 * before):
        raise NotApplicable(
            f"multiplies or compares {shape.numel():,} pairs of values in one step: the certificates take "
            f"{MOST_ENTRIES:,}, so that attention is understood over some dozens of tokens"
        )


def after_samples(dim: int, total: int) -> int:
    """`dim` counted from the front of `total`; raises NotApplicable where it is the samples'."""
    place = dim % total
    if place == 0:
        raise NotApplicable(
            "the dimension of the samples is split, joined, dropped or moved back: name dims >= 1"
        )
    return place


def folded(rows: Tensor) -> Tensor:
    """(n, k, ...) as (n k, ...), for operations that know samples only."""
    return rows.flatten(0, 1)
