"""What a report can be taken away as: tables, figures, badges, a summary, a notebook's view."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from PIL import Image

from bench.plan import Filters, make_plan
from bench.report.badge import badge
from bench.report.build import build
from bench.report.export import latex, markdown
from bench.report.grid import Cell, Column, Grid, slug
from bench.report.ranks import rank_intervals, spelled
from bench.report.report import Report
from bench.report.reproduce import command
from bench.spec import read_matrix
from tests.bench import builders
from tests.bench.builders import attacked, cell, proved
from tests.bench.sites import PROOF, a_run, broken_links, numbers, parsed, random_records, save, some_records

NAME = "leaderboard-mnist5k-linf-0.1"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three models and its site."""
    folder = tmp_path_factory.mktemp("exports")
    build(Report.of(a_run(folder / "run")), folder / "site")
    return folder / "site"


def test_every_form_of_a_table_holds_the_same_rows(site: Path) -> None:
    rows = numbers(site / "leaderboards" / "mnist5k-linf-0.1.html", NAME)
    plain = pd.read_csv(site / "tables" / f"{NAME}.csv")
    whole = json.loads((site / "tables" / f"{NAME}.json").read_text())["rows"]
    for name in ("certified", "attacked", "clean", "rho_adv"):
        assert list(plain[name]) == [row[name] for row in whole] == [float(row[name]) for row in rows]
    tex = (site / "tables" / f"{NAME}.tex").read_text()
    body = tex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    text = (site / "tables" / f"{NAME}.md").read_text().splitlines()[4:]
    assert len(body) == len(text) == len(rows) == 3
    for row, line, other in zip(rows, body, text, strict=True):
        shown = f"{100 * float(row['attacked']):.1f}"
        assert shown + r" \%" in line
        assert f"{shown} %" in other
        assert line.count(" & ") == 14
    assert all(name in tex for name in (r"\toprule", r"\begin{tabular}", "booktabs"))


def test_latex_and_markdown_escape_what_means_something() -> None:
    text = r"a_b & 50 % #1 {x} \cmd ~^ <i> | *"
    grid = Grid("g", text, [Column("a", text)], [[Cell(1.0, text)]])
    tex = latex(grid)
    assert r"a\_b \& 50 \% \#1 \{x\} \textbackslash{}cmd \textasciitilde{}\textasciicircum{}" in tex
    assert not re.search(
        r"(?<!\\)[&%#_]", tex.split(r"\midrule")[1].split(r"\bottomrule")[0].replace(r"\\", "")
    )
    line = markdown(grid).splitlines()[-1]
    assert r"\<i\> \| \*" in line


def test_figures_are_files_in_three_forms_without_a_browser(site: Path) -> None:
    names = {path.stem for path in (site / "figures").iterdir()}
    assert {"bracket-mnist5k-linf-0.1", "transfer-mnist5k-linf-0.1", "game-mnist5k-linf-0.1"} <= names
    for name in names:
        drawn = ElementTree.parse(site / "figures" / f"{name}.svg").getroot()
        assert drawn.tag == f"{SVG}svg"
        assert "currentColor" not in (site / "figures" / f"{name}.svg").read_text()
        with Image.open(site / "figures" / f"{name}.png") as image:
            assert image.width > 400
            assert len(image.convert("RGB").getcolors(10**6) or []) > 3
        assert (site / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF-")


def test_the_summary_is_one_page(site: Path) -> None:
    content = (site / "summary.pdf").read_bytes()
    assert content.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) == 1
    (box,) = re.findall(rb"/MediaBox\s*\[0 0 ([0-9.]+) ([0-9.]+)\]", content)
    assert [float(side) for side in box] == [595, 842]


@pytest.mark.parametrize(
    ("certified", "attacked_", "shown"), [(0.4, 0.91, "40.0–91.0 %"), (1.0, 1.0, "100.0 %")]
)
def test_a_badge_is_as_long_as_its_bracket(certified: float, attacked_: float, shown: str) -> None:
    drawn = ElementTree.fromstring(badge("<&> robust", certified, attacked_))
    assert drawn.attrib["aria-label"] == f"<&> robust: {shown}"
    width = float(drawn.attrib["width"])
    bars = [float(r.attrib["width"]) for r in drawn.iter(f"{SVG}rect")][-2:]
    assert bars == pytest.approx([certified * width, (attacked_ - certified) * width], abs=0.01)


def test_every_page_names_a_badge_that_is_there(site: Path) -> None:
    badges = {path.name for path in (site / "badges").iterdir()}
    assert "mnist5k_lenet-linf-0.1.svg" in badges
    text = (site / "badges" / "mnist5k_lenet-linf-0.1.svg").read_text()
    assert "16.7–58.3 %" in text


