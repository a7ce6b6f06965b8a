"""The transfer page: what examples made on one model do to another, as heat maps with their RMSD."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.outcomes import gather
from bench.report.figures import Figure, heat_spec
from bench.report.grid import Row, number, of_table, percent, slug
from bench.report.leaderboard import model_path, records_path
from bench.report.report import Report
from bench.report.site import Page
from bench.report.subject import spoken
from bench.tables import Table, threats, transfers


def transfer_tables(report: Report) -> list[tuple[str, str, float, Table]]:
    """(data set, norm, eps, table) of every transfer matrix."""
    found = []
    for data in dict.fromkeys(subject.data for subject in report.subjects):
        mine = [r for r in report.material.records if r.cell.data == data and r.cell.judge.name == "transfer"]
        mine = [
            record for record in mine if record.header.status == "done" and record.cell.threat.eps is not None
        ]
        if not mine:
            continue
        outcomes = gather(mine)
        for norm, eps in threats(outcomes):
            here = outcomes[(outcomes["norm"] == norm) & (outcomes["eps"] == eps)]
            found += [(data, norm, eps, table) for table in transfers(here)]
    return found


def heat_figure(data: str, norm: str, eps: float, table: Table) -> Figure:
    """One transfer matrix: sources down, targets across, the RMSD beside each source's name."""

    def link(column: str, value: Any, row: Row) -> str:
        if column == "source":
            return model_path(data, str(value)) if value in table.percent else ""
        measured = column in table.percent and not pd.isna(value)
        return records_path(data, column, norm, eps) if measured else ""

    long = pd.DataFrame(
        [
            {
                "source": f"{row['source']} (RMSD {number(row['rmsd'], 2)})",
                "target": target,
                "value": row[target],
            }
            for row in table.frame.to_dict("records")
            for target in table.percent
        ]
    )
    name = slug(f"transfer-{data}-{norm}-{eps:g}")
    weakest = long.dropna().sort_values("value", kind="stable").iloc[0]
    said = (
        f"Accuracy of {len(table.percent)} models on examples made on {len(table.frame)} sources at "
        f"{spoken(norm, eps)}. Lowest: {weakest['target']} on those of {weakest['source']}, "
        f"{percent(weakest['value'])}."
    )
    title = "Accuracy in per cent of each model (across) on examples made on each source (down)"
    grid = of_table(table, {"rmsd": "RMSD"}, link, exported=name)
    return Figure(name, title, said, heat_spec(long, "target", "source", "accuracy"), grid, True)


def transfer_page(report: Report, tables: list[tuple[str, str, float, Table]]) -> Page | None:
    """The page of all transfer matrices, or None where nothing was transferred."""
    if not tables:
        return None
    sections = [
        {
            "title": f"{data}, {spoken(norm, eps)}",
            "caption": table.caption,
            "figure": heat_figure(data, norm, eps, table),
        }
        for data, norm, eps, table in tables
    ]
    return Page("transfer.html", "Transfer between models", "transfer.html", {"sections": sections})
