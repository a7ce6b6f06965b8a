"""The pages of a comparison: regressions first, then judges, the samples that changed, and their origin."""

from __future__ import annotations

from dataclasses import replace

import altair as alt
import pandas as pd

from bench.report.comparison import Side, brackets, changed, judges, unmatched
from bench.report.comparison_costs import costs_grid
from bench.report.comparison_pictures import originals, pictures
from bench.report.figures import BROKEN, PROVED, Figure, accuracy_axis, filled, rows, shape, wide
from bench.report.grid import Cell, Column, Grid, Row, duration, number, percent
from bench.report.provenance import inputs_grid, makers_grid
from bench.report.site import Page
from bench.report.subject import spoken

DRAWN = 40
PICTURED = 30
"""At most so many changed samples of a side are shown as pictures."""
THUMBS = 1000
"""At most so many changed images have their picture in the list."""
LISTED = 5000
"""At most so many changed samples are listed, on a page and in its files."""
SPREAD = (
    Column(
        "difference", "difference", help="after minus before, with its 95 % interval (Newcombe's method 10)"
    ),
    Column("changed", "gained, lost", help="samples that are yes after alone, and before alone"),
    Column("p", "McNemar p", help="exact, two-sided: how surprising the change would be by chance"),
    Column("verdict", "verdict", numeric=False, choose=True),
)
BRACKETS = (
    Column("data", "data set", numeric=False),
    Column("model", "model", numeric=False, choose=True),
    Column("threat", "threat", numeric=False, choose=True),
    Column("end", "end", numeric=False, choose=True),
    Column("n", "n"),
    Column("before", "before"),
    Column("after", "after"),
    *SPREAD,
)
JUDGES = (
    Column("model", "model", numeric=False, choose=True),
    Column("threat", "threat", numeric=False, choose=True),
    Column("judge", "judge", numeric=False, choose=True),
    Column("n", "n"),
    Column("before", "before"),
    Column("after", "after"),
    *SPREAD,
    Column("distance_ratio", "distance ratio", help="median of after / before where both broke the sample"),
    Column("seconds_before", "time before"),
    Column("seconds_after", "time after"),
    Column("passes_before", "passes before"),
    Column("passes_after", "passes after"),
)
CHANGED = (
    Column("model", "model", numeric=False, choose=True),
    Column("threat", "threat", numeric=False, choose=True),
    Column("index", "sample"),
    Column("label", "label"),
    Column("before", "before", numeric=False, choose=True),
    Column("by_before", "by", numeric=False),
    Column("after", "after", numeric=False, choose=True),
    Column("by_after", "by", numeric=False),
    Column("distance_before", "broken at, before"),
    Column("distance_after", "broken at, after"),
)


