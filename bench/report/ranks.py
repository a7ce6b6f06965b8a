"""Ranks without false precision: the places that intervals leave open."""

from __future__ import annotations

import numpy as np
import pandas as pd


def rank_intervals(low: pd.Series, high: pd.Series) -> pd.DataFrame:
    """The best and worst place of each row, given that its value lies anywhere in [low, high].

    Row i is surely behind row j where high_i < low_j: its best place is one behind all such rows, its
    worst place ahead of all rows that are surely behind it. Place 1 is the largest value.
    """
    lows, highs = np.sort(low.to_numpy(float)), np.sort(high.to_numpy(float))
    ahead = len(lows) - np.searchsorted(lows, high.to_numpy(float), side="right")
    behind = np.searchsorted(highs, low.to_numpy(float), side="left")
    return pd.DataFrame({"best": 1 + ahead, "worst": len(lows) - behind}, index=low.index)


def spelled(best: int, worst: int) -> str:
    """A rank for people: "3", or "1-4" with an en dash."""
    return str(best) if best == worst else f"{best}–{worst}"
