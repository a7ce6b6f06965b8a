"""`list`: what is registered, and what is trained."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.catalog import Entry, load
from bench.spec import matrix_names, read_matrix
from bench.weights import FOLDER


def _entries(kind: str) -> list[Entry]:
    if kind == "matrices":
        rows = []
        for name in matrix_names():
            spec = read_matrix(name)
            threats = ", ".join(threat.label for threat in spec.threats)
            rows.append(Entry(name=name, summary=f"{spec.data}: {threats}", paper=""))
        return rows
    if kind == "weights":
        return [_trained(path) for path in sorted(FOLDER.glob("*.json"), key=lambda path: path.stem)]
    return list(getattr(load(), kind).values())


def _trained(path: Path) -> Entry:
    """A zoo member whose weights ship, as its card describes it."""
    card = json.loads(path.read_bytes())
    data, clean = next(iter(card["accuracies"].items()))
    seconds = card.get("seconds") or 0.0
    took = f", {seconds / 60:.0f} min" if seconds >= 60 else f", {seconds:.0f} s" if seconds else ""
    summary = f"{100 * clean:.2f} % of {data}, {card['recipe']['epochs']} epochs{took}"
    return Entry(name=card["name"], summary=summary, paper="")


def execute(kind: str, as_json: bool) -> int:
    """Prints the entries of `kind` as a table or as JSON."""
    entries = _entries(kind)
    if as_json:
        print(json.dumps([entry.model_dump(mode="json") for entry in entries], indent=2))
        return 0
    table = Table()
    bare = kind in ("matrices", "data", "operations", "weights")
    table.add_column("name", no_wrap=kind not in ("operations", "weights"), overflow="fold")
    judges = kind in ("attacks", "certificates")
    if judges:
        table.add_column("norms")
        table.add_column("cost")
    table.add_column("clean accuracy, training" if kind == "weights" else "what it does")
    if not bare:
        table.add_column("source")
    for entry in entries:
        row = [entry.name]
        if judges:
            wide = f", {entry.wide_cost.value} where wide" if entry.wide_cost else ""
            row += [" ".join(entry.norms), f"{entry.cost.value}{wide}"]
        row.append(entry.summary)
        if not bare:
            row.append(entry.paper)
        table.add_row(*row)
    Console().print(table)
    return 0
