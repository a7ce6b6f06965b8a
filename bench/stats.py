"""Intervals for fractions, in closed form: scipy.stats takes longer to import than all the rest of a run."""

from __future__ import annotations

from math import sqrt

# The standard normal's 97.5 % point.
Z = 1.959963984540054


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The Wilson 95 % interval of a fraction; (0, 1) where n is 0.

    As scipy.stats.binomtest computes it, operation by operation, so that both give the same bits.
    """
    successes, n = int(successes), int(n)
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    width = 2 * (n + Z**2)
    center = (2 * n * share + Z**2) / width
    reach = Z / width * sqrt(4 * n * share * (1 - share) + Z**2)
    return 0.0 if successes == 0 else center - reach, 1.0 if successes == n else center + reach
