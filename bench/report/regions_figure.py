"""Decision regions as figures: one plane a model, on the same axes and in the same colours."""

from __future__ import annotations

from itertools import pairwise

import altair as alt
import numpy as np
import pandas as pd
from scipy import ndimage

from bench.analysis.stored import Analysis, Crossing, Plane, Regions
from bench.report.figures import Figure, filled, rows, shape
from bench.report.grid import Cell, Column, Grid, number, percent, slug

# Tol's muted scheme, which colour-blind readers tell apart; regions carry their class as text as well.
COLOURS = (
    *("#88ccee", "#cc6677", "#ddcc77", "#117733", "#332288"),
    *("#aa4499", "#44aa99", "#999933", "#882255", "#bbbbbb"),
)
DARK = frozenset((3, 4, 5, 8))
"""Classes whose colour needs white text."""
SIDE = 270
NAMED = 12
"""A region of fewer points than this is not named."""
SQUARE = ("a", "a2", "b", "b2")


@shape
def _plane_shape(reach: float) -> alt.LayerChart:
    across, up = (
        alt.Axis(title=title, grid=False, tickCount=5)
        for title in ("a, along the gradient (ℓ2)", "b, random orthogonal (ℓ2)")
    )
    scale = alt.Scale(domain=[-reach, reach], nice=False)
    tip = [alt.Tooltip("predicted:N", title="class")]
    area = (
        alt.Chart(rows(*SQUARE))
        .mark_rect(strokeWidth=0.6, opacity=1, clip=True)
        .encode(
            x=alt.X("a:Q", axis=across, scale=scale),
            x2="a2:Q",
            y=alt.Y("b:Q", axis=up, scale=scale),
            y2="b2:Q",
            fill=alt.Fill("colour:N", scale=None),
            stroke=alt.Stroke("colour:N", scale=None),
            tooltip=tip,
        )
    )
    marks = rows("a", "b", name="marks")
    point = alt.Chart(marks).encode(x=alt.X("a:Q", scale=scale), y=alt.Y("b:Q", scale=scale))
    names = (
        point.transform_filter("datum.what == 'name'")
        .mark_text(fontSize=15, fontWeight=600)
        .encode(text="predicted:N", color=alt.Color("ink:N", scale=None))
    )
    # White within black is seen on every colour.
    places = point.transform_filter("datum.what != 'name'").encode(
        shape=alt.Shape(
            "what:N",
            scale=alt.Scale(domain=["image", "nearest"], range=["cross", "circle"]),
            legend=None,
        )
    )
    outer = places.mark_point(filled=True, size=130, opacity=1, color="black", clip=True)
    inner = places.mark_point(filled=True, size=50, opacity=1, color="white", clip=True)
    return area + names + outer + inner


def _frames(plane: Plane, reach: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs of equal class as rectangles; names of regions, the image and where +-u leave its region."""
    classes = np.array(plane.classes)
    side = len(classes)
    step = 2 * reach / (side - 1)
    squares = []
    for row, line in enumerate(classes):
        starts = [0, *(np.flatnonzero(np.diff(line)) + 1), side]
        low = -reach + (row - 0.5) * step
        for start, end in pairwise(starts):
            left = -reach + (start - 0.5) * step
            found = int(line[start])
            square = {"a": left, "a2": left + (end - start) * step, "b": low, "b2": low + step}
            squares.append({**square, "predicted": found, "colour": COLOURS[found % len(COLOURS)]})
    marks = [
        {"what": "name", "a": a, "b": b, "predicted": found, "ink": _ink(found)}
        for found, a, b in _names(classes, reach)
    ]
    marks.append({"what": "image", "a": 0.0, "b": 0.0, "predicted": plane.predicted, "ink": "black"})
    for sign, crossing in ((1, plane.ahead), (-1, plane.behind)):
        if crossing is not None and crossing.distance <= reach:
            at = {"a": sign * crossing.distance, "b": 0.0}
            marks.append({"what": "nearest", **at, "predicted": crossing.entered, "ink": "black"})
    return pd.DataFrame(squares), pd.DataFrame(marks)


def _ink(found: int) -> str:
    return "white" if found % len(COLOURS) in DARK else "black"


def _names(classes: np.ndarray, reach: float) -> list[tuple[int, float, float]]:
    """For each class (class, a, b) of the point deepest inside it."""
    side, found = len(classes), []
    middle = side // 2
    rows_, columns = np.indices(classes.shape)
    for label in np.unique(classes):
        mine = classes == label
        if mine.sum() < NAMED:
            continue
        depth = ndimage.distance_transform_edt(np.pad(mine, 1))[1:-1, 1:-1]
        # The image's own mark stands in the middle.
        depth[np.hypot(rows_ - middle, columns - middle) < side / 10] = 0
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        to_unit = 2 * reach / (side - 1)
        found.append((int(label), -reach + column * to_unit, -reach + row * to_unit))
    return found


def _said(crossing: Crossing | None) -> str:
    return "none" if crossing is None else f"class {crossing.entered} at {number(crossing.distance)}"


def plane_figure(analysis: Analysis, result: Regions, plane: Plane) -> Figure:
    """One model's plane."""
    squares, marks = _frames(plane, result.reach)
    spec = {**filled(_plane_shape(result.reach), squares, marks=marks), "width": SIDE, "height": SIDE}
    said = (
        f"Decision regions of {plane.model} around image {result.index} of class {result.label}, which it "
        f"calls {plane.predicted}. Next region along +u: {_said(plane.ahead)}; "
        f"along -u: {_said(plane.behind)}."
    )
    name = slug(f"{analysis.name}-{plane.model}")
    values, counts = np.unique(np.array(plane.classes), return_counts=True)
    columns = (Column("class", "class"), Column("share", "share of the plane"))
    cells = [
        [Cell(int(value), str(value)), Cell(count / counts.sum(), percent(count / counts.sum()))]
        for value, count in zip(values, counts, strict=True)
    ]
    grid = Grid(f"shares-{name}", f"Classes on the plane of {plane.model}", columns, cells)
    return Figure(name, plane.model, said, spec, grid, True)


def regions_grid(analysis: Analysis, result: Regions) -> Grid:
    """The distances to the nearest region along +-u, model by model."""
    columns = (
        Column("model", "model", numeric=False),
        Column("predicted", "says"),
        Column("ahead", "along +u", help="l2 distance to the nearest other region up the loss"),
        Column("ahead_class", "enters"),
        Column("behind", "along -u", help="l2 distance to the nearest other region down the loss"),
        Column("behind_class", "enters"),
    )
    cells = []
    for plane in result.planes:
        row = [Cell(plane.model, plane.model), Cell(plane.predicted, str(plane.predicted))]
        for crossing in (plane.ahead, plane.behind):
            if crossing is None:
                row += [Cell(float("nan"), f"> {number(result.far)}"), Cell("", "–")]
            else:
                row.append(Cell(crossing.distance, number(crossing.distance)))
                row.append(Cell(crossing.entered, str(crossing.entered)))
        cells.append(row)
    caption = "Distance (ℓ2) from the image to the nearest other region along the gradient, both ways"
    return Grid(f"distances-{analysis.name}", caption, columns, cells, cards=True, exported=analysis.name)
