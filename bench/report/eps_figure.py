"""Accuracy against eps of several models on one axis."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from bench.analysis.stored import Analysis, Sparsity
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
    wide,
)
from bench.report.grid import Cell, Column, Grid, number, percent, slug
from bench.report.subject import NORMS

COLOURS = (PROVED, BROKEN, GREEN, PURPLE)
DASHES = ([1, 0], [6, 3], [2, 3])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross")


@shape
def _curves_shape(models: tuple[str, ...], norm: str) -> alt.LayerChart:
    names = list(models)

    def of(values: tuple[Any, ...]) -> alt.Scale:
        return alt.Scale(domain=names, range=[values[place % len(values)] for place in range(len(names))])

    legend = alt.Legend(title=None, columns=1, symbolStrokeWidth=2, symbolSize=120)
    base = alt.Chart(rows("eps", "accuracy")).encode(
        x=alt.X(
            "eps:Q",
            axis=alt.Axis(title=f"ε ({NORMS[norm]})", tickCount=6, format=".2~g", labelOverlap="greedy"),
        ),
        y=alt.Y("accuracy:Q", axis=accuracy_axis("accuracy"), scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("model:N", scale=of(COLOURS), legend=legend),
        tooltip=["model:N", alt.Tooltip("eps:Q", format=".3g"), alt.Tooltip("accuracy:Q", format=".1%")],
    )
    lines = base.mark_line(strokeWidth=2).encode(
        strokeDash=alt.StrokeDash("model:N", scale=of(DASHES), legend=legend)
    )
    points = base.mark_point(size=50, filled=True, opacity=1).encode(
        shape=alt.Shape("model:N", scale=of(SHAPES), legend=legend)
    )
    return lines + points


def curves_figure(analysis: Analysis, result: Sparsity) -> Figure:
    """All models' curves, and the share of their weights that are zero."""
    frame = pd.DataFrame(
        [
            {"model": curve.model, "eps": eps, "accuracy": accuracy}
            for curve in result.curves
            for eps, accuracy in zip(result.eps, curve.accuracy, strict=True)
        ]
    )
    columns = (
        Column("model", "model", numeric=False),
        Column("zeros", "zero weights"),
        *(Column(f"eps {eps:g}", f"ε = {eps:.3g}") for eps in result.eps),
    )
    cells = [
        [
            Cell(curve.model, curve.model),
            Cell(curve.zeros, percent(curve.zeros)),
            *(Cell(value, percent(value)) for value in curve.accuracy),
        ]
        for curve in result.curves
    ]
    left = "; ".join(f"{curve.model} {percent(curve.accuracy[-1])}" for curve in result.curves)
    said = (
        f"Accuracy of {len(result.curves)} models under {result.attack} against {NORMS[result.norm]} eps. At "
        f"{number(result.eps[-1])}: {left}."
    )
    name = slug(analysis.name)
    caption = f"Accuracy under {result.attack}, on the same {result.n} images"
    grid = Grid(f"table-{name}", caption, columns, cells, exported=name)
    models = tuple(curve.model for curve in result.curves)
    spec = wide(filled(_curves_shape(models, result.norm), frame), 320)
    return Figure(name, caption, said, spec, grid, True)
