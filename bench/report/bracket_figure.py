"""The headline figure: a bar from certified to attacked for each model, the gap between them shaded."""

from __future__ import annotations

import altair as alt

from bench.report.boards import Board
from bench.report.figures import BROKEN, PROVED, Figure, Spec, accuracy_axis, filled, rows, shape, wide
from bench.report.grid import percent

NUMBERS = (
    *("clean", "certified", "attacked"),
    *("certified_low", "certified_high", "attacked_low", "attacked_high"),
    "naive",
)
SHOWN = 60
"""More models than this are not drawn: the table has them all."""


@shape
def bracket_shape() -> alt.LayerChart:
    """The chart of a leaderboard over its rows."""
    tip = [
        alt.Tooltip("defended:N", title="model"),
        *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("certified", "attacked", "clean", "naive")),
    ]
    y = alt.Y("defended:N", sort=None, axis=alt.Axis(title=None))
    base = alt.Chart(rows(*NUMBERS)).encode(y=y, tooltip=tip)
    axis = accuracy_axis("robust accuracy")
    scale = alt.Scale(domain=[0, 1])
    kinds = alt.Scale(domain=["certified", "gap"], range=[PROVED, BROKEN])
    legend = alt.Legend(title=None, symbolStrokeWidth=0)
    proved = (
        base.transform_calculate(part="'certified'")
        .mark_bar(height=14)
        .encode(
            x=alt.X("certified:Q", axis=axis, scale=scale),
            color=alt.Color("part:N", scale=kinds, legend=legend),
        )
    )
    gap = (
        base.transform_calculate(part="'gap'")
        .mark_bar(height=14, fillOpacity=0.35, stroke=BROKEN)
        .encode(
            x=alt.X("certified:Q", axis=axis, scale=scale),
            x2="attacked:Q",
            color=alt.Color("part:N", scale=kinds, legend=legend),
        )
    )
    attacked = base.mark_tick(color=BROKEN, thickness=3, height=18).encode(x="attacked:Q")
    noise = base.mark_rule(strokeWidth=1).encode(x="attacked_low:Q", x2="attacked_high:Q")
    under = base.mark_rule(strokeWidth=1, opacity=0.7).encode(x="certified_low:Q", x2="certified_high:Q")
    clean = base.mark_point(shape="diamond", filled=False, size=45, opacity=1, color="currentColor").encode(
        x="clean:Q"
    )
    naive = base.mark_point(shape="circle", filled=True, size=16, opacity=1, color="currentColor")
    naive = naive.transform_filter("isValid(datum.naive)").encode(x="naive:Q")
    return proved + gap + under + noise + attacked + naive + clean


def bracket_figure(board: Board) -> Figure:
    """The brackets of a leaderboard, at most SHOWN of them."""
    frame = board.ranked.head(SHOWN)
    spec: Spec = wide(filled(bracket_shape(), frame[["defended", *NUMBERS]]), 24 * len(frame))
    first = frame.iloc[0]
    more = f" The first {SHOWN} of {len(board.ranked)} models." if len(board.ranked) > SHOWN else ""
    said = (
        f"Brackets of robust accuracy of {len(frame)} models at {board.title}. First: {first['defended']}, "
        f"certified {percent(first['certified'])}, attacked {percent(first['attacked'])}.{more} "
        "The table below has the numbers."
    )
    caption = (
        "Solid: certified. Shaded: the gap nobody knows yet. Thick mark: what the attacks leave. Lines: 95 %"
        f" intervals. Diamond: clean accuracy. Dot: under attacks that do not know the defence.{more}"
    )
    return Figure(f"bracket-{board.name}", caption, said, spec)
