"""A badge with the bracket, as an SVG file for a README."""

from __future__ import annotations

from bench.report.grid import percent
from bench.report.site import environment


def badge(label: str, certified: float, attacked: float) -> str:
    """A flat badge: the threat on the left, the bracket in per cent on the right, its bar beneath.

    Text is as wide as 6.4 units a letter: no font needs to be known.
    """
    text = percent(certified) if certified == attacked else f"{100 * certified:.1f}–{100 * attacked:.1f} %"
    left, right = 12 + round(6.4 * len(label)), 12 + round(6.4 * len(text))
    return (
        environment()
        .get_template("badge.svg")
        .render(label=label, text=text, left=left, right=right, certified=certified, attacked=attacked)
    )
