"""The site of a report: its numbers are the records', its links lead somewhere, its names stay text."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest

from bench.commands.report import execute
from bench.outcomes import gather
from bench.record import Record
from bench.report.build import build
from bench.report.report import Report
from bench.report.site import inline_json
from bench.store import Store
from bench.tables import bracket, judges
from models.errors import UserError
from tests.bench.builders import attacked, cell, proved
from tests.bench.commands import command
from tests.bench.sites import (
    PROOF,
    a_run,
    broken_links,
    failed,
    numbers,
    parsed,
    random_records,
    save,
    some_records,
)

BOARD = "leaderboards/mnist5k-linf-0.1.html"
TABLE = "leaderboard-mnist5k-linf-0.1"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three models and its site, `run` beside `site`."""
    folder = tmp_path_factory.mktemp("report")
    build(Report.of(a_run(folder / "run")), folder / "site")
    return folder / "site"


def site_of(folder: Path, *records: Record) -> Path:
    """The site of these records."""
    build(Report.of(save(folder / "run", *records)), folder / "site")
    return folder / "site"


def test_the_leaderboard_shows_the_bracket_of_the_records_in_full(site: Path) -> None:
    records = Report.of(site.parent / "run").material.records
    expected = bracket(gather(records), "linf", 0.1).frame
    rows = numbers(site / BOARD, TABLE)
    assert len(rows) == len(expected) == 3
    for row, true in zip(rows, expected.to_dict("records"), strict=True):
        assert (row["model"], row["defense"]) == (true["model"], true["defense"])
        for name in ("clean", "certified", "attacked", "rho_adv"):
            assert math.isfinite(float(row[name]))
        for name in ("clean", "certified", "attacked"):
            assert float(row[name]) == true[name]
        assert float(row["bracket"]) == true["gap"]
        assert int(row["n"]) == true["n"] == 12
        assert row["strongest"] == true["strongest_attack"]


def test_numbers_worked_out_by_hand(site: Path) -> None:
    rows = {(row["model"], row["defense"]): row for row in numbers(site / BOARD, TABLE)}
    plain, trained = rows["lenet", "none"], rows["lenet", "adversarial-pgd"]
    # Of twelve: one misclassified, four broken by pgd (0.02, 0.05, 0.09, 0.1), two certified by crown.
    assert float(plain["attacked"]) == 7 / 12
    assert float(plain["certified"]) == 2 / 12
    assert float(plain["clean"]) == 11 / 12
    # There pgd breaks the third only at 0.13, beyond eps, but fgsm at 0.1.
    assert float(trained["attacked"]) == 7 / 12
    # Eleven clean samples at |x| = 2.
    assert float(plain["rho_adv"]) == pytest.approx((0.02 + 0.05 + 0.09 + 0.2 + 7 * 0.3) / 11 / 2)
    assert float(plain["seconds"]) == 6 * 1.5


def test_the_records_of_a_row_are_its_judges_and_samples(site: Path) -> None:
    page = site / "records" / "mnist5k_lenet.html"
    records = [r for r in Report.of(site.parent / "run").material.records if r.cell.defended == "lenet"]
    expected = judges(gather(records), "linf", 0.1).frame.set_index("judge")
    rows = numbers(page, "judges-linf-0.1")
    assert [row["judge"] for row in rows] == list(expected.index)
    for row in rows:
        assert float(row["accuracy"]) == expected.loc[row["judge"], "accuracy"]
        assert row["record"] in {record.cell.id for record in records}
    samples = numbers(page, "samples-linf-0.1")
    verdicts = [row["verdict"] for row in samples]
    assert verdicts == ["broken"] * 4 + ["open"] * 4 + ["certified"] * 2 + ["open", "misclassified"]
    assert float(samples[0]["distance"]) == 0.02
    assert [int(row["breakers"]) for row in samples[:4]] == [4, 2, 3, 1]
    assert samples[3]["nearest"] == "pgd"
    assert samples[9]["certified_by"] == "crown, ibp"


