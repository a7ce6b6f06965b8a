"""Convergence of the attacks on a model: loss and success against the points they have looked at."""

from __future__ import annotations

from collections.abc import Iterable

import altair as alt
import pandas as pd

from bench.record import Convergence, Record
from bench.report.figures import (
    BROKEN,
    GREEN,
    PROVED,
    PURPLE,
    Figure,
    accuracy_axis,
    filled,
    rows,
    shape,
)
from bench.report.grid import Cell, Column, Grid, number, percent, slug
from bench.report.subject import Subject

LINES = 8
"""More attacks than this are not drawn: those that break most are."""
POINTS = 12
COLOURS = [colour for _ in range(2) for colour in (BROKEN, PROVED, GREEN, PURPLE)]
DASHES = [dash for dash in ([1, 0], [6, 3]) for _ in range(4)]
TABLE = (
    Column("judge", "attack", numeric=False),
    Column("looks", "looks"),
    Column("half", "half of its success after"),
    Column("success", "success"),
    Column("first", "loss at first"),
    Column("last", "best loss"),
)


@shape
def _courses() -> alt.VConcatChart:
    legend = alt.Legend(title=None, columns=4)
    x = alt.X(
        "looks:Q",
        title="points looked at, a sample",
        scale=alt.Scale(type="log"),
        axis=alt.Axis(format="~s", labelOverlap="greedy", labelSeparation=5),
    )
    base = (
        alt.Chart(rows("looks", "loss", "success"))
        .mark_line(strokeWidth=2)
        .encode(
            x=x,
            color=alt.Color("judge:N", scale=alt.Scale(range=COLOURS), legend=legend),
            strokeDash=alt.StrokeDash("judge:N", scale=alt.Scale(range=DASHES), legend=legend),
            tooltip=[
                "judge:N",
                "looks:Q",
                alt.Tooltip("loss:Q", format=".3g"),
                alt.Tooltip("success:Q", format=".1%"),
            ],
        )
        .properties(height=150)
    )
    loss = base.encode(y=alt.Y("loss:Q", title="best loss so far"))
    success = base.encode(y=alt.Y("success:Q", axis=accuracy_axis("success"), scale=alt.Scale(domain=[0, 1])))
    return loss & success


def courses(records: Iterable[Record]) -> dict[str, Convergence]:
    """What was kept of the attacks among the records, by judge, those that break most first."""
    kept = {r.cell.judge.label: r.header.convergence for r in records if r.header.status == "done"}
    found = {judge: course for judge, course in kept.items() if course is not None}
    return dict(sorted(found.items(), key=lambda pair: (-pair[1].success[-1], pair[0])))


def convergence_figure(subject: Subject, norm: str, eps: float | None, title: str) -> Figure | None:
    """Loss and success by step at a threat (None: the smallest perturbations of a norm), or None."""
    near = [r for r in subject.records if (r.cell.threat.norm, r.cell.threat.eps) == (norm, eps)]
    found = courses(near)
    if not found:
        return None
    drawn = dict(list(found.items())[:LINES])
    frame = pd.concat([_points(judge, course) for judge, course in drawn.items()], ignore_index=True)
    name = slug(f"course-{subject.data}_{subject.defended}-{norm}-{'least' if eps is None else f'{eps:g}'}")
    said = "; ".join(f"{judge} {percent(course.success[-1])}" for judge, course in drawn.items())
    more = f" The {LINES} of {len(found)} attacks that break most." if len(found) > LINES else ""
    grid = Grid(
        f"table-{name}",
        f"Convergence {title}, every attack in numbers",
        TABLE,
        list(map(_row, *zip(*found.items(), strict=True))),
    )
    return Figure(
        name,
        f"Convergence {title}. Above: the greatest loss so far (best other logit less the label's), as its "
        "mean over the correctly classified images. Below: the share broken. What still rises at its end "
        f"wanted more steps.{more}",
        f"Loss and success by step of {len(drawn)} attacks on {subject.defended} {title}. Success: {said}.",
        filled(_courses(), frame),
        grid,
    )


def _points(judge: str, course: Convergence) -> pd.DataFrame:
    """At most POINTS of what was kept, the first and the last among them."""
    whole = pd.DataFrame({"looks": course.looks, "loss": course.loss, "success": course.success})
    step = max(-(-(len(whole) - 1) // (POINTS - 1)), 1)
    places = sorted({*range(0, len(whole), step), len(whole) - 1})
    return whole.iloc[places].assign(judge=judge)


def _row(judge: str, course: Convergence) -> list[Cell]:
    """The numbers of one attack; half: the first kept step with half of its final success."""
    final = course.success[-1]
    reached = [look for look, share in zip(course.looks, course.success, strict=True) if share >= final / 2]
    half = reached[0] if final else ""
    return [
        Cell(judge, judge),
        Cell(course.looks[-1], str(course.looks[-1])),
        Cell(half, str(half) or "–"),
        Cell(final, percent(final)),
        *(Cell(number(value), number(value)) for value in (course.loss[0], course.loss[-1])),
    ]
