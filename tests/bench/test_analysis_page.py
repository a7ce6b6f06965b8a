"""Analyses on disk, the command that computes them and the page that only draws them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from bench.analysis.stored import (
    Analysis,
    Crossing,
    Curve,
    Dissection,
    Landscape,
    Plane,
    Regions,
    Result,
    Sparsity,
    Surface,
    Unit,
    Units,
    read,
    save,
)
from bench.cli import main
from bench.report.build import build
from bench.report.report import Report
from models.data import load_data
from tests.bench.builders import PROVENANCE
from tests.bench.commands import command
from tests.bench.sites import a_run, broken_links, numbers, parsed

Capsys = pytest.CaptureFixture[str]
EVIL = "<script>alert(1)</script>"


def stored(result: Result, models: tuple[str, ...] = ("lenet", EVIL), **changes: object) -> Analysis:
    return Analysis(
        data="mnist5k",
        models=list(models),
        weights=dict.fromkeys(models, "0123456789abcdef"),
        settings={"index": 7},
        seed=0,
        command=f"python -m bench analyse {result.kind}",
        provenance=PROVENANCE,
        result=result,
    ).model_copy(update=changes)


def planes() -> Regions:
    one = Plane(
        model="lenet",
        predicted=3,
        classes=[[3] * 4 + [8] * 3] * 7,
        ahead=Crossing(distance=0.75, entered=8),
        behind=None,
    )
    return Regions(
        index=7,
        label=3,
        reach=2.0,
        far=9.0,
        cosine=0.0,
        planes=[one, one.model_copy(update={"model": EVIL, "ahead": None, "classes": [[3] * 7] * 7})],
    )


def surfaces() -> Landscape:
    loss = [[[-1.0, -0.5, 0.25], [-1.0, 2.5, 0.0], [-1.0, -1.0, -1.0]]] * 2
    surface = Surface(model=EVIL, loss=loss, worst=(0, 1, 1), chosen=(1, 0, 2), broken=True, maxima=2)
    return Landscape(
        index=7, label=3, angles=[-30.0, 30.0], down=[-2.8, 0, 2.8], right=[-2.8, 0, 2.8], surfaces=[surface]
    )


def dissected() -> Units:
    found = Dissection(
        model=EVIL,
        layer="6",
        units=2,
        right=20,
        broken=10,
        top=[
            Unit(unit=37, shift=2.5, signed=-0.5, label=2, auc=0.875),
            Unit(unit=4, shift=0.0, signed=0.0, label=0, auc=0.5),
        ],
        removed=[0, 1, 2],
        success=[1.0, 0.125, 0.5],
        success_random=[1.0, 0.75, 0.5],
        clean=[0.875, 0.8, 0.1],
        clean_random=[0.875, 0.86, 0.1],
        confusion=[[0, 7, 0], [0, 0, 0], [3, 0, 0]],
    )
    return Units(attack="pgd", norm="linf", eps=0.1, n=24, draws=10, dissections=[found])


def curves() -> Sparsity:
    pair = [
        Curve(model="lenet", zeros=0.0, accuracy=[1.0, 0.5, 0.0625]),
        Curve(model=EVIL, zeros=0.9, accuracy=[0.9, 0.8, 0.75]),
    ]
    return Sparsity(attack="pgd", norm="linf", n=40, eps=[0.0, 0.1, 0.2], curves=pair)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one analysis of each kind and a damaged one."""
    folder = tmp_path_factory.mktemp("analyses")
    run = a_run(folder / "run")
    for result in (planes(), surfaces(), dissected(), curves()):
        save(run, stored(result))
    (run / "analyses" / "units-ffffffffffff.json").write_text('{"schema_version": 2}')
    build(Report.of(run), folder / "site")
    return folder / "site"


def name_of(result: Result) -> str:
    return stored(result).name


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    kept = [stored(result) for result in (surfaces(), planes(), curves(), dissected())]
    for analysis in kept:
        path = save(tmp_path, analysis)
        assert path.name == f"{analysis.result.kind}-{analysis.name.partition('-')[2]}.json"
        assert json.loads(path.read_text())["schema_version"] == 1
    assert read([tmp_path, tmp_path]) == (sorted(kept, key=lambda one: one.name), [])


