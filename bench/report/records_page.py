"""The records of one model: every judge's cell, and the verdict on every sample, threat by threat."""

from __future__ import annotations

import pandas as pd

from bench.record import Record
from bench.report.grid import Cell, Column, Grid, Row, duration, interval, number, percent, slug
from bench.report.leaderboard import model_path, records_path
from bench.report.site import Page
from bench.report.subject import NORMS, Subject, spoken

JUDGES = (
    Column("judge", "judge", numeric=False),
    Column("kind", "kind", numeric=False),
    Column("radius", "ε of its record", numeric=False),
    Column("n", "n"),
    Column("accuracy", "accuracy", help="not broken by the attack, or proved by the certificate"),
    Column("fooling_rate", "fooling rate", help="broken among the correctly classified"),
    Column("rmsd", "RMSD", help="root mean square of the perturbations that succeed"),
    Column("passes", "passes", help="forward and backward passes a sample"),
    Column("seconds", "time"),
    Column("record", "record", numeric=False),
)
SAMPLES = (
    Column("index", "index", help="place in the data set"),
    Column("label", "label"),
    Column("verdict", "verdict", numeric=False, choose=True),
    Column("distance", "broken at", help="the smallest perturbation found, in the threat's norm"),
    Column("nearest", "by", numeric=False),
    Column("breakers", "broken by", help="how many judges broke it"),
    Column("certified_by", "certified by", numeric=False),
)


def judge_path(label: str) -> str:
    """Where a judge's page lies."""
    return f"judges/{slug(label)}.html"


def provenance_path(cell_id: str) -> str:
    """Where a record's origin stands."""
    return f"provenance.html#{cell_id}"


def judges_grid(subject: Subject, norm: str, eps: float) -> Grid:
    """One row a judge, each on its own images, with its record."""
    records = {
        (record.cell.judge.kind, record.cell.judge.label): record for record in subject.within(norm, eps)
    }
    rows = [
        _judge_row(row, records[row["kind"], row["judge"]])
        for row in subject.judges(norm, eps).to_dict("records")
    ]
    name = f"judges-{norm}-{eps:g}"
    return Grid(name, f"Each judge alone at {spoken(norm, eps)}, on its own n images", JUDGES, rows)


def _judge_row(row: Row, record: Record) -> list[Cell]:
    cell = record.cell
    found, seconds = int(row["n"]), record.header.wall_seconds
    sure = f"confidence {number(record.header.confidence, 6)}" if record.header.confidence < 1 else ""
    radius = "smallest" if cell.threat.eps is None else f"{cell.threat.eps:g}"
    return [
        Cell(row["judge"], row["judge"], judge_path(row["judge"])),
        Cell(row["kind"], row["kind"], note=sure),
        Cell(radius, radius),
        Cell(found, str(found)),
        Cell(row["accuracy"], percent(row["accuracy"]), note=interval(row["low"], row["high"])),
        Cell(row["fooling_rate"], percent(row["fooling_rate"])),
        Cell(row["rmsd"], number(row["rmsd"])),
        Cell(row["passes"], number(row["passes"], 4)),
        Cell(seconds, duration(seconds)),
        Cell(cell.id, cell.id[3:11], provenance_path(cell.id)),
    ]


def verdict(row: Row) -> str:
    """What is known of a sample: misclassified, broken, certified or open."""
    if not row["clean"]:
        return "misclassified"
    if row["attacked"]:
        return "broken"
    return "certified" if row["certified"] else "open"


def samples_grid(subject: Subject, norm: str, eps: float, tools: bool) -> Grid:
    """One row a sample with its verdict."""
    rows = []
    for row in subject.samples(norm, eps).to_dict("records"):
        known = verdict(row)
        rows.append(
            [
                Cell(int(row["index"]), str(row["index"])),
                Cell(int(row["label"]), str(row["label"])),
                Cell(known, known),
                Cell(row["distance"], number(row["distance"])),
                Cell(row["nearest"], row["nearest"]),
                Cell(int(row["breakers"]), str(row["breakers"])),
                Cell(row["certified_by"], row["certified_by"]),
            ]
        )
    caption = f"Verdict on each sample at {spoken(norm, eps)}"
    return Grid(f"samples-{norm}-{eps:g}", caption, SAMPLES, rows, tools=tools)


