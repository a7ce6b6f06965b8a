"""Sparse-RS: random search over which entries or pixels change, and over corners of the box for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import ScoreAccess
from attacks.base import Attack, register_attack
from attacks.images import as_images
from attacks.losses import clearly_wrong, margin_loss
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel

FALLS = {0: 2, 50: 4, 200: 5, 500: 6, 1000: 8, 2000: 10, 4000: 12, 6000: 15, 8000: 20}
HORIZON = 10_000


def share(query: int, queries: int, first: float) -> float:
    """The part alpha of the changed places that query number `query` moves.

    `first` divided by 2, 4, 5, 6, 8, 10, 12, 15, 20 from queries 0, 50, 200, 500, 1000, 2000, 4000, 6000,
    8000 of 10,000 on, in proportion.
    """
    place = query * HORIZON / queries
    return first / max(divisor for after, divisor in FALLS.items() if place > after)


def as_places(x: Tensor, norm: str) -> Tensor:
    """x (n, ...) as places that change as one (n, places, values): entries for l0, pixels for "mask"."""
    return x.flatten(1)[:, :, None] if norm == "l0" else as_images(x).flatten(2).transpose(1, 2)


def as_inputs(places: Tensor, x: Tensor, norm: str) -> Tensor:
    """The inverse of `as_places`, in the shape of x."""
    return (places if norm == "l0" else places.transpose(1, 2)).reshape(x.shape)


def corners(x: Tensor, place: Tensor, box: Box, index: Tensor, randomness: Randomness) -> Tensor:
    """A random corner of the box for each `place` (n, m) of x (n, places, values): (n, m, values).

    One that is what the place holds already becomes the opposite one: a draw spent on no change is lost.
    """
    here = x.gather(1, place[:, :, None].expand(-1, -1, x.shape[2]))
    high = randomness.uniform(index, here.shape[1:]) < 0.5
    drawn = torch.where(high, box.upper, box.lower).to(x)
    same = (drawn == here).all(2, keepdim=True)
    return torch.where(same ^ high, box.upper, box.lower).to(x)


@dataclass
class Search:
    """The places `chosen` (n, places) that change, and the points z (n, places, values), of inputs x."""

    x: Tensor
    index: Tensor
    box: Box
    randomness: Randomness
    chosen: Tensor
    z: Tensor

    @staticmethod
    def start(x: Tensor, index: Tensor, box: Box, randomness: Randomness, count: int) -> Search:
        """`count` random places of each input at random corners."""
        stream = randomness.child("first")
        place = stream.uniform(index, x.shape[1:2]).topk(count, dim=1).indices
        search = Search(x, index, box, randomness, torch.zeros_like(x[:, :, 0], dtype=torch.bool), x)
        search.chosen = search.chosen.scatter(1, place, True)
        search.z = search.put(x, place, corners(x, place, box, index, stream.child("corner")))
        return search

    def put(self, z: Tensor, place: Tensor, values: Tensor) -> Tensor:
        return z.scatter(1, place[:, :, None].expand_as(values), values)

    def next(self, query: int, count: int) -> tuple[Tensor, Tensor]:
        """`count` chosen places go back to x and as many others change: the new choice and points."""
        stream = self.randomness.child("query", query)
        order = stream.uniform(self.index, self.chosen.shape[1:])
        out = order.masked_fill(~self.chosen, -1.0).topk(count, dim=1).indices
        rest = self.chosen.shape[1] - int(self.chosen[0].sum())
        # Where nearly every place may change, too few are left to swap with: the others get new corners.
        new = order.masked_fill(self.chosen, -1.0).topk(min(count, rest), dim=1).indices
        new = torch.cat([new, out[:, new.shape[1] :]], 1)
        chosen = self.chosen.scatter(1, out, False).scatter(1, new, True)
        back = self.put(self.z, out, self.x.gather(1, out[:, :, None].expand(-1, -1, self.x.shape[2])))
        values = corners(self.x, new, self.box, self.index, stream.child("corner"))
        return chosen, self.put(back, new, values)

    def keep(self, rows: Tensor) -> None:
        """Forgets the inputs outside the mask `rows` (n,)."""
        self.x, self.index, self.chosen, self.z = (
            part[rows] for part in (self.x, self.index, self.chosen, self.z)
        )


@register_attack("sparse-rs")
@dataclass(frozen=True, kw_only=True)
class SparseRS(Attack):
    """Random search over few entries or pixels set to corners of the box, from scores alone.

    As many places change as eps allows: entries for l0, whole pixels for "mask". Each of at most `queries`
    queries a sample puts the share alpha of them (at least one) back to x and changes as many others, drawn
    uniformly, to random corners of the box, and is kept where z_y - max_{j != y} z_j falls. alpha goes down
    from `share` on the published schedule, stretched to the number of queries. A corner that the place
    already holds is replaced by the opposite one, which the paper does not: on images of 0 and 1 half of all
    changes would be none. A sample leaves at its first misclassification, so that its count of forward passes
    is the number of queries that it took: sorted, they are the curve of accuracy against queries.
    Source: Croce, Andriushchenko, Singh, Flammarion, Hein 2022, 2006.12834, algorithms 1 and 2.
    """

    paper = "Croce, Andriushchenko, Singh, Flammarion, Hein 2022, 2006.12834"
    norms = ("l0", "mask")
    access = "scores"
    cost = Cost.EXPENSIVE

    queries: int = 5000
    share: float = 0.3

    def __post_init__(self) -> None:
        if self.queries < 1 or not 0 < self.share <= 1:
            raise UserError("sparse-rs needs queries >= 1 and a share in (0, 1]")

    def propose(
        self, model: ScoreAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        best, places = batch.x.clone(), as_places(batch.x, threat.norm)
        count = threat.count(places.shape[1])
        if not count:
            return best
        live = torch.arange(len(batch), device=best.device)
        search = Search.start(places, batch.index, threat.box, randomness, count)
        chosen, z = search.chosen, search.z
        lowest = torch.full((len(batch),), torch.inf).to(best)
        for query in range(self.queries):
            if query:
                moved = max(int(share(query, self.queries, self.share) * count), 1)
                chosen, z = search.next(query, moved)
            points = as_inputs(z, batch.x[live], threat.norm)
            logits = model.logits(points, live)
            gap, wrong = -margin_loss(logits, batch.y[live]), clearly_wrong(logits, batch.y[live])
            better = (gap < lowest) | wrong
            best[live[better]] = points[better]
            lowest = torch.minimum(lowest, gap)
            search.chosen = torch.where(better[:, None], chosen, search.chosen)
            search.z = torch.where(better[:, None, None], z, search.z)
            if bool(wrong.any()):
                live, lowest = live[~wrong], lowest[~wrong]
                search.keep(~wrong)
                if not len(live):
                    break
        return best
