"""GeoDA: normals of the boundary from labels, and from x along each of them to where it is crossed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import LabelAccess
from attacks.base import Attack, register_attack
from attacks.images import as_images
from attacks.oracle import HAIR, MOST, Oracle, bisect, slope, starts
from attacks.simba import cosines
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample, vector_norm

FIRST = 50
"""Queries that the first step gets at least, where there are as many."""
LARGER = 1.5
SHORTEST = 0.01


def allotment(queries: int, ratio: float) -> list[float]:
    """Weights ratio^(-2t/3) of steps t = 0, 1, ..., as many as leave at least FIRST queries for the first."""
    growth, weights = ratio ** (-2 / 3), [1.0]
    while queries >= FIRST * (sum(weights) + weights[-1] * growth):
        weights.append(weights[-1] * growth)
    return weights


class Waves:
    """The inputs' low frequencies: of each side of images (n, c, h, w) the share `band`, else all of them."""

    def __init__(self, x: Tensor, band: float) -> None:
        self.shape = as_images(x).shape[1:]
        band = band if x.dim() == 4 else 1.0
        self.down, self.across = (cosines(side, x)[: math.ceil(band * side)] for side in self.shape[1:])
        self.sides = (self.shape[0], len(self.down), len(self.across))

    def draw(self, keys: Tensor, randomness: Randomness, like: Tensor) -> Tensor:
        """A Gaussian sum of waves for each of `keys` (m,), of mean squared length 1: (m, ...) as `like`."""
        u = randomness.normal(keys, self.sides).to(like) / math.prod(self.sides) ** 0.5
        return (self.down.mT @ u @ self.across).reshape(-1, *like.shape[1:])

    def part(self, u: Tensor) -> Tensor:
        """What the waves can say of u (k, ...): its orthogonal projection."""
        u_hat = self.down @ as_images(u) @ self.across.mT
        return (self.down.mT @ u_hat @ self.across).reshape(u.shape)


@dataclass(frozen=True)
class Way:
    """The least moves from x (k, ...) in the box that gain part after part of normal . x' there."""

    x: Tensor
    normal: Tensor
    threat: ThreatModel
    whole: Tensor

    @staticmethod
    def along(x: Tensor, normal: Tensor, threat: ThreatModel) -> Way:
        """The way from x that ends where the box allows `normal` no further gain."""
        most, _ = threat.nearest_gain(x, normal, torch.full((len(x),), torch.inf, device=x.device))
        return Way(x, normal, threat, gained(normal, most))

    def place(self, z: Tensor) -> Tensor:
        """The part (k,) where the way crosses the plane through z whose normal it has."""
        part = gained(self.normal, z - self.x) / self.whole.clamp(min=1e-300)
        return part.clamp(SHORTEST, 1.0)

    def at(self, part: Tensor) -> Tensor:
        """The points (k, ...) after `part` (k,) of the way."""
        move, _ = self.threat.nearest_gain(self.x, self.normal, part * self.whole)
        return self.threat.box.clamp((self.x.double() + move).to(self.x))


def gained(normal: Tensor, move: Tensor) -> Tensor:
    """normal . move of each sample in float64 (k,)."""
    return (normal.double() * move.double()).flatten(1).sum(1)


def crossing(oracle: Oracle, z: Tensor, rows: Tensor, normal: Tensor, halvings: int) -> Tensor:
    """Where x moves against the boundary along `normal` (k, ...) until misclassified; z where it never is.

    Asked about first where the plane through z is crossed, then at parts of the way LARGER each; the last
    part is bisected.
    """
    way, best = Way.along(oracle.batch.x[rows], normal, oracle.threat), z.clone()
    high = way.place(z)
    low, found = torch.zeros_like(high), torch.zeros_like(rows, dtype=torch.bool)
    live = torch.arange(len(rows), device=z.device)
    while len(live):
        tried = way.at(high)[live]
        wrong = oracle.wrong(tried, rows[live])
        best[live[wrong]], found[live[wrong]] = tried[wrong], True
        live = live[~wrong & (high[live] < 1) & (oracle.left[rows[live]] > 0)]
        low[live] = high[live]
        high[live] = (LARGER * high[live]).clamp(max=1.0)
    for _ in range(halvings):
        middle = (low + high) / 2
        tried, wrong = way.at(middle), found.clone()
        wrong[found] = oracle.wrong(tried[found], rows[found])
        best[wrong] = tried[wrong]
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
    oracle.keep(best[found], rows[found])
    return best


