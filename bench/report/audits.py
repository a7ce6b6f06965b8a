"""Audits beside the runs: which model they speak of, its rungs, and what they say of a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.analysis.stored import Analysis, Audited
from bench.record import Record
from bench.report.flags import Flag
from bench.report.grid import Cell, Column, Grid, duration, interval, percent
from bench.report.subject import Subject, spoken
from bench.stats import wilson

RUNGS = (
    Column("rung", "rung", numeric=False),
    Column("result", "result", numeric=False),
    Column("measured", "measured", numeric=False),
)
AUDITS = (
    Column("model", "model", numeric=False),
    Column("threat", "threat", numeric=False),
    Column("n", "n"),
    Column("clean", "clean"),
    Column("naive", "pgd alone"),
    Column("attacked", "everything"),
    Column("passed", "rungs passed"),
    Column("failed", "failed", numeric=False),
    Column("reliable", "worst case", numeric=False),
)


def audits_of(records: Sequence[Record], analyses: Iterable[Analysis]) -> tuple[Analysis, ...]:
    """The audits of the network that these records judged: the same weights, on the same images."""
    cell = records[0].cell
    weights = cell.weights.partition("<")[0]
    data = {r.header.provenance.data_sha256 for r in records if r.header.provenance is not None}
    return tuple(
        one
        for one in analyses
        if isinstance(one.result, Audited)
        and one.weights == {cell.defended: weights}
        and one.provenance.data_sha256 in data
    )


def audit_flags(subject: Subject, norm: str, eps: float) -> list[Flag]:
    """What the audits at a threat say of its row: unreliable ones take it out of the ranking."""
    found = []
    for result in _results(subject):
        if (result.norm, result.eps) != (norm, eps) or not result.failed:
            continue
        names = ", ".join(rung.name for rung in result.failed)
        if result.reliable:
            said = f"{len(result.failed)} of {len(result.rungs)} rungs of the audit failed ({names})"
            found.append(Flag("audit", said))
        else:
            remembers = any(rung.name == "memory" for rung in result.failed)
            why = (
                "answers depend on earlier ones" if remembers else "a weaker judge still beats the worst case"
            )
            said = f"unreliable: in the audit {why} ({names})"
            found.append(Flag("unreliable", said, fatal=True))
    return found


def _results(subject: Subject) -> list[Audited]:
    return [one.result for one in subject.audits if isinstance(one.result, Audited)]


def audit_sections(subject: Subject) -> list[dict[str, Any]]:
    """One section an audit: its numbers, every rung with what was measured, and its command."""
    return [
        {
            "title": f"{spoken(result.norm, result.eps)}, {result.n} images",
            "facts": facts(result),
            "grid": rungs_grid(one.name, result),
            "command": one.command,
            "made": one.provenance,
        }
        for one in subject.audits
        if isinstance(result := one.result, Audited)
    ]


def facts(result: Audited) -> list[tuple[str, str]]:
    """The numbers above the rungs."""
    passed = len(result.rungs) - len(result.failed)
    low, high = wilson(round(result.attacked * result.n), result.n)
    return [
        (f"{passed} of {len(result.rungs)}", "rungs passed"),
        (percent(result.clean), "clean"),
        (percent(result.naive), "left by pgd alone"),
        (f"{percent(result.attacked)} {interval(low, high)}", "left by everything"),
        ("reliable" if result.reliable else "UNRELIABLE", "worst case"),
        (duration(result.seconds), "of one core"),
    ]


def rungs_grid(name: str, result: Audited) -> Grid:
    """Every rung, the failed ones first."""
    ordered = sorted(result.rungs, key=lambda rung: rung.passed)
    rows = [
        [
            Cell(rung.name, rung.name),
            Cell("passed", "✓ passed") if rung.passed else Cell("failed", "✗ FAILED"),
            Cell(rung.detail, rung.detail),
        ]
        for rung in ordered
    ]
    caption = f"Rungs of the audit at {spoken(result.norm, result.eps)}, failed ones first"
    return Grid(f"rungs-{name}", caption, RUNGS, rows)


def audits_grid(analyses: Iterable[Analysis], paths: dict[str, str]) -> Grid | None:
    """All audits side by side, or None; `paths` maps the name of an audit to its model's page."""
    rows = []
    for one in analyses:
        if isinstance(result := one.result, Audited):
            threat, failed = spoken(result.norm, result.eps), ", ".join(rung.name for rung in result.failed)
            passed = len(result.rungs) - len(result.failed)
            rows.append(
                [
                    Cell(one.models[0], one.models[0], paths.get(one.name, "")),
                    Cell(threat, threat),
                    Cell(result.n, str(result.n)),
                    *(Cell(value, percent(value)) for value in (result.clean, result.naive, result.attacked)),
                    Cell(passed, f"{passed} of {len(result.rungs)}"),
                    Cell(failed, failed or "none"),
                    Cell(result.reliable, "reliable" if result.reliable else "unreliable"),
                ]
            )
    caption = "Audits: what a robustness number is worth; the rungs stand on the model's page"
    return Grid("audits", caption, AUDITS, rows, exported="audits") if rows else None
