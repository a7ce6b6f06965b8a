"""The figures of a model's page: accuracy against eps and against passes, and who breaks what."""

from __future__ import annotations

import altair as alt
import pandas as pd

from bench.outcomes import broken_at
from bench.report.curves import by_passes, envelope, fixed_points, minimal_curves
from bench.report.figures import (
    BROKEN,
    GREEN,
    PROVED,
    PURPLE,
    Figure,
    accuracy_axis,
    filled,
    heat_spec,
    rows,
    shape,
    wide,
)
from bench.report.grid import Cell, Column, Grid, number, percent, slug
from bench.report.subject import NORMS, Subject, spoken

LINES = 8
"""More attacks than this are not drawn against passes: those that break most are."""
ENDS = ("certified", "attacked")
STRONGEST = 12
"""Of more attacks than this the confusion is not shown: of those that break most it is."""
DASHES = [[1, 0], [6, 3], [2, 2]]


@shape
def _curves(norm: str, minimal: bool, fixed: bool) -> alt.LayerChart:
    x = alt.X("eps:Q", axis=alt.Axis(title=f"ε ({norm})", tickCount=7), scale=alt.Scale(nice=False))
    axis = accuracy_axis("accuracy")
    scale = alt.Scale(domain=[0, 1])
    band = alt.Chart(rows("eps", "certified", "attacked", name="band"))
    gap = band.mark_area(interpolate="step-after", color=BROKEN, opacity=0.18).encode(
        x=x, y=alt.Y("certified:Q", axis=axis, scale=scale), y2="attacked:Q"
    )
    proved = band.mark_area(interpolate="step-after", color=PROVED, opacity=0.35).encode(x=x, y="certified:Q")
    lower = band.mark_line(interpolate="step-after", color=PROVED, strokeWidth=3).encode(x=x, y="certified:Q")
    upper = band.mark_line(interpolate="step-after", color=BROKEN, strokeWidth=3).encode(x=x, y="attacked:Q")
    thin = (
        alt.Chart(rows("eps", "accuracy", name="lines"))
        .mark_line(
            interpolate="step-after", strokeWidth=1.2, opacity=0.8, color="currentColor", strokeDash=[4, 3]
        )
        .encode(x=x, y="accuracy:Q", detail="judge:N", tooltip=["judge:N"])
    )
    kinds = alt.Scale(domain=["attack", "certificate"], range=[BROKEN, PROVED])
    shapes = alt.Scale(domain=["attack", "certificate"], range=["triangle-down", "triangle-up"])
    points = (
        alt.Chart(rows("eps", "accuracy", "n", name="points"))
        .mark_point(filled=True, size=60, opacity=0.85)
        .encode(
            x=x,
            y=alt.Y("accuracy:Q", axis=axis, scale=scale),
            color=alt.Color("kind:N", scale=kinds, legend=alt.Legend(title=None)),
            shape=alt.Shape("kind:N", scale=shapes, legend=alt.Legend(title=None)),
            tooltip=["judge:N", "kind:N", alt.Tooltip("accuracy:Q", format=".1%"), "n:Q", "eps:Q"],
        )
    )
    # A layer without rows makes Vega warn of an axis without an extent.
    return alt.LayerChart(layer=[gap, proved, *[thin] * minimal, lower, upper, *[points] * fixed])


def curve_figure(subject: Subject, norm: str) -> Figure:
    """All attacks and certificates of a norm on one axis: the truth lies between the thick curves."""
    band, lines, points = envelope(subject, norm), minimal_curves(subject, norm), fixed_points(subject, norm)
    frames = {"band": band, "lines": lines, "points": points}
    spec = wide(
        filled(_curves(NORMS.get(norm, norm), len(lines) > 0, len(points) > 0), pd.DataFrame(), **frames), 330
    )
    ends = [
        (radius, band[band["eps"] <= radius].iloc[-1]) for radius in sorted({0.0, *points.get("eps", [])})
    ]
    said = "; ".join(f"at {eps:g} at most {percent(row['attacked'])}" for eps, row in ends)
    caption = (
        "Thick lines: what is certified (below) and what the worst case over all attacks leaves (above); the"
        " truth lies in the shaded gap. Triangles: each judge alone, on its own images (a few for dear"
        " ones). Dashed: attacks that seek the smallest perturbation."
    )
    alternative = f"Accuracy of {subject.defended} against {NORMS.get(norm, norm)} ε: {said}."
    name = slug(f"curve-{subject.data}_{subject.defended}-{norm}")
    return Figure(name, caption, alternative, spec, _curve_grid(name, NORMS.get(norm, norm), band))


