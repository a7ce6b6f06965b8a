"""`list`: what is registered."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from bench.catalog import Entry, load
from bench.spec import matrix_names, read_matrix


def _entries(kind: str) -> list[Entry]:
    if kind == "matrices":
        rows = []
        for name in matrix_names():
            spec = read_matrix(name)
            threats = ", ".join(threat.label for threat in spec.threats)
            rows.append(Entry(name=name, summary=f"{spec.data}: {threats}", paper=""))
        return rows
    return list(getattr(load(), kind).values())


def execute(kind: str, as_json: bool) -> int:
    """Prints the entries of `kind` as a table or as JSON."""
    entries = _entries(kind)
    if as_json:
        print(json.dumps([entry.model_dump(mode="json") for entry in entries], indent=2))
        return 0
    table = Table()
    table.add_column("name", no_wrap=True)
    judges = kind in ("attacks", "certificates")
    if judges:
        table.add_column("norms")
        table.add_column("cost")
    table.add_column("what it does")
    if kind not in ("matrices", "data"):
        table.add_column("source")
    for entry in entries:
        row = [entry.name]
        if judges:
            row += [" ".join(entry.norms), entry.cost.value]
        row.append(entry.summary)
        if kind not in ("matrices", "data"):
            row.append(entry.paper)
        table.add_row(*row)
    Console().print(table)
    return 0
