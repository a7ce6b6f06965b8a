"""Square: random search over squares of pixels, from scores alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess, ScoreAccess
from attacks.base import Attack, register_attack
from attacks.images import as_images
from attacks.losses import clearly_wrong, margin_loss
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample, vector_norm

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
HORIZON = 10_000
Window = tuple[Tensor, Tensor, Tensor, Tensor]


def share(query: int, queries: int, first: float) -> float:
    """The part p of the pixels that the square of query number `query` covers.

    Halved at 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 queries, in proportion.
    """
    place = query * HORIZON / queries
    return first / 2 ** sum(place > halving for halving in HALVINGS)


def window(draws: Tensor, like: Tensor, height: int, width: int) -> Window:
    """Index of a height x width window of each image `like` (k, c, h, w), its corner from `draws` (k, 2)."""
    k, channels, h, w = like.shape
    top = (draws[:, 0] * (h - height + 1)).long().clamp(max=h - height)
    left = (draws[:, 1] * (w - width + 1)).long().clamp(max=w - width)
    device = like.device
    return (
        torch.arange(k, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        (top[:, None] + torch.arange(height, device=device))[:, None, :, None],
        (left[:, None] + torch.arange(width, device=device))[:, None, None, :],
    )


def pyramid(side: int) -> Tensor:
    """The l2-normalised pattern (side, side): two halves of opposite sign, each densest at its centre.

    Source: 1912.00049, section 3.4, eq. 3.
    """

    def half(rows: int, columns: int) -> Tensor:
        pattern = torch.zeros(rows, columns)
        centre = (rows // 2, columns // 2)
        for ring in range(max(centre) + 1):
            top, left = max(centre[0] - ring, 0), max(centre[1] - ring, 0)
            pattern[top : centre[0] + ring + 1, left : centre[1] + ring + 1] += 1 / (ring + 1) ** 2
        return pattern / pattern.norm()

    if side == 1:
        return torch.ones(1, 1)
    both = torch.cat([half(side // 2, side), -half(side - side // 2, side)])
    return both / both.norm()


class Proposals:
    """The points that random search tries around the inputs x (k, ...), for linf or l2.

    There are `tries` of each input at once. Everything that depends on x and the radius alone is computed
    once, so that a query costs its window.
    """

    def __init__(
        self, x: Tensor, index: Tensor, threat: ThreatModel, randomness: Randomness, tries: int = 1
    ) -> None:
        x = x.repeat_interleave(tries, 0) if tries > 1 else x
        self.x, self.index, self.threat, self.randomness, self.tries = x, index, threat, randomness, tries
        self.image = as_images(x)
        self.lower, self.upper = (as_images(bound) for bound in threat.bounds(x))
        self.project = threat.projection(x)

    def first(self) -> Tensor:
        """Vertical stripes at the ball's faces (linf), or a grid of patterns scaled to the radius (l2)."""
        stream = self.randomness.child("first")
        _, channels, h, w = self.image.shape
        if self.threat.norm == "linf":
            signs = stream.sign(self.index, (channels, 1, w)).to(self.x).expand_as(self.image)
            return torch.where(signs > 0, self.upper, self.lower).reshape(self.x.shape)
        side = max(min(h, w) // 5, 1)
        tile = pyramid(side).to(self.x).repeat(h // side + 1, w // side + 1)[:h, :w]
        signs = stream.sign(self.index, (channels, h // side + 1, w // side + 1)).to(self.x)
        signs = signs.repeat_interleave(side, 2).repeat_interleave(side, 3)[:, :, :h, :w]
        return self._scaled(tile * signs)

    def next(self, z: Tensor, query: int, part: float) -> Tensor:
        """One changed square (linf), or one square that grows at another's cost (l2): (k * tries, ...)."""
        z = z.repeat_interleave(self.tries, 0) if self.tries > 1 else z
        _, _, h, w = self.image.shape
        stream = self.randomness.child("query", query)
        if self.threat.norm == "linf":
            side = max(round((part * h * w) ** 0.5), 1)
            size = (side, min(side, w)) if side <= h else (h, min(max(round(part * w), 1), w))
            return self._linf(z, stream, size)
        side = max(round((part * h * w) ** 0.5), 3)
        return self._l2(z, stream, min(side, h, w))

    def _draws(self, stream: Randomness, count: int) -> Tensor:
        return stream.uniform(self.index, (self.tries, count)).flatten(0, 1)

    def _linf(self, z: Tensor, stream: Randomness, size: tuple[int, int]) -> Tensor:
        channels = self.image.shape[1]
        draws = self._draws(stream, 2 + channels).to(z)
        spot = window(draws[:, :2], self.image, *size)
        up = (draws[:, 2:] < 0.5)[:, :, None, None]
        lower, upper = self.lower[spot], self.upper[spot]
        fresh = torch.where(up, upper, lower)
        moved = as_images(z).clone()
        # A query that changes nothing is wasted: the opposite signs do change something.
        idle = (fresh == moved[spot]).flatten(1).all(1)[:, None, None, None]
        moved[spot] = torch.where(idle, torch.where(up, lower, upper), fresh)
        return moved.reshape(z.shape)

    def _l2(self, z: Tensor, stream: Randomness, side: int) -> Tensor:
        delta = as_images(z) - self.image
        channels = self.image.shape[1]
        draws = self._draws(stream, 5 + channels).to(z)
        grown = window(draws[:, :2], self.image, side, side)
        spent = window(draws[:, 2:4], self.image, side, side)
        squared = delta.square()
        # The norm of both windows, without counting twice where they overlap.
        inside, everything = delta[grown], squared.sum((1, 2, 3))
        union = squared[grown].sum((2, 3))
        squared[grown] = 0.0
        union = union + squared[spent].sum((2, 3))
        rest = (self.threat.radius**2 - everything).clamp(min=0)[:, None] / channels
        pattern = pyramid(side).to(z).expand(len(z), channels, side, side)
        pattern = torch.where(draws[:, 4, None, None, None] < 0.5, pattern.transpose(2, 3), pattern)
        signs = torch.where(draws[:, 5:] < 0.5, -1.0, 1.0)[:, :, None, None]
        fresh = signs * pattern + inside / inside.norm(dim=(2, 3), keepdim=True).clamp(min=1e-12)
        fresh = fresh / fresh.norm(dim=(2, 3), keepdim=True).clamp(min=1e-12)
        delta[spent] = 0.0
        delta[grown] = fresh * (union + rest).sqrt()[:, :, None, None]
        return self._scaled(delta)

    def _scaled(self, delta: Tensor) -> Tensor:
        length = vector_norm(delta, "l2").clamp(min=1e-12)
        delta = delta * per_sample(self.threat.radius / length, delta)
        return self.project(self.x + delta.reshape(self.x.shape))


def search(
    model: GradientAccess | ScoreAccess,
    batch: Batch,
    rows: Tensor,
    threat: ThreatModel,
    randomness: Randomness,
    *,
    queries: int,
    first: float,
    start: Tensor | None = None,
    tries: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Random search of at most `queries` queries a sample from stripes, or from `start` (k, ...).

    Of every `tries` queries, made at once, the best is kept; the last ones are made even where fewer are
    left. Returns the misclassified point, or else the one of smallest margin (k, ...), which it is (k,), and
    the margin there (k,).
    """

    def around(some: Tensor, tries: int) -> Proposals:
        return Proposals(batch.x[some], batch.index[some], threat, randomness, tries)

    best = around(rows, 1).first() if start is None else start.clone()
    logits = model.logits(best, rows)
    broken = clearly_wrong(logits, batch.y[rows])
    live = (~broken).nonzero()[:, 0]
    low = margin_loss(logits, batch.y[rows])
    z, loss, y = best[live], low[live], batch.y[rows[live]]
    proposals = around(rows[live], tries)
    for query in range(1, queries, tries):
        if not len(live):
            break
        tried = proposals.next(z, query, share(query, queries, first))
        logits = model.logits(tried, rows[live].repeat_interleave(tries))
        if tries > 1:
            value = margin_loss(logits, y.repeat_interleave(tries)).unflatten(0, (-1, tries))
            leader = value.argmax(1) + tries * torch.arange(len(live), device=value.device)
            tried, logits = tried[leader], logits[leader]
        value, wrong = margin_loss(logits, y), clearly_wrong(logits, y)
        better = (value > loss) | wrong
        z, loss = torch.where(per_sample(better, z), tried, z), torch.maximum(value, loss)
        if bool(wrong.any()):
            best[live[wrong]], low[live[wrong]], broken[live] = z[wrong], loss[wrong], wrong
            live, z, loss, y = live[~wrong], z[~wrong], loss[~wrong], y[~wrong]
            proposals = around(rows[live], tries)
    best[live], low[live] = z, loss
    return best, broken, -low


@register_attack("square")
@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random search over squares of pixels from scores alone, with at most `queries` queries a sample.

    Keeps z' where max_{j != y} z_j - z_y rises. linf: one random square at a face of the ball, each channel
    with its own sign. l2: one window's pattern grows by the norm that another window gives up. The square's
    area starts at the share `area` of the image and halves on the published schedule. A vector is one row of
    pixels. A sample leaves at its first misclassification, so that its count of forward passes is the
    number of queries that it took: sorted, they are the curve of accuracy against queries.
    Source: Andriushchenko, Croce, Flammarion, Hein 2020, 1912.00049, algorithms 1 to 3.
    """

    paper = "Andriushchenko, Croce, Flammarion, Hein 2020, 1912.00049"
    norms = ("linf", "l2")
    access = "scores"
    cost = Cost.EXPENSIVE

    queries: int = 5000
    area: float = 0.8

    def __post_init__(self) -> None:
        if self.queries < 1 or not 0 < self.area <= 1:
            raise UserError("square needs queries >= 1 and an area in (0, 1]")

    def propose(
        self, model: ScoreAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        rows = torch.arange(len(batch), device=batch.x.device)
        point, _, _ = search(model, batch, rows, threat, randomness, queries=self.queries, first=self.area)
        return point