def unfinished_grid(subject: Subject) -> Grid | None:
    """The cells of this model without a result, or None."""
    columns = (
        Column("judge", "judge", numeric=False),
        Column("threat", "threat", numeric=False),
        Column("status", "status", numeric=False),
        Column("reason", "reason", numeric=False),
    )
    rows = []
    for record in subject.records:
        header, cell = record.header, record.cell
        if header.status != "done":
            rows.append(
                [
                    Cell(cell.judge.label, cell.judge.label, anchor=cell.id),
                    Cell(cell.threat.label, cell.threat.label),
                    Cell(header.status, header.status),
                    Cell(header.reason, header.reason),
                ]
            )
    return Grid("unfinished", "Cells without a result", columns, rows) if rows else None


def minimal_grid(subject: Subject) -> Grid | None:
    """The attacks that seek the smallest perturbation: rho_adv and the median distance, or None."""
    columns = (
        Column("judge", "attack", numeric=False),
        Column("norm", "norm", numeric=False),
        Column("n", "n"),
        Column("rho", "ρ_adv", help="mean of |r| / |x| over correctly classified samples that were fooled"),
        Column("error", "standard error"),
        Column("median", "median distance"),
        Column("failures", "failures", help="correctly classified samples that the attack did not break"),
        Column("record", "record", numeric=False),
    )
    rows = []
    for record in subject.records:
        cell, frame = record.cell, record.outcomes
        if record.header.status != "done" or cell.threat.eps is not None or cell.judge.kind != "attack":
            continue
        fooled = frame[frame["clean"] & frame["success"]]
        ratio = fooled["distance"] / fooled["input_norm"]
        error = float(ratio.std(ddof=1) / len(ratio) ** 0.5) if len(ratio) > 1 else float("nan")
        missed = int((frame["clean"] & ~frame["success"]).sum())
        rows.append(
            [
                Cell(cell.judge.label, cell.judge.label, judge_path(cell.judge.label)),
                Cell(cell.threat.norm, NORMS.get(cell.threat.norm, cell.threat.norm)),
                Cell(len(frame), str(len(frame))),
                Cell(float(ratio.mean()), number(float(ratio.mean()))),
                Cell(error, number(error, 2)),
                Cell(float(fooled["distance"].median()), number(float(fooled["distance"].median()))),
                Cell(missed, str(missed)),
                Cell(cell.id, cell.id[3:11], provenance_path(cell.id)),
            ]
        )
    return Grid("smallest", "Attacks that seek the smallest perturbation", columns, rows) if rows else None


def records_page(subject: Subject) -> Page:
    """The page of a model's records."""
    sections = []
    for norm, eps in subject.threats:
        frame = subject.samples(norm, eps)
        counts = pd.Series([verdict(row) for row in frame.to_dict("records")]).value_counts().to_dict()
        sections.append(
            {
                "anchor": f"{norm}-{eps:g}",
                "title": spoken(norm, eps),
                "counts": [
                    (word, counts.get(word, 0)) for word in ("certified", "open", "broken", "misclassified")
                ],
                "judges": judges_grid(subject, norm, eps),
                "samples": samples_grid(subject, norm, eps, tools=False),
            }
        )
    return Page(
        records_path(subject.data, subject.defended),
        f"Records of {subject.defended} on {subject.data}",
        "records.html",
        {
            "model": model_path(subject.data, subject.defended),
            "sections": sections,
            "minimal": minimal_grid(subject),
            "unfinished": unfinished_grid(subject),
        },
    )
