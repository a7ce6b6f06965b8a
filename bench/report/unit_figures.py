"""Figures of the hidden units that an attack exploits: shifts, the ablation curve, what images become."""

from __future__ import annotations

import altair as alt
import pandas as pd

from bench.analysis.stored import Analysis, Dissection, Units
from bench.report.figures import BROKEN, PROVED, Figure, accuracy_axis, filled, heat_spec, rows, shape, wide
from bench.report.grid import Cell, Column, Grid, number, percent, slug

SERIES = {"success": "attack, shifted units removed", "success_random": "attack, random units removed"}
SERIES |= {"clean": "accuracy, shifted units removed", "clean_random": "accuracy, random units removed"}
COLOURS = [BROKEN, BROKEN, PROVED, PROVED]
DASHES = [[1, 0], [5, 4], [1, 0], [5, 4]]


@shape
def _ablation_shape() -> alt.Chart:
    names = list(SERIES.values())
    legend = alt.Legend(title=None, columns=1, symbolType="stroke", symbolStrokeWidth=2, symbolSize=500)
    return (
        alt.Chart(rows("removed", "value"))
        .mark_line(point={"size": 34, "opacity": 1, "filled": True}, strokeWidth=2)
        .encode(
            x=alt.X("removed:O", axis=alt.Axis(title="units removed (not to scale)", labelAngle=0)),
            y=alt.Y("value:Q", axis=accuracy_axis("share of samples"), scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("series:N", scale=alt.Scale(domain=names, range=COLOURS), legend=legend),
            strokeDash=alt.StrokeDash("series:N", scale=alt.Scale(domain=names, range=DASHES), legend=legend),
            tooltip=["series:N", "removed:Q", alt.Tooltip("value:Q", format=".1%")],
        )
    )


def ablation_figure(analysis: Analysis, result: Units, found: Dissection) -> Figure:
    """What removing units leaves of the attack and of the accuracy."""
    frame = pd.DataFrame(
        [
            {"series": title, "removed": removed, "value": value}
            for key, title in SERIES.items()
            for removed, value in zip(found.removed, getattr(found, key), strict=True)
        ]
    )
    columns = (Column("removed", "units removed"), *(Column(key, title) for key, title in SERIES.items()))
    cells = [
        [
            Cell(removed, str(removed)),
            *(Cell(getattr(found, key)[row], percent(getattr(found, key)[row])) for key in SERIES),
        ]
        for row, removed in enumerate(found.removed)
    ]
    # Where the shifted units count for most against random ones.
    gaps = [random - mine for mine, random in zip(found.success, found.success_random, strict=True)]
    row = max(range(len(gaps)), key=lambda place: gaps[place])
    said = (
        f"Attack success and accuracy of {found.model} after removing units of layer {found.layer}. Without "
        f"the {found.removed[row]} most shifted of {found.units}, {percent(found.success[row])} of broken "
        f"samples stay misclassified, without as many random ones {percent(found.success_random[row])}; "
        f"accuracy {percent(found.clean[row])}."
    )
    name = slug(f"{analysis.name}-ablation-{found.model}")
    grid = Grid(f"table-{name}", f"Removing units of {found.model}", columns, cells, exported=name)
    title = f"{found.model}, layer {found.layer}: removing the units that the attack shifts most"
    return Figure(name, title, said, wide(filled(_ablation_shape(), frame), 260), grid, True)


@shape
def _shift_shape(longest: float) -> alt.LayerChart:
    base = alt.Chart(rows("shift", "signed", "auc")).encode(
        y=alt.Y("unit:N", sort=None, axis=alt.Axis(title=None)),
        x=alt.X(
            "shift:Q",
            axis=alt.Axis(title="mean |shift| of the peak activation", tickCount=5),
            scale=alt.Scale(domain=[0, 1.25 * longest], nice=False),
        ),
        tooltip=[
            alt.Tooltip("unit:N"),
            *(alt.Tooltip(f"{name}:Q", format=".3g") for name in ("shift", "signed", "auc")),
            alt.Tooltip("label:N", title="class"),
        ],
    )
    text = base.mark_text(align="left", dx=4, fontSize=11, color="currentColor").encode(text="shown:N")
    return base.mark_bar(height=11, color=BROKEN) + text


def shift_figure(analysis: Analysis, found: Dissection) -> Figure:
    """The most shifted units and the class that each one tells best."""
    frame = pd.DataFrame([unit.model_dump() for unit in found.top])
    frame["shown"] = [f"{unit.label} ({unit.auc:.2f})" for unit in found.top]
    frame["unit"] = [f"unit {unit.unit}" for unit in found.top]
    columns = (
        Column("unit", "unit"),
        Column("shift", "mean |shift|"),
        Column("signed", "mean shift"),
        Column("class", "class it tells best"),
        Column("auc", "AUC"),
    )
    cells = [
        [
            Cell(unit.unit, str(unit.unit)),
            Cell(unit.shift, number(unit.shift)),
            Cell(unit.signed, number(unit.signed)),
            Cell(unit.label, str(unit.label)),
            Cell(unit.auc, f"{unit.auc:.3f}"),
        ]
        for unit in found.top
    ]
    first = found.top[0]
    said = (
        f"The {len(found.top)} units of {found.model}, layer {found.layer}, that the attack shifts most. "
        f"First: unit {first.unit}, by {number(first.shift)}; it tells class {first.label} best, AUC "
        f"{first.auc:.2f}."
    )
    name = slug(f"{analysis.name}-shift-{found.model}")
    grid = Grid(f"table-{name}", f"Most shifted units of {found.model}", columns, cells, exported=name)
    title = f"{found.model}: the most shifted units, and the class each one tells best (AUC)"
    return Figure(
        name, title, said, wide(filled(_shift_shape(first.shift), frame), 17 * len(frame)), grid, True
    )


def confusion_figure(analysis: Analysis, found: Dissection) -> Figure:
    """What the broken images of each class became, as shares of the class."""
    long = []
    for label, counts in enumerate(found.confusion):
        total = sum(counts)
        long += [
            {"label": f"is {label} ({total})", "became": f"{became}", "value": count / total}
            for became, count in enumerate(counts)
            if total
        ]
    frame = pd.DataFrame(long)
    numbered = [(label, counts) for label, counts in enumerate(found.confusion) if sum(counts)]
    columns = (
        Column("label", "label"),
        *(Column(f"became {place}", str(place)) for place in range(len(found.confusion))),
    )
    cells = [
        [Cell(label, str(label)), *(Cell(count, str(count)) for count in counts)]
        for label, counts in numbered
    ]
    label, became, count = max(
        ((label, place, count) for label, counts in numbered for place, count in enumerate(counts)),
        key=lambda entry: entry[2],
    )
    said = (
        f"What {found.broken} broken images of {found.model} became, class by class. Most often {label} "
        f"became {became}, {count} times."
    )
    name = slug(f"{analysis.name}-confusion-{found.model}")
    grid = Grid(f"table-{name}", f"Broken images of {found.model}, counted", columns, cells, exported=name)
    title = f"{found.model}: what broken images of each class (down) became (across), in per cent"
    return Figure(name, title, said, heat_spec(frame, "became", "label", "share"), grid, True)
