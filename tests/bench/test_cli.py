"""The command line from outside: help, lists, mistakes in one line, damaged records, hidden packages."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bench.cli
import bench.options
from bench.catalog import load
from bench.registered import catalog
from bench.spec import matrix_names
from bench.store import Store
from models.checkpoint import SHIPPED
from tests.bench.commands import command, contents, times

OPTIONS = {
    "run": "--matrix --model --attack --defense --certify --data --data-root --download --limit --device "
    "--workers --seed --out --dry-run",
    "train": "--data-root --download --device --seed --out --force",
    "list": "--json",
    "table": "--out",
    "check": "--baseline --matrix --junit --update --allow --workers --out",
    "evaluate": "--data --norm --eps --limit --attack --certify --data-root --download --strict --device "
    "--seed --proof",
    "smallest": "--data --norm --limit --attack --seconds --tolerance --out --data-root --download --device "
    "--seed",
    "verify-proof": "--weights",
    "certify": "--onnx --vnnlib --timeout --witness --batch --results --seed",
}
KINDS = ("attacks", "defenses", "certificates", "models", "data", "matrices")
MATRIX = """models = ["fc500-150-10+none"]
attacks = ["fgsm", "universal"]
certificates = ["ibp"]
threats = [{ norm = "linf", eps = "0.05" }]

