"""The provenance page: what made each record, and the command that makes it again."""

from __future__ import annotations

from collections import Counter

from bench.record import Record
from bench.report.grid import Cell, Column, Grid, duration, slug
from bench.report.leaderboard import records_path
from bench.report.report import Report
from bench.report.reproduce import command
from bench.report.site import Page

RECORDS = (
    Column("record", "record", numeric=False),
    Column("model", "model", numeric=False, choose=True),
    Column("judge", "judge", numeric=False, choose=True),
    Column("threat", "threat", numeric=False, choose=True),
    Column("n", "n"),
    Column("seed", "seed"),
    Column("status", "status", numeric=False, choose=True),
    Column("seconds", "time"),
    Column("started", "started", numeric=False),
    Column("command", "command", numeric=False),
)


def records_grid(report: Report) -> Grid:
    """One row a record with the command that makes it again."""
    rows = [_row(record, report.material.matrices[record.cell.id]) for record in report.material.records]
    return Grid("records", "Every record", RECORDS, rows, tools=True, exported="provenance", forms=("csv",))


def _row(record: Record, matrix: str) -> list[Cell]:
    cell, header = record.cell, record.header
    proof = header.provenance
    threat = cell.threat
    there = records_path(cell.data, cell.defended, threat.norm, threat.eps) if threat.eps is not None else ""
    there = there or records_path(cell.data, cell.defended)
    if header.status != "done":
        there = records_path(cell.data, cell.defended).partition("#")[0] + f"#{cell.id}"
    again = command(cell, matrix)
    when = proof.started[:16].replace("T", " ") if proof else ""
    return [
        Cell(cell.id, cell.id[3:11], there, anchor=cell.id),
        Cell(cell.defended, cell.defended),
        Cell(cell.judge.label, cell.judge.label),
        Cell(threat.label, threat.label),
        Cell(cell.images, str(cell.images)),
        Cell(cell.seed, str(cell.seed)),
        Cell(header.status, header.status),
        Cell(header.wall_seconds, duration(header.wall_seconds)),
        Cell(when, when),
        Cell(again, again),
    ]


def makers_grid(report: Report) -> Grid:
    """The distinct versions, commits and devices, with how many records each made."""
    names = ("version", "commit", "changed files", "python", "torch", "platform", "device")
    proofs = [r.header.provenance for r in report.material.records if r.header.provenance is not None]
    counts = Counter(
        (
            p.version,
            p.commit or "unknown",
            "yes" if p.dirty else "no",
            p.python,
            p.torch,
            p.platform,
            p.device,
        )
        for p in proofs
    )
    columns = [*(Column(name, name, numeric=False) for name in names), Column("records", "records")]
    rows = [
        [*(Cell(text, text) for text in made), Cell(count, str(count))]
        for made, count in sorted(counts.items())
    ]
    return Grid("makers", "What made the records", columns, rows)


def inputs_grid(report: Report) -> Grid:
    """The hash of each data set and of each model's weights."""
    columns = [Column(name, name, numeric=False) for name in ("kind", "name", "hash")]
    data = {
        ("data set", r.cell.data, r.header.provenance.data_sha256)
        for r in report.material.records
        if r.header.provenance is not None
    }
    weights = {
        ("weights", r.cell.defended, r.cell.weights.partition("<")[0]) for r in report.material.records
    }
    rows = [[Cell(text, text) for text in row] for row in (*sorted(data), *sorted(weights))]
    return Grid("inputs", "SHA-256 of what went in (of weights the first 16 digits)", columns, rows)


def matrix_path(name: str) -> str:
    """Where the TOML of a matrix of the user's own lies."""
    return f"matrices/{slug(name)}.toml"


def provenance_page(report: Report) -> Page:
    """The page that says where every number comes from."""
    return Page(
        "provenance.html",
        "Provenance",
        "provenance.html",
        {
            "makers": makers_grid(report),
            "inputs": inputs_grid(report),
            "records": records_grid(report),
            "matrices": [(f"{name}.toml", matrix_path(name)) for name in sorted(report.material.texts)],
        },
    )
