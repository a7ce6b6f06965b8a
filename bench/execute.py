"""Runs what a plan still lacks and stores each record as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from bench.cell import Cell
from bench.plan import Plan
from bench.record import Record
from bench.store import DamagedRecord, Store


class Executor(Protocol):
    """Maps a function over cells, yielding (cell, record) in any order."""

    def map(self, function: Callable[[Cell], Record], items: Iterable[Cell]) -> Iterator[tuple[Cell, Record]]:
        """(cell, function(cell)) as each is done."""


def pending(plan: Plan, store: Store) -> list[Cell]:
    """The cells without a finished record; failed and damaged ones count as not run."""
    waiting = []
    for cell in plan.cells:
        try:
            record = store.get(cell.id)
        except DamagedRecord:
            record = None
        if record is None or record.header.status == "failed":
            waiting.append(cell)
    return waiting


def execute(
    cells: Iterable[Cell], run: Callable[[Cell], Record], store: Store, executor: Executor
) -> Iterator[Record]:
    """Runs `cells`, storing each record before it is yielded."""
    for _, record in executor.map(run, cells):
        store.put(record)
        yield record
