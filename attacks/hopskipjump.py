"""HopSkipJump: walks along the decision boundary towards the input, from labels alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import LabelAccess
from attacks.base import Attack, register_attack
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample, vector_norm

ENTRIES = 20_000_000
"""Points are asked for in groups of at most so many numbers, which bounds the memory."""
FIRST, MOST = 100, 10_000
HALVINGS = 20


class Oracle:
    """Says which points are misclassified, to at most `queries` questions a sample, and keeps the nearest.

    best (n, ...) is the nearest misclassified point seen by `keep`, the clean input before the first one.
    """

    def __init__(self, model: LabelAccess, batch: Batch, threat: ThreatModel, queries: int) -> None:
        self.model, self.batch, self.threat = model, batch, threat
        self.left = torch.full_like(batch.y, queries)
        self.best = batch.x.clone()
        self.distance = torch.full(batch.y.shape, torch.inf, dtype=torch.float64, device=batch.x.device)

    def wrong(self, points: Tensor, rows: Tensor) -> Tensor:
        """Whether the point of each sample is misclassified (k,); False, unasked, where no query is left."""
        answer = self.left[rows] > 0
        asked = rows[answer]
        if len(asked):
            self.left[asked] -= 1
            answer[answer.clone()] = self.model.labels(points[answer], asked) != self.batch.y[asked]
        return answer

    def signs(self, points: Tensor, row: Tensor) -> Tensor:
        """+1 for the misclassified points (m, ...) of the samples `row` (m,), -1 for the others.

        The caller has made sure that queries are left.
        """
        self.left -= torch.bincount(row, minlength=len(self.left))
        return torch.where(self.model.labels(points, row) != self.batch.y[row], 1.0, -1.0).to(points)

    def keep(self, points: Tensor, rows: Tensor) -> None:
        """Notes misclassified points (k, ...) of the samples `rows` where they are nearer than any before."""
        distance = self.threat.distance(self.batch.x[rows], points)
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
    """`point` (k, ...) at `part` (k,) of its way from x: along the segment (l2), or clipped (linf)."""
    if norm == "l2":
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


def normals(
    oracle: Oracle, z: Tensor, rows: Tensor, size: Tensor, samples: int, randomness: Randomness
) -> Tensor:
    """The boundary's unit normals at z (k, ...), estimated from the labels of `samples` points around each.

    sum_b (phi_b - mean phi) u_b (eq. 16), phi_b = 1 where z + size u_b, clipped to the box, is misclassified
    and -1 elsewhere; sum_b phi_b u_b where all phi agree. size (k,) is in input units.
    """
    shape, flat, norm = z.shape[1:], z.flatten(1), oracle.threat.norm
    count = oracle.left[rows].clamp(max=samples)
    group = max(min(ENTRIES // z.numel(), samples), 1)
    signed, plain, phi = torch.zeros_like(flat), torch.zeros_like(flat), torch.zeros_like(size)
    for first in range(0, int(count.max()), group):
        draw = torch.arange(first, min(first + group, samples), device=z.device)
        row, place = (draw < count[:, None]).nonzero().T
        keys = oracle.batch.index[rows[row]] * MOST + draw[place]
        u = randomness.normal(keys, shape) if norm == "l2" else 2 * randomness.uniform(keys, shape) - 1
        u = oracle.threat.steepest(u.to(z)) if norm == "l2" else u.to(z)
        points = oracle.threat.box.clamp(z[row] + per_sample(size[row], u) * u)
        u = ((points - z[row]) / per_sample(size[row], u)).flatten(1)
        sign = oracle.signs(points, rows[row])
        signed.index_add_(0, row, sign[:, None] * u)
        plain.index_add_(0, row, u)
        phi.index_add_(0, row, sign)
    mean = (phi / count.clamp(min=1).to(phi))[:, None]
    normal = torch.where(mean.abs() == 1, signed, signed - mean * plain)
    return oracle.threat.steepest(normal.reshape(z.shape))


def leap(oracle: Oracle, z: Tensor, normal: Tensor, rows: Tensor, length: Tensor) -> Tensor:
    """z (k, ...) moved along `normal` by `length` (k,), halved until the point is misclassified; else z."""
    landed, live = z.clone(), torch.arange(len(z), device=z.device)
    for _ in range(HALVINGS):
        tried = oracle.threat.box.clamp(z[live] + per_sample(length[live], z) * normal[live])
        wrong = oracle.wrong(tried, rows[live])
        landed[live[wrong]] = tried[wrong]
        live, length = live[~wrong], length / 2
        if not len(live):
            break
    return landed


@register_attack("hopskipjump")
@dataclass(frozen=True, kw_only=True)
class HopSkipJump(Attack):
    """Finds a near misclassified point from labels alone, with at most `queries` queries a sample.

    From a misclassified point anywhere in the box (at most `tries` are tried), each iteration t bisects
    the way to x down to the boundary, estimates the boundary's normal there from 100 sqrt(t) labels
    around it, and leaps by d / sqrt(t) along it, d the distance to x, halved until it lands among the
    misclassified. The nearest point seen is handed over; with an eps a sample leaves once it is inside
    the ball. Sorted, the counts of forward passes are the curve of accuracy against queries.
    Source: Chen, Jordan, Wainwright 2020, 1904.02144, algorithm 2.
    """

    paper = "Chen, Jordan, Wainwright 2020, 1904.02144"
    norms = ("linf", "l2")
    minimal = True
    access = "labels"
    cost = Cost.EXPENSIVE

    queries: int = 5000
    tries: int = 100

    def __post_init__(self) -> None:
        if self.queries < 1 or self.tries < 1:
            raise UserError("hopskipjump needs queries >= 1 and tries >= 1")

    def propose(
        self, model: LabelAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        oracle, d = Oracle(model, batch, threat, self.queries), math.prod(batch.x.shape[1:])
        # The published precision is d^(-3/2) of the distance in l2 and d^-2 in linf; float32 ends at 2^-20.
        precision = (1.5 if threat.norm == "l2" else 2.0) * math.log2(d)
        halvings = min(max(math.ceil(precision), HALVINGS // 2), HALVINGS)
        point, rows = starts(oracle, self.tries, randomness)
        point[rows] = bisect(oracle, point[rows], rows, halvings)
        step = 1
        while len(rows := oracle.live(rows)):
            z = point[rows]
            distance = threat.distance(batch.x[rows], z).to(z)
            size = distance / d if step > 1 else torch.full_like(distance, 0.1 * threat.box.width)
            samples = min(int(FIRST * step**0.5), MOST)
            normal = normals(oracle, z, rows, size, samples, randomness.child("step", step))
            landed = leap(oracle, z, normal, rows, distance / step**0.5)
            point[rows] = bisect(oracle, landed, rows, halvings)
            step += 1
        return threat.project(batch.x, oracle.best)