def test_the_notebook_view_is_one_piece_of_html_with_the_numbers(tmp_path: Path) -> None:
    evil = proved(cell("ibp", model="<script>x</script>", **PROOF), [True, False])
    attack = attacked(cell("pgd", model="<script>x</script>"), [None, None])
    shown = Report.of(save(tmp_path / "run", evil, attack))._repr_html_()
    assert "50.0 %" in shown
    assert "100.0 %" in shown
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown


def test_rank_intervals_against_their_definition() -> None:
    frame = pd.DataFrame({"low": [0.9, 0.1, 0.5, 0.2, 0.2], "high": [1.0, 0.95, 0.6, 0.3, 0.3]})
    found = rank_intervals(frame["low"], frame["high"])
    for i, row in frame.iterrows():
        ahead = sum(row["high"] < other["low"] for _, other in frame.iterrows())
        behind = sum(other["high"] < row["low"] for _, other in frame.iterrows())
        assert (found.loc[i, "best"], found.loc[i, "worst"]) == (1 + ahead, len(frame) - behind)
    assert [spelled(*map(int, row)) for row in found.to_numpy()] == ["1–2", "1–5", "2–3", "3–5", "3–5"]


def test_points_without_width_are_ranked_as_usual_and_overlap_is_never_told_apart() -> None:
    values = pd.Series([0.3, 0.9, 0.5])
    assert rank_intervals(values, values).to_numpy().tolist() == [[3, 3], [1, 1], [2, 2]]
    wide = rank_intervals(pd.Series([0.0] * 7), pd.Series([1.0] * 7))
    assert wide.to_numpy().tolist() == [[1, 7]] * 7


def test_a_wider_bracket_never_narrows_a_rank(tmp_path: Path) -> None:
    (board,) = Report.of(save(tmp_path / "run", *random_records(12, 30))).boards
    ranked = board.ranked
    assert (ranked["best"] <= ranked["attacked_best"]).all() or (
        ranked["worst"] >= ranked["attacked_worst"]
    ).any()
    assert ((ranked["best"] >= 1) & (ranked["best"] <= ranked["worst"]) & (ranked["worst"] <= 12)).all()


@pytest.mark.parametrize(
    "text", ["lenet+polytope", "a/b", "../../etc", "", "é", "x" * 300, "file:n.py:f,w=3@mean=0"]
)
def test_file_names_are_safe_and_tell_names_apart(text: str) -> None:
    name = slug(text)
    assert re.fullmatch(r"[A-Za-z0-9._+-]{1,90}", name)
    assert not name.startswith(".")
    assert slug(text + " ") != name


def test_the_command_of_a_record_plans_that_record() -> None:
    """For every cell that the matrix ci plans on the test catalog: the plan of its command holds it."""
    spec, known = read_matrix("ci"), builders.catalog()
    names = {"models": tuple(known.models), "attacks": ("*",), "certificates": ("*",), "sources": ("*",)}
    spec = spec.model_copy(update=names)
    cells = make_plan(spec, known, lambda name: "0" * 16).cells
    assert len(cells) > 10
    for made in cells:
        words = command(made, "ci").split()
        option = {words[i]: words[i + 1] for i in range(4, len(words), 2)}
        filters = Filters(
            (option["--model"],),
            (option["--defense"],) if "--defense" in option else (),
            (option["--attack"],) if "--attack" in option else (),
            (option["--certify"],) if "--certify" in option else (),
        )
        again = spec.limited(int(option["--limit"])).model_copy(update={"seed": int(option["--seed"])})
        planned = make_plan(again, known, lambda name: "0" * 16, filters).cells
        assert made.id in {found.id for found in planned}


def test_the_command_of_an_own_model_and_matrix_is_quoted() -> None:
    own = cell("pgd", model="file:my net.py:make", images=7, seed=3).model_copy(
        update={"data": "npz:x.npz@0123456789abcdef"}
    )
    assert command(own, "mine") == (
        "python -m bench run --matrix mine.toml --data npz:x.npz --model 'file:my net.py:make' "
        "--attack pgd --limit 7 --seed 3"
    )