def test_every_cell_of_a_ranked_row_leads_to_its_records(site: Path) -> None:
    (table,) = [div for div in parsed(site / BOARD).all("div") if div.attributes.get("id") == TABLE]
    for row in table.all("tr")[1:]:
        for found in row.all("td"):
            links = [a.attributes["href"] for a in found.all("a")]
            assert found.text == "" or len(links) == 1
            assert all(link.startswith(("../records/", "../models/")) for link in links)


def test_no_link_of_any_page_is_broken_or_leaves_the_site(site: Path) -> None:
    assert len(list(site.rglob("*.html"))) > 15
    assert broken_links(site) == []


def test_a_planted_dead_link_is_found(site: Path, tmp_path: Path) -> None:
    for target in ("gone.html", "https://example.org/", "#nowhere", "//example.org/x.js"):
        (tmp_path / "page.html").write_text(f'<p id="here"><a href="{target}">x</a><a href="#here">y</a></p>')
        assert broken_links(tmp_path) == [f"page.html: {target}"]


def test_the_same_records_give_the_same_pages(site: Path, tmp_path: Path) -> None:
    build(Report.of(site.parent / "run"), tmp_path / "again")
    # The converter orders the objects of a PDF anew each time.
    first, second = (
        {path.relative_to(place): path.read_bytes() for path in place.rglob("*.*") if path.suffix != ".pdf"}
        for place in (site, tmp_path / "again")
    )
    assert first.keys() == second.keys()
    assert [name for name, content in first.items() if second[name] != content] == []


def test_a_name_with_a_script_in_it_stays_text(tmp_path: Path) -> None:
    name = 'file:"><script>alert(1)</script>\u2028&amp;.py'
    other = failed("</script><img src=x onerror=alert(1)>", model=name, reason="<script>alert(2)</script>")
    site = site_of(tmp_path, *some_records(name), *some_records("b"), other)
    assert broken_links(site) == []
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        loaded = [s for s in parsed(path).all("script") if "src" not in s.attributes]
        for script in loaded:
            assert script.attributes["type"] == "application/json"
            json.loads(script.text)
    assert name.split("\u2028")[0] in parsed(site / "provenance.html").text
    # What a shell would run is quoted.
    (row,) = [r for r in numbers(site / "provenance.html", "records") if "</script><img" in r["judge"]]
    assert "'</script><img src=x onerror=alert(1)>'" in row["command"]


@pytest.mark.parametrize("text", ["</script>", "<!--", "]]>", "a & b", "\u2028", 'quote " \\ end'])
def test_json_in_a_page_reads_back_and_closes_nothing(text: str) -> None:
    shown = str(inline_json({text: [text, None, 1.5]}))
    assert json.loads(shown) == {text: [text, None, 1.5]}
    assert not re.search("[<>&\u2028]", shown)


@pytest.mark.slow
def test_a_contradiction_takes_the_row_out_of_the_ranking(tmp_path: Path) -> None:
    liar = proved(cell("ibp", model="liar", **PROOF), [True, True, False, False])
    attack = attacked(cell("pgd", model="liar"), [0.05, None, None, None])
    run = save(tmp_path / "run", liar, attack, *some_records())
    shown = command("report", run, "--out", tmp_path / "site")
    assert shown.returncode == 1
    assert "CONTRADICTION: sample 0 of mnist5k on liar" in shown.stderr
    ranked = numbers(tmp_path / "site" / BOARD, TABLE)
    assert [row["model"] for row in ranked] == ["lenet"]
    (below,) = numbers(tmp_path / "site" / BOARD, "unranked-mnist5k-linf-0.1")
    assert below["model"] == "liar"
    assert "'ibp' certifies" in below["reason"]
    assert "Contradictions" in parsed(tmp_path / "site" / "index.html").text


