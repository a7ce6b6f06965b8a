"""Convergence on a model's page: the numbers of the headers, and a line where older records have none."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest

from bench.record import Convergence, Record
from bench.report.build import build
from bench.report.convergence_figure import LINES, POINTS
from bench.report.report import Report
from bench.store import KEY, Store
from tests.bench.builders import attacked, cell
from tests.bench.sites import numbers, parsed, save

PAGE = "models/mnist5k_lenet.html"


def charted(name: str, success: float, eps: float | None = 0.1, steps: int = 20) -> Record:
    """A record whose attack got there in a straight line."""
    record = attacked(cell(name, eps=eps), [0.05, None, None, None])
    share = [success * step / (steps - 1) for step in range(steps)]
    course = Convergence(
        n=4, looks=tuple(range(1, steps + 1)), loss=tuple(10 * s - 5 for s in share), success=tuple(share)
    )
    return replace(record, header=record.header.model_copy(update={"convergence": course}))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten attacks of a fixed eps, one that seeks the smallest, and one of an older version."""
    folder = tmp_path_factory.mktemp("convergence")
    many = [charted(f"attack-{place}", place / 10) for place in range(10)]
    older = attacked(cell("older"), [None] * 4)
    run = save(folder / "run", *many, charted("deepfool", 1.0, eps=None), older)
    path = Store(run).path(older.cell.id)
    table = pyarrow.parquet.read_table(path)
    header = json.loads((table.schema.metadata or {})[KEY])
    del header["convergence"]
    pyarrow.parquet.write_table(table.replace_schema_metadata({KEY: json.dumps(header).encode()}), path)
    build(Report.of(run), folder / "site")
    return folder / "site"


def test_the_table_behind_the_figure_is_the_headers(site: Path) -> None:
    rows = numbers(site / PAGE, "table-course-mnist5k_lenet-linf-0.1")
    assert [row["judge"] for row in rows] == [f"attack-{place}" for place in reversed(range(10))]
    assert [float(row["success"]) for row in rows] == [place / 10 for place in reversed(range(10))]
    assert [(row["looks"], row["half"]) for row in rows[:2]] == [("20", "11")] * 2
    assert [float(rows[0][end]) for end in ("first", "last")] == [-5.0, 4.0]
    # What breaks nothing has no half-way.
    assert rows[-1]["half"] == ""
    (row,) = numbers(site / PAGE, "table-course-mnist5k_lenet-linf-least")
    assert (row["judge"], float(row["success"])) == ("deepfool", 1.0)


def test_the_curves_are_those_that_break_most_from_first_to_last_step(site: Path) -> None:
    text = (site / PAGE).read_text(encoding="utf-8")
    (found,) = re.findall(r'id="spec-course-mnist5k_lenet-linf-0.1">(.*?)</script>', text)
    lines = [line.split(",") for line in json.loads(found)["datasets"]["rows"].splitlines()]
    assert lines[0] == ["looks", "loss", "success", "judge"]
    drawn = {name: [line for line in lines[1:] if line[3] == name] for name in {one[3] for one in lines[1:]}}
    assert sorted(drawn) == [f"attack-{place}" for place in range(10 - LINES, 10)]
    for name, points in drawn.items():
        assert len(points) <= POINTS
        assert [points[0][0], points[-1][0]] == ["1", "20"]
        assert float(points[-1][2]) == pytest.approx(int(name[-1]) / 10)
    assert f"The {LINES} of 10 attacks that break most" in parsed(site / PAGE).text


def test_a_record_of_before_is_read_and_said_to_have_none(site: Path) -> None:
    text = parsed(site / PAGE).text
    assert "1 records of attacks hold no loss by step" in text
    assert "older" in [row["judge"] for row in numbers(site / PAGE, "judges")]
