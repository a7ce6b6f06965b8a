"""The last bit of margin in l2 and l1: ever smaller steps from the best point that an ascent came to."""

from __future__ import annotations

from torch import Tensor

from attacks.chains import Course, Search

# An ascent ends with steps of 0.02 radii, which swing to and fro across the kinks of a network.
COURSES = (Course(steps=20, first=0.3), Course(steps=20, first=0.05, last=0.002))


def settle(search: Search, rows: Tensor, stage: str) -> None:
    """Climbs from the best points of the samples `rows` (k,) by 20 steps from 0.3 radii, then 20 from 0.05.

    The objective is the strongest rival wherever a step leads, and no window is open.
    """
    for course in COURSES:
        rows = rows[~search.broken[rows]]
        if not len(rows):
            return
        search.climb(rows, search.point[rows], rows.new_full((len(rows),), -1), course, stage)
