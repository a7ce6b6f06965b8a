"""Draws docs/cost.svg from the two tables of docs/cost.md: `python -m tests.perf.plot_cost`."""

from __future__ import annotations

from pathlib import Path

import altair as alt
import pandas as pd

DOCS = Path(__file__).resolve().parents[2] / "docs"


def measured(text: str) -> pd.DataFrame:
    """Every number of the tables headed by sizes: columns against, method, size, milliseconds, exponent."""
    rows, sizes, against = [], list[int](), ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("Against the "):
            against = line.split()[2].rstrip(",")
        elif against and cells[0] == "method":
            sizes = [int(cell) for cell in cells[1:-1]]
        elif against and line.startswith("| `"):
            values = zip(sizes, cells[1:-1], strict=True)
            name = cells[0].strip("`")
            rows += [(against, name, size, float(cell), float(cells[-1])) for size, cell in values]
        elif line.startswith("## "):
            break
    return pd.DataFrame(rows, columns=["against", "method", "size", "milliseconds", "exponent"])


def chart(frame: pd.DataFrame) -> alt.HConcatChart:
    """One panel a table, both axes logarithmic: a power law is a straight line, its slope the exponent."""
    panels = []
    for against, part in frame.groupby("against", sort=False):
        sizes = sorted(part["size"].unique().tolist())
        label = part["method"] + " (" + part["exponent"].map("{:.1f}".format) + ")"
        panels.append(
            alt.Chart(part.assign(label=label), title=f"Against the {against}")
            .mark_line(point=True)
            .encode(
                x=alt.X("size:Q", title=str(against))
                .scale(type="log", domain=[sizes[0], sizes[-1]])
                .axis(values=sizes, grid=False),
                y=alt.Y("milliseconds:Q", title="milliseconds an image").scale(type="log"),
                color=alt.Color("label:N", title="method (exponent)").scale(scheme="tableau10"),
                shape=alt.Shape("label:N", legend=None),
            )
            .properties(width=300, height=260)
        )
    return alt.hconcat(*panels).resolve_scale(color="independent", shape="independent")


if __name__ == "__main__":
    chart(measured((DOCS / "cost.md").read_text())).save(DOCS / "cost.svg")