def test_failed_cells_are_named_and_a_model_without_attacks_is_unranked(tmp_path: Path) -> None:
    proof = proved(cell("ibp", model="unattacked", **PROOF), [True, False, False, False])
    lost = failed("pgd", model="unattacked", reason="MemoryError: no room")
    dead = failed("pgd", model="dead", reason="OSError: gone")
    site = site_of(tmp_path, *some_records(), proof, lost, dead, failed("cw"))
    below = {row["model"]: row["reason"] for row in numbers(site / BOARD, "unranked-mnist5k-linf-0.1")}
    assert set(below) == {"unattacked", "dead"}
    assert "MemoryError: no room" in below["unattacked"]
    assert "OSError: gone" in below["dead"]
    (row,) = numbers(site / BOARD, TABLE)
    assert row["flags"] == "1 failed"
    assert "judges without a result (cw): ValueError: boom" in parsed(site / BOARD).text
    reasons = [entry["reason"] for entry in numbers(site / "index.html", "not-run")]
    assert sorted(reasons) == ["MemoryError: no room", "OSError: gone", "ValueError: boom"]
    assert broken_links(site) == []


def test_without_certificates_the_page_says_that_ranks_rest_on_attacks(tmp_path: Path) -> None:
    site = site_of(tmp_path, *[r for r in some_records() if r.cell.judge.kind == "attack"])
    assert "every lower end is 0" in parsed(site / BOARD).text
    (row,) = numbers(site / BOARD, TABLE)
    assert (row["flags"], float(row["certified"])) == ("no certificate", 0.0)


def test_certificates_alone_give_a_board_without_ranks(tmp_path: Path) -> None:
    site = site_of(tmp_path, *[r for r in some_records() if r.cell.judge.kind == "certificate"])
    assert "No row can be ranked" in parsed(site / BOARD).text
    (below,) = numbers(site / BOARD, "unranked-mnist5k-linf-0.1")
    assert "no attack has finished" in below["reason"]
    assert broken_links(site) == []


def test_one_row_and_one_sample_are_enough(tmp_path: Path) -> None:
    site = site_of(tmp_path, attacked(cell("pgd", images=1), [None]))
    (row,) = numbers(site / BOARD, TABLE)
    assert (row["n"], float(row["attacked"])) == ("1", 1.0)
    assert broken_links(site) == []


def test_smallest_perturbations_alone_give_a_page_without_a_leaderboard(tmp_path: Path) -> None:
    site = site_of(tmp_path, attacked(cell("deepfool", eps=None), [0.1, 0.2, None, 0.3]))
    assert "there is no leaderboard" in parsed(site / "index.html").text
    (row,) = numbers(site / "models" / "mnist5k_lenet.html", "smallest")
    assert float(row["median"]) == 0.2
    assert broken_links(site) == []


def test_only_failed_cells_still_make_a_report_of_their_reasons(tmp_path: Path) -> None:
    site = site_of(tmp_path, failed("pgd"), failed("fgsm", reason="OSError: disc"))
    reasons = [row["reason"] for row in numbers(site / "index.html", "not-run")]
    assert reasons == ["ValueError: boom", "OSError: disc"]
    assert broken_links(site) == []


