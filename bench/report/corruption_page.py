"""The corruption page: accuracy under each common corruption, and the mean corruption error of each model."""

from __future__ import annotations

from dataclasses import replace

from bench.outcomes import gather
from bench.report.grid import of_table, slug
from bench.report.report import Report
from bench.report.site import Page
from bench.tables import corruptions

LEAD = (
    "Blur, noise, weather and the like at five severities: no adversary seeks them out, so this is an average"
    " and not a bound (Hendrycks and Dietterich 2019)."
)


def corruption_page(report: Report) -> Page | None:
    """The page of all common corruptions, or None where no family was run by itself."""
    grids = []
    for data in dict.fromkeys(subject.data for subject in report.subjects):
        mine = [
            r for r in report.material.records if r.cell.data == data and r.cell.judge.name == "corruptions"
        ]
        if not any(record.header.status == "done" for record in mine):
            continue
        for table in corruptions(gather(mine)):
            named = replace(table, caption=f"{data}: {table.caption}")
            grids.append(of_table(named, exported=slug(f"{table.name}-{data}"), tools=True))
    return (
        Page("corruptions.html", "Common corruptions", "plain.html", {"lead": LEAD, "grids": grids})
        if grids
        else None
    )
