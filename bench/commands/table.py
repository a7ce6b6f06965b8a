"""`table`: leaderboards from stored records."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bench.catalog import load
from bench.defended_table import defended
from bench.finished import Finished, ingredients, keep
from bench.outcomes import contradictions, gather
from bench.record import Record
from bench.render import sheet, show, wide_console, write
from bench.store import Store
from bench.tables import all_tables, not_run
from models.errors import UserError


def leaderboards(records: dict[str, Record], folder: Path) -> Finished:
    """Writes the leaderboards of `records`, by cell, under `folder`."""
    outcomes = gather(records.values())
    missing = not_run(record.header for record in records.values())
    tables = [*all_tables(outcomes), *defended(outcomes, load()), *([missing] if len(missing.frame) else [])]
    headers = {cell_id: record.header for cell_id, record in records.items()}
    printed = [table for table in tables if not table.name.endswith(("not-run", "-judges", "-families"))]
    return Finished(
        made_of=ingredients((cell_id, record.sha256) for cell_id, record in records.items()),
        skipped={cell_id: header.reason for cell_id, header in headers.items() if header.status == "skipped"},
        sheets=[sheet(table) for table in printed],
        clashes=contradictions(outcomes),
        files=write(tables, folder),
    )


def report(store: Store, cell_ids: list[str], console: Console) -> int:
    """Writes and prints the leaderboards; returns 1 where a proof and an attack contradict each other."""
    found = ((cell_id, store.get(cell_id)) for cell_id in cell_ids)
    records = {cell_id: record for cell_id, record in found if record is not None}
    finished = leaderboards(records, store.leaderboards)
    if len(records) == len(cell_ids) and all(one.header.status != "failed" for one in records.values()):
        keep(finished, store)
    return show_all(finished, store, console)


def show_all(finished: Finished, store: Store, console: Console) -> int:
    """Prints the leaderboards; returns 1 where a proof and an attack contradict each other."""
    for table in finished.sheets:
        show(table, console)
    console.print(f"leaderboards: {store.leaderboards}", highlight=False, soft_wrap=True)
    errors = Console(stderr=True, markup=False)
    for line in finished.clashes:
        errors.print(f"CONTRADICTION: {line}", style="bold red", highlight=False, soft_wrap=True)
    return 1 if finished.clashes else 0


def execute(out: Path) -> int:
    """Rebuilds the leaderboards of the last run under `out`."""
    store = Store(out)
    run = store.load_run()
    if not run.cells:
        raise UserError(f"the last run under {out} had no cells")
    return report(store, run.cells, wide_console())