[images]
cheap = 5
medium = 4990
expensive = 5
extreme = 5
"""


def inside(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """The exit code and the streams of a command run in this process."""
    code = bench.cli.main([str(argument) for argument in arguments])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


@pytest.mark.parametrize("name", OPTIONS)
def test_help_names_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, errors = inside(capsys, name, "--help")
    assert (code, errors) == (0, "")
    assert [option for option in OPTIONS[name].split() if option not in shown] == []


def test_help_names_every_command() -> None:
    shown = command("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert [name for name in OPTIONS if f" {name} " not in shown.stdout] == []
    assert "python -m bench run --matrix quick" in shown.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_lists_are_the_registries(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = inside(capsys, "list", kind, "--json")
    assert code == 0
    entries = json.loads(shown)
    known = matrix_names() if kind == "matrices" else list(getattr(catalog(), kind))
    assert [entry["name"] for entry in entries] == known
    assert [entry["name"] for entry in entries if not entry["summary"].strip()] == []
    code, table, _ = inside(capsys, "list", kind)
    assert code == 0
    assert [name for name in known if name not in table] == []


def test_what_certificates_understand_is_listed_by_torchs_names(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = inside(capsys, "list", "operations", "--json")
    assert code == 0
    entries = {entry["name"]: entry["summary"] for entry in json.loads(shown)}
    named = {name for names in entries for name in names.split(", ")}
    assert {"nn.Conv2d", "conv2d", "nn.MultiheadAttention", "softmax", "relu", "getitem"} <= named
    assert all(entries.values())
    assert not any(name.endswith("_") for name in named)
    code, table, _ = inside(capsys, "list", "operations")
    assert code == 0
    assert "nn.LayerNorm" in table


def test_the_weights_that_ship_are_listed_with_what_their_cards_say(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, shown, _ = inside(capsys, "list", "weights", "--json")
    assert code == 0
    entries = {entry["name"]: entry["summary"] for entry in json.loads(shown)}
    assert sorted(entries) == sorted(json.loads(card.read_bytes())["name"] for card in SHIPPED.glob("*.json"))
    assert entries["lenet"].startswith("99.32 % of mnist_test_10000, 12 epochs")
    # Half a minute is not none.
    assert not any(summary.endswith(", 0 min") for summary in entries.values())
    assert any(re.search(r", [1-9]\d? s$", summary) for summary in entries.values())
    code, table, _ = inside(capsys, "list", "weights")
    assert code == 0
    assert "fc500-150-10+polytope" in table


def test_the_cached_catalog_is_that_of_the_registries() -> None:
    assert load() == catalog()


UNKNOWN = {
    "matrix": (("run", "--matrix", "quik"), "unknown matrix 'quik': did you mean quick"),
    "model": (("run", "--model", "lenett"), "unknown model 'lenett': did you mean lenet"),
    "attack": (("run", "--attack", "fgms"), "unknown attack 'fgms': did you mean "),
    "defence": (("run", "--defense", "adversarial-pdg"), "did you mean adversarial-pgd"),
    "defence of a model": (
        ("run", "--model", "lenet+polytop"),
        "unknown defense 'polytop': did you mean polytope",
    ),
    "certificate": (("run", "--certify", "polytop"), "unknown certificate 'polytop': did you mean polytope"),
    "data": (("run", "--data", "mnist5"), "unknown data set 'mnist5': did you mean mnist5k"),
    "model to train": (("train", "lenett"), "unknown model 'lenett': did you mean lenet"),
    "model that refuses": (("train", "lenet+polytope"), "polytope cannot train lenet: max pooling"),
    "limit": (("run", "--limit", "0"), "--limit must be at least 1, not 0"),
    "workers": (("run", "--workers", "0"), "--workers must be at least 1, not 0"),
    "matrix file": (("run", "--matrix", "absent.toml"), "no matrix file absent.toml"),
    "baseline": (("check", "--baseline", "absent.parquet"), "no baseline absent.parquet: make one with"),
    "samples that may get worse": (("check", "--allow", "-1"), "--allow must be at least 0, not -1"),
    "workers of a check": (("check", "--workers", "0"), "--workers must be at least 1, not 0"),
    "baseline that cannot be written": (
        ("check", "--update", "--baseline", f"{__file__}/ci.parquet"),
        f"cannot write into {__file__} (",
    ),
    "JUnit file that cannot be written": (
        ("check", "--baseline", "results/baselines/ci.parquet", "--junit", f"{__file__}/x/junit.xml"),
        f"cannot write into {__file__}/x (",
    ),
    "folder that is a file": (("run", "--out", __file__), f"cannot write into {__file__} (File exists)"),
    "folder of a run that is a file": (("table", "--out", __file__), f"{__file__}/run.json: Not a directory"),
    "run to tabulate": (
        ("table", "--out", "absent"),
        "no run under absent: python -m bench run --out absent",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_mistake_is_one_line_and_exit_code_2(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = UNKNOWN[case]
    code, shown, errors = inside(capsys, *arguments)
    assert (code, shown) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors


def test_a_mistake_seen_from_outside() -> None:
    shown = command("run", "--attack", "fgms")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert re.match("error: unknown attack 'fgms': did you mean .*fgsm", shown.stderr)
    assert shown.stderr.count("\n") == 1


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = inside(capsys, "run", "--debug", "--attack", "fgms")
    assert code == 2
    assert "Traceback (most recent call last)" in errors
    assert errors.splitlines()[-1].startswith("error: unknown attack")


@pytest.mark.parametrize(
    "arguments", [("list", "attakcs"), ("rnu",), ("run", "--matrx", "ci"), ("run", "--limit", "x")]
)
def test_usage_errors_exit_with_2_and_no_traceback(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = inside(capsys, *arguments)
    assert code == 2
    assert errors != ""
    assert "Traceback" not in errors


def test_an_unreadable_matrix_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MATRIX.replace('["ibp"]', '["ibp"'), encoding="utf-8")
    code, _, errors = inside(capsys, "run", "--matrix", path, "--out", tmp_path)
    assert code == 2
    assert errors.startswith(f"error: {path}: not valid TOML: ")
    assert "line 4" in errors
    assert errors.count("\n") == 1


def test_an_unexpected_error_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(bench.options, "load", broken)
    code, _, errors = inside(capsys, "list", "models")
    assert code == 2
    assert errors == "internal error: RuntimeError: planted (--debug shows where)\n"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run of two cells that finish and one that fails: its folder and what it said."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "mine.toml").write_text(MATRIX, encoding="utf-8")
    shown = command("run", "--matrix", folder / "mine.toml", "--workers", "1", "--out", folder / "out")
    return folder, shown


@pytest.fixture
def copy(ran: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> Path:
    """A copy of that run, to change."""
    shutil.copytree(ran[0], tmp_path / "copy")
    return tmp_path / "copy"


def again(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The two cells that finish, run again in the same folder."""
    arguments = ("--attack", "fgsm", "--certify", "ibp", "--workers", "1", "--out", folder / "out")
    return command("run", "--matrix", folder / "mine.toml", *arguments, *more)


