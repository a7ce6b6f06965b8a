"""The site as people meet it, in a headless Chromium: sorting, filtering, links, keyboard, accessibility."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench.analysis.stored import save as keep
from bench.report.build import build, build_comparison, write_pages
from bench.report.comparison import sides
from bench.report.leaderboard import leaderboard_page
from bench.report.report import Report
from tests.bench.sites import a_run, failed, numbers, random_records, save, some_records
from tests.bench.test_report_audits import audited
from tests.bench.test_report_convergence import charted

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
AXE = find_spec("selenium_axe_python")
missing = [
    name
    for name, found in (
        ("chromium", BROWSER),
        ("chromedriver (Debian: chromium-driver)", DRIVER),
        ("selenium (pip)", find_spec("selenium")),
        ("selenium-axe-python (pip)", AXE),
    )
    if not found
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
]
EVIL = "<script>window.harmed=1</script>"
TABLE = "leaderboard-mnist5k-linf-0.1"
OPENED = "return document.documentElement.dataset.drawn"
NARROW, WIDE = 360, 1600


class Browser:
    """A driven Chromium; `open` waits until tables and figures are there."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, mark: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(page.resolve().as_uri() + mark)
        self.wait(lambda: self.driver.execute_script(OPENED) == "yes")

    def wait(self, what: Callable[[], bool], seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"{self.driver.current_url} did not get there"
            time.sleep(0.02)

    def column(self, key: str, table: str = TABLE) -> list[str]:
        """The shown values of a column, in the order that they stand in."""
        code = """
            const grid = document.getElementById(arguments[0]);
            const heads = Array.from(grid.querySelectorAll("th"));
            const place = heads.findIndex((head) => head.dataset.key === arguments[1]);
            return Array.from(grid.querySelectorAll("tbody tr")).filter((row) => !row.hidden)
              .map((row) => row.cells[place].dataset.value ?? row.cells[place].textContent.trim());"""
        return list(self.driver.execute_script(code, table, key))

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def width(self, pixels: int, dark: bool = False, media: str = "screen") -> None:
        size = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})

    def complaints(self) -> list[str]:
        """What the console said since it was last asked, and every request that left the disk."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        asked = [entry["message"] for entry in self.driver.get_log("performance")]
        sent = [text for text in asked if '"Network.requestWillBeSent"' in text]
        local = ('"url":"file:', '"url":"about:', '"url":"data:', '"url":"blob:')
        return said + [text for text in sent if not any(scheme in text for scheme in local)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium without a window."""
    webdriver = pytest.importorskip("selenium.webdriver")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=service.Service(DRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with a failed judge and a model whose name is a script."""
    folder = tmp_path_factory.mktemp("report")
    run = save(
        folder / "run",
        *some_records(),
        *some_records("lenet", "adversarial-pgd", shift=0.04),
        *some_records("conv-small"),
        *some_records(EVIL),
        charted("apgd", 0.5),
        charted("cw", 1.0, eps=None),
        failed("pgd", model="dead"),
    )
    keep(run, audited("lenet", "noise beyond gradients", EVIL))
    build(Report.of(run), folder / "site")
    return folder / "site"


@pytest.fixture
def board(browser: Browser, site: Path) -> Path:
    """The leaderboard, on a wide screen."""
    browser.width(WIDE)
    page = site / "leaderboards" / "mnist5k-linf-0.1.html"
    browser.open(page)
    return page


def test_the_table_shows_what_the_file_holds(browser: Browser, board: Path) -> None:
    rows = numbers(board, TABLE)
    for key in ("model", "certified", "attacked", "bracket", "seconds"):
        assert browser.column(key) == [row[key] for row in rows]


def test_a_click_sorts_a_second_one_turns_and_a_third_restores(browser: Browser, board: Path) -> None:
    given = browser.column("model")
    numbers_ = [float(value) for value in browser.column("attacked")]
    head = browser.find(f'[id="{TABLE}"] th[data-key=attacked]')
    button = head.find_element("css selector", "button")
    button.click()
    assert [float(v) for v in browser.column("attacked")] == sorted(numbers_, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    assert browser.driver.current_url.endswith("#sort=-attacked")
    button.click()
    assert [float(v) for v in browser.column("attacked")] == sorted(numbers_)
    assert head.get_attribute("aria-sort") == "ascending"
    button.click()
    assert browser.column("model") == given
    assert head.get_attribute("aria-sort") is None
    assert "#" not in browser.driver.current_url


def test_the_keyboard_alone_sorts(browser: Browser, board: Path) -> None:
    reached = []
    for _ in range(60):
        active = browser.driver.switch_to.active_element
        active.send_keys("\ue004")
        active = browser.driver.switch_to.active_element
        reached.append(active.tag_name)
        if active.tag_name == "button" and active.text.startswith("clean"):
            active.send_keys("\ue007")
            break
    assert browser.driver.current_url.endswith("#sort=-clean")
    assert {"a", "input", "select", "button"} <= set(reached)


def test_filters_narrow_and_the_address_brings_them_back(browser: Browser, board: Path) -> None:
    browser.find(".tools input[name=q]").send_keys("lenet")
    assert browser.column("model") == ["lenet", "lenet"]
    assert browser.find(".tools output").text == "2 of 4 rows"
    browser.driver.execute_script(
        "const s = document.querySelector('.tools select[name=defense]'); s.value = 'none';"
        "s.dispatchEvent(new Event('input', {bubbles: true}));"
    )
    assert browser.column("defense") == ["none"]
    mark = browser.driver.current_url.partition("#")[2]
    browser.open(board, f"#{mark}&sort=-attacked")
    assert browser.column("model") == ["lenet"]
    assert browser.find(".tools input[name=q]").get_attribute("value") == "lenet"
    assert browser.find(f'[id="{TABLE}"] th[data-key=attacked]').get_attribute("aria-sort") == "descending"


def test_a_cell_opens_its_records(browser: Browser, board: Path) -> None:
    wanted = numbers(board, TABLE)[0]
    cell = browser.find(f'[id="{TABLE}"] tbody tr td[data-key=attacked] a')
    cell.click()
    browser.wait(lambda: browser.driver.execute_script(OPENED) == "yes")
    assert browser.driver.current_url.endswith("#linf-0.1")
    assert f"Records of {wanted['model']}" in browser.find("h1").text


def test_a_script_in_a_name_stays_text(browser: Browser, site: Path) -> None:
    for page in sorted(site.rglob("*.html")):
        browser.open(page)
        assert browser.driver.execute_script("return window.harmed") is None, page
    browser.open(site / "leaderboards" / "mnist5k-linf-0.1.html")
    assert EVIL in browser.column("model")
    # Figures show it too, letter by letter.
    drawn = browser.driver.execute_script("return document.querySelector('.chart svg').textContent")
    assert "<script>" in drawn


def test_a_figure_that_is_no_file_can_be_saved_from_the_page(browser: Browser, site: Path) -> None:
    browser.width(WIDE)
    browser.open(site / "models" / "mnist5k_lenet.html")
    saved = browser.driver.execute_async_script(
        """
        const done = arguments[0], figure = document.querySelector("figure[id^='figure-course']");
        HTMLAnchorElement.prototype.click = function () { done([this.download, this.href.slice(0, 19)]); };
        figure.querySelector(".downloads button").click();
        """
    )
    assert saved[0] == "course-mnist5k_lenet-linf-least.svg"
    assert saved[1].startswith(("data:image/svg", "blob:"))


def test_no_page_complains_or_asks_the_network(browser: Browser, site: Path) -> None:
    browser.complaints()
    for page in sorted(site.rglob("*.html")):
        browser.open(page)
        charts, drawn = (
            len(browser.driver.find_elements("css selector", which)) for which in (".chart", ".chart svg")
        )
        assert charts == drawn, page
        assert browser.complaints() == [], page


def test_a_planted_request_and_a_planted_error_are_seen(browser: Browser, tmp_path: Path) -> None:
    browser.complaints()
    page = tmp_path / "page.html"
    page.write_text(
        "<html data-drawn=yes><script>fetch('http://localhost:9/x').catch(() => 0);"
        "console.error('planted')</script></html>"
    )
    browser.open(page)
    seen: list[str] = []

    def both() -> bool:
        seen.extend(browser.complaints())
        return all(any(sign in text for text in seen) for sign in ("planted", "localhost:9"))

    browser.wait(both)


@pytest.mark.parametrize(("pixels", "dark"), [(WIDE, False), (NARROW, True)])
def test_axe_finds_nothing_serious_on_any_kind_of_page(
    browser: Browser, site: Path, pixels: int, dark: bool
) -> None:
    assert AXE is not None
    assert AXE.origin is not None
    engine = (Path(AXE.origin).parent / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
    browser.width(pixels, dark)
    kinds = ["index.html", "leaderboards", "models", "records", "judges", "transfer.html", "game.html"]
    for kind in [*kinds, "provenance.html", "downloads.html", "analyses.html"]:
        page = next(iter(sorted((site / kind).glob("*.html")))) if (site / kind).is_dir() else site / kind
        browser.open(page)
        browser.driver.execute_script("document.querySelectorAll('details').forEach((d) => d.open = true)")
        browser.driver.execute_script(engine)
        found = browser.driver.execute_async_script(
            "const done = arguments[0]; axe.run(document).then((r) => done(r.violations))"
        )
        serious = [
            (finding["id"], finding["nodes"][0]["html"][:160], finding["nodes"][0]["failureSummary"])
            for finding in found
            if finding["impact"] in ("serious", "critical")
        ]
        assert serious == [], page


@pytest.mark.parametrize("pixels", [NARROW, WIDE])
def test_no_page_is_wider_than_the_screen(browser: Browser, site: Path, pixels: int) -> None:
    browser.width(pixels)
    for page in sorted(site.rglob("*.html")):
        browser.open(page)
        width = browser.driver.execute_script("return document.documentElement.scrollWidth")
        assert width <= pixels, page


def test_no_table_scrolls_sideways_on_a_phone_and_each_value_has_its_name(
    browser: Browser, site: Path
) -> None:
    browser.width(NARROW)
    wide = """return Array.from(document.querySelectorAll(".scroll"))
      .filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.parentElement.id)"""
    unnamed = """return Array.from(document.querySelectorAll(".stacked td, .cards td"))
      .filter((cell) => cell.offsetHeight && !cell.dataset.label).map((cell) => cell.outerHTML)"""
    stacked = 0
    for page in sorted(site.rglob("*.html")):
        browser.open(page)
        browser.driver.execute_script("document.querySelectorAll('details').forEach((d) => d.open = true)")
        assert browser.driver.execute_script(wide) == [], page
        assert browser.driver.execute_script(unnamed) == [], page
        stacked += browser.driver.execute_script("return document.querySelectorAll('.stacked').length")
    assert stacked > 20
    browser.width(WIDE)
    browser.open(site / "provenance.html")
    assert browser.driver.execute_script("return document.querySelectorAll('.stacked').length") == 0


def test_paper_is_white_and_shows_the_whole_table(browser: Browser, board: Path) -> None:
    browser.width(WIDE, dark=True, media="print")
    browser.open(board)
    code = "return getComputedStyle(document.body).backgroundColor"
    assert browser.driver.execute_script(code) == "rgb(255, 255, 255)"
    tools = "return getComputedStyle(document.querySelector('.tools')).display"
    assert browser.driver.execute_script(tools) == "none"
    browser.width(WIDE)


def test_many_rows_sort_and_filter_from_the_address(browser: Browser, tmp_path: Path) -> None:
    boards = Report.of(save(tmp_path / "run", *random_records(60, 10))).boards
    write_pages(tmp_path, [leaderboard_page(boards[0], boards)], [], "")
    browser.open(tmp_path / "leaderboards" / "mnist5k-linf-0.1.html", "#sort=-bracket&q=net-003")
    gaps = [float(value) for value in browser.column("bracket")]
    assert len(gaps) == 10
    assert gaps == sorted(gaps, reverse=True)


def test_a_comparison_opens_without_complaint(browser: Browser, tmp_path: Path) -> None:
    first = a_run(tmp_path / "a")
    second = save(tmp_path / "b", *some_records(shift=0.06), *some_records("conv-small"))
    build_comparison(sides([str(first), str(second)]), tmp_path / "site")
    browser.complaints()
    for page in sorted((tmp_path / "site").glob("*.html")):
        browser.open(page)
        assert browser.complaints() == []


def test_numbers_stand_at_the_right_of_their_column(browser: Browser, board: Path) -> None:
    code = "return getComputedStyle(document.querySelector('td[data-key=' + arguments[0] + ']')).textAlign"
    aligned = {key: browser.driver.execute_script(code, key) for key in ("attacked", "rho_adv", "model")}
    assert aligned == {"attacked": "right", "rho_adv": "right", "model": "left"}
