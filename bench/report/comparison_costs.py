"""What each side of a comparison took, and how that compares with the first."""

from __future__ import annotations

from bench.record import Record
from bench.report.comparison import Side
from bench.report.grid import Cell, Column, Grid, duration, number

COSTS = (
    Column("side", "side", numeric=False),
    Column("cells", "cells done"),
    Column("failed", "failed"),
    Column("seconds", "time of one core"),
    Column("passes", "passes"),
    Column("shared", "time on shared judges"),
    Column("ratio", "of the first side's"),
)


def costs_grid(sides: list[Side]) -> Grid:
    """What each side spent, and how that compares with the first; shared: on the judges that all finished."""
    done = [_finished(side) for side in sides]
    common = set.intersection(*map(set, done))
    first = sum(done[0][judge].header.wall_seconds for judge in common)
    rows = []
    for side, records in zip(sides, done, strict=True):
        failed = [r for s in side.subjects().values() for r in s.records if r.header.status == "failed"]
        seconds = sum(record.header.wall_seconds for record in records.values())
        shared = sum(records[judge].header.wall_seconds for judge in common)
        passes = sum(int((r.outcomes["forward"] + r.outcomes["backward"]).sum()) for r in records.values())
        ratio = shared / first if first else float("nan")
        rows.append(
            [
                Cell(side.name, side.name),
                *(Cell(count, f"{count:,}") for count in (len(records), len(failed))),
                Cell(seconds, duration(seconds)),
                Cell(passes, f"{passes:,}"),
                Cell(shared, duration(shared)),
                Cell(ratio, number(ratio)),
            ]
        )
    return Grid(
        "cost", "What each side took, on its own and on the judges that all sides finished", COSTS, rows
    )


def _finished(side: Side) -> dict[tuple[str, ...], Record]:
    """The finished records of a side, by what all sides name alike: model or data, and judge."""
    return {
        (*key, record.cell.judge.kind, record.cell.judge.label, record.cell.threat.label): record
        for key, subject in side.subjects().items()
        for record in subject.records
        if record.header.status == "done"
    }
