"""Audits beside a run: on the page of the network they speak of, and unranked where they say so."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from bench.analysis.stored import Analysis, Audited, Rung, read, save
from bench.cli import main
from bench.report.build import build
from bench.report.report import Report
from tests.bench.builders import PROVENANCE
from tests.bench.sites import a_run, broken_links, numbers, parsed

EVIL = "<script>alert(1)</script>"
BOARD, TABLE = "leaderboards/mnist5k-linf-0.1.html", "leaderboard-mnist5k-linf-0.1"
BELOW = "unranked-mnist5k-linf-0.1"
Capsys = pytest.CaptureFixture[str]


def audited(model: str = "lenet", *failed: str, reliable: bool = True, eps: float = 0.1) -> Analysis:
    """An audit of `model` that failed these rungs."""
    rungs = [Rung(name="unbounded attack", passed=True, detail="pgd over the whole box leaves 0 %")]
    rungs += [Rung(name=name, passed=False, detail=f"{name} of 7 & more") for name in failed]
    return Analysis(
        data="mnist5k",
        models=[model],
        weights={model: "0123456789abcdef"},
        settings={"norm": "linf", "eps": eps, "limit": 8},
        seed=0,
        command=f"python -m bench audit {model}",
        provenance=PROVENANCE,
        result=Audited(
            norm="linf",
            eps=eps,
            n=8,
            clean=1.0,
            naive=0.5,
            attacked=0.25,
            rungs=rungs,
            reliable=reliable,
            seconds=2.5,
        ),
    )


def site_of(folder: Path, *audits: Analysis) -> Path:
    """The site of three models with these audits."""
    run = a_run(folder / "run")
    for one in audits:
        save(run, one)
    build(Report.of(run), folder / "site")
    return folder / "site"


def test_the_models_page_has_every_rung_with_what_was_measured(tmp_path: Path) -> None:
    one = audited("lenet", "noise beyond gradients", EVIL)
    site = site_of(tmp_path, one)
    page = site / "models" / "mnist5k_lenet.html"
    rows = numbers(page, f"rungs-{one.name}")
    assert [(row["rung"], row["result"]) for row in rows] == [
        ("noise beyond gradients", "failed"),
        (EVIL, "failed"),
        ("unbounded attack", "passed"),
    ]
    assert rows[0]["measured"] == "noise beyond gradients of 7 & more"
    text = parsed(page).text
    assert "1 of 3" in text
    assert "25.0 % [7, 59]" in text
    assert "python -m bench audit lenet" in text
    assert EVIL not in page.read_text(encoding="utf-8")
    other = parsed(site / "models" / "mnist5k_conv-small.html").text
    assert "No audit of these weights" in other
    assert broken_links(site) == []


def test_all_audits_stand_side_by_side_and_lead_to_their_models(tmp_path: Path) -> None:
    site = site_of(tmp_path, audited("lenet", "x"), audited("conv-small", eps=0.3))
    rows = {row["model"]: row for row in numbers(site / "analyses.html", "audits")}
    assert rows["lenet"]["failed"] == "x"
    assert (rows["conv-small"]["passed"], rows["conv-small"]["failed"]) == ("1", "")
    assert float(rows["lenet"]["attacked"]) == 0.25
    links = [a.attributes["href"] for a in parsed(site / "analyses.html").all("a")]
    assert "models/mnist5k_lenet.html" in links


def test_an_unreliable_row_is_unranked_with_the_reason(tmp_path: Path) -> None:
    site = site_of(tmp_path, audited("lenet", "square beyond gradients", reliable=False))
    (below,) = numbers(site / BOARD, BELOW)
    assert (below["model"], below["defense"]) == ("lenet", "none")
    assert below["reason"].startswith("unreliable: in the audit a weaker judge still beats the worst case")
    assert "square beyond gradients" in below["reason"]
    assert all((row["model"], row["defense"]) != ("lenet", "none") for row in numbers(site / BOARD, TABLE))


def test_a_model_that_remembers_is_unranked_for_that(tmp_path: Path) -> None:
    (below,) = numbers(site_of(tmp_path, audited("lenet", "memory", reliable=False)) / BOARD, BELOW)
    assert below["reason"].startswith("unreliable: in the audit answers depend on earlier ones (memory)")


def test_failed_rungs_of_a_reliable_row_are_a_flag(tmp_path: Path) -> None:
    site = site_of(tmp_path, audited("lenet", "few steps beyond many"))
    flags = {(row["model"], row["defense"]): row["flags"] for row in numbers(site / BOARD, TABLE)}
    assert "audit" in flags["lenet", "none"].split(", ")
    assert "audit" not in flags["conv-small", "none"]
    assert "1 of 2 rungs of the audit failed (few steps beyond many)" in parsed(site / BOARD).text


@pytest.mark.parametrize(
    "other",
    [
        audited("lenet", "x", reliable=False, eps=0.3),
        audited("lenet", "x", reliable=False).model_copy(update={"weights": {"lenet": "f" * 16}}),
        audited("lenet", "x", reliable=False).model_copy(
            update={"provenance": PROVENANCE.model_copy(update={"data_sha256": "e" * 64})}
        ),
        audited("lenet"),
    ],
    ids=["another eps", "other weights", "other images", "nothing failed"],
)
def test_an_audit_of_something_else_says_nothing_of_the_row(tmp_path: Path, other: Analysis) -> None:
    site = site_of(tmp_path, other)
    flags = {(row["model"], row["defense"]): row["flags"] for row in numbers(site / BOARD, TABLE)}
    assert flags["lenet", "none"] == ""


@pytest.mark.slow
def test_the_command_keeps_what_its_own_line_makes_again(tmp_path: Path, capsys: Capsys) -> None:
    asked = ["audit", "mlp-256x2", "--eps", "1/255", "--limit", "2", "--out", str(tmp_path)]
    code = main(asked)
    shown = capsys.readouterr().out
    (path,) = (tmp_path / "analyses").glob("audit-*.json")
    assert f"audit: {path}" in shown
    (kept,), lost = read([tmp_path])
    assert lost == []
    result = kept.result
    assert isinstance(result, Audited)
    assert code == bool(result.failed)
    assert (result.eps, result.n, len(result.rungs) > 8) == (1 / 255, 2, True)
    assert all(rung.name in shown for rung in result.rungs[:3])
    # A network of other classes, as linear-3-7 is, is no source.
    assert "transfer runs" not in [rung.name for rung in result.rungs]
    assert main([*shlex.split(kept.command)[3:], "--out", str(tmp_path)]) == code
    (again,), _ = read([tmp_path])
    assert isinstance(again.result, Audited)
    assert again.result.model_copy(update={"seconds": result.seconds}) == result
