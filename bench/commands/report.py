"""`report`: a site from the records of one or more runs."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.render import wide_console
from bench.report.build import build
from bench.report.report import Report
from bench.report.site import check_place


def execute(runs: tuple[Path, ...], out: Path, force: bool) -> int:
    """Writes the site under `out`; returns 1 where a proof and an attack contradict each other."""
    check_place(out, force)
    report = Report.of(*runs)
    size = build(report, out, force)
    for line in report.contradictions:
        print(f"CONTRADICTION: {line}", file=sys.stderr)
    for lost in report.material.unreadable:
        print(f"left out: {lost.reason}", file=sys.stderr)
    wide_console().print(
        f"report: {out / 'index.html'} ({size / 1e6:.1f} MB)", highlight=False, soft_wrap=True
    )
    return 1 if report.contradictions else 0
