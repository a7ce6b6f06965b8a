"""`table`: leaderboards from stored records."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bench.catalog import load
from bench.defended_table import defended
from bench.outcomes import contradictions, gather
from bench.record import Record
from bench.render import show, wide_console, write
from bench.store import Store
from bench.tables import Table, all_tables, not_run
from models.errors import UserError


def leaderboards(records: list[Record], folder: Path) -> tuple[list[Table], list[str]]:
    """Writes the leaderboards of `records` under `folder`; returns them and the contradictions found."""
    outcomes = gather(records)
    missing = not_run(record.header for record in records)
    tables = [*all_tables(outcomes), *defended(outcomes, load()), *([missing] if len(missing.frame) else [])]
    write(tables, folder)
    return tables, contradictions(outcomes)


def report(store: Store, cell_ids: list[str], console: Console) -> int:
    """Writes and prints the leaderboards; returns 1 where a proof and an attack contradict each other."""
    tables, clashes = leaderboards(store.many(cell_ids), store.folder / "leaderboards")
    for table in tables:
        if table.name != "not-run" and not table.name.endswith(("-judges", "-families")):
            show(table, console)
    console.print(f"leaderboards: {store.folder / 'leaderboards'}", highlight=False, soft_wrap=True)
    errors = Console(stderr=True, markup=False)
    for line in clashes:
        errors.print(f"CONTRADICTION: {line}", style="bold red", highlight=False, soft_wrap=True)
    return 1 if clashes else 0


def execute(out: Path) -> int:
    """Rebuilds the leaderboards of the last run under `out`."""
    store = Store(out)
    run = store.load_run()
    if not run.cells:
        raise UserError(f"the last run under {out} had no cells")
    return report(store, run.cells, wide_console())
