"""Paired differences against brute force, scipy and the numbers of the papers."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom

from bench.paired import paired


def test_newcombe_1998_table_ii() -> None:
    """Newcombe 1998, Statistics in Medicine 17:2635, method 10, Table II: counts and interval."""
    # The paper's difference is p1 - p2 with e, f, g, h; ours is the second rate minus the first.
    for (both, lost, gained, neither), (low, high) in {
        (36, 12, 2, 0): (0.0569, 0.3404),
        (0, 12, 2, 36): (0.0569, 0.3404),
        (54, 0, 0, 0): (-0.0664, 0.0664),
    }.items():
        found = paired(both, lost, gained, neither)
        assert (-found.high, -found.low) == pytest.approx((low, high), abs=6e-5), (both, lost)


@pytest.mark.parametrize("counts", [(3, 4, 1, 2), (10, 0, 5, 5), (0, 7, 7, 0), (1, 12, 0, 3)])
def test_p_is_the_sum_of_the_binomial_as_extreme(counts: tuple[int, int, int, int]) -> None:
    _, lost, gained, _ = counts
    mass = binom.pmf(np.arange(lost + gained + 1), lost + gained, 0.5)
    assert paired(*counts).p == pytest.approx(mass[mass <= mass[gained] * (1 + 1e-9)].sum())


def test_swapping_the_sides_turns_the_difference_and_keeps_p() -> None:
    for both, lost, gained, neither in product((0, 1, 6), repeat=4):
        there, back = paired(both, lost, gained, neither), paired(both, gained, lost, neither)
        if there.n:
            assert there.difference == pytest.approx(-back.difference)
            assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
            assert -1 <= there.low <= there.difference <= there.high <= 1
        assert there.p == back.p


def test_no_samples_leave_everything_open() -> None:
    nothing = paired(0, 0, 0, 0)
    assert math.isnan(nothing.difference)
    assert (nothing.low, nothing.high, nothing.p) == (-1.0, 1.0, 1.0)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """5,000 draws of 60 pairs: the coverage of a 95 % interval is 0.95 within 0.015."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(60, [0.55, 0.15, 0.08, 0.22], size=5000)
    inside = 0
    for both, lost, gained, neither in {tuple(map(int, row)) for row in counts}:
        found = paired(both, lost, gained, neither)
        weight = int((counts == (both, lost, gained, neither)).all(axis=1).sum())
        inside += weight * (found.low <= 0.08 - 0.15 <= found.high)
    assert abs(inside / 5000 - 0.95) < 0.015
