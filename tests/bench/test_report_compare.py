"""Comparisons: known changes are found, paired, judged and put first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from bench.paired import paired
from bench.record import panel_name
from bench.report.build import build_comparison
from bench.report.comparison import brackets, changed, judges, sides, unmatched
from models.errors import UserError
from tests.bench.builders import PROVENANCE, attacked, cell, proved
from tests.bench.commands import command
from tests.bench.sites import PROOF, broken_links, numbers, parsed, save, some_records


def a_pair(folder: Path, weights: str = "0123456789abcdef") -> list[str]:
    """Runs a and b: in b pgd lost sample 0, gained samples 5 to 12, and ibp no longer proves sample 14."""
    who = {"images": 16, "weights": weights}
    save(
        folder / "a",
        attacked(cell("pgd", images=16), [0.05, 0.05, *[None] * 14]),
        proved(cell("ibp", images=16, **PROOF), [False] * 13 + [True] * 3),
        attacked(cell("deepfool", images=16, eps=None), [0.2] * 16),
        attacked(cell("fgsm", images=16), [None] * 16),
    )
    reached = [None, 0.05, None, None, None, *[0.05] * 8, None, None, None]
    save(
        folder / "b",
        attacked(cell("pgd", **who), reached),
        proved(cell("ibp", **who, **PROOF), [False] * 13 + [True, False, True]),
        attacked(cell("deepfool", **who, eps=None), [0.2] * 8 + [0.3] * 8),
        attacked(cell("cw", **who, norm="l2", eps=None), [0.2] * 16),
    )
    return [str(folder / "a"), str(folder / "b")]


def test_the_same_weights_a_wider_gap_is_worse(tmp_path: Path) -> None:
    frame = brackets(*sides(a_pair(tmp_path))).set_index("end")
    row, true = frame.loc["attacked"], paired(6, 8, 1, 1)
    assert (row["before"], row["after"], row["n"]) == (14 / 16, 7 / 16, 16)
    assert (row["lost"], row["gained"]) == (8, 1)
    assert (row["difference"], row["low"], row["high"], row["p"]) == (
        true.difference,
        true.low,
        true.high,
        true.p,
    )
    assert true.p == pytest.approx(20 / 512)
    # The attack breaks more of the same network: the upper bound is tighter.
    assert row["verdict"] == "better"
    assert frame.loc["certified", "verdict"] == "worse, within chance"
    assert list(frame.index) == ["certified", "attacked"]


def test_on_other_weights_a_less_robust_model_is_worse(tmp_path: Path) -> None:
    frame = brackets(*sides(a_pair(tmp_path, weights="f" * 16)))
    assert list(zip(frame["end"], frame["verdict"], strict=True)) == [
        ("attacked", "worse"),
        ("certified", "worse, within chance"),
    ]


def test_each_judge_is_compared_with_itself(tmp_path: Path) -> None:
    found = sides(a_pair(tmp_path))
    frame = judges(*found).set_index("judge")
    assert set(frame.index) == {"pgd", "ibp", "deepfool"}
    assert frame.loc["deepfool", "distance_ratio"] == pytest.approx(1.25)
    assert frame.loc["pgd", "verdict"] == "better"
    assert frame.loc["pgd", "passes_after"] == 5.0
    assert frame.loc["ibp", "before"] == 3 / 16
    assert [name.endswith(("a", "b")) for name, _ in unmatched(*found)] == [True, True]
    assert [line.split(" | ")[2] for _, line in unmatched(*found)] == ["fgsm", "cw"]


def test_the_samples_that_changed_are_named(tmp_path: Path) -> None:
    frame = changed(*sides(a_pair(tmp_path))).set_index("index")
    # Of the same weights what was settled and is open now comes first.
    assert list(frame.index) == [0, 14, *range(5, 13)]
    assert (frame.loc[0, "before"], frame.loc[0, "after"]) == ("broken", "open")
    assert (frame.loc[14, "before"], frame.loc[14, "after"]) == ("certified", "open")


def test_the_site_shows_the_frames(tmp_path: Path) -> None:
    found = sides(a_pair(tmp_path))
    build_comparison(found, tmp_path / "site")
    assert broken_links(tmp_path / "site") == []
    rows = numbers(tmp_path / "site" / "index.html", "brackets-1")
    expected = brackets(*found)
    assert [row["verdict"] for row in rows] == list(expected["verdict"])
    for name in ("before", "after", "difference", "p"):
        assert [float(row[name]) for row in rows] == list(expected[name])
    listed = numbers(tmp_path / "site" / "pair-1.html", "changed-1")
    assert [int(row["index"]) for row in listed] == list(changed(*found)["index"])
    assert len(numbers(tmp_path / "site" / "pair-1.html", "judges-1")) == 3


def test_a_run_equals_itself(tmp_path: Path) -> None:
    first, second = (save(tmp_path / name, *some_records()) for name in ("a", "b"))
    found = sides([str(first), str(second)])
    assert set(brackets(*found)["verdict"]) == {"same"}
    assert changed(*found).empty
    build_comparison(found, tmp_path / "site")
    assert "No verdict changed" in parsed(tmp_path / "site" / "pair-1.html").text
    assert broken_links(tmp_path / "site") == []


@pytest.mark.slow
def test_three_models_of_one_run(tmp_path: Path) -> None:
    run = save(
        tmp_path / "run",
        *some_records(),
        *some_records("lenet", "adversarial-pgd", shift=0.04),
        *some_records("<b>net</b>"),
    )
    names = [f"{run}@lenet", f"{run}@lenet+adversarial-pgd", f"{run}@<b>net</b>"]
    shown = command("compare", *names, "--out", tmp_path / "site")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert broken_links(tmp_path / "site") == []
    assert "<b>net" not in (tmp_path / "site" / "index.html").read_text()
    assert "<b>net</b>" in parsed(tmp_path / "site" / "index.html").text
    assert len(list((tmp_path / "site").glob("pair-*.html"))) == 2


def test_what_cannot_be_compared_is_one_clear_line(tmp_path: Path) -> None:
    a, b = a_pair(tmp_path)
    other = str(save(tmp_path / "c", attacked(cell("pgd", model="net"), [None])))
    for texts, said in {
        (a,): "two or three runs, not 1",
        (a, a): "must differ",
        (a, str(tmp_path / "gone")): "no run under",
        (f"{a}@lenet", b): "on every side",
        (f"{a}@lenet", f"{b}@nat"): "no model 'nat' in .*: there are lenet",
        (a, other): "share no model",
    }.items():
        with pytest.raises(UserError, match=said):
            sides(texts)


def test_the_pictures_of_changed_samples_are_shown_and_no_others(tmp_path: Path) -> None:
    first, second = a_pair(tmp_path)
    made = attacked(cell("pgd", images=16), [0.05, 0.05, *[None] * 14])
    x = np.zeros((2, 1, 4, 4), dtype=np.float32)
    ones = np.ones(2, dtype=np.float32)
    names = ("label", "clean", "predicted")
    kept = {
        "x": x,
        "x_adv": x + 0.05,
        "index": np.array([0, 1]),
        "clean_confidence": ones,
        "confidence": ones,
    }
    kept |= {name: np.array([3, 3]) for name in names}
    (tmp_path / "a" / "artifacts").mkdir()
    path = tmp_path / "a" / "artifacts" / f"{made.cell.id}.safetensors"
    safetensors.numpy.save_file({f"gallery.{name}": array for name, array in kept.items()}, path)
    build_comparison(sides([first, second]), tmp_path / "site")
    # Sample 0 changed, sample 1 is broken on both sides.
    assert len(list((tmp_path / "site" / "images").rglob("*.png"))) == 3
    text = parsed(tmp_path / "site" / "pair-1.html").text
    assert "pgd: lenet, linf-0.1, sample 0, class 3" in text
    assert "sample 1," not in text
    assert broken_links(tmp_path / "site") == []


def test_a_changed_sample_has_the_image_that_its_run_kept(tmp_path: Path) -> None:
    first, second = a_pair(tmp_path)
    (tmp_path / "a" / "artifacts").mkdir()
    path = tmp_path / "a" / "artifacts" / f"{panel_name(PROVENANCE.data_sha256)}.safetensors"
    images = np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4)
    safetensors.numpy.save_file({"index": np.array([1, 14]), "image": images}, path)
    build_comparison(sides([first, second]), tmp_path / "site")
    (shown,) = (tmp_path / "site" / "images").rglob("*.png")
    assert shown.name == "14.png"
    assert np.asarray(Image.open(shown)).tolist() == images[1, 0].tolist()
    (table,) = [
        d
        for d in parsed(tmp_path / "site" / "pair-1.html").all("div")
        if d.attributes.get("id") == "changed-1"
    ]
    (image,) = table.all("img")
    assert image.attributes["alt"] == "Image 14, unperturbed"
    assert broken_links(tmp_path / "site") == []


def test_the_cost_is_compared_on_the_judges_that_all_sides_finished(tmp_path: Path) -> None:
    build_comparison(sides(a_pair(tmp_path)), tmp_path / "site")
    first, second = numbers(tmp_path / "site" / "index.html", "cost")
    # Four cells of 1.5 s each, three of them shared.
    assert [float(row["seconds"]) for row in (first, second)] == [6.0, 6.0]
    assert [float(row["shared"]) for row in (first, second)] == [4.5, 4.5]
    assert float(second["ratio"]) == 1.0
    assert [int(row["passes"]) for row in (first, second)] == [3 * 16 * 5, 3 * 16 * 5]
