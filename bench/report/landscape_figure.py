"""The loss over rotations and translations as a heat map: the slice through the worst pose."""

from __future__ import annotations

import altair as alt
import pandas as pd

from bench.analysis.stored import Analysis, Landscape, Surface
from bench.report.figures import Figure, filled, rows, shape, wide
from bench.report.grid import Cell, Column, Grid, number, slug


@shape
def _surface_shape(low: float, high: float) -> alt.LayerChart:
    across = alt.Axis(title="rotation in degrees", labelAngle=0, labelOverlap=True, format=".3~g")
    up = alt.Axis(title="shift to the right in pixels", format=".2~f", labelOverlap=True)
    base = alt.Chart(rows("angle", "right", "loss")).encode(
        x=alt.X("angle:O", axis=across), y=alt.Y("right:O", axis=up, sort="descending")
    )
    colour = alt.Color(
        "loss:Q",
        scale=alt.Scale(scheme="cividis", domain=[low, high]),
        legend=alt.Legend(title="loss (logits)", orient="bottom", gradientLength=160),
    )
    tip = [alt.Tooltip(f"{name}:Q", format=".3~g") for name in ("angle", "right", "loss")]
    cells = base.mark_rect().encode(color=colour, tooltip=tip)
    outer = base.mark_point(size=22, filled=True, opacity=1, color="black")
    inner = base.mark_point(size=8, filled=True, opacity=1, color="white")
    wrong = alt.datum.loss > 0
    worst = base.transform_filter("datum.worst == 'yes'")
    ring = worst.mark_point(size=190, filled=False, opacity=1, strokeWidth=4, color="black")
    core = worst.mark_point(size=190, filled=False, opacity=1, strokeWidth=1.8, color="white")
    return cells + outer.transform_filter(wrong) + inner.transform_filter(wrong) + ring + core


def span(result: Landscape) -> tuple[float, float]:
    """The smallest and the greatest loss of all models, for one scale of colours."""
    every = [
        value for surface in result.surfaces for plane in surface.loss for line in plane for value in line
    ]
    return min(every), max(every)


def surface_figure(analysis: Analysis, result: Landscape, surface: Surface) -> Figure:
    """The loss of one model at the downward shift of its worst pose."""
    turn, down, right = surface.worst
    frame = pd.DataFrame(
        [
            {
                "angle": angle,
                "right": shift,
                "loss": surface.loss[i][down][j],
                "worst": "yes" if (i, j) == (turn, right) else "no",
            }
            for i, angle in enumerate(result.angles)
            for j, shift in enumerate(result.right)
        ]
    )
    spec = wide(filled(_surface_shape(*span(result)), frame), 22 * max(len(result.right), 4))
    title = f"{surface.model}, at {number(result.down[down])} pixels down"
    said = (
        f"Loss of {surface.model} on image {result.index} of class {result.label} over rotation and shift to "
        f"the right, {title.partition(', ')[2]}. Worst: {_pose(result, surface.worst)}, loss "
        f"{number(frame['loss'].max())}. {int((frame['loss'] > 0).sum())} of {len(frame)} poses shown are "
        "misclassified."
    )
    name = slug(f"{analysis.name}-{surface.model}")
    columns = (
        Column("angle", "rotation"),
        *(Column(f"right {shift:g}", f"{shift:.2g} px") for shift in result.right),
    )
    cells = [
        [
            Cell(angle, f"{angle:.3g}°"),
            *(Cell(value, number(value)) for value in surface.loss[i][down]),
        ]
        for i, angle in enumerate(result.angles)
    ]
    caption = f"Loss by rotation (down) and shift to the right (across), {title}"
    return Figure(name, title, said, spec, Grid(f"slice-{name}", caption, columns, cells), True)


def _pose(result: Landscape, place: tuple[int, int, int]) -> str:
    turn, down, right = place
    moves = (number(shifts[k]) for shifts, k in ((result.down, down), (result.right, right)))
    return f"{result.angles[turn]:.3g}°, down {', right '.join(moves)} px"


def landscape_grid(analysis: Analysis, result: Landscape) -> Grid:
    """Worst poses, what the grid attack settles on, and the number of local maxima."""
    columns = (
        Column("model", "model", numeric=False),
        Column("still", "loss unmoved"),
        Column("worst", "greatest loss"),
        Column("pose", "worst pose", numeric=False),
        Column("attack", "grid attack", numeric=False, help="it stops early where it wins"),
        Column("maxima", "local maxima"),
        Column("wrong", "poses misclassified"),
    )
    cells = []
    for surface in result.surfaces:
        middle = surface.loss[len(result.angles) // 2][len(result.down) // 2][len(result.right) // 2]
        values = [value for plane in surface.loss for line in plane for value in line]
        won = "wins at" if surface.broken else "fails at"
        wrong = sum(value > 0 for value in values)
        cells.append(
            [
                Cell(surface.model, surface.model),
                Cell(middle, number(middle)),
                Cell(max(values), number(max(values))),
                Cell(_pose(result, surface.worst), _pose(result, surface.worst)),
                Cell(won, f"{won} {_pose(result, surface.chosen)}"),
                Cell(surface.maxima, str(surface.maxima)),
                Cell(wrong, f"{wrong} of {len(values)}"),
            ]
        )
    caption = "The grid attack's loss over all poses: positive where the image is misclassified"
    return Grid(f"poses-{analysis.name}", caption, columns, cells, cards=True, exported=analysis.name)