def test_a_record_of_an_older_schema_is_a_line_of_the_report(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    store = Store(run)
    old = store.load_run().cells[0]
    table = pyarrow.parquet.read_table(store.path(old))
    pyarrow.parquet.write_table(table.drop_columns(["rmsd"]), store.path(old))
    fine = store.load_run().cells[3]
    table = pyarrow.parquet.read_table(store.path(fine))
    pyarrow.parquet.write_table(table.drop_columns(["margin"]), store.path(fine))
    store.path(store.load_run().cells[1]).write_bytes(b"PAR1 damaged")
    store.path(store.load_run().cells[2]).unlink()
    build(Report.of(run), tmp_path / "site")
    text = parsed(tmp_path / "site" / "index.html").text
    reasons = [
        r["reason"]
        for r in numbers(tmp_path / "site" / "index.html", "not-run")
        if r["status"] == "unreadable"
    ]
    assert len(reasons) == 3
    # What a report does not rest on may be absent.
    assert "1 records are of an older version without the column “margin”" in text
    assert "another version (lacks rmsd)" in reasons[0]
    assert "is damaged" in reasons[1]
    assert "repeat the run" in reasons[2]
    assert broken_links(tmp_path / "site") == []


def test_runs_where_nothing_can_be_read_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run under"):
        Report.of(tmp_path / "absent")
    run = save(tmp_path / "run", attacked(cell("pgd"), [None]))
    for path in (run / "records").glob("*.parquet"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"can be read: c1-\w+\.parquet is damaged"):
        Report.of(run)


def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    first = save(tmp_path / "a", attacked(cell("pgd"), [None] * 4))
    for other, said in (
        (cell("pgd", seed=1), "seeds 0 and 1"),
        (cell("fgsm", weights="f" * 16), "two different weights of 'lenet'"),
    ):
        second = save(tmp_path / str(other.id), attacked(other, [None] * 4))
        with pytest.raises(UserError, match=said):
            Report.of(first, second)
    apart = save(tmp_path / "c", proved(cell("ibp", **PROOF), [True] * 4))
    (row,) = Report.of(first, apart).boards[0].ranked.to_dict("records")
    assert (row["certified"], row["attacked"]) == (1.0, 1.0)


def test_an_existing_place_is_refused_and_force_replaces_reports_only(tmp_path: Path) -> None:
    run = save(tmp_path / "run", *some_records())
    place = tmp_path / "site"
    place.mkdir()
    (place / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="exists: pass another --out"):
        execute((run,), place, force=False)
    with pytest.raises(UserError, match="is no report"):
        execute((run,), place, force=True)
    assert (place / "mine.txt").read_text() == "keep"
    (place / "mine.txt").unlink()
    place.rmdir()
    build(Report.of(run), place)
    (place / "old.html").write_text("old")
    build(Report.of(run), place, force=True)
    assert not (place / "old.html").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "site"]


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save(tmp_path / "run", *some_records())
    build(Report.of(run), tmp_path / "site")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "site").rglob("*")}
    monkeypatch.setattr("bench.report.build.summary_pdf", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(Report.of(run), tmp_path / "site", force=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "site").rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "site"]


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    run = save(tmp_path / "run", *some_records())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write beside"):
        build(Report.of(run), tmp_path / "file" / "site")


def test_many_rows_are_all_there_in_order(tmp_path: Path) -> None:
    boards = Report.of(save(tmp_path / "run", *random_records(40, 20))).boards
    (board,) = boards
    assert len(board.ranked) == 40
    assert board.ranked["certified"].is_monotonic_decreasing
    pd.testing.assert_series_equal(
        board.ranked["gap"], board.ranked["attacked"] - board.ranked["certified"], check_names=False
    )


def test_the_report_of_a_run_needs_no_torch() -> None:
    code = "import sys, bench.commands.report, bench.commands.compare; print('torch' in sys.modules)"
    assert command(program=(sys.executable, "-c", code)).stdout == "False\n"


def test_threats_that_are_no_balls_have_boards_and_corruptions_a_page(tmp_path: Path) -> None:
    who = {"norm": "corruption", "images": 4}
    made = [
        attacked(cell("corruptions", **who, eps=eps, chosen={"family": "fog"}), reached)
        for eps, reached in ((1.0, [1.0, None, None, None]), (3.0, [1.0, 2.0, 3.0, None]))
    ]
    turned = attacked(cell("rotation-translation", norm="spatial", eps=1.0), [0.4, None, None, None])
    smoothed = proved(cell("smoothing", norm="l2", eps=0.5, **PROOF), [True, False])
    smoothed = replace(smoothed, header=smoothed.header.model_copy(update={"confidence": 0.999}))
    site = site_of(tmp_path, *made, turned, smoothed, attacked(cell("pgd", norm="l2", eps=0.5), [None, None]))
    names = {path.stem for path in (site / "leaderboards").iterdir()}
    assert names == {f"mnist5k-{name}" for name in ("corruption-1", "corruption-3", "spatial-1", "l2-0.5")}
    (row,) = numbers(site / "leaderboards" / "mnist5k-corruption-3.html", "leaderboard-mnist5k-corruption-3")
    assert float(row["attacked"]) == 0.25
    (row,) = numbers(site / "corruptions.html", "corruption-error")
    assert float(row["mean_error"]) == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert "confidence 0.999" in parsed(site / "records" / "mnist5k_lenet.html").text
    assert broken_links(site) == []
