"""The whole site of a report: pages, figures, tables, badges and a summary, in one folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.report.analyses_page import analyses_page
from bench.report.badge import badge
from bench.report.comparison import Side
from bench.report.comparison_page import comparison_pages
from bench.report.corruption_page import corruption_page
from bench.report.export import write_boards, write_figure, write_table
from bench.report.figures import Figure
from bench.report.game_page import games_page
from bench.report.grid import Grid, Picture, slug
from bench.report.judge_page import judge_page, judges_index, labels
from bench.report.leaderboard import board_path, leaderboard_page
from bench.report.model_page import model_page
from bench.report.overview import overview_page
from bench.report.pictures import Example
from bench.report.provenance import matrix_path, provenance_page
from bench.report.records_page import records_page
from bench.report.report import Report
from bench.report.site import MARKER, Page, built_aside, render, write_static
from bench.report.subject import spoken
from bench.report.summary import summary_pdf
from bench.report.transfer import transfer_page, transfer_tables


def pages(report: Report) -> Iterator[Page]:
    """Every page of a report, the first one first."""
    yield overview_page(report)
    for board in report.boards:
        yield leaderboard_page(board, report.boards)
    for subject in report.subjects:
        yield model_page(subject)
        yield records_page(subject)
    judges = labels(report)
    if judges:
        yield judges_index(report, judges)
    for label, records in judges.items():
        yield judge_page(report, label, records)
    for page in (
        transfer_page(report, transfer_tables(report)),
        games_page(report),
        corruption_page(report),
        analyses_page(report),
    ):
        if page is not None:
            yield page
    yield provenance_page(report)
    yield Page("downloads.html", "Downloads", "downloads.html", {"boards": report.boards, "slug": slug})


def _menu(report: Report, found: set[str]) -> list[tuple[str, str]]:
    entries = [
        ("Overview", "index.html"),
        *(("Leaderboard", board_path(board)) for board in report.boards[:1]),
        ("Attacks and certificates", "judges/index.html"),
        ("Transfer", "transfer.html"),
        ("Game", "game.html"),
        ("Corruptions", "corruptions.html"),
        ("Analyses", "analyses.html"),
        ("Provenance", "provenance.html"),
        ("Downloads", "downloads.html"),
    ]
    return [(title, path) for title, path in entries if path in found]


def inside(value: Any, kind: type) -> Iterator[Any]:
    """Every object of a kind in a page's context, however deep."""
    if isinstance(value, kind):
        yield value
    if isinstance(value, Figure):
        yield from inside(value.data, kind)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from inside(inner, kind)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from inside(inner, kind)


def footer(report: Report) -> str:
    """Where the numbers come from, for the foot of every page."""
    starts = [r.header.provenance.started[:10] for r in report.material.records if r.header.provenance]
    made = f", measured {min(starts)} to {max(starts)}" if starts else ""
    count = len(report.material.records)
    return f"A pure function of {count} records{made}. Intervals are Wilson 95 %."


def build(report: Report, out: Path, force: bool = False) -> int:
    """Writes the report under `out`, whole or not at all; returns its size in bytes.

    Raises UserError where `out` exists (see `site.check_place`).
    """
    with built_aside(out, force) as folder:
        made = list(pages(report))
        write_pages(folder, made, _menu(report, {page.path for page in made}), footer(report))
        _write_exports(folder, made)
        write_boards(folder / "tables", report)
        _write_badges(folder / "badges", report)
        for name, text in report.material.texts.items():
            (folder / "matrices").mkdir(exist_ok=True)
            (folder / matrix_path(name)).write_text(text, encoding="utf-8")
        (folder / "summary.pdf").write_bytes(summary_pdf(report))
        _write_marker(folder, {"runs": [path.name for path in report.material.folders]})
        return _size(folder)


def build_comparison(sides: list[Side], out: Path, force: bool = False) -> int:
    """Writes the comparison of several sides under `out`, whole or not at all; returns its size in bytes."""
    with built_aside(out, force) as folder:
        made = comparison_pages(sides)
        menu = [(page.title, page.path) for page in made]
        # Models of one run share its records.
        count = len({r.cell.id: r for side in sides for r in side.report.material.records})
        write_pages(folder, made, menu, f"A pure function of {count} records.")
        _write_exports(folder, made)
        _write_marker(folder, {"comparison": [side.name for side in sides]})
        return _size(folder)


def write_pages(folder: Path, made: list[Page], menu: list[tuple[str, str]], foot: str) -> None:
    """Renders the pages and the files they load."""
    write_static(folder)
    for page in made:
        path = folder / page.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(page, menu, foot), encoding="utf-8")


def _write_exports(folder: Path, made: list[Page]) -> None:
    """Writes the tables, figures and pictures that the pages offer."""
    for page in made:
        for grid in inside(page.context, Grid):
            if grid.exported:
                write_table(folder / "tables", grid)
        for figure in inside(page.context, Figure):
            if figure.exported:
                write_figure(folder / "figures", figure)
        for picture in _pictures(page):
            place = folder / picture.path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(picture.content)


def _pictures(page: Page) -> Iterator[Picture]:
    """Every image file that a page shows."""
    for example in inside(page.context, Example):
        yield from (*example.pictures, *example.views)
    for grid in inside(page.context, Grid):
        yield from (cell.image for row in grid.rows for cell in row if cell.image is not None)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_marker(folder: Path, content: dict[str, Any]) -> None:
    (folder / MARKER).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_badges(folder: Path, report: Report) -> None:
    folder.mkdir()
    for subject in report.subjects:
        for norm, eps in subject.threats:
            frame = subject.samples(norm, eps)
            certified, attacked = float(frame["certified"].mean()), float((~frame["attacked"]).mean())
            name = slug(f"{subject.data}_{subject.defended}-{norm}-{eps:g}")
            text = badge(f"robust accuracy, {spoken(norm, eps)}", certified, attacked)
            (folder / f"{name}.svg").write_text(text, encoding="utf-8")