def test_a_cell_that_fails_is_a_row_with_its_reason(
    ran: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, shown = ran
    assert shown.returncode == 1
    assert "Traceback" not in shown.stderr
    (line,) = [line for line in shown.stderr.splitlines() if line.startswith("failed: ")]
    assert "universal" in line
    assert "images beside the 4990 scored: lower --limit" in line
    assert "1 of 3 cells failed; the others are kept" in shown.stderr
    store = Store(folder / "out")
    headers = [store.header(cell_id) for cell_id in store.load_run().cells]
    assert sorted(header.status for header in headers if header) == ["done", "done", "failed"]
    assert {path.suffix for path in (folder / "out" / "leaderboards").iterdir()} == {".csv", ".md", ".html"}


def test_a_log_line_per_cell_where_there_is_no_terminal(
    ran: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    lines = [line for line in ran[1].stdout.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in lines] == ["[1/3", "[2/3", "[3/3"]
    assert sum("fc500-150-10 | fgsm | linf-0.05 | 5 images" in line for line in lines) == 1
    assert "\x1b" not in ran[1].stdout


def test_a_finished_run_runs_nothing_again(copy: Path) -> None:
    before = times(copy / "out")
    shown = again(copy)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "[1/" not in shown.stdout
    assert times(copy / "out") == before


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-200], pytest.param(lambda content: b"", marks=pytest.mark.slow)]
)
def test_a_damaged_record_alone_is_run_again(damage, copy: Path) -> None:
    before = times(copy / "out")
    store = Store(copy / "out")
    cells = {
        header.cell.judge.name: header.cell.id
        for header in map(store.header, store.load_run().cells)
        if header
    }
    path = store.path(cells["ibp"])
    whole = store.get(cells["ibp"])
    path.write_bytes(damage(path.read_bytes()))
    shown = again(copy)
    assert shown.returncode == 0
    lines = [line for line in shown.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == 1
    assert lines[0].startswith("[1/1] fc500-150-10 | ibp")
    after = times(copy / "out")
    assert {name for name in before if after[name] != before[name]} == {path.name}
    made = store.get(cells["ibp"])
    assert whole is not None
    assert made is not None
    assert made.outcomes.equals(whole.outcomes)


def test_a_dry_run_says_what_would_run_and_writes_nothing(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(copy / "out")
    before = times(copy / "out")
    arguments = ("--matrix", copy / "mine.toml", "--out", copy / "out", "--dry-run")
    code, shown, _ = inside(capsys, "run", *arguments)
    assert code == 0
    states = {line.split(" | ")[1]: line[:9].strip() for line in shown.splitlines() if " | " in line}
    assert states == {"fgsm": "done", "ibp": "done", "universal": "would run"}
    assert "3 cells, 1 to run" in shown
    assert times(copy / "out") == before
    code, shown, _ = inside(capsys, "run", *arguments, "--limit", "3")
    assert "3 cells, 3 to run" in shown
    assert len(store.load_run().cells) == 3


def test_table_rebuilds_the_same_bytes(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(copy / "out" / "leaderboards")
    shutil.rmtree(copy / "out" / "leaderboards")
    code, shown, errors = inside(capsys, "table", "--out", copy / "out")
    assert (code, errors) == (0, "")
    assert contents(copy / "out" / "leaderboards") == before
    assert "linf-0.05" in shown


def test_table_names_a_damaged_record_in_one_line(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(copy / "out")
    path = store.path(store.load_run().cells[0])
    path.write_bytes(path.read_bytes()[:-50])
    code, _, errors = inside(capsys, "table", "--out", copy / "out")
    assert code == 2
    assert errors.count("\n") == 1
    assert str(path) in errors


def test_a_contradiction_makes_the_run_fail_loudly(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stored certificate is made to prove every sample, also those that fgsm breaks."""
    store = Store(copy / "out")
    records = {record.cell.judge.name: record for record in store.many(store.load_run().cells)}
    fgsm = records["fgsm"].outcomes
    fgsm.loc[0, ["clean", "success", "distance"]] = [True, True, 0.01]
    records["ibp"].outcomes["certified"] = True
    for name in ("fgsm", "ibp"):
        store.put(records[name])
    code, _, errors = inside(capsys, "table", "--out", copy / "out")
    assert code == 1
    named = f"CONTRADICTION: sample {fgsm['index'][0]} of mnist5k on fc500-150-10: 'ibp' certifies linf 0.05"
    assert named in errors
    assert "'fgsm' breaks it at 0.01" in errors


HIDING = {
    "a folder": lambda place: (place / "models").mkdir(),
    "a package": lambda place: ((place / "attacks").mkdir(), (place / "attacks" / "__init__.py").touch()),
    "a module": lambda place: (place / "models.py").write_text("raise SystemExit('imported')\n"),
}


@pytest.mark.parametrize("case", HIDING)
def test_a_package_that_hides_ours_is_noticed(case: str, tmp_path: Path) -> None:
    HIDING[case](tmp_path)
    shown = command("list", "models", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.count("\n") == 1
    assert "run `rhobust` instead of `python -m bench`" in shown.stderr
    assert str(tmp_path) in shown.stderr


def test_the_console_command_is_immune(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "rhobust"
    if not script.exists():
        pytest.skip("the console command is not installed beside this python")
    for hide in HIDING.values():
        hide(tmp_path)
    shown = command("list", "models", "--json", cwd=tmp_path, program=(str(script),))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "lenet" in [entry["name"] for entry in json.loads(shown.stdout)]


def test_other_folders_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "data").mkdir()
    shown = command("list", "matrices", "--json", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")


def test_help_breaks_lines_for_the_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("check", "certify", "evaluate"):
        assert bench.cli.main([name, "--help"]) == 0
        lines = [line.strip() for line in capsys.readouterr().out.split("╭")[0].splitlines()]
        following = [(line, after) for line, after in itertools.pairwise(lines) if line and after]
        assert following
        # A line ends where the next word would not have fitted.
        assert all(len(line) + 1 + len(after.split()[0]) > 78 for line, after in following), name
