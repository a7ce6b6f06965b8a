"""Upper lines of ReLUs over inputs that move along curves: each over what every curve adds to it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from certify.curves import Corners
from certify.envelope import Envelope
from certify.folded import Folded


class CurveEnvelope(Envelope):
    """The envelopes of relu(z), z a sum of independent parts: what each curve of the inputs adds to it.

    As over a box, where a part is one input's; here `rows` (k, w) are half the ranges of the parts of each
    neuron, `halfway` their middles, `spots` (k, w, c) the coordinates of their curves and `own` the neuron's
    rows there.
    """

    def __init__(self, folded: Folded, like: Envelope | None = None) -> None:
        inputs = folded.inputs
        assert isinstance(inputs, Corners)
        alone = ~(folded.neuron_rows != 0).any(1)
        self.first = like.first if like else alone.nonzero()[:, 0]
        self.middle, self.radius = inputs.middle_and_radius()
        self.bend = 1 - folded.leak[self.first]
        rows, constant = folded.input_rows[self.first], folded.constant[self.first]
        values = [part.values(rows) for part in inputs.lines]
        least, most = (
            torch.cat([end(part) for part in values], 1)
            for end in (lambda part: part.amin(2), lambda part: part.amax(2))
        )
        self.halfway, rises = (most + least) / 2, (most - least) / 2
        self.top = most.sum(1) + constant
        self.places = like.places if like else self._read(rises)
        if self.places is None:
            self.places = torch.arange(rises.shape[1], device=rows.device).expand(len(rows), -1)
        widest = max(part.coordinates.shape[1] for part in inputs.lines)
        spots = torch.cat([
            pad(part.coordinates, (0, widest - part.coordinates.shape[1]), value=-1) for part in inputs.lines
        ])[self.places]  # fmt: skip
        neurons = torch.arange(len(rows), device=rows.device)[:, None, None]
        self.spots = spots.clamp(min=0)
        self.own = rows[neurons, self.spots] * (spots >= 0)
        self.halfway = self.halfway.gather(1, self.places)
        self.rows = self.size = rises.gather(1, self.places)
        self.least, self.most = torch.zeros_like(self.rows), self.rows
        self.scale = self.rows.masked_fill(self.rows == 0, 1.0)

    def moved(self, x: Tensor) -> Tensor:
        """Where x (b, d) stands in each part's range, -1 to 1: (b, k, w)."""
        parts = torch.zeros_like(self.rows).expand(len(x), -1, -1).clone()
        for spot, own in zip(self.spots.unbind(2), self.own.unbind(2), strict=True):
            parts.addcmul_(x[:, spot], own)
        return parts.sub_(self.halfway).div_(self.scale)

    def pulled(self, weight: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        share = weight[:, :, None] * slopes / self.scale
        rows = weight.new_zeros(len(weight), len(self.radius))
        rows.index_add_(1, self.spots.flatten(), (share[..., None] * self.own).flatten(1))
        return rows, -(share * self.halfway).flatten(1).sum(1)

    def matrix(self, slopes: Tensor) -> tuple[Tensor, Tensor]:
        share = slopes / self.scale
        rows = slopes.new_zeros(len(slopes), len(self.radius))
        rows.scatter_add_(1, self.spots.flatten(1), (share[:, :, None] * self.own).flatten(1))
        return rows, -(share * self.halfway).sum(1)


def envelope_of(folded: Folded, like: Envelope | None = None) -> Envelope:
    """The envelopes of the folded network's first neurons, over a box or along curves."""
    return (CurveEnvelope if folded.inputs.curved else Envelope)(folded, like)
