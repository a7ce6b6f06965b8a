"""Mistakes in a matrix: refused with its file before anything runs, or a failed cell with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bench.cli import main
from bench.store import Store

MATRIX = """
data = "mnist5k"
models = ["fc500-150-10"]
defenses = ["none"]
attacks = ["{attack}"]
certificates = []
threats = [{{ norm = "{norm}", eps = 0.1 }}]
[images]
cheap = 10
medium = 10
expensive = 10
extreme = 10
[parameters.{attack}]
{parameter}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "norm", "parameter", "message"),
    [
        ("pgd", "linf", 'target = "3"', "target 3 is the label of 1 samples (the first has index"),
        ("log-odds", "linf", 'target = "11"', "target 11 is no class of the model: choose one of 0..9"),
        ("rp2", "mask", 'mask = "MASK"', "the mask has shape (5, 6) but the images have (28, 28)"),
        ("rp2", "mask", 'mask = "nowhere.png"', "no mask file nowhere.png"),
    ],
)
def test_a_mistake_in_a_matrix_is_a_failed_cell_with_its_reason(
    attack: str, norm: str, parameter: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (6, 5), 255).save(tmp_path / "mask.png")
    matrix = tmp_path / "mine.toml"
    parameter = parameter.replace("MASK", str(tmp_path / "mask.png"))
    matrix.write_text(MATRIX.format(attack=attack, norm=norm, parameter=parameter))
    assert main(["run", "--matrix", str(matrix), "--workers", "1", "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    store = Store(tmp_path / "out")
    assert [header.status for header in map(store.header, store.load_run().cells) if header] == ["failed"]


KINDS = {
    "text for a number": ("pgd", 'steps = "many"', "parameters.pgd.steps is a whole number, not 'many'"),
    "a part of a step": ("pgd", "steps = 2.5", "parameters.pgd.steps is a whole number, not 2.5"),
    "a truth value": ("cw", "confidence = true", "parameters.cw.confidence is a number, not True"),
    "no truth value": ("pgd", "early_stop = 1", "parameters.pgd.early_stop is true or false, not 1"),
    "a number for a name": ("pgd", "loss = 3", "parameters.pgd.loss is a text, not 3"),
    "no list": ("cascade", "attacks = 3", "parameters.cascade.attacks is a list of names, not 3"),
    "numbers in a list": ("best", "steps = [3]", "parameters.best.steps is a list of names, not [3]"),
    "a table for an attack": ("transfer", "attack = {}", "parameters.transfer.attack is an attack, like"),
    "of a certificate": ("exact", 'seconds = "long"', "parameters.exact.seconds is a number, not 'long'"),
    "unknown": ("pgd", "step = 3", "unknown parameter of pgd 'step': did you mean steps"),
}
VALUES = {
    "a name that is none": ("pgd", 'loss = "cee"', "cee"),
    "no steps": ("pgd", "steps = -1", "parameters.pgd: pgd needs steps and restarts >= 1, not -1"),
    "a count below none": ("fmn", "halvings = -1", "attack 'fmn' has halvings = -1: give a number from 0 up"),
    "an attack that is none": ("transfer", 'attack = "pgdd"', "unknown attack 'pgdd': did you mean pgd"),
    "an attack's own": ("transfer", 'attack = "pgd(steps=many)"', "pgd(steps=...) is a whole number"),
    "an attack's own count": ("transfer", 'attack = "fmn(halvings=-2)"', "attack 'fmn' has halvings = -2"),
    "of a certificate": ("exact", "seconds = -3", "parameters.exact: a time limit of -3 s leaves no time"),
    "a mesh file": ("turtle", 'mesh = "nowhere.obj"', "no mesh file nowhere.obj"),
}


def refused(folder: Path, text: str, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line with which a run of the matrix `text` is refused before anything is computed or kept."""
    matrix, out = folder / "mine.toml", folder / "out"
    matrix.write_text(text)
    assert main(["run", "--matrix", str(matrix), "--workers", "1", "--out", str(out), *options]) == 2
    shown = capsys.readouterr()
    assert not out.exists()
    assert "[1/" not in shown.out
    assert shown.err.startswith(f"error: {matrix}")
    assert "\n" not in shown.err.strip()
    return shown.err


def matrix_of(judge: str, parameter: str) -> str:
    """A matrix that runs `judge` on one network with the line `parameter` in its table."""
    text = MATRIX.format(attack=judge, norm="linf", parameter=parameter)
    if judge in ("exact", "best"):
        text = text.replace(f'["{judge}"]', "[]").replace("certificates = []", f'certificates = ["{judge}"]')
    return text.replace("[images]", 'sources = ["lenet"]\n[images]')


@pytest.mark.parametrize("case", KINDS)
def test_a_parameter_of_another_kind_is_refused_with_file_and_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge, parameter, message = KINDS[case]
    for options in ((), ("--dry-run",)):
        line = refused(tmp_path, matrix_of(judge, parameter), capsys, *options)
        assert message in line
        assert "mine.toml, line 14: " in line


def test_it_is_refused_where_the_matrix_leaves_the_component_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = matrix_of("fgsm", "").replace("[parameters.fgsm]", '[parameters.pgd]\nsteps = "many"')
    assert "parameters.pgd.steps is a whole number" in refused(tmp_path, text, capsys)


@pytest.mark.parametrize("case", VALUES)
def test_a_value_that_its_component_refuses_is_refused_before_anything_runs(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge, parameter, message = VALUES[case]
    assert message in refused(tmp_path, matrix_of(judge, parameter), capsys)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('defenses = ["interval(eps=many)"]', "interval(eps=...) is a number from 0 up, not 'many'"),
        ('models = ["lenet+interval(eps=many)"]', "interval(eps=...) is a number from 0 up, not 'many'"),
        ('models = ["lenet+bit-depth(bits=few)"]', "bit-depth(bits=...) is a whole number, not 'few'"),
        ('sources = ["lenet+intervall"]', "unknown defense 'intervall': did you mean interval"),
        (
            'defenses = ["interval(epochs=-3)"]',
            "interval needs epochs to be a whole number from 1 up, not -3",
        ),
        ('models = ["lenet+bit-depth(bits=0)"]', "bit-depth"),
    ],
)
def test_a_defence_in_a_matrix_is_refused_with_its_file(
    row: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = matrix_of("fgsm", "").split("\n")
    field = row.partition(" ")[0]
    text = "\n".join(row if line.startswith(field) else line for line in rows)
    assert message in refused(tmp_path, text, capsys)


@pytest.mark.slow
def test_a_second_run_in_one_folder_is_refused_and_a_finished_one_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix, out = tmp_path / "mine.toml", tmp_path / "out"
    matrix.write_text(matrix_of("fgsm", ""))
    line = ["run", "--matrix", str(matrix), "--workers", "1", "--out", str(out)]
    with Store(out).claimed():
        assert main(line) == 2
        assert main([*line, "--dry-run"]) == 0
        said = capsys.readouterr().err
        assert said.startswith(f"error: {out}: another process is running into it")
        assert len(said.splitlines()) == 1
        assert not (out / "records").exists()
    assert main(line) == 0
    with Store(out).claimed():
        assert main(line) == 0


def test_a_line_with_brackets_is_printed_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are no markup: a path or a table of TOML may have them."""
    matrix = tmp_path / "mine.toml"
    text = matrix_of("fgsm", "").replace("cheap = 10", "cheap = 0").replace('["fgsm"]', '["fgsm", "apgd"]')
    matrix.write_text(text)
    out = tmp_path / "[bold]out"
    assert main(["run", "--matrix", str(matrix), "--dry-run", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "attack fgsm on fc500-150-10: gets no image: cheap = 0 under [images], give it some" in shown


def test_numbers_may_be_written_without_a_point(tmp_path: Path) -> None:
    matrix = tmp_path / "mine.toml"
    matrix.write_text(matrix_of("exact", "seconds = 3"))
    assert main(["run", "--matrix", str(matrix), "--dry-run", "--out", str(tmp_path / "out")]) == 0
