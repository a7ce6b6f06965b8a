"""Intervals for fractions."""

from __future__ import annotations

from functools import lru_cache

from scipy.stats import binomtest


@lru_cache(maxsize=4096)
def wilson(successes: int, n: int) -> tuple[float, float]:
    """The Wilson 95 % interval of a fraction; (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(int(successes), int(n)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
