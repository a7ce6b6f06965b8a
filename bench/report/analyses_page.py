"""The page of the analyses that lie beside the runs: what they found and what made them."""

from __future__ import annotations

from typing import Any

from bench.analysis.stored import Analysis, Audited, Landscape, Regions, Sparsity, Units
from bench.report.audits import audits_grid
from bench.report.eps_figure import curves_figure
from bench.report.grid import number
from bench.report.landscape_figure import landscape_grid, surface_figure
from bench.report.leaderboard import model_path
from bench.report.regions_figure import plane_figure, regions_grid
from bench.report.report import Report
from bench.report.site import Page
from bench.report.subject import spoken
from bench.report.unit_figures import ablation_figure, confusion_figure, shift_figure

PATH = "analyses.html"
Section = dict[str, Any]


def analyses_page(report: Report) -> Page | None:
    """The page of all analyses, or None where none lie beside the runs."""
    found, lost = report.analyses
    if not found and not lost:
        return None
    paths = {one.name: model_path(s.data, s.defended) for s in report.subjects for one in s.audits}
    return Page(
        PATH,
        "Analyses",
        PATH,
        {
            "audits": audits_grid(found, paths),
            "sections": [_section(one) for one in found if not isinstance(one.result, Audited)],
            "lost": lost,
        },
    )


def _section(analysis: Analysis) -> Section:
    shown: Section = {"name": analysis.name, "facts": _facts(analysis), "command": analysis.command}
    shown["models"] = ", ".join(analysis.models)
    return {"layout": "pair", "grid": None, **shown, **_content(analysis)}


def _content(analysis: Analysis) -> Section:
    result = analysis.result
    if isinstance(result, Regions):
        return _regions(analysis, result)
    if isinstance(result, Landscape):
        return _landscape(analysis, result)
    if isinstance(result, Units):
        return _units(analysis, result)
    assert isinstance(result, Sparsity)
    return _sparsity(analysis, result)


def _regions(analysis: Analysis, result: Regions) -> Section:
    return {
        "title": f"Decision regions around image {result.index} of {analysis.data}, class {result.label}",
        "lead": (
            "What each network decides at x + a u + b v: u is the direction of the loss gradient of "
            f"{result.planes[0].model}, v a random one at a right angle to it. The same plane, axes and "
            "colours for all. Cross: the image. Dots: where its region ends along u. Points outside the "
            "valid inputs are shown as well."
        ),
        "figures": [plane_figure(analysis, result, plane) for plane in result.planes],
        "grid": regions_grid(analysis, result),
        "layout": "panels",
    }


def _landscape(analysis: Analysis, result: Landscape) -> Section:
    return {
        "title": f"Loss over rotation and translation of image {result.index} of {analysis.data}, "
        f"class {result.label}",
        "lead": (
            "The loss that the grid attack sees, the best other logit less the label's, at the vertical "
            "shift of its greatest value. Dots: misclassified poses. Ring: the worst of all. Many local "
            "maxima are why a first-order search does worse here than a grid."
        ),
        "figures": [surface_figure(analysis, result, surface) for surface in result.surfaces],
        "grid": landscape_grid(analysis, result),
    }


def _units(analysis: Analysis, result: Units) -> Section:
    counts = ", ".join(f"{found.broken} of {found.right} on {found.model}" for found in result.dissections)
    return {
        "title": f"Units that {result.attack} exploits at {spoken(result.norm, result.eps)}, {analysis.data}",
        "lead": (
            f"Of {result.n} images, {result.attack} breaks {counts}. Units of one layer are ranked by how "
            "far the attack moves their peak activation. If it rests on them, setting them to 0 undoes it on "
            f"the same adversarial images, and as many random units (mean of {result.draws} draws) do so "
            "less. This is no defence: nothing stops an attack made anew."
        ),
        "figures": [
            figure
            for found in result.dissections
            for figure in (
                ablation_figure(analysis, result, found),
                shift_figure(analysis, found),
                confusion_figure(analysis, found),
            )
        ],
        "layout": "thirds",
    }


def _sparsity(analysis: Analysis, result: Sparsity) -> Section:
    return {
        "title": f"Accuracy against ε under {result.attack}, {analysis.data}",
        "lead": (
            f"One axis for all models, the same {result.n} images. What is broken at one ε counts as broken "
            "at every larger one. An attack's curve is an upper bound on robust accuracy."
        ),
        "figures": [curves_figure(analysis, result)],
    }


def _facts(analysis: Analysis) -> list[tuple[str, str]]:
    """What made an analysis, for its card."""
    proof = analysis.provenance
    settings = ", ".join(
        f"{name} {number(value) if isinstance(value, float) else value}"
        for name, value in analysis.settings.items()
    )
    return [
        ("Data", f"{analysis.data}, sha256 {proof.data_sha256[:16]}"),
        *((f"Weights of {name}", digest) for name, digest in analysis.weights.items()),
        ("Settings", settings),
        ("Seed", str(analysis.seed)),
        (
            "Version",
            f"{proof.version}, commit {proof.commit[:12] or 'unknown'}{' and changes' * proof.dirty}",
        ),
        ("Software", f"Python {proof.python}, torch {proof.torch}, {proof.platform}, {proof.device}"),
        ("Started", proof.started),
    ]
