"""Upper lines of ReLUs over inputs that move along curves: each over what every curve adds to it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from certify.curves import Corners
from certify.envelope import Envelope
from certify.folded import Folded

# What adds less than this part of a neuron's largest share is lumped with all else that does.
SMALL = 1e-2


class CurveEnvelope(Envelope):
    """The envelopes of relu(z), z a sum of independent parts: what each curve of the inputs adds to it.

    As over a box, where a part is one input's; here `rows` (k, w) are half the ranges of the parts of each
    neuron and `halfway` their middles. The last part is the sum of all small ones, `rest` (k, d) as a
    function of the coordinates. Another reads mostly one coordinate, `spots` of weight `own` (k, w - 1);
    what more it reads are the entries `others`: places among the parts, coordinates, weights.
    """

    def __init__(self, folded: Folded, like: Envelope | None = None) -> None:
        inputs = folded.inputs
        assert isinstance(inputs, Corners)
        self.first = like.first if like else folded.alone
        _, self.radius = inputs.middle_and_radius()
        self.bend = 1 - folded.leak[self.first]
        rows, constant = folded.input_rows[self.first], folded.constant[self.first]
        values = [part.values(rows) for part in inputs.lines]
        least = torch.cat([part.amin(2) for part in values], 1)
        most = torch.cat([part.amax(2) for part in values], 1)
        halfway, rises = (most + least) / 2, (most - least) / 2
        self.top = most.sum(1) + constant
        largest = torch.where(rises > SMALL * rises.amax(1, keepdim=True), rises, 0.0)
        self.places = places = self._read(largest) if like is None or like.places is None else like.places
        self._lay_out(rows, places, inputs)
        large = [part.gather(1, places) for part in (halfway, rises)]
        lumps = [part.sum(1) - own.sum(1) for part, own in zip((halfway, rises), large, strict=True)]
        self.halfway, self.rows = (
            torch.cat([own, lump[:, None]], 1) for own, lump in zip(large, lumps, strict=True)
        )
        self.rows = self.size = self.rows.clamp(min=0)
        self.least, self.most = torch.zeros_like(self.rows), self.rows
        self.scale = self.rows.masked_fill(self.rows == 0, 1.0)

    def _read(self, rows: Tensor) -> Tensor:
        reads = rows != 0
        width = int(reads.sum(1).amax()) if len(rows) else 0
        return reads.to(torch.int8).topk(width, dim=1).indices

    def _lay_out(self, rows: Tensor, places: Tensor, inputs: Corners) -> None:
        """Where the large parts, curves `places` (k, w - 1), read what, and the rows of the rest."""
        widest = max(part.coordinates.shape[1] for part in inputs.lines)
        spots = torch.cat([
            pad(part.coordinates, (0, widest - part.coordinates.shape[1]), value=-1) for part in inputs.lines
        ])[places].flatten(1)  # fmt: skip
        weight = rows.gather(1, spots.clamp(min=0)) * (spots >= 0)
        self.rest = rows.scatter_add(1, spots.clamp(min=0), -weight)
        spots, weight = (part.unflatten(1, (-1, widest)) for part in (spots.clamp(min=0), weight))
        first = (weight != 0).to(torch.int8).argmax(2, keepdim=True)
        self.spots, self.own = spots.gather(2, first)[..., 0], weight.gather(2, first)[..., 0]
        more = weight.scatter(2, first, 0.0)
        neuron, part, entry = more.nonzero(as_tuple=True)
        parts = places.shape[1] + 1
        self.others = neuron * parts + part, spots[neuron, part, entry], more[neuron, part, entry]

    def moved(self, x: Tensor) -> Tensor:
        """Where x (b, d) stands in each part's range, -1 to 1: (b, k, w)."""
        parts = x.new_empty(len(x), *self.rows.shape)
        torch.mul(x[:, self.spots], self.own, out=parts[:, :, :-1])
        parts[:, :, -1] = x @ self.rest.T
        place, spot, own = self.others
        parts.flatten(1).index_add_(1, place, x[:, spot] * own)
        return parts.sub_(self.halfway).div_(self.scale)

    def pulled(self, weight: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        share = weight[:, :, None] * slopes / self.scale
        rows = share[:, :, -1] @ self.rest
        rows.index_add_(1, self.spots.flatten(), (share[:, :, :-1] * self.own).flatten(1))
        place, spot, own = self.others
        rows.index_add_(1, spot, share.flatten(1)[:, place] * own)
        return rows, -(share * self.halfway).flatten(1).sum(1)

    def matrix(self, slopes: Tensor) -> tuple[Tensor, Tensor]:
        share = slopes / self.scale
        rows = share[:, -1:] * self.rest
        rows.scatter_add_(1, self.spots, share[:, :-1] * self.own)
        place, spot, own = self.others
        neuron = place // share.shape[1]
        rows.index_put_((neuron, spot), share.flatten()[place] * own, accumulate=True)
        return rows, -(share * self.halfway).sum(1)


def envelope_of(folded: Folded, like: Envelope | None = None) -> Envelope:
    """The envelopes of the folded network's first neurons, over a box or along curves."""
    return (CurveEnvelope if folded.inputs.curved else Envelope)(folded, like)
