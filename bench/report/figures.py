"""Figures as Vega-Lite specifications: colours that survive colour-blindness, greyscale and a dark page."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import altair as alt
import pandas as pd

from bench.report.grid import Grid

# Okabe and Ito's blue, vermillion, green and purple: each has a contrast of 3 against white and near-black.
PROVED, BROKEN, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
INK = "currentColor"
Spec = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A figure: its specification, what it says in words, and the data behind it as a table."""

    name: str
    title: str
    alt: str
    spec: Spec
    data: Grid | None = None
    exported: bool = False

    def as_exported(self) -> Figure:
        """The same figure, whose SVG, PNG and PDF are among the downloads."""
        return replace(self, exported=True)


def theme(ink: str = INK, background: str = "transparent") -> Spec:
    """What all figures share: their ink is the page's own text colour on a page, black on paper.

    A page holds it once.
    """
    faint = {"gridColor": ink, "gridOpacity": 0.15, "domainColor": ink, "tickColor": ink}
    text = {
        "labelColor": ink,
        "titleColor": ink,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": 500,
    }
    return {
        "background": background,
        "font": "system-ui, 'Helvetica Neue', Arial, sans-serif",
        "aria": False,
        "view": {"stroke": None},
        "axis": {**faint, **text, "labelLimit": 260},
        "legend": {**text, "orient": "top", "labelLimit": 260},
        "title": {"color": ink, "subtitleColor": ink},
        "text": {"color": ink},
        "rule": {"color": ink},
        "tick": {"color": ink},
    }


def wide(spec: Spec, height: int) -> Spec:
    """A specification as wide as its place and `height` units high."""
    fit = {"type": "fit-x", "contains": "padding"}
    return {**spec, "width": "container", "height": height, "autosize": fit}


def filled(spec: Spec, frame: pd.DataFrame, **named: pd.DataFrame) -> Spec:
    """A specification with its rows; `named` are further data sets that its layers ask for by name."""
    out = copy.deepcopy(spec)
    # CSV is a third of the size of JSON rows, and a model's page holds thousands of them.
    sets = {"rows": frame, **named}
    out["datasets"] = {key: rows.to_csv(index=False, float_format="%.5g") for key, rows in sets.items()}
    return out


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The frame as JSON rows; what is not a number becomes null."""
    plain = frame.astype(object).where(frame.notna(), None)
    return [{str(key): _plain(value) for key, value in row.items()} for row in plain.to_dict("records")]


def _plain(value: Any) -> Any:
    return round(float(value), 6) if isinstance(value, float) else value


def shape(build: Callable[..., alt.TopLevelMixin]) -> Callable[..., Spec]:
    """Turns a function that draws a chart over the named data set "rows" into one of its specification.

    A chart's shape is the same on every page, so it is built and validated once.
    """

    @lru_cache(maxsize=256)
    def spec(*arguments: Any) -> Spec:
        made: Spec = build(*arguments).to_dict(validate=True)
        made.pop("config", None)
        return made

    return spec


def rows(*numbers: str, name: str = "rows") -> alt.NamedData:
    """The data set that `filled` fills; its columns are text but for `numbers`."""
    parse: Any = dict.fromkeys(numbers, "number")
    return alt.NamedData(name=name, format=alt.CsvDataFormat(type="csv", parse=parse))


def accuracy_axis(title: str) -> alt.Axis:
    """An axis of fractions, read as per cent."""
    return alt.Axis(title=title, format=".0%", tickCount=5)


@shape
def heat(x: str, y: str, title: str) -> alt.LayerChart:
    """A matrix of fractions: columns `x`, rows `y`, in the order of x_place and y_place."""

    def order(place: str) -> alt.EncodingSortField:
        return alt.EncodingSortField(field=place, op="min", order="ascending")

    across = alt.Axis(title=None, orient="top", labelAngle=-90, labelLimit=220)
    value = alt.Tooltip("value:Q", title=title, format=".1%")
    base = alt.Chart(rows("value", "x_place", "y_place")).encode(
        x=alt.X(f"{x}:N", axis=across, sort=order("x_place")),
        y=alt.Y(f"{y}:N", axis=alt.Axis(title=None, labelLimit=320), sort=order("y_place")),
        tooltip=[alt.Tooltip(f"{y}:N"), alt.Tooltip(f"{x}:N"), value],
    )
    scale = alt.Scale(scheme="cividis", domain=[0, 1])
    legend = alt.Legend(title=title, format=".0%", orient="bottom", gradientLength=160)
    colour = alt.Color("value:Q", scale=scale, legend=legend)
    cells = base.mark_rect(stroke="#888", strokeWidth=0.4).encode(color=colour)
    light = alt.condition("datum.value < 0.55", alt.value("white"), alt.value("black"))
    texts = base.mark_text(fontSize=11).encode(text="shown:N", color=light)
    return cells + texts


def heat_spec(frame: pd.DataFrame, x: str, y: str, title: str) -> Spec:
    """The heat map of a frame with the columns x, y and value, in the frame's order."""
    places = {f"{axis}_place": pd.factorize(frame[name])[0] for axis, name in (("x", x), ("y", y))}
    frame = frame.assign(**places).dropna(subset="value")
    shown = frame.assign(shown=[f"{100 * value:.0f}" for value in frame["value"]])
    return wide(filled(heat(x, y, title), shown), 26 * frame[y].nunique())
