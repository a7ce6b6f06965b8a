"""The page of an attack or certificate: what it does to every model, and pictures where they were kept."""

from __future__ import annotations

from bench.record import Record
from bench.report.grid import Cell, Column, Grid, Row, duration, interval, number, percent
from bench.report.leaderboard import model_path, records_path
from bench.report.pictures import Example, examples, held_out_error
from bench.report.records_page import judge_path, provenance_path
from bench.report.report import Report
from bench.report.site import Page
from bench.report.subject import Subject, spoken

COLUMNS = (
    Column("model", "model", numeric=False, choose=True),
    Column("threat", "threat", numeric=False, choose=True),
    Column("n", "n"),
    Column("accuracy", "accuracy", help="left by the attack alone, or proved by the certificate alone"),
    Column("fooling_rate", "fooling rate"),
    Column("rmsd", "RMSD"),
    Column("passes", "passes"),
    Column("seconds", "time"),
    Column("record", "record", numeric=False),
)
SHOWN = 24
"""At most this many examples are shown on a page."""


def labels(report: Report) -> dict[str, list[Record]]:
    """The finished records of each judge, by its label."""
    found: dict[str, list[Record]] = {}
    for record in report.material.records:
        if record.header.status == "done":
            found.setdefault(record.cell.judge.label, []).append(record)
    return dict(sorted(found.items()))


def _rows(subject: Subject, label: str, records: dict[tuple[str, float | None], Record]) -> list[list[Cell]]:
    rows = []
    for norm, eps in subject.threats:
        record = records.get((norm, eps)) or records.get((norm, None))
        if record is None:
            continue
        alone = subject.judges(norm, eps)
        for row in alone[alone["judge"] == label].to_dict("records"):
            rows.append(_row(subject, norm, eps, row, record))
    return rows


def _row(subject: Subject, norm: str, eps: float, row: Row, record: Record) -> list[Cell]:
    seconds = record.header.wall_seconds
    return [
        Cell(subject.defended, subject.defended, model_path(subject.data, subject.defended)),
        Cell(f"{norm}-{eps:g}", spoken(norm, eps), records_path(subject.data, subject.defended, norm, eps)),
        Cell(int(row["n"]), str(row["n"])),
        Cell(row["accuracy"], percent(row["accuracy"]), note=interval(row["low"], row["high"])),
        Cell(row["fooling_rate"], percent(row["fooling_rate"])),
        Cell(row["rmsd"], number(row["rmsd"])),
        Cell(row["passes"], number(row["passes"], 4)),
        Cell(seconds, duration(seconds)),
        Cell(record.cell.id, record.cell.id[3:11], provenance_path(record.cell.id)),
    ]


def judge_page(report: Report, label: str, records: list[Record]) -> Page:
    """The page of one judge."""
    rows: list[list[Cell]] = []
    for subject in report.subjects:
        mine = {
            (record.cell.threat.norm, record.cell.threat.eps): record
            for record in records
            if (record.cell.data, record.cell.defended) == (subject.data, subject.defended)
        }
        rows += _rows(subject, label, mine) if mine else []
    judge = records[0].cell.judge
    shown = alternating([examples(record, report.material.folders) for record in records])
    settings = {**judge.defaults, **judge.chosen}
    return Page(
        judge_path(label),
        label,
        "judge.html",
        {
            "kind": judge.kind,
            "settings": [(name, str(value)) for name, value in settings.items()],
            "grid": Grid("models", f"{label} alone, on its own n images", COLUMNS, rows, tools=True)
            if rows
            else None,
            "examples": shown[:SHOWN],
            "views": views_grid(report, records),
            "alone": any(example.index is None for example in shown),
            "left_out": max(len(shown) - SHOWN, 0),
        },
    )


def alternating(groups: list[list[Example]]) -> list[Example]:
    """The first of every group, then the second of every group, and so on: each model has its place."""
    deepest = max(map(len, groups), default=0)
    return [group[place] for place in range(deepest) for group in groups if place < len(group)]


def views_grid(report: Report, records: list[Record]) -> Grid | None:
    """How an attack made for views fares on views that it has not seen, or None."""
    columns = (
        Column("model", "model", numeric=False),
        Column("threat", "threat", numeric=False),
        Column("n", "n"),
        Column("attacked", "wrong on held-out views"),
        Column("clean", "wrong on views of the clean images"),
    )
    rows = []
    for record in records:
        found = held_out_error(record, report.material.folders)
        if found is not None:
            cell, right = record.cell, int(record.outcomes["clean"].sum())
            norm, eps = cell.threat.norm, cell.threat.eps
            title = cell.threat.label if eps is None else spoken(norm, eps)
            there = records_path(cell.data, cell.defended)
            rows.append(
                [
                    Cell(cell.defended, cell.defended, there),
                    Cell(title, title),
                    Cell(right, str(right)),
                    *(Cell(share, percent(share)) for share in found),
                ]
            )
    caption = "Fresh views of all correctly classified images, under poses, light or noise not seen before"
    return Grid("views", caption, columns, rows) if rows else None


def judges_index(report: Report, found: dict[str, list[Record]]) -> Page:
    """The list of all judges."""
    columns = (
        Column("judge", "judge", numeric=False),
        Column("kind", "kind", numeric=False, choose=True),
        Column("cells", "cells"),
        Column("seconds", "time"),
    )
    rows = []
    for label, records in found.items():
        seconds = sum(record.header.wall_seconds for record in records)
        kind = records[0].cell.judge.kind
        rows.append(
            [
                Cell(label, label, judge_path(label)),
                Cell(kind, kind),
                Cell(len(records), str(len(records))),
                Cell(seconds, duration(seconds)),
            ]
        )
    grid = Grid("judges", "Attacks and certificates", columns, rows, tools=True)
    return Page("judges/index.html", "Attacks and certificates", "plain.html", {"lead": "", "grids": [grid]})
