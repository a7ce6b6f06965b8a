"""The exact best pair of features for a saliency map, without a table of all pairs.

Problem: over p != q maximise (a_p + a_q)(c_p + c_q) subject to a_p + a_q > 0 and c_p + c_q > 0.

Claim: some best pair has only features that at most one other feature dominates, where r dominates p
when a_r >= a_p and c_r >= c_p, ties of both broken by the index. Proof: let (p, q) be a best pair and p
be dominated by two features or more. One of them, r, is not q. Both sums of (r, q) are no smaller than
those of (p, q), so that it is feasible and its score, a product of positive sums, is no smaller: it
is a best pair as well. Domination is a strict order on finitely many features, so the exchange ends.
Addition and multiplication round monotonically, so the claim holds for floating-point scores as they
are computed, to the last bit.

The two outermost layers of the Pareto front hold tens of features where d is 10^5, and a sort finds them.
"""

from __future__ import annotations

import torch
from torch import Tensor

TABLE = 1 << 22
"""Entries of the score table that are held at a time: fronts too large for it are taken in slices."""


def front(a: Tensor, c: Tensor) -> Tensor:
    """The features (k, m) of each row of a, c (k, d) that at most one other dominates, padded with -1.

    In the order of falling a, then falling c, a feature is dominated by exactly the earlier ones of no
    smaller c: it is kept where the second largest c before it is smaller than its own. Features at
    -inf in c are never kept.
    """
    order = c.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, a.gather(1, order).argsort(dim=1, descending=True, stable=True))
    key = c.gather(1, order)
    none = key.new_full((len(key), 1), -torch.inf)
    largest = torch.cat([none, key.cummax(1).values[:, :-1]], 1)
    second = torch.cat([none, torch.minimum(key, largest).cummax(1).values[:, :-1]], 1)
    kept = key > second
    rows, places = kept.nonzero(as_tuple=True)
    slots = (kept.cumsum(1) - 1)[rows, places]
    width = int(kept.sum(1).max()) if len(kept) else 0
    members = order.new_full((len(key), max(width, 1)), -1)
    members[rows, slots] = order[rows, places]
    return members


def best_pair(a: Tensor, c: Tensor, free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs p, q (k,) among the `free` (k, d) features of a, c (k, d), and their scores (k,).

    The score is -inf where no pair is feasible.
    """
    a, c = a.masked_fill(~free, -torch.inf), c.masked_fill(~free, -torch.inf)
    members = front(a, c)
    absent = members < 0
    first, second = (t.gather(1, members.clamp(min=0)).masked_fill(absent, -torch.inf) for t in (a, c))
    k, m = members.shape
    score = a.new_full((k,), -torch.inf)
    pair = members.new_zeros(k, 2)
    slot = torch.arange(m, device=a.device)
    height = max(1, TABLE // max(1, k * m))
    for top in range(0, m, height):
        part = slot[top : top + height]
        rise = first[:, part, None] + first[:, None, :]
        fall = second[:, part, None] + second[:, None, :]
        feasible = (rise > 0) & (fall > 0) & (part[:, None] < slot)
        table = torch.where(feasible, rise * fall, -torch.inf).flatten(1)
        value, place = table.max(1)
        better = value > score
        places = torch.stack([part[place // m], place % m], 1)
        pair = torch.where(better[:, None], members.gather(1, places), pair)
        score = torch.where(better, value, score)
    return pair[:, 0], pair[:, 1], score