@register_attack("geoda")
@dataclass(frozen=True, kw_only=True)
class GeoDA(Attack):
    """Moves x along ever better normals of the boundary, estimated from labels, to where each crosses it.

    From a misclassified point (at most `tries` starts) bisected to the boundary, each step t asks for the
    labels of N_t points z + size u around the boundary point z and takes w = sum (phi - mean phi) u, phi = 1
    where misclassified and else -1. The next z is where x + r v is first misclassified: v is w / ||w|| in l2,
    sign(w) in linf, and in l1 the entries of largest |w|, each to its bound; r is bisected `halvings` times.
    u is Gaussian among the waves (DCT) below the share `band` of each side's frequencies; inputs that are no
    images have no waves, and there it is plain. N_t grows by `ratio`^(-2/3) from step to step, which makes
    the paper's bound smallest; the number of steps leaves the first one 50 queries or a little more.
    Deviations: size is `width` times ||z - x||_2, where the paper's is fixed, phi is centred, as the start
    may lie off the boundary, ways are held to the box entry by entry in every norm, and z stays where the
    next one is farther. What is handed over is moved back by a hair (see attacks/oracle.py). With an eps a
    sample leaves once it is inside the ball.
    Source: Rahmati, Moosavi-Dezfooli, Frossard, Dai 2020, 2003.06468, algorithm 1 and eq. 19.
    """

    paper = "Rahmati, Moosavi-Dezfooli, Frossard, Dai 2020, 2003.06468"
    norms = ("l2", "linf", "l1")
    minimal = True
    access = "labels"
    cost = Cost.EXPENSIVE

    queries: int = 5000
    tries: int = 100
    band: float = 0.35
    ratio: float = 0.6
    width: float = 1.0
    halvings: int = 10

    def __post_init__(self) -> None:
        if min(self.queries, self.tries) < 1 or not 1 <= self.halvings <= 20:
            raise UserError("geoda needs queries >= 1, tries >= 1 and halvings from 1 to 20")
        if not (0 < self.band <= 1 and 0 < self.ratio < 1 and self.width > 0):
            raise UserError("geoda needs a band in (0, 1], a ratio between 0 and 1 and a width > 0")

    def propose(
        self, model: LabelAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        oracle, waves = Oracle(model, batch, threat, self.queries, HAIR), Waves(batch.x, self.band)
        point, rows = starts(oracle, self.tries, randomness)
        point[rows] = bisect(oracle, point[rows], rows, self.halvings)
        weights, step = allotment(self.queries, self.ratio), 0
        while len(rows := oracle.live(rows)):
            share = weights[step] / sum(weights[step:]) if step < len(weights) else 1.0
            # What the way to the boundary will ask: the plane's crossing, one more and the bisection.
            samples = (oracle.left[rows] * share).long() - self.halvings - 2
            stream, z = randomness.child("step", step), point[rows]
            normal = self._normal(oracle, waves, z, rows, samples.clamp(1, MOST), stream)
            crossed = crossing(oracle, z, rows, normal, self.halvings)
            x = batch.x[rows]
            nearer = threat.distance(x, crossed) < threat.distance(x, z)
            point[rows[nearer]] = crossed[nearer]
            step += 1
        return threat.project(batch.x, oracle.best)

    def _normal(
        self, oracle: Oracle, waves: Waves, z: Tensor, rows: Tensor, samples: Tensor, randomness: Randomness
    ) -> Tensor:
        """The boundary's normal at z (k, ...) as the waves see it, up to its length."""
        size = self.width * vector_norm(z - oracle.batch.x[rows], "l2")

        def around(row: Tensor, keys: Tensor) -> Tensor:
            u = waves.draw(keys, randomness, z)
            return oracle.threat.box.clamp(z[row] + per_sample(size[row], z) * u)

        return waves.part(slope(oracle, z, rows, size, samples, around))
