"""HopSkipJump: walks along the decision boundary towards the input, from labels alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import LabelAccess
from attacks.base import Attack, register_attack
from attacks.oracle import MOST, Oracle, bisect, side, starts
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample

FIRST = 100
HALVINGS = 20


def normals(
    oracle: Oracle, z: Tensor, rows: Tensor, size: Tensor, samples: int, randomness: Randomness
) -> Tensor:
    """The boundary's unit normals at z (k, ...), estimated from the labels of `samples` points around each.

    sum_b (phi_b - mean phi) u_b (eq. 16), phi_b = 1 where z + size u_b, clipped to the box, is misclassified
    and -1 elsewhere; sum_b phi_b u_b where all phi agree. size (k,) is in input units.
    """
    norm, box = oracle.threat.norm, oracle.threat.box

    def around(row: Tensor, keys: Tensor) -> Tensor:
        shape = z.shape[1:]
        u = randomness.normal(keys, shape) if norm == "l2" else 2 * randomness.uniform(keys, shape) - 1
        u = oracle.threat.steepest(u.to(z)) if norm == "l2" else u.to(z)
        return box.clamp(z[row] + per_sample(size[row], u) * u)

    return side(oracle, z, rows, size, samples, around)


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