def test_the_name_depends_on_what_was_asked_and_of_which_weights() -> None:
    one = stored(planes())
    again = one.model_copy(update={"provenance": PROVENANCE.model_copy(update={"started": "later"})})
    assert again.name == one.name
    for change in (
        {"seed": 1},
        {"weights": {"lenet": "f" * 16}},
        {"settings": {"index": 8}},
        {"data": "mnist"},
    ):
        assert one.model_copy(update=change).name != one.name


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"schema_version": 2}', stored(planes()).model_dump_json().replace('"reach"', '"rich"')],
)
def test_a_damaged_file_is_a_line_not_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "analyses").mkdir()
    (tmp_path / "analyses" / "regions-0.json").write_text(text)
    found, (line,) = read([tmp_path])
    assert found == []
    assert line.startswith("regions-0.json is damaged or of another version: delete it")


def test_the_page_shows_the_numbers_of_the_files(site: Path) -> None:
    page = site / "analyses.html"
    rows = numbers(page, f"distances-{name_of(planes())}")
    assert [row["model"] for row in rows] == ["lenet", EVIL]
    assert [row["ahead"] for row in rows] == ["0.75", ""]
    (pose,) = numbers(page, f"poses-{name_of(surfaces())}")
    assert (pose["worst"], pose["maxima"], pose["wrong"]) == ("2.5", "2", "4")
    assert float(pose["still"]) == 2.5
    shown = numbers(page, f"table-{name_of(curves())}")
    assert [float(row["eps 0.2"]) for row in shown] == [0.0625, 0.75]
    text = parsed(page).text
    assert "units-ffffffffffff.json is damaged or of another version" in text
    grids = [one for one in parsed(page).all("div") if one.attributes.get("id", "").startswith("table-units")]
    ablation, shifts, confusion = (numbers(page, one.attributes["id"]) for one in grids)
    assert [float(row["success"]) for row in ablation] == [1.0, 0.125, 0.5]
    assert [row["unit"] for row in shifts] == ["37", "4"]
    assert [row["became 1"] for row in confusion] == ["7", "0"]


def test_every_figure_is_described_and_has_its_table(site: Path) -> None:
    tree = parsed(site / "analyses.html")
    charts = [one for one in tree.all("div") if one.attributes.get("class") == "chart"]
    assert len(charts) == 2 + 1 + 3 + 1
    assert all(len(chart.attributes["aria-label"]) > 60 for chart in charts)
    for figure in tree.all("figure"):
        assert figure.all("table"), figure.attributes["id"]
    assert broken_links(site) == []
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 15e6


def test_regions_have_the_same_axes_and_colours_for_all_models(site: Path) -> None:
    text = (site / "analyses.html").read_text(encoding="utf-8")
    specs = [json.loads(found) for found in re.findall(r'id="spec-regions[^"]*">(.*?)</script>', text)]
    assert len(specs) == 2
    assert specs[0]["layer"] == specs[1]["layer"]
    colours = [{line.split(",")[-2:][0]: line.split(",")[-1] for line in _lines(spec)} for spec in specs]
    assert colours[0]["3"] == colours[1]["3"] != colours[0]["8"]


def _lines(spec: dict[str, dict[str, str]]) -> list[str]:
    head, *lines = spec["datasets"]["rows"].splitlines()
    assert head == "a,a2,b,b2,predicted,colour"
    return lines


def test_rectangles_cover_the_plane_once(site: Path) -> None:
    text = (site / "analyses.html").read_text(encoding="utf-8")
    first = json.loads(re.findall(r'id="spec-regions[^"]*">(.*?)</script>', text)[0])
    squares = [[float(part) for part in line.split(",")[:5]] for line in _lines(first)]
    step = 4 / 6
    total = {cls: sum((a2 - a) * (b2 - b) for a, a2, b, b2, c in squares if c == cls) for cls in (3, 8)}
    assert total[3] == pytest.approx(28 * step**2, rel=1e-3)
    assert total[8] == pytest.approx(21 * step**2, rel=1e-3)


