"""The first page: what was run, the leaderboards at a glance, and what has no result."""

from __future__ import annotations

from bench.report.boards import Board
from bench.report.grid import Cell, Column, Grid, duration, of_table, percent
from bench.report.leaderboard import board_path, model_path, records_path
from bench.report.ranks import spelled
from bench.report.report import Report
from bench.report.site import Page

FIRST = 3


def leaders(boards: list[Board]) -> Grid | None:
    """The first rows of each leaderboard, or None where there is no leaderboard."""
    columns = (
        Column("board", "data set and threat", numeric=False),
        Column("rank", "rank"),
        Column("model", "model", numeric=False),
        Column("n", "n"),
        Column("certified", "certified"),
        Column("attacked", "attacked"),
    )
    rows = []
    for board in boards:
        for place, row in enumerate(board.ranked.head(FIRST).to_dict("records")):
            best, worst = int(row["best"]), int(row["worst"])
            there = records_path(board.data, row["defended"], board.norm, board.eps)
            rows.append(
                [
                    Cell(board.title, board.title if place == 0 else "", board_path(board)),
                    Cell(best, spelled(best, worst), board_path(board)),
                    Cell(row["defended"], row["defended"], model_path(board.data, row["defended"])),
                    Cell(int(row["n"]), str(int(row["n"])), there),
                    Cell(row["certified"], percent(row["certified"]), there),
                    Cell(row["attacked"], percent(row["attacked"]), there),
                ]
            )
    caption = f"The first {FIRST} rows of each leaderboard; each rank is an interval"
    return Grid("leaders", caption, columns, rows) if rows else None


def not_run_grid(report: Report) -> Grid | None:
    """Cells without a result: failed, skipped and unreadable ones, or None."""
    table = report.not_run
    grid = of_table(table) if len(table.frame) else None
    columns = (
        grid.columns
        if grid
        else tuple(
            Column(name, name, numeric=False)
            for name in ("model", "defense", "judge", "threat", "status", "reason")
        )
    )
    rows = list(grid.rows) if grid else []
    for lost in report.material.unreadable:
        named = (lost.cell, "", "", "", "unreadable", lost.reason)
        rows.append([Cell(text, text) for text in named])
    return Grid("not-run", "Cells without a result", columns, rows) if rows else None


def overview_page(report: Report) -> Page:
    """The page that opens the report."""
    headers = [record.header for record in report.material.records]
    counts = {
        status: sum(header.status == status for header in headers) for status in ("done", "skipped", "failed")
    }
    facts = [
        (str(len({(subject.data, subject.defended) for subject in report.subjects})), "models"),
        (str(len({header.cell.judge.label for header in headers})), "attacks and certificates"),
        (str(counts["done"]), "cells done"),
        (str(counts["failed"] + len(report.material.unreadable)), "failed or unreadable"),
        (str(counts["skipped"]), "skipped: does not apply"),
        (duration(sum(header.wall_seconds for header in headers)), "of one core"),
    ]
    return Page(
        "index.html",
        "How far down, and how much is proved",
        "overview.html",
        {
            "facts": facts,
            "boards": [(board.title, board_path(board), len(board.ranked)) for board in report.boards],
            "leaders": leaders(report.boards),
            "not_run": not_run_grid(report),
            "contradictions": report.contradictions,
            "skips": report.material.skips,
            "lacking": sorted(report.material.lacking.items()),
            "models": [
                (f"{s.defended} on {s.data}", model_path(s.data, s.defended)) for s in report.subjects
            ],
        },
    )
