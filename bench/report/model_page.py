"""The page of a model: accuracy against eps, every judge, every class, the confusion of attacks, its card."""

from __future__ import annotations

from typing import Any

from bench.record import Record
from bench.report.audits import audit_sections
from bench.report.card import card
from bench.report.convergence_figure import convergence_figure
from bench.report.figures import Figure
from bench.report.grid import Bar, Cell, Column, Grid, interval, percent, slug
from bench.report.leaderboard import model_path, records_path
from bench.report.model_figures import curve_figure, overlap_figure, passes_figure
from bench.report.records_page import judge_path, minimal_grid, unfinished_grid
from bench.report.site import Page
from bench.report.subject import NORMS, Subject, in_order, spoken
from bench.stats import wilson

CLASSES = (
    Column("label", "class"),
    Column("n", "n"),
    Column("clean", "clean"),
    Column("bracket", "bracket"),
    Column("certified", "certified"),
    Column("attacked", "attacked"),
)


def classes_grid(subject: Subject, norm: str, eps: float) -> Grid:
    """The bracket of each true class."""
    rows = []
    for label, group in subject.samples(norm, eps).groupby("label", sort=True):
        n, left, proved = len(group), int((~group["attacked"]).sum()), int(group["certified"].sum())
        bar = Bar(proved / n, left / n, float(group["clean"].mean()))
        rows.append(
            [
                Cell(int(str(label)), str(label)),
                Cell(n, str(n)),
                Cell(bar.clean, percent(bar.clean)),
                Cell(bar.attacked - bar.certified, f"gap {percent(bar.attacked - bar.certified)}", bar=bar),
                Cell(bar.certified, percent(bar.certified), note=interval(*wilson(proved, n))),
                Cell(bar.attacked, percent(bar.attacked), note=interval(*wilson(left, n))),
            ]
        )
    return Grid(
        f"classes-{norm}-{eps:g}", f"The bracket of each true class at {spoken(norm, eps)}", CLASSES, rows
    )


def judges_matrix(subject: Subject) -> Grid:
    """What each judge says alone at each threat; the records have the rest."""
    columns = [Column("judge", "judge", numeric=False), Column("kind", "kind", numeric=False)]
    columns += [Column(f"{norm}-{eps:g}", spoken(norm, eps)) for norm, eps in subject.threats]
    found: dict[tuple[str, str], dict[str, Cell]] = {}
    for norm, eps in subject.threats:
        there = records_path(subject.data, subject.defended, norm, eps)
        for row in subject.judges(norm, eps).to_dict("records"):
            between = f"{interval(row['low'], row['high'])} of {row['n']}"
            cell = Cell(row["accuracy"], percent(row["accuracy"]), there, between)
            found.setdefault((row["kind"], row["judge"]), {})[f"{norm}-{eps:g}"] = cell
    nothing = Cell(float("nan"), "–")
    rows = [
        [
            Cell(judge, judge, judge_path(judge)),
            Cell(kind, kind),
            *(by.get(c.key, nothing) for c in columns[2:]),
        ]
        for (kind, judge), by in sorted(found.items())
    ]
    caption = "What each attack leaves, and what each certificate proves, alone and on its own images"
    return Grid("judges", caption, columns, rows)


def threats_grid(subject: Subject) -> Grid:
    """The bracket at each threat."""
    columns = (Column("threat", "threat", numeric=False), *CLASSES[1:])
    rows = []
    for norm, eps in subject.threats:
        frame = subject.samples(norm, eps)
        n, left, proved = len(frame), int((~frame["attacked"]).sum()), int(frame["certified"].sum())
        bar = Bar(proved / n, left / n, float(frame["clean"].mean()))
        there = records_path(subject.data, subject.defended, norm, eps)
        rows.append(
            [
                Cell(
                    f"{norm}-{eps:g}",
                    spoken(norm, eps),
                    f"{model_path(subject.data, subject.defended)}#{norm}-{eps:g}",
                ),
                Cell(n, str(n), there),
                Cell(bar.clean, percent(bar.clean), there),
                Cell(
                    bar.attacked - bar.certified,
                    f"gap {percent(bar.attacked - bar.certified)}",
                    there,
                    bar=bar,
                ),
                Cell(bar.certified, percent(bar.certified), there, interval(*wilson(proved, n))),
                Cell(bar.attacked, percent(bar.attacked), there, interval(*wilson(left, n))),
            ]
        )
    return Grid("threats", "Robust accuracy lies in [certified, attacked]", columns, rows)


def _uncharted(record: Record) -> bool:
    """Whether an attack's record says nothing of its course."""
    header, kind = record.header, record.cell.judge.kind
    return kind == "attack" and header.status == "done" and header.convergence is None


def _searches(subject: Subject, norms: list[str]) -> list[Figure]:
    """The courses of the attacks that seek the smallest perturbation, norm by norm."""
    titles = {norm: f"towards the smallest perturbation in {NORMS.get(norm, norm)}" for norm in norms}
    found = [convergence_figure(subject, norm, None, title) for norm, title in titles.items()]
    return [figure for figure in found if figure is not None]


def model_page(subject: Subject) -> Page:
    """The page of one model on one data set."""
    norms: list[str] = []
    if len(subject.outcomes):
        norms = in_order(subject.outcomes["norm"].unique())
    sections: list[dict[str, Any]] = []
    for norm, eps in subject.threats:
        figures = [
            convergence_figure(subject, norm, eps, f"at {spoken(norm, eps)}"),
            passes_figure(subject, norm, eps),
            overlap_figure(subject, norm, eps),
        ]
        sections.append(
            {
                "anchor": f"{norm}-{eps:g}",
                "title": spoken(norm, eps),
                "classes": classes_grid(subject, norm, eps),
                "figures": [figure for figure in figures if figure is not None],
                "badge": f"badges/{slug(f'{subject.data}_{subject.defended}-{norm}-{eps:g}')}.svg",
            }
        )
    lines, sentence = card(subject)
    return Page(
        model_path(subject.data, subject.defended),
        f"{subject.defended} on {subject.data}",
        "model.html",
        {
            "records": records_path(subject.data, subject.defended),
            "threats": threats_grid(subject) if subject.threats else None,
            "judges": judges_matrix(subject) if subject.threats else None,
            "curves": [curve_figure(subject, norm) for norm in norms],
            "sections": sections,
            "audits": audit_sections(subject),
            "signs": sorted({pair for r in subject.records for pair in r.header.signs.items()}),
            "minimal": minimal_grid(subject),
            "uncharted": sum(map(_uncharted, subject.records)),
            "searches": _searches(subject, norms),
            "unfinished": unfinished_grid(subject),
            "card": lines,
            "card_says": sentence,
        },
    )