def test_a_name_with_markup_stays_text(site: Path) -> None:
    assert EVIL not in (site / "analyses.html").read_text(encoding="utf-8")


def test_a_run_without_analyses_has_no_page(tmp_path: Path) -> None:
    build(Report.of(a_run(tmp_path / "run")), tmp_path / "site")
    assert not (tmp_path / "site" / "analyses.html").exists()
    assert "analyses.html" not in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")


def test_drawing_needs_no_torch() -> None:
    code = "import sys, bench.report.analyses_page, bench.analysis.stored; print('torch' in sys.modules)"
    assert command("-c", code, program=(sys.executable,)).stdout == "False\n"


@pytest.mark.slow
def test_the_command_writes_what_the_report_reads(tmp_path: Path) -> None:
    asked = ("analyse", "regions", "fc500-150-10", "conv-small", "--index", "4003", "--out", tmp_path)
    first = command(*asked)
    assert (first.returncode, first.stderr) == (0, "")
    (path,) = (tmp_path / "analyses").glob("*.json")
    assert str(path) in first.stdout
    (analysis,), lost = read([tmp_path])
    assert lost == []
    assert isinstance(analysis.result, Regions)
    assert (analysis.result.index, analysis.result.label) == (4003, 8)
    assert [plane.model for plane in analysis.result.planes] == ["fc500-150-10", "conv-small"]
    assert analysis.command.endswith("--data mnist5k --index 4003 --seed 0")
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in analysis.weights.values())
    # What the file says of itself computes it again, under the same name.
    # Both in processes of one thread each: sums over more threads round otherwise.
    again = command(*analysis.command.split()[3:], "--out", tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert str(path) in again.stdout
    (repeated,), _ = read([tmp_path])
    assert repeated.result == analysis.result


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("regoins", "lenet"), "unknown analysis 'regoins': did you mean regions"),
        (("units", "lennet"), "unknown model 'lennet': did you mean lenet"),
        (("regions", "lenet", "--index", "5000"), "--index 5000: mnist5k has images 0 to 4999"),
        (("regions", "lenet-cifar"), "model 'lenet-cifar' judges inputs of shape (3, 32, 32), mnist5k has"),
        (("sparsity", "lenet", "lenet"), "a model is named twice"),
        (("regions", "lenet+random-resize"), "model 'lenet+random-resize' is randomised"),
        (("units", "lenet", "--norm", "spatial"), "--norm spatial: analyses attack with pgd"),
        (("units", "lenet", "--limit", "0"), "--limit must be at least 1"),
        (("sparsity", "lenet", "--data", "npz:absent.npz"), "absent.npz"),
    ],
)
def test_mistakes_are_one_clear_line(
    tmp_path: Path, capsys: Capsys, arguments: tuple[str, ...], says: str
) -> None:
    assert main(["analyse", *arguments, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "analyses").exists()


def test_a_model_of_other_classes_is_refused(tmp_path: Path, capsys: Capsys) -> None:
    model = tmp_path / "net.py"
    model.write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 3))\n"
    )
    assert main(["analyse", "regions", f"file:{model}:make", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert "3 classes" in said or "class" in said


@pytest.mark.slow
def test_the_image_is_the_first_that_every_model_gets_right(tmp_path: Path) -> None:
    """A net that calls everything 1 leaves the panel's first one: its second image, after a zero."""
    (tmp_path / "one.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    layer = nn.Linear(784, 10)\n"
        "    nn.init.normal_(layer.weight, std=1e-6)\n"
        "    nn.init.zeros_(layer.bias)\n"
        "    layer.bias.data[1] = 1.0\n"
        "    return nn.Sequential(nn.Flatten(), layer)\n"
    )
    own = f"file:{tmp_path / 'one.py'}:make"
    assert main(["analyse", "regions", "fc500-150-10", own, "--out", str(tmp_path)]) == 0
    (analysis,), _ = read([tmp_path])
    data = load_data("mnist5k")
    assert isinstance(analysis.result, Regions)
    assert analysis.result.index == int(data.panel(2)[1])
    assert [plane.predicted for plane in analysis.result.planes] == [1, 1]