def points(value: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    if pd.isna(value):
        return "–"
    return f"{100 * value:+.1f}" if value else "0.0"


def _spread(row: Row) -> list[Cell]:
    moved = f"+{row['gained']} -{row['lost']}"
    between = f"[{points(row['low'])}, {points(row['high'])}]"
    return [
        Cell(row["difference"], points(row["difference"]), note=between),
        Cell(int(row["gained"] + row["lost"]), moved),
        Cell(row["p"], number(row["p"], 2)),
        Cell(row["verdict"], row["verdict"]),
    ]


def _fraction(value: float) -> Cell:
    return Cell(value, percent(value))


def _named(grid: Grid) -> Grid:
    """The grid without its column of models where two different ones are compared."""
    out = [column.key for column in grid.columns].index("model")
    if any(row[out].raw for row in grid.rows):
        return grid
    columns = [*grid.columns[:out], *grid.columns[out + 1 :]]
    kept = [[*row[:out], *row[out + 1 :]] for row in grid.rows]
    return replace(grid, columns=columns, rows=kept, choices={})


def brackets_grid(name: str, title: str, frame: pd.DataFrame) -> Grid:
    """The ends of the brackets, regressions first."""
    cells = [
        [
            Cell(row["data"], row["data"]),
            Cell(row["model"], row["model"]),
            Cell(f"{row['norm']}-{row['eps']:g}", spoken(row["norm"], row["eps"])),
            Cell(row["end"], row["end"]),
            Cell(int(row["n"]), str(row["n"])),
            _fraction(row["before"]),
            _fraction(row["after"]),
            *_spread(row),
        ]
        for row in frame.to_dict("records")
    ]
    caption = f"Both ends of each bracket, regressions first, {title}"
    return _named(Grid(name, caption, BRACKETS, cells, tools=True, cards=True, exported=name))


def judges_grid(name: str, frame: pd.DataFrame) -> Grid:
    """Every judge that both sides ran, regressions first, with its time and passes."""
    cells = [
        [
            Cell(row["model"], row["model"]),
            Cell(row["threat"], row["threat"]),
            Cell(row["judge"], row["judge"]),
            Cell(int(row["n"]), str(row["n"])),
            _fraction(row["before"]),
            _fraction(row["after"]),
            *_spread(row),
            Cell(row["distance_ratio"], number(row["distance_ratio"], 4)),
            *(Cell(row[f"seconds_{when}"], duration(row[f"seconds_{when}"])) for when in ("before", "after")),
            *(Cell(row[f"passes_{when}"], number(row[f"passes_{when}"], 4)) for when in ("before", "after")),
        ]
        for row in frame.to_dict("records")
    ]
    return _named(Grid(name, "Each judge alone, regressions first", JUDGES, cells, tools=True, exported=name))


def changed_grid(name: str, frame: pd.DataFrame, side: Side) -> Grid:
    """The samples whose verdict changed, with the images that were kept."""
    places = list(dict.fromkeys(zip(frame["data"], frame["index"], strict=True)))[:THUMBS]
    shown = originals(side, places)
    cells = [
        [
            Cell(row["model"], row["model"]),
            Cell(f"{row['norm']}-{row['eps']:g}", spoken(row["norm"], row["eps"])),
            Cell(int(row["index"]), str(row["index"]), image=shown.get((row["data"], row["index"]))),
            Cell(int(row["label"]), str(row["label"])),
            *(Cell(row[key], row[key]) for key in ("before", "by_before", "after", "by_after")),
            *(Cell(row[key], number(row[key])) for key in ("distance_before", "distance_after")),
        ]
        for row in frame.head(LISTED).to_dict("records")
    ]
    return _named(Grid(name, "Samples whose verdict changed", CHANGED, cells, tools=True, exported=name))


@shape
def _dots() -> alt.LayerChart:
    ends = alt.Scale(domain=["attacked", "certified"], range=[BROKEN, PROVED])
    shapes = alt.Scale(domain=["attacked", "certified"], range=["triangle-down", "triangle-up"])
    y = alt.Y("row:N", sort=None, axis=alt.Axis(title=None))
    base = alt.Chart(rows("difference", "low", "high", "p"))
    zero = base.mark_rule(strokeDash=[3, 3]).encode(x=alt.datum(0))
    lines = base.mark_rule(strokeWidth=2).encode(
        y=y, x="low:Q", x2="high:Q", color=alt.Color("end:N", scale=ends, legend=alt.Legend(title=None))
    )
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(
        y=y,
        x=alt.X("difference:Q", axis=accuracy_axis("after minus before, 95 % interval")),
        color=alt.Color("end:N", scale=ends, legend=alt.Legend(title=None)),
        shape=alt.Shape("end:N", scale=shapes, legend=alt.Legend(title=None)),
        tooltip=[
            "row:N",
            alt.Tooltip("difference:Q", format="+.1%"),
            alt.Tooltip("p:Q", format=".2g"),
            "verdict:N",
        ],
    )
    return zero + lines + dots


def differences_figure(name: str, frame: pd.DataFrame) -> Figure | None:
    """The paired differences with their intervals, or None where nothing changed."""
    moved = frame[(frame["gained"] + frame["lost"]) > 0].head(DRAWN) if len(frame) else frame
    if moved.empty:
        return None
    named = [
        ", ".join(filter(None, (row["model"], spoken(row["norm"], row["eps"]), row["end"])))
        for row in moved.to_dict("records")
    ]
    keep = ["end", "difference", "low", "high", "p", "verdict"]
    spec = wide(filled(_dots(), moved[keep].assign(row=named)), 24 * len(moved))
    first = moved.iloc[0]
    said = (
        f"Paired differences of {len(moved)} ends of brackets. First: {named[0]}, "
        f"{points(first['difference'])} points, p {number(first['p'], 2)}. The table has every number."
    )
    return Figure(
        name, "What changed, regressions first; ends without a change are left out", said, spec, None, True
    )


def _facts(frame: pd.DataFrame, moved: pd.DataFrame) -> list[tuple[str, str]]:
    verdicts = list(frame["verdict"]) if len(frame) else []
    return [
        (str(verdicts.count("worse")), "worse beyond chance"),
        (str(sum(verdict.startswith("worse") for verdict in verdicts)), "worse in all"),
        (str(len(moved)), "changed verdicts"),
        (str(len(frame)), "ends compared"),
    ]


def _pair_page(title: str, place: int, first: Side, second: Side, moved: pd.DataFrame) -> Page:
    """The page of one pair: judge by judge, the samples that changed, what has no counterpart."""
    found, lost = judges(first, second), unmatched(first, second)
    columns = (Column("side", "only in", numeric=False), Column("cell", "cell", numeric=False))
    cells = [[Cell(text, text) for text in row] for row in lost]
    context = {
        "judges": judges_grid(f"judges-{place}", found) if len(found) else None,
        "changed": changed_grid(f"changed-{place}", moved, first) if len(moved) else None,
        "pictures": [
            (side.name, pictures(side, moved)[:PICTURED] if len(moved) else []) for side in (first, second)
        ],
        "left_out": max(len(moved) - LISTED, 0),
        "unmatched": Grid("unmatched", "Judges that one side alone has", columns, cells) if lost else None,
    }
    return Page(f"pair-{place}.html", title, "pair.html", context)


def comparison_pages(sides: list[Side]) -> list[Page]:
    """The first page, and one a pair with its judges and changed samples."""
    pairs, pages = [], []
    for place, other in enumerate(sides[1:], start=1):
        frame, moved = brackets(sides[0], other), changed(sides[0], other)
        title = f"{sides[0].name} → {other.name}"
        pages.append(_pair_page(title, place, sides[0], other, moved))
        pairs.append(
            {
                "title": title,
                "path": pages[-1].path,
                "grid": brackets_grid(f"brackets-{place}", title, frame) if len(frame) else None,
                "figure": differences_figure(f"differences-{place}", frame),
                "facts": _facts(frame, moved),
            }
        )
    context = {
        "pairs": pairs,
        "costs": costs_grid(sides),
        "origins": [
            (
                side.name,
                *(
                    replace(grid, name=f"{grid.name}-{place}", caption=f"{grid.caption}, {side.name}")
                    for grid in (makers_grid(side.report), inputs_grid(side.report))
                ),
            )
            for place, side in enumerate(sides)
        ],
    }
    return [Page("index.html", "Comparison", "comparison.html", context), *pages]
