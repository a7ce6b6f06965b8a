"""An adversary that sees labels alone: its questions, where it may begin, and the way to the boundary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.access import LabelAccess
from models.base import Batch
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample, vector_norm

HAIR, NEAR = 1e-5, 0.1
ENTRIES = 20_000_000
"""Points are asked for in groups of at most so many numbers, which bounds the memory."""
MOST = 10_000
"""No more points than this are asked for around one."""


class Oracle:
    """Says which points are misclassified, to at most `queries` questions a sample, and keeps the nearest.

    Points are cut off by the box before they are asked about or kept: rays may leave it. best (n, ...) is the
    nearest misclassified point seen by `keep`, the clean input before the first one.
    Of very many points the nearest fools by less than rounding: with `hair` what is noted lies farther from
    the input by that share of its distance, or of NEAR times the box's width where that is more.
    """

    def __init__(
        self, model: LabelAccess, batch: Batch, threat: ThreatModel, queries: int, hair: float = 0.0
    ) -> None:
        self.model, self.batch, self.threat, self.hair = model, batch, threat, hair
        self.left = torch.full_like(batch.y, queries)
        self.best = batch.x.clone()
        self.distance = torch.full(batch.y.shape, torch.inf, dtype=torch.float64, device=batch.x.device)

    def wrong(self, points: Tensor, rows: Tensor) -> Tensor:
        """Whether the point of each sample is misclassified (k,); False, unasked, where no query is left."""
        answer = self.left[rows] > 0
        asked = rows[answer]
        if len(asked):
            self.left[asked] -= 1
            answer[answer.clone()] = (
                self.model.labels(self.threat.box.clamp(points[answer]), asked) != self.batch.y[asked]
            )
        return answer

    def signs(self, points: Tensor, row: Tensor) -> Tensor:
        """+1 for the misclassified points (m, ...) of the samples `row` (m,), -1 for the others.

        The caller has made sure that queries are left.
        """
        self.left -= torch.bincount(row, minlength=len(self.left))
        labels = self.model.labels(self.threat.box.clamp(points), row)
        return torch.where(labels != self.batch.y[row], 1.0, -1.0).to(points)

    def keep(self, points: Tensor, rows: Tensor) -> None:
        """Notes misclassified points (k, ...) of the samples `rows` where they are nearer than any before."""
        x = self.batch.x[rows]
        points = self.threat.box.clamp(points)
        distance = self.threat.distance(x, points)
        if self.hair:
            part = self.hair * (NEAR * self.threat.box.width / distance.clamp(min=1e-30)).clamp(min=1.0)
            points = self.threat.box.clamp(points + per_sample(part.to(x), x) * (points - x))
            distance = self.threat.distance(x, points)
        nearer = distance < self.distance[rows]
        self.best[rows[nearer]], self.distance[rows[nearer]] = points[nearer], distance[nearer]

    def live(self, rows: Tensor) -> Tensor:
        """Those of the samples `rows` that have queries left and are still outside the ball."""
        inside = self.threat.contains(self.batch.x[rows], self.best[rows]) & self.distance[rows].isfinite()
        done = inside & (self.threat.eps is not None)
        return rows[(self.left[rows] > 0) & ~done]


def candidate(x: Tensor, index: Tensor, threat: ThreatModel, attempt: int, stream: Randomness) -> Tensor:
    """A point of the box to start from (k, ...): uniform noise, as published, except on the first attempts.

    Those are the inverted image and two flat ones, for networks that give all noise one label.
    """
    box = threat.box
    if attempt == 0:
        return box.clamp(box.lower + (box.upper - x))
    if attempt < 3:
        return torch.full_like(x, box.lower if attempt == 1 else box.upper)
    return box.clamp(box.lower + box.width * stream.uniform(index, x.shape[1:]).to(x))


def starts(oracle: Oracle, tries: int, randomness: Randomness) -> tuple[Tensor, Tensor]:
    """A misclassified point anywhere in the box (n, ...), and the samples that have one (k,)."""
    batch, point = oracle.batch, oracle.batch.x.clone()
    found, rows = torch.zeros_like(batch.y, dtype=torch.bool), torch.arange(len(batch), device=batch.x.device)
    for attempt in range(tries):
        stream = randomness.child("start", attempt)
        tried = candidate(batch.x[rows], batch.index[rows], oracle.threat, attempt, stream)
        wrong = oracle.wrong(tried, rows)
        point[rows[wrong]], found[rows[wrong]] = tried[wrong], True
        rows = rows[~wrong]
        if not len(rows):
            break
    oracle.keep(point[found], found.nonzero()[:, 0])
    return point, found.nonzero()[:, 0]


def towards(x: Tensor, point: Tensor, part: Tensor, norm: str) -> Tensor:
    """`point` (k, ...) at `part` (k,) of its way from x: along the segment, or clipped (linf)."""
    if norm != "linf":
        return torch.where(per_sample(part < 1, x), x + per_sample(part, x) * (point - x), point)
    reach = per_sample(part * vector_norm(point - x, "linf"), x)
    return torch.maximum(torch.minimum(point, x + reach), x - reach)


def bisect(oracle: Oracle, point: Tensor, rows: Tensor, halvings: int) -> Tensor:
    """The misclassified `point` (k, ...) brought to the boundary on its way to x; still misclassified."""
    x, norm = oracle.batch.x[rows], oracle.threat.norm
    low, high, best = torch.zeros(len(x)).to(x), torch.ones(len(x)).to(x), point
    for _ in range(halvings):
        middle = (low + high) / 2
        tried = towards(x, point, middle, norm)
        wrong = oracle.wrong(tried, rows)
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
        best = torch.where(per_sample(wrong, x), tried, best)
    oracle.keep(best, rows)
    return best


def side(
    oracle: Oracle,
    z: Tensor,
    rows: Tensor,
    size: Tensor,
    samples: int,
    around: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The steepest unit direction (k, ...) to where points around z are misclassified; see `slope`."""
    return oracle.threat.steepest(slope(oracle, z, rows, size, samples, around))


def slope(
    oracle: Oracle,
    z: Tensor,
    rows: Tensor,
    size: Tensor,
    samples: int | Tensor,
    around: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Where points around z are misclassified (k, ...), up to scale, from `samples` labels of each sample.

    sum_b (phi_b - mean phi) u_b, phi_b = 1 where z + size u_b is misclassified and -1 elsewhere; sum_b phi_b
    u_b where all phi agree. around(row, keys) gives points for places `row` among z, keys (m,) their draws.
    """
    count = oracle.left[rows].clamp(max=samples)
    most = int(count.max())
    group = max(min(ENTRIES // z.numel(), most), 1)
    signed, plain, phi = (
        torch.zeros_like(z.flatten(1)),
        torch.zeros_like(z.flatten(1)),
        torch.zeros_like(size),
    )
    for first in range(0, most, group):
        draw = torch.arange(first, min(first + group, most), device=z.device)
        row, place = (draw < count[:, None]).nonzero().T
        points = around(row, oracle.batch.index[rows[row]] * MOST + draw[place])
        u = ((points - z[row]) / per_sample(size[row], points)).flatten(1)
        sign = oracle.signs(points, rows[row])
        signed.index_add_(0, row, sign[:, None] * u)
        plain.index_add_(0, row, u)
        phi.index_add_(0, row, sign)
    mean = (phi / count.clamp(min=1).to(phi))[:, None]
    total = torch.where(mean.abs() == 1, signed, signed - mean * plain)
    return total.reshape(z.shape)
