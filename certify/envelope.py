"""Upper lines of ReLUs that read the inputs alone: each over the whole box, not over its sum only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from certify.folded import Folded

# Where a neuron reads more than such a part of the inputs its shares are kept for all of them.
DENSE = 0.5


class Envelope:
    """The concave envelopes, over the inputs' box, of relu(z) for the k neurons that read no other neuron.

    The chord bounds relu(z) by where z lies between its ends. But z = w . x + c is a sum over independent
    inputs, and wherever each of them stands at an end of its own relu(z) is known: with y in [0, 1] the
    places of the inputs on their way to z's top and v = |w| (upper - lower), for any shares m in [0, 1]
        relu(z) <= sum_i v_i m_i y_i + max(0, top - sum_i v_i m_i),
    and the least of these lines is the envelope itself (relu of a modular function is supermodular). All
    m_i = top / sum_i v_i give the chord. `first` (k,) are the places of the neurons; in linf alone. An
    envelope `like` one of the same neurons in another precision keeps its shares in the same order.
    Source: Tjandraatmadja et al. 2020, 2006.14076, Theorem 1; Anderson et al. 2020, 1811.01988.
    """

    def __init__(self, folded: Folded, like: Envelope | None = None) -> None:
        self.first: Tensor = like.first if like else folded.alone
        self.middle, self.radius = folded.inputs.middle_and_radius()
        rows = folded.input_rows[self.first] * self.radius
        self.top = (
            rows.abs().sum(1) + folded.constant[self.first] + folded.input_rows[self.first] @ self.middle
        )
        self.bend = 1 - folded.leak[self.first]
        self.places: Tensor | None = like.places if like else self._read(rows)
        rows = rows if self.places is None else rows.gather(1, self.places)
        self.rows, self.size = rows, rows.abs()
        self.least, self.most = rows.clamp(max=0), rows.clamp(min=0)

    def _read(self, rows: Tensor) -> Tensor | None:
        """The places (k, w) of the inputs that each neuron reads, None where it is most of them."""
        reads = rows != 0
        width = int(reads.sum(1).amax()) if len(rows) else 0
        return reads.to(torch.int8).topk(width, dim=1).indices if width <= DENSE * rows.shape[1] else None

    def chords(self, count: int) -> Lines:
        """For `count` functions the lines that are chords."""
        whole = 2 * self.size.sum(1).clamp(min=1e-30)
        share = (self.top / whole).clamp(0, 1)
        return Lines(self, (share[:, None] * self.rows).repeat(count, 1, 1))

    def moved(self, x: Tensor) -> Tensor:
        """Where x (b, d) stands in the box, -1 to 1, for each of what the neurons read: (b, k or 1, w)."""
        place = (x - self.middle) / self.radius.masked_fill(self.radius == 0, 1.0)
        return place[:, None] if self.places is None else place[:, self.places]

    def pulled(self, weight: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """weight (b, k) times slopes (b, k, w), as rows over the inputs (b, d) and constants (b,)."""
        if self.places is not None:
            parts = (weight[:, :, None] * slopes).flatten(1)
            rows = weight.new_zeros(len(weight), len(self.radius))
            rows.index_add_(1, self.places.flatten(), parts)
        else:
            rows = torch.bmm(weight[:, None], slopes)[:, 0]
        rows = rows / self.radius.masked_fill(self.radius == 0, 1.0)
        return rows, -rows @ self.middle

    def matrix(self, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """What slopes (k, w) add to the values in the middle, as rows over inputs (k, d), and constants."""
        whole = slopes
        if self.places is not None:
            whole = slopes.new_zeros(len(slopes), len(self.radius)).scatter_add_(1, self.places, slopes)
        rows = whole / self.radius.masked_fill(self.radius == 0, 1.0)
        return rows, -rows @ self.middle

    def moves(self, x: Tensor, slopes: Tensor) -> Tensor:
        """What slopes (b, k, w) add to the values in the middle at x (b, d): (b, k)."""
        moved = self.moved(x)
        return (slopes * moved).sum(2) if self.places is not None else torch.bmm(slopes, moved.mT)[:, :, 0]


@dataclass
class Lines:
    """An upper line for each of an envelope's k neurons in each of b functions.

    slopes (b, k, w) are w_i m_i times the radius of input i, for the w inputs that a neuron reads.
    """

    envelope: Envelope
    slopes: Tensor

    def select(self, rows: Tensor) -> Lines:
        """Those of some of the functions."""
        return Lines(self.envelope, self.slopes[rows])

    def exactly(self, envelope: Envelope) -> Lines:
        """The same lines for the same neurons in another precision: valid there, whatever was rounded."""
        slopes = self.slopes.to(envelope.rows)
        return Lines(envelope, torch.minimum(torch.maximum(slopes, envelope.least), envelope.most))

    @cached_property
    def spent(self) -> Tensor:
        """Half of sum_i v_i m_i (b, k)."""
        return torch.linalg.vector_norm(self.slopes, 1, dim=2)

    @property
    def heights(self) -> Tensor:
        """The lines' values (b, k) in the middle of the box."""
        return torch.maximum(self.spent, self.envelope.top - self.spent)

    @cached_property
    def matrices(self) -> list[tuple[Tensor, Tensor]]:
        """Each function's lines as rows over the inputs (k, d) and constants (k,), less their heights."""
        return [self.envelope.matrix(slopes) for slopes in self.slopes]

    def pulled(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """sum_j weight_j line_j for weights (b, k) as rows over the inputs (b, d) and constants (b,)."""
        rows, beside = self.envelope.pulled(weight, self.slopes)
        return rows, (weight * self.heights).sum(1) + beside

    def values(self, x: Tensor) -> Tensor:
        """The lines (b, k) at one point x (b, d) of each function."""
        return self.envelope.moves(x, self.slopes) + self.heights

    def lowered(self, x: Tensor, used: Tensor, rate: float) -> Lines:
        """Those whose shares have moved, by `rate` at most, so that lines `used` (b, k) fall at x (b, d)."""
        envelope = self.envelope
        step = (-0.5 * rate) * used.to(x)
        turn = torch.where(self.spent >= envelope.top - self.spent, step, -step)
        slopes = torch.addcmul(self.slopes, envelope.moved(x) * step[:, :, None], envelope.size)
        slopes.addcmul_(envelope.rows, turn[:, :, None])
        return Lines(envelope, torch.clamp(slopes, envelope.least, envelope.most, out=slopes))


@dataclass
class SharedLines:
    """The lines of each of b branches: those of its group, group (b,)."""

    bank: Lines
    group: Tensor

    @property
    def envelope(self) -> Envelope:
        """Whose lines these are."""
        return self.bank.envelope

    def select(self, rows: Tensor) -> SharedLines:
        """Those of some of the branches."""
        return SharedLines(self.bank, self.group[rows])

    def pulled(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """As of `Lines`, one matrix for all branches of a group."""
        rows = weight.new_zeros(len(weight), len(self.envelope.radius))
        constant = (weight * self.bank.heights[self.group]).sum(1)
        for group, here in self._parts():
            matrix, beside = self.bank.matrices[group]
            rows[here] = weight[here] @ matrix
            constant[here] += weight[here] @ beside
        return rows, constant

    def values(self, x: Tensor) -> Tensor:
        """As of `Lines`."""
        found = self.bank.heights[self.group]
        for group, here in self._parts():
            matrix, beside = self.bank.matrices[group]
            found[here] += torch.addmm(beside, x[here], matrix.T)
        return found

    def _parts(self) -> list[tuple[int, Tensor]]:
        groups = self.group.unique().tolist()
        return [(group, (self.group == group).nonzero()[:, 0]) for group in groups]