def test_a_matrix_of_the_users_own_lies_beside_the_commands_that_read_it(tmp_path: Path) -> None:
    run = save(tmp_path / "run", *some_records(), matrix="my own", text="data = 'mnist5k'\n")
    build(Report.of(run), tmp_path / "site")
    (path,) = (tmp_path / "site" / "matrices").iterdir()
    assert path.read_text() == "data = 'mnist5k'\n"
    assert "--matrix 'my own.toml'" in parsed(tmp_path / "site" / "provenance.html").text
    assert broken_links(tmp_path / "site") == []
    # A run of before it was kept says nothing of it.
    older = json.loads((run / "run.json").read_text())
    del older["text"]
    (run / "run.json").write_text(json.dumps(older))
    assert Report.of(run).material.texts == {}


def test_pictures_are_files_of_the_attack_s_page(tmp_path: Path) -> None:
    made = attacked(cell("pgd"), [0.05, None, None, None])
    run = save(tmp_path / "run", made)
    kept = _kept()
    (run / "artifacts").mkdir()
    safetensors.numpy.save_file(kept, run / "artifacts" / f"{made.cell.id}.safetensors")
    build(Report.of(run), tmp_path / "site")
    pictures = sorted((tmp_path / "site" / "images").iterdir())
    assert len(pictures) == 4
    shown = {path.stem.rsplit("-", 1)[1]: Image.open(io.BytesIO(path.read_bytes())) for path in pictures}
    assert shown["original"].getpixel((0, 0)) == 0
    assert shown["adversarial"].getpixel((0, 0)) == round(0.1 * 255)
    # The largest change fills half the range, and nothing is grey.
    assert shown["change"].getpixel((0, 0)) == 255
    assert shown["change"].getpixel((1, 1)) == 128
    text = (tmp_path / "site" / "judges" / "pgd.html").read_text()
    for said in (
        'alt="Sample 0, class 3, taken for 3, 90.0 %"',
        'alt="Its perturbation, magnified 5 times"',
        'alt="Sample 0 after the attack, taken for 5, 60.0 %"',
        "sample 0, class 3; 1 of 16 pixels changed, by at most 0.1",
    ):
        assert said in text


def test_inputs_that_are_no_images_have_no_pictures(tmp_path: Path) -> None:
    made = attacked(cell("pgd"), [0.05, None, None, None])
    run = save(tmp_path / "run", made)
    flat = {k: v.reshape(1, -1) if k in ("gallery.x", "gallery.x_adv") else v for k, v in _kept().items()}
    (run / "artifacts").mkdir()
    safetensors.numpy.save_file(
        {**flat, "perturbation": np.zeros((1, 48), dtype=np.float32)},
        run / "artifacts" / f"{made.cell.id}.safetensors",
    )
    build(Report.of(run), tmp_path / "site")
    assert not (tmp_path / "site" / "images").exists()


def test_views_that_the_attack_has_not_seen_stand_below_their_picture(tmp_path: Path) -> None:
    made = attacked(cell("turtle"), [0.05, None, None, None])
    run = save(tmp_path / "run", made)
    views = {
        "views.x": np.stack([np.zeros((1, 4, 4)), np.ones((1, 4, 4))])[None].astype(np.float32),
        "views.predicted": np.array([[5, 3]]),
        "views.confidence": np.array([[0.75, 0.5]], dtype=np.float32),
        "views.error": np.array([0.625, 0.125], dtype=np.float32),
    }
    (run / "artifacts").mkdir()
    safetensors.numpy.save_file({**_kept(), **views}, run / "artifacts" / f"{made.cell.id}.safetensors")
    build(Report.of(run), tmp_path / "site")
    page = tmp_path / "site" / "judges" / "turtle.html"
    (row,) = numbers(page, "views")
    assert (float(row["attacked"]), float(row["clean"]), row["n"]) == (0.625, 0.125, "4")
    alts = [image.attributes["alt"] for image in parsed(page).all("img")]
    assert "Held-out view 1, taken for 5, 75 %" in alts
    assert "Held-out view 2, taken for 3, 50 %" in alts
    assert broken_links(tmp_path / "site") == []


def _kept() -> dict[str, np.ndarray]:
    """One sample of a gallery, whose first pixel was raised by 0.1, and a universal perturbation."""
    x = np.zeros((1, 1, 4, 4), dtype=np.float32)
    x_adv = x.copy()
    x_adv[0, 0, 0, 0] = 0.1
    one = {"index": 0, "label": 3, "clean": 3, "predicted": 5}
    sure = {"clean_confidence": 0.9, "confidence": 0.6}
    return {
        "gallery.x": x,
        "gallery.x_adv": x_adv,
        **{f"gallery.{name}": np.array([value]) for name, value in one.items()},
        **{f"gallery.{name}": np.array([value], dtype=np.float32) for name, value in sure.items()},
        "perturbation": np.full((1, 3, 4, 4), 0.02, dtype=np.float32),
    }
