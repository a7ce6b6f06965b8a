"""Two outcomes on the same samples: the difference with its interval, and McNemar's exact test."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import binomtest

from bench.stats import wilson


@dataclass(frozen=True)
class Paired:
    """How a yes-or-no outcome changed from A to B on n shared samples.

    difference: rate of B minus rate of A, with its 95 % interval [low, high]. gained, lost: samples
    that are yes in B alone and in A alone. p: McNemar's exact two-sided p, 1 where nothing changed.
    """

    n: int
    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p: float


def paired(both: int, lost: int, gained: int, neither: int) -> Paired:
    """The paired difference of a 2 x 2 table of counts.

    The interval is Newcombe's (1998, method 10): the Wilson intervals of both rates, joined with their
    correlation phi; (-1, 1) where there are no samples. p is that of McNemar (1947) in its exact form:
    the changed samples are a binomial with probability 1/2.
    """
    n = both + lost + gained + neither
    if n == 0:
        return Paired(0, math.nan, -1.0, 1.0, 0, 0, 1.0)
    first, second = (both + lost) / n, (both + gained) / n
    difference = second - first
    low_a, high_a = wilson(both + lost, n)
    low_b, high_b = wilson(both + gained, n)
    phi = _correlation(both, lost, gained, neither)
    down, up = second - low_b, first - high_a
    low = difference - math.sqrt(max(down**2 + up**2 + 2 * phi * down * up, 0.0))
    up, down = high_b - second, low_a - first
    high = difference + math.sqrt(max(up**2 + down**2 + 2 * phi * up * down, 0.0))
    p = float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    return Paired(n, difference, max(low, -1.0), min(high, 1.0), gained, lost, p)


def _correlation(both: int, lost: int, gained: int, neither: int) -> float:
    """phi of the table, 0 where a margin is empty; Newcombe's continuity correction where it is positive."""
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    if margins == 0:
        return 0.0
    cross = float(both * neither - lost * gained)
    if cross > 0:
        cross = max(cross - (both + lost + gained + neither) / 2, 0.0)
    return cross / math.sqrt(margins)
