"""Cost classes: what a component costs per image, from which its default number of images follows."""

from __future__ import annotations

from enum import Enum

WIDE = 10_000
"""Networks of more neurons than this are wide: bounds that are quadratic in the width cost more there."""


class Cost(Enum):
    """How expensive one image is on a CPU core: milliseconds, tenths of a second, seconds, or more."""

    CHEAP = "cheap"
    MEDIUM = "medium"
    EXPENSIVE = "expensive"
    EXTREME = "extreme"