def _curve_grid(name: str, norm: str, band: pd.DataFrame) -> Grid:
    columns = (Column("eps", "ε"), Column("certified", "certified"), Column("attacked", "attacked"))
    rows = [
        [Cell(row["eps"], number(row["eps"])), *(Cell(row[end], percent(row[end])) for end in ENDS)]
        for row in band.iloc[:: max(len(band) // 15, 1)].to_dict("records")
    ]
    caption = f"Both thick curves at some ε ({norm}); each judge alone stands in a table below"
    return Grid(f"table-{name}", caption, columns, rows)


@shape
def _passes() -> alt.Chart:
    colours = [colour for _ in DASHES for colour in (BROKEN, PROVED, GREEN, PURPLE)]
    dashes = [dash for dash in DASHES for _ in range(4)]
    legend = alt.Legend(title=None, columns=4)
    return (
        alt.Chart(rows("passes", "accuracy"))
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(
            x=alt.X("passes:Q", title="forward and backward passes a sample", scale=alt.Scale(type="log")),
            y=alt.Y("accuracy:Q", axis=accuracy_axis("accuracy left"), scale=alt.Scale(zero=False)),
            color=alt.Color("judge:N", scale=alt.Scale(range=colours), legend=legend),
            strokeDash=alt.StrokeDash("judge:N", scale=alt.Scale(range=dashes), legend=legend),
            tooltip=["judge:N", "passes:Q", alt.Tooltip("accuracy:Q", format=".1%")],
        )
    )


def passes_figure(subject: Subject, norm: str, eps: float) -> Figure | None:
    """What each attack has left after so many passes, or None where no attack of a fixed eps was run."""
    frame = by_passes(subject, norm, eps)
    if frame.empty:
        return None
    final = frame.groupby("judge")["accuracy"].min().sort_values(kind="stable")
    frame = frame[frame["judge"].isin(final.index[:LINES])]
    spec = wide(filled(_passes(), frame), 280)
    said = "; ".join(f"{judge} {percent(left)}" for judge, left in final.head(LINES).items())
    columns = (
        Column("judge", "attack", numeric=False),
        Column("passes", "passes"),
        Column("left", "accuracy left"),
    )
    last = (
        frame.sort_values("passes", kind="stable").drop_duplicates("judge", keep="last").sort_values("judge")
    )
    rows = [
        [
            Cell(r["judge"], r["judge"]),
            Cell(r["passes"], number(r["passes"], 5)),
            Cell(r["accuracy"], percent(r["accuracy"])),
        ]
        for r in last.to_dict("records")
    ]
    name = slug(f"passes-{subject.data}_{subject.defended}-{norm}-{eps:g}")
    return Figure(
        name,
        "Accuracy by queries: what each attack alone leaves, on its own images, against what it has spent on "
        "a sample; a query is a forward pass",
        f"Accuracy of {subject.defended} left by each attack at {spoken(norm, eps)}: {said}.",
        spec,
        Grid(f"table-{name}", f"What each attack leaves in the end at {spoken(norm, eps)}", columns, rows),
    )


def overlap(subject: Subject, norm: str, eps: float) -> pd.DataFrame:
    """Of what `row` breaks, the share that `column` breaks too; both are the STRONGEST attacks, by name.

    On the correctly classified samples that both judged; transfers from all sources are one attack.
    NaN where `row` breaks none of them.
    """
    outcomes = subject.outcomes
    mine = outcomes[(outcomes["norm"] == norm) & (outcomes["kind"] == "attack") & outcomes["clean"]]
    mine = mine[mine["eps"].isna() | (mine["eps"] == eps)]
    names = mine["judge"].str.replace(r"^transfer\(.*", "transfer, any source", regex=True)
    table = broken_at(mine, eps).astype(float).groupby([mine["index"], names]).max().unstack()
    first = table.mean().sort_values(ascending=False, kind="stable").index[:STRONGEST]
    table = table[sorted(first)]
    shares = {
        row: [table[column][table[row].eq(1.0) & table[column].notna()].mean() for column in table]
        for row in table
    }
    return pd.DataFrame.from_dict(shares, orient="index", columns=list(table.columns), dtype=float)


def overlap_figure(subject: Subject, norm: str, eps: float) -> Figure | None:
    """The confusion of attacks as a heat map, or None where there are not two attacks or none breaks."""
    table = overlap(subject, norm, eps)
    if len(table) < 2 or not table.notna().any(axis=None):
        return None
    columns = (Column("row", "of what this breaks", numeric=False), *(Column(n, n) for n in table.columns))
    rows = [
        [Cell(name, name), *(Cell(shown, shown) for shown in (percent(float(share), 0) for share in shares))]
        for name, shares in zip(table.index, table.to_numpy(), strict=True)
    ]
    long = table.rename_axis("row").reset_index().melt("row", var_name="column")
    name = slug(f"overlap-{subject.data}_{subject.defended}-{norm}-{eps:g}")
    return Figure(
        name,
        "Of what the row's attack breaks, the per cent that the column's breaks too, on images both saw",
        f"Confusion of the attacks on {subject.defended} at {spoken(norm, eps)}; the table has every number.",
        heat_spec(long, "column", "row", "also broken"),
        Grid(f"table-{name}", f"Confusion of attacks at {spoken(norm, eps)}", columns, rows),
    )
