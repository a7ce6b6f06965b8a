"""`compare`: several runs or models side by side, sample by sample."""

from __future__ import annotations

from pathlib import Path

from bench.render import wide_console
from bench.report.build import build_comparison
from bench.report.comparison import sides
from bench.report.site import check_place


def execute(texts: tuple[str, ...], out: Path, force: bool) -> int:
    """Writes the comparison under `out`."""
    check_place(out, force)
    size = build_comparison(sides(texts), out, force)
    line = f"comparison: {out / 'index.html'} ({size / 1e6:.1f} MB)"
    wide_console().print(line, highlight=False, soft_wrap=True)
    return 0
