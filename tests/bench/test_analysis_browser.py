"""The page of analyses in a headless Chromium: drawn, quiet, accessible, as wide as the screen."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.analysis.stored import save
from bench.report.build import build
from bench.report.report import Report
from tests.bench.sites import a_run
from tests.bench.test_analysis_page import curves, dissected, planes, stored, surfaces
from tests.bench.test_report_browser import AXE, NARROW, WIDE, Browser, browser, pytestmark

__all__ = ["browser", "pytestmark"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of one analysis of each kind."""
    folder = tmp_path_factory.mktemp("analyses")
    run = a_run(folder / "run")
    for result in (planes(), surfaces(), dissected(), curves()):
        save(run, stored(result))
    build(Report.of(run), folder / "site")
    return folder / "site" / "analyses.html"


@pytest.mark.parametrize(("pixels", "dark"), [(WIDE, False), (NARROW, True)])
def test_the_page_is_drawn_quiet_and_accessible(
    browser: Browser, page: Path, pixels: int, dark: bool
) -> None:
    browser.width(pixels, dark)
    browser.complaints()
    browser.open(page)
    assert browser.complaints() == []
    charts, drawn = (
        len(browser.driver.find_elements("css selector", which)) for which in (".chart", ".chart svg")
    )
    assert charts == drawn == 7
    assert browser.driver.execute_script("return document.documentElement.scrollWidth") <= pixels
    assert AXE is not None
    assert AXE.origin is not None
    engine = (Path(AXE.origin).parent / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
    browser.driver.execute_script("document.querySelectorAll('details').forEach((d) => d.open = true)")
    browser.driver.execute_script(engine)
    found = browser.driver.execute_async_script(
        "const done = arguments[0]; axe.run(document).then((r) => done(r.violations))"
    )
    serious = [entry["id"] for entry in found if entry["impact"] in ("serious", "critical")]
    assert serious == []
